"""What a small call leaves out, it may leave out only where nothing can need it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

import pytest
from attrs import frozen

from container.ipc import Contract, Endpoint, Fd
from container.ipc.codec import codecs_of
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
