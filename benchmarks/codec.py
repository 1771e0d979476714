"""The row of the codec: a message of twelve fields to bytes and back, in this process.

Ours is what a call does with its arguments, checks included. The peer is cattrs as it comes, which
coerces, on the same encoder and decoder; dates and bytes are native in both.
"""

from __future__ import annotations

import enum
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import cattrs
import msgspec
from attrs import define

from benchmarks.figures import Figure, Goal
from benchmarks.options import Options
from container.ipc import Contract
from container.ipc.codec import NOTHING_IN, NOTHING_OUT, codecs_of, encode

MESSAGE, SMALL = "ipc.codec", "ipc.codec.small"
NAMES = (MESSAGE, SMALL)
REPEATS = 200
"""Of a round."""


class Colour(enum.Enum):
    """Text on the wire."""

    RED = "red"
    GREEN = "green"


class Priority(enum.IntEnum):
    """A number on the wire."""

    LOW = 1
    HIGH = 2


@define
class Part:
    """Six of these are in a message."""

    name: str
    quantity: int
    price: float
    tags: list[str]


@define
class Everything:
    """Twelve fields: simple ones, enums, a date, bytes, and what holds others."""

    id: str
    number: int
    ratio: float
    yes: bool
    colour: Colour
    priority: Priority
    when: datetime
    blob: bytes
    parts: list[Part]
    counts: dict[str, int]
    groups: dict[str, list[str]]
    note: str | None


@define
class Small:
    """Two fields: what a call costs that says little."""

    id: str
    number: int


class Store(Contract, name="bench.store"):
    """A route for each message."""

    @abstractmethod
    async def put(self, message: Everything) -> None:
        """Take a message."""
        ...

    @abstractmethod
    async def put_small(self, message: Small) -> None:
        """Take a small message."""
        ...


def message() -> Everything:
    """Return the message that is measured: some 800 bytes on the wire."""
    return Everything(
        id="message-0001",
        number=42,
        ratio=0.5,
        yes=True,
        colour=Colour.GREEN,
        priority=Priority.HIGH,
        when=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        blob=bytes(range(256)),
        parts=[Part(f"part-{i}", i, i * 1.25, ["a", "bb", "ccc"]) for i in range(6)],
        counts={f"key{i}": i for i in range(8)},
        groups={f"group{i}": ["x" * 8, "y" * 8] for i in range(4)},
        note=None,
    )


def ours(method: str, value: object) -> Callable[[], Any]:
    """Return the way of one argument out of a caller and into a handler."""
    codec = codecs_of(Store)[method]

    def there_and_back() -> Any:
        body = encode(codec.lower(codec.bind((value,), {})), NOTHING_OUT, codec.path)
        return codec.arguments(msgspec.Raw(body), NOTHING_IN)["message"]

    return there_and_back


def plain_cattrs(value: object) -> Callable[[], Any]:
    """Return the same way through a plain converter."""
    kind = type(value)
    converter = cattrs.Converter(detailed_validation=False)
    for native in (datetime, bytes):
        converter.register_unstructure_hook(native, lambda value: value)
        converter.register_structure_hook(native, lambda value, _: value)
    unstructure = converter.get_unstructure_hook(kind)
    structure = converter.get_structure_hook(kind)
    encoder, decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder()

    def there_and_back() -> Any:
        return structure(decoder.decode(encoder.encode(unstructure(value))), kind)

    return there_and_back


def measure(names: Sequence[str], options: Options) -> list[Figure]:
    """Measure the rows of these names."""
    made: list[Figure] = []
    if MESSAGE in names:
        made.append(_measure(MESSAGE, "put", message(), options.rounds, Goal.AT_MOST, 1.2))
    if SMALL in names:
        made.append(_measure(SMALL, "put_small", Small("abcdef", 7), options.rounds))
    return made


def _measure(
    name: str,
    method: str,
    value: object,
    rounds: int,
    goal: Goal | None = None,
    limit: float | None = None,
) -> Figure:
    sides = (ours(method, value), plain_cattrs(value))
    values: tuple[list[float], list[float]] = ([], [])
    for side in sides:
        assert side() == value
    for number in range(1 + rounds):
        for index in (0, 1) if number % 2 else (1, 0):
            taken = _microseconds(sides[index])
            if number:
                values[index].append(taken)
    return Figure(
        name=name,
        peer="plain cattrs, msgspec's msgpack",
        unit="µs",
        ours=tuple(values[0]),
        theirs=tuple(values[1]),
        goal=goal,
        limit=limit,
    )


def _microseconds(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    for _ in range(REPEATS):
        function()
    return (time.perf_counter() - started) / REPEATS * 1e6
