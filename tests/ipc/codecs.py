"""A contract of one route, `greeter/greet`, and types for its argument."""

from __future__ import annotations

import enum
import inspect
import os
import uuid
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from attrs import field, frozen

from container.ipc import InvalidArgument
from container.ipc.codec import Incoming, Outgoing, RouteCodec, encode
from container.ipc.contract import Route

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
ID = uuid.UUID(int=7)


class Colour(enum.Enum):
    """An enum of text."""

    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    """An enum of integers."""

    LOW = 1
    HIGH = 2


class Mode(enum.StrEnum):
    """An enum that is text."""

    FAST = "fast"


@frozen
class Port:
    """A class in a class."""

    host: str
    number: int = 80


@frozen
class Who:
    """A class with classes in it."""

    name: str
    ports: tuple[Port, ...] = ()
    labels: dict[str, Port] = field(factory=dict[str, Port])


def codec(argument: Any, result: Any = None) -> RouteCodec:
    """Return the codec of `greeter/greet(who: argument) -> result`."""
    parameter = inspect.Parameter(
        "who", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=argument
    )
    return RouteCodec.of(
        Route("greeter", "greet", inspect.Signature([parameter]), result, documentation="")
    )


def received(annotation: Any, value: object) -> Any:
    """Return an argument as a handler gets it when a peer sends `value`."""
    raw = msgspec.Raw(msgspec.msgpack.encode({"who": value}))
    return codec(annotation).arguments(raw, Incoming())["who"]


def refusal(annotation: Any, value: object) -> str:
    """Return what the peer that sends `value` is told."""
    with pytest.raises(InvalidArgument) as caught:
        received(annotation, value)
    return caught.value.message


def there_and_back(annotation: Any, value: object) -> Any:
    """Return an argument that one side sends and the other receives, descriptors duplicated."""
    both = codec(annotation, annotation)
    outgoing = Outgoing()
    body = encode(both.lower(both.bind((value,), {})), outgoing, "greeter/greet")
    incoming = Incoming.of([os.dup(fd) for fd in outgoing.filenos()])
    return both.arguments(msgspec.Raw(body), incoming)["who"]
