"""What a parent tells the processes that it starts, and what they tell it.

Two sockets go to a new pair of processes. On the first the keeper reads its order and says words
of one kind each; on the second the child serves `Life`, then `making(service)`, then hands out
the socket on which the service is served. The parent's end of either is the lifeline: the kernel
closes it however the parent ends.

| from | word | means |
|---|---|---|
| parent | length (u32), JSON | the order |
| keeper | `B`, with pidfds of the child and of the keeper | the child is born |
| keeper | `F`, u16 | it could not be forked: errno |
| parent | `T` | end the tree: SIGTERM now, SIGKILL after the bound |
| keeper | `E`, exit status (u8), signal, 0 or 255 (u8), survivors (u16) | the tree has ended |
"""

from __future__ import annotations

import json
import socket
import struct
from abc import abstractmethod
from typing import Any

from attrs import asdict, frozen

from container.ipc.contract import Contract
from container.ipc.spawning.ending import Ending, StopBounds
from container.ipc.spawning.requests import read_exactly
from container.ipc.wire.limits import Limits

KEEPER, CHILD = 3, 4
"""Descriptors of the new processes: the keeper's socket and, in the beginning, the child's."""
ORDER_BOUND = 2**20
BORN, FAILED, ENDED, TERMINATE = b"B", b"F", b"E", b"T"
UNKNOWN = 255
"""In the place of a signal: the child could not be ended."""
_ENDED = struct.Struct(">BBBH")


@frozen
class Order:
    """What to run."""

    service: str
    """Reference of the class or function that makes the service."""
    name: str
    path: tuple[str, ...]
    """`sys.path`."""
    bounds: StopBounds
    limits: Limits


def pack_order(order: Order) -> bytes:
    """Return an order as bytes."""
    body = json.dumps(asdict(order)).encode()
    return len(body).to_bytes(4, "big") + body


def read_order(control: socket.socket) -> Order:
    """Read an order from a blocking socket.

    Raises:
        EOFError: the parent is gone.
    """
    length = int.from_bytes(read_exactly(control, 4), "big")
    if length > ORDER_BOUND:
        raise EOFError
    values: dict[str, Any] = json.loads(read_exactly(control, length))
    return Order(
        service=values["service"],
        name=values["name"],
        path=tuple(values["path"]),
        bounds=StopBounds(**values["bounds"]),
        limits=Limits(**values["limits"]),
    )


def pack_ending(ending: Ending) -> bytes:
    """Return the word for an end."""
    number = ending.signal or 0
    if ending.signal is None and ending.status is None:
        number = UNKNOWN
    return _ENDED.pack(ENDED[0], ending.status or 0, number, min(ending.survivors, 65535))


ENDING_BYTES = _ENDED.size


def unpack_ending(word: bytes) -> Ending:
    """Return the end that a word tells of."""
    _, status, number, survivors = _ENDED.unpack(word)
    if number == UNKNOWN:
        return Ending(survivors=survivors)
    if number:
        return Ending(signal=number, survivors=survivors)
    return Ending(status=status, survivors=survivors)


class Life(Contract, name="container.life"):
    """What a child promises its parent; served even if its service can't be made."""

    @abstractmethod
    async def load(self) -> None:
        """Raise what went wrong when the service's module was imported, if anything did."""

    @abstractmethod
    async def live(self) -> None:
        """Return when the service has ended, its clean-up included; raise what ended it."""

    @abstractmethod
    async def stop(self) -> None:
        """Cancel the service. Does not wait for its end."""
