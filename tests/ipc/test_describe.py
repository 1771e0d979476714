"""Contracts as values: what a stranger learns of routes and types, and nothing not offered."""

from __future__ import annotations

import enum
import uuid
from abc import abstractmethod
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Literal

import trio
from attrs import field, frozen

from container.ipc import Contract, Endpoint, Fd
from container.ipc.contract import fingerprint
from container.ipc.describe import TypeDescription, describe_contract


class Mode(enum.Enum):
    """How."""

    SHARED = "shared"
    EXCLUSIVE = "exclusive"


@frozen
class Node:
    """A thing that may hold others."""

    name: str
    """What it is called."""
    mode: Mode = Mode.SHARED
    inner: tuple[Node, ...] = ()
    tags: list[str] = field(factory=list[str])


class Small(Contract, name="small"):
    @abstractmethod
    async def ping(self) -> None: ...


class Large(Contract, name="large", version=3):
    """Everything that can travel."""

    @abstractmethod
    async def take(
        self,
        node: Node,
        source: Fd,
        other: Endpoint[Small],
        level: Literal["low", 2],
        pair: tuple[int, str] | None = None,
        table: dict[str, float] | None = None,
    ) -> uuid.UUID:
        """Take all.

        More of it.
        """

    @abstractmethod
    def ticks(self) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[datetime]]: ...

    @abstractmethod
    async def secret(self, code: Secret) -> bytes: ...


@frozen
class Secret:
    code: str


def test_a_route_is_described_as_a_person_would_write_it() -> None:
    described = describe_contract(Large)
    assert (described.name, described.version) == ("large", 3)
    assert described.fingerprint == fingerprint(Large)
    assert described.documentation == "Everything that can travel."
    take, ticks, secret = described.routes
    assert take.text == (
        "take(node: Node, source: Fd, other: Endpoint[small], level: Literal['low', 2], "
        "pair: tuple[int, str] | None = None, table: dict[str, float] | None = None) -> UUID"
    )
    assert take.documentation == "Take all.\n\nMore of it."
    assert (take.kind, ticks.kind) == ("call", "scope")
    assert ticks.text == "ticks() => ReceiveChannel[datetime]"
    assert ticks.result.kind == "receiver"
    assert secret.path == "large/secret"


def test_a_type_is_a_tree_too() -> None:
    take = describe_contract(Large).routes[0]
    types = {parameter.name: parameter.type for parameter in take.parameters}
    assert types["node"] == TypeDescription("Node", "class", "Node")
    assert (types["source"].kind, types["other"].name) == ("descriptor", "small")
    assert types["level"].values == ("low", 2)
    pair, nothing = types["pair"].arguments
    assert [part.kind for part in pair.arguments] == ["int", "str"]
    assert (types["pair"].kind, pair.kind, nothing.kind) == ("union", "tuple", "nothing")
    table = types["table"].arguments[0]
    assert (table.kind, [part.text for part in table.arguments]) == ("dict", ["str", "float"])
    assert [parameter.default for parameter in take.parameters] == [None] * 4 + ["None"] * 2


def test_a_class_is_described_once_with_what_stands_beneath_its_fields() -> None:
    classes = {entry.name: entry for entry in describe_contract(Large).classes}
    assert set(classes) == {"Node", "Mode", "Secret"}
    assert classes["Mode"].values == ("shared", "exclusive")
    node = classes["Node"]
    assert node.documentation == "A thing that may hold others."
    fields = {entry.name: entry for entry in node.fields}
    assert fields["name"].documentation == "What it is called."
    assert fields["name"].default is None
    assert fields["mode"].default == "shared"
    assert fields["inner"].type.text == "tuple[Node, ...]"
    assert fields["tags"].default == "list()"


def test_what_is_not_offered_leaves_no_trace() -> None:
    described = describe_contract(Large, ["ticks"])
    assert [route.path for route in described.routes] == ["large/ticks"]
    assert described.classes == ()


def test_two_classes_of_one_name_are_told_apart() -> None:
    def made() -> type:
        @frozen
        class Same:
            value: int

        return Same

    one, two = made(), made()

    class Both(Contract, name="both"):
        @abstractmethod
        async def meet(self, one: int, two: int) -> None: ...

    Both.meet.__annotations__ = {"one": one, "two": two, "return": None}
    described = describe_contract(Both)
    assert len({entry.name for entry in described.classes}) == 2
