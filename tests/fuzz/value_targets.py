"""A rich contract's codec, and messages, fed with bytes that are no value of theirs."""

from __future__ import annotations

import enum
import os
import uuid
from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, Literal

import msgspec
from attrs import field, frozen

from container.ipc import Contract, Fd, Incompatible, InvalidArgument, Message
from container.ipc.codec import Incoming, Outgoing, codecs_of, encode
from tests.fuzz.machine_target import Broken


class Colour(enum.Enum):
    """An enum of text."""

    RED = "red"
    BLUE = "blue"


@frozen
class Port:
    """A class in a class."""

    host: str
    number: int = 80


@frozen
class Tree:
    """A class that contains itself, and one of each kind of field."""

    name: str
    children: tuple[Tree, ...] = ()
    labels: dict[str, Port] = field(factory=dict[str, Port])
    colour: Colour = Colour.RED
    mode: Literal["fast", "slow"] | None = None
    since: datetime | None = None
    id: uuid.UUID | None = None
    ratio: float = 0.0
    data: bytes = b""


@frozen
class Stdio:
    """Descriptors in a class."""

    stdin: Fd | None = None
    more: tuple[Fd, ...] = ()


class Rich(Contract, name="rich"):
    """One route of each kind of type."""

    @abstractmethod
    async def plain(self, text: str, number: int = 0, flag: bool = False) -> int:
        """Take and return what needs no hook."""

    @abstractmethod
    async def tree(self, tree: Tree, ports: list[Port]) -> Tree:
        """Take and return classes."""

    @abstractmethod
    async def descriptors(self, stdio: Stdio, fd: Fd | None = None) -> Stdio:
        """Take and return descriptors."""

    @abstractmethod
    async def choice(self, value: int | str | None, more: tuple[int, str]) -> int | str | None:
        """Take and return choices."""


ROUTES = list(codecs_of(Rich).values())
DESCRIPTORS = 3


def _open(count: int) -> tuple[Incoming, list[int]]:
    numbers = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(count)]
    return Incoming.of(numbers), numbers


def _check_closed(numbers: list[int]) -> None:
    for number in numbers:
        with suppress(OSError):
            os.fstat(number)
            os.close(number)
            raise Broken(f"descriptor {number} stays open")


def codec(data: bytes) -> None:
    """Decode arguments or a result: what is accepted survives being sent on.

    The first byte chooses the route, the direction, and how many descriptors came.
    """
    if not data:
        return
    route = ROUTES[data[0] % len(ROUTES)]
    incoming, numbers = _open((data[0] >> 4) % (DESCRIPTORS + 1))
    raw = msgspec.Raw(data[1:])
    try:
        if data[0] & 8:
            route.result_of(raw, incoming)
        else:
            made = route.arguments(raw, incoming)
            if not route.arguments_hold:
                _check_same(made, route.bind, route.lower, route.arguments)
    except (InvalidArgument, Incompatible):
        pass
    finally:
        incoming.close()
    _check_closed(numbers)


def _check_same(
    made: dict[str, Any],
    bind: Callable[..., Any],
    lower: Callable[..., dict[str, Any]],
    arguments: Callable[..., dict[str, Any]],
) -> None:
    try:
        sent = encode(lower(bind((), made)), Outgoing(), "rich")
        again = encode(lower(bind((), arguments(msgspec.Raw(sent), Incoming()))), Outgoing(), "")
    except InvalidArgument as error:
        raise Broken(f"arguments that were accepted are refused: {error}") from error
    if sent != again:
        raise Broken("arguments changed on their way")


def message(data: bytes) -> None:
    """Decode a message; ask for each key by the wrong and the right accessor; send it on."""
    if not data:
        return
    incoming, numbers = _open(data[0] % (DESCRIPTORS + 1))
    try:
        with Message.decode("rich/tree", data[1:], incoming) as made:
            repr(made)
            for key in made.keys():  # noqa: SIM118
                for ask in (made.string, made.int64, made.data, made.list, made.dict, made.date):
                    with suppress(InvalidArgument):
                        ask(key)
            if not numbers:
                sent, _ = made.encode()
                again, _ = Message.decode("rich/tree", sent, Incoming()).encode()
                if sent != again:
                    raise Broken("a message changed on its way")
    except InvalidArgument:
        pass
    finally:
        incoming.close()
    _check_closed(numbers)
