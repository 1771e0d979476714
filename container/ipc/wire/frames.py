"""Frames: a header of 16 bytes and a MessagePack payload. `docs/reference/SPEC.md` is this file in prose.

Header, little-endian: payload length u32, kind u8, flags u8, descriptors u16, id u64. A frame's
descriptors travel with its first byte. Payloads are arrays, so that a field can be added at the end:
a receiver ignores elements it does not know.
"""

from __future__ import annotations

import enum
import struct
from typing import Any

import msgspec

HEADER = struct.Struct("<IBBHQ")
HEADER_BYTES = HEADER.size

MAGIC = int.from_bytes(b"ctr-ipc\n", "little")
"""The id field of a hello frame: the first 16 bytes of a connection tell what it is."""

PROTOCOL_VERSIONS = (1, 1)
"""Lowest and highest version of the protocol that this code speaks."""

FROM_CALLEE = 1
"""Flag: the id was issued by the receiver of this frame (it travels from callee to caller)."""


class Kind(enum.IntEnum):
    """What a frame is. The second column is its payload."""

    HELLO = 1
    """`[lowest, highest, limits, contracts, process, build]`; id is MAGIC."""
    CALL = 2
    """`[route, timeout ns | nil, grace ns, traceparent | nil, arguments]`"""
    REPLY = 3
    """`[value]`"""
    ERROR = 4
    """`[ended by, error]`; with id 0 it speaks of the connection and ends it."""
    CANCEL = 5
    """`[grace ns]`"""
    OPENED = 6
    """`[value]`: a scope is open."""
    CLOSE = 7
    """`[failed, grace ns]`: the holder of a scope leaves."""
    ITEM = 8
    """`[channel, value]`"""
    CREDIT = 9
    """`[channel, items, bytes]`"""
    END = 10
    """`[channel]`: no more items."""
    STOP = 11
    """`[channel, error | nil]`: the reader wants no more."""
    PING = 12
    """Empty; the id is a token."""
    PONG = 13
    """Empty; the id is the ping's token."""
    GOODBYE = 14
    """`[last id, within ns]`: calls after `last id` were not and will not be started."""


KINDS: dict[int, Kind] = {int(kind): kind for kind in Kind}


class EndedBy(enum.IntEnum):
    """Why a terminal error came, set by the framework from the handler's scope, not by the handler."""

    ITSELF = 0
    CANCEL = 1
    DEADLINE = 2


class HelloPayload(msgspec.Struct, array_like=True, frozen=True):
    """What each side says first."""

    lowest: int
    highest: int
    limits: dict[str, int]
    """`frame_bytes`, `frame_descriptors`, `in_flight`."""
    contracts: dict[str, tuple[int, str]]
    """Wire name: version, fingerprint. Of a server: what it serves; of a client: what it asks for."""
    process: str
    build: str


class CallPayload(msgspec.Struct, array_like=True, frozen=True):
    """A call; the arguments stay encoded until the handler's task decodes them."""

    route: str
    timeout: int | None
    grace: int
    trace: str | None
    arguments: msgspec.Raw


class ValuePayload(msgspec.Struct, array_like=True, frozen=True):
    """A reply's or an opened scope's value."""

    value: msgspec.Raw


class ErrorPayload(msgspec.Struct, array_like=True, frozen=True):
    """A terminal error."""

    ended_by: int
    error: dict[str, Any]


class CancelPayload(msgspec.Struct, array_like=True, frozen=True):
    """The caller no longer wants the answer."""

    grace: int


class GoodbyePayload(msgspec.Struct, array_like=True, frozen=True):
    """The sender starts no more calls."""

    last: int
    within: int


EXTENSION_TIMESTAMP = -1
"""A date: MessagePack's own timestamp, always UTC."""
EXTENSION_UUID = 1
"""16 bytes."""
EXTENSION_DESCRIPTOR = 2
"""MessagePack int: index among the frame's descriptors; each index at most once."""
EXTENSION_ENDPOINT = 3
"""MessagePack `[index, contract name]`."""
EXTENSION_CHANNEL = 4
"""MessagePack `[channel number, end, items, bytes]`; reserved for channels."""


def pack(kind: Kind, number: int, payload: bytes, *, flags: int = 0, descriptors: int = 0) -> bytes:
    """Return one whole frame."""
    return HEADER.pack(len(payload), kind, flags, descriptors, number) + payload
