"""Order: what comes before what, what runs at once, and what requires what."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from container.contracts.launcher import ServiceUnit
from container.ipc import InvalidArgument
from container.launcher.dependencies import dependents, each, in_order


def units(**names: str) -> list[ServiceUnit]:
    """Return units by what they name: `a="b !c"` comes after b and requires c."""
    return [
        ServiceUnit(
            name=name,
            command=(name,),
            after=tuple(word for word in named.split() if not word.startswith("!")),
            requires=tuple(word[1:] for word in named.split() if word.startswith("!")),
        )
        for name, named in names.items()
    ]


def test_units_come_after_those_that_they_name_or_require() -> None:
    found = in_order(units(a="!c", b="", c="b nobody"))
    assert [unit.name for unit in found] == ["b", "c", "a"]
    with pytest.raises(InvalidArgument, match="a → c → b → a"):
        in_order(units(a="!c", b="!a", c="b"))
    with pytest.raises(InvalidArgument, match="a → a"):
        in_order(units(a="a"))


def test_what_requires_a_service_through_others_is_found_too() -> None:
    known = units(a="", b="!a", c="!b", d="a", e="!c !b")
    assert {unit.name for unit in dependents("a", known)} == {"b", "c", "e"}
    assert dependents("d", known) == ()


@pytest.mark.parametrize(
    ("backwards", "times"),
    [
        (False, {"a": 0, "x": 0, "b": 1, "c": 1, "d": 2}),
        (True, {"d": 0, "x": 0, "b": 1, "c": 1, "a": 2}),
    ],
)
async def test_independent_units_go_at_once_and_others_in_turn(
    autojump_clock: trio.testing.MockClock, backwards: bool, times: dict[str, float]
) -> None:
    found: dict[str, float] = {}

    async def work(name: str) -> None:
        found[name] = trio.current_time()
        await trio.sleep(1)

    await each(units(a="", b="a", c="!a", d="b !c", x="nobody"), work, backwards=backwards)
    assert found == times
