"""The strictness of values: what is taken is what the rules say, by an oracle of their own."""

from __future__ import annotations

import enum
import types
import typing
import uuid
from datetime import datetime
from typing import Any

import attrs
import msgspec
import pytest
from attrs import field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from container.ipc import InvalidArgument
from container.ipc.codec import Incoming

from .codecs import (
    NOW,
    Colour,
    Level,
    Mode,
    Port,
    Who,
    codec,
    received,
    refusal,
    there_and_back,
)


@frozen
class Everything:
    """Fields of every simple kind, required and not."""

    text: str
    number: int
    ratio: float
    raw: bytes
    when: datetime
    colour: Colour
    level: Level
    names: list[str]
    pairs: tuple[tuple[str, int], ...]
    counts: dict[str, int]
    nested: dict[str, list[str]]
    ports: list[Port]
    note: str | None
    either: int | str
    yes: bool = True
    id: uuid.UUID | None = None
    modes: set[Mode] = field(factory=set[Mode])
    by_level: dict[Level, float] = field(factory=dict[Level, float])


EVERYTHING: dict[str, Any] = {
    "text": "a",
    "number": 1,
    "ratio": 0.5,
    "raw": b"x",
    "when": NOW,
    "colour": "red",
    "level": 1,
    "names": ["a", "b"],
    "pairs": [["a", 1], ["b", 2]],
    "counts": {"a": 1},
    "nested": {"a": ["b"]},
    "ports": [{"host": "a"}, {"host": "b", "number": 1}],
    "note": None,
    "either": "x",
}
"""What arrives for one, but what has a default."""


@frozen(kw_only=True)
class Named:
    """Fields by keyword, private ones, one that is not passed, one whose default needs the rest."""

    first: str
    _second: int = 2
    third: int = field(init=False, default=3)
    fourth: str = field(default=attrs.Factory(lambda self: self.first * 2, takes_self=True))
    fifth: int = field(default=-5, converter=abs)


FULL = Named(first="a", second=3, fourth="x", fifth=6)


def test_defaults_are_those_that_the_class_itself_would_make() -> None:
    assert received(Named, {"first": "a"}) == Named(first="a")
    assert received(Named, {"first": "a", "_second": 9}) == Named(first="a", second=9)
    assert refusal(Named, {"first": "a", "third": 3}).endswith("who: unknown field 'third'")
    assert there_and_back(Named, FULL) == FULL
    one, two = received(Who, {"name": "a"}), received(Who, {"name": "a"})
    assert one.labels is not two.labels


def fits(annotation: Any, value: Any) -> bool:
    """Is a wire value one of this type, by the rules as a person would write them down?"""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is float:
        return type(value) in (int, float)
    if annotation in (str, bytes, bool, int, datetime, uuid.UUID, type(None)):
        return type(value) is annotation
    if isinstance(annotation, enum.EnumMeta):
        return any(type(m.value) is type(value) and m.value == value for m in annotation)
    if origin in (typing.Union, types.UnionType):
        return any(fits(one, value) for one in inner)
    if origin is dict:
        return type(value) is dict and all(
            fits(inner[0], k) and fits(inner[1], v) for k, v in value.items()
        )
    if origin is tuple and inner[-1] is not Ellipsis:
        return type(value) is list and len(value) == len(inner) and all(map(fits, inner, value))
    if origin in (list, tuple, set):
        return type(value) is list and all(fits(inner[0], item) for item in value)
    hints = typing.get_type_hints(annotation)
    needed = {a.name for a in attrs.fields(annotation) if a.default is attrs.NOTHING}
    return (
        type(value) is dict
        and needed <= value.keys() <= hints.keys()
        and all(fits(hints[name], item) for name, item in value.items())
    )


WIRE_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 3), st.sampled_from([1.0, 0.5, b"red", NOW]),
    st.sampled_from(["red", "1", "fast", "host"]),
)  # fmt: skip
WIRE = st.recursive(
    WIRE_SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WIRE_SCALARS, inner, max_size=2),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from([f.name for f in attrs.fields(Everything)]), WIRE, max_size=2)
)
@settings(max_examples=400, deadline=None)
def test_what_is_taken_is_what_the_rules_say_and_nothing_else(changed: dict[str, Any]) -> None:
    value = EVERYTHING | changed
    raw = msgspec.msgpack.encode({"who": value})
    if fits(Everything, value):
        made = codec(Everything).arguments(msgspec.Raw(raw), Incoming())["who"]
        assert there_and_back(Everything, made) == made
    else:
        with pytest.raises(InvalidArgument):
            codec(Everything).arguments(msgspec.Raw(raw), Incoming())


@pytest.mark.parametrize("name", sorted(EVERYTHING))
@pytest.mark.parametrize("value", [None, True, 7, 7.5, "7", b"7", NOW, [7], {"7": 7}, [[]], [{}]])
def test_every_field_refuses_every_other_type_and_names_itself(name: str, value: object) -> None:
    body = EVERYTHING | {name: value}
    if fits(Everything, body):
        assert getattr(received(Everything, body), name) is not None or value is None
    else:
        assert refusal(Everything, body).startswith(f"greeter/greet: who.{name}")
