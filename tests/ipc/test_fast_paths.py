"""What a small call leaves out, it may leave out only where nothing can need it."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Literal

import pytest
import trio
from attrs import define, field, frozen

from container.ipc import Actor, Contract, Endpoint, Fd, current_call, in_memory
from container.ipc.codec import codecs_of
from container.ipc.context import Handling
from container.ipc.contract import holds_capabilities


class Asked(Contract, name="asked"):
    @abstractmethod
    async def ask(self, first: str, second: int, third: bool = True) -> str: ...


@frozen
class Plain:
    name: str
    inner: Plain | None = None


@frozen
class Holder:
    plain: Plain
    log: Fd | None = None
    inner: Holder | None = None


@pytest.mark.parametrize(
    ("annotation", "holds"),
    [
        (str, False),
        (Plain, False),
        (tuple[Plain, ...], False),
        (Literal["Fd"], False),
        (Fd, True),
        (Fd | None, True),
        (dict[str, list[Fd]], True),
        (Endpoint[Asked], True),
        (tuple[Endpoint[Asked], int], True),
        (Holder, True),
        (list[Holder | None], True),
    ],
)
def test_a_type_tells_whether_its_values_can_hold_descriptors(annotation: Any, holds: bool) -> None:
    assert holds_capabilities(annotation) is holds


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("a", 2, False), {}),
        (("a",), {"third": False, "second": 2}),
        ((), {"third": False, "second": 2, "first": "a"}),
    ],
)
def test_arguments_by_keyword_are_bound_to_their_names(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    assert list(codecs_of(Asked)["ask"].bind(args, kwargs)) == ["a", 2, False]


def test_a_default_is_filled_in() -> None:
    assert list(codecs_of(Asked)["ask"].bind(("a",), {"second": 2})) == ["a", 2, True]


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        (("a", 2, True, 4), {}),
        (("a", 2), {"other": 3}),
        (("a", 2), {"second": 3}),
    ],
)
def test_arguments_that_do_not_fit_are_a_type_error(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    with pytest.raises(TypeError):
        codecs_of(Asked)["ask"].bind(args, kwargs)


# --- calls that take turns in one scope -----------------------------------------------------------


class Turns(Contract, name="turns"):
    @abstractmethod
    async def deadline(self, wait: bool = False) -> float: ...

    @abstractmethod
    async def fail(self) -> None: ...

    @abstractmethod
    async def cancel_those_before(self) -> None: ...


@define(eq=False)
class TurnsService(Actor, Turns):
    calls: list[Handling] = field(factory=list[Handling])

    async def deadline(self, wait: bool = False) -> float:
        self.calls.append(current_call())
        if wait:
            await trio.sleep(1)
        return trio.current_effective_deadline() - trio.current_time()

    async def fail(self) -> None:
        raise KeyError("a bug")

    async def cancel_those_before(self) -> None:
        for call in self.calls:
            call.cancel()
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("wait", [False, True])
async def test_a_call_does_not_inherit_the_deadline_of_the_one_before(
    wait: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with in_memory(TurnsService()) as turns:
        for _ in range(3):
            with trio.fail_after(10):
                assert 8.9 < await turns.deadline(wait) < 10.1
            assert await turns.deadline(wait) == math.inf
        await trio.sleep(20)
        assert await turns.deadline(wait) == math.inf


async def test_a_call_after_one_that_failed_or_was_cancelled_runs_undisturbed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with in_memory(TurnsService()) as turns:
        for _ in range(3):
            with pytest.raises(Exception, match="bug"):
                await turns.fail()
            with trio.move_on_after(0.5) as scope:
                await turns.deadline(True)
            assert scope.cancelled_caught
            assert await turns.deadline(True) == math.inf


async def test_cancelling_a_call_that_has_ended_ends_no_other() -> None:
    async with in_memory(TurnsService()) as turns:
        for _ in range(3):
            await turns.deadline()
            await turns.cancel_those_before()
