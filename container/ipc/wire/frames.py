"""Frames: a header of 16 bytes and a MessagePack payload. `docs/reference/SPEC.md` is the prose.

Header, little-endian: payload length u32, kind u8, flags u8, descriptors u16, id u64. A frame's
descriptors travel with its first byte. Payloads are arrays, so that a field can be added at the
end: a receiver ignores elements it does not know.
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

HELLO_BYTES = 65536
"""The largest payload of a hello, and of an error that comes instead of one."""

PROTOCOL_VERSIONS = (1, 1)
"""Lowest and highest version of the protocol that this code speaks."""

FROM_CALLEE = 1
"""Flag: the id was issued by the receiver of this frame (it travels from callee to caller)."""

SCOPE = 2
"""Flag of a call that opens a scope."""


class Kind(enum.IntEnum):
    """What a frame is. Beneath each is its payload."""

    HELLO = 1
    """`[lowest, highest, limits, contracts, process, build]`; id is MAGIC."""
    CALL = 2
    """`[route, timeout ns | nil, grace ns, traceparent | nil, arguments, gifts]`"""
    REPLY = 3
    """`[value]`"""
    ERROR = 4
    """`[ended by, error]`; with id 0 it speaks of the connection and ends it."""
    CANCEL = 5
    """`[grace ns]`"""
    OPENED = 6
    """`[value, gifts]`: a scope is open."""
    CLOSE = 7
    """`[failed, grace ns]`: the holder of a scope leaves."""
    ITEM = 8
    """`[channel, value, gifts]`"""
    CREDIT = 9
    """`[channel, items, bytes]`: that much more may be sent."""
    END = 10
    """`[channel, error | nil]`: the writer sends no more items."""
    STOP = 11
    """`[channel, error | nil]`: the reader wants no more."""
    PING = 12
    """Empty; the id is a token."""
    PONG = 13
    """Empty; the id is the ping's token."""
    GOODBYE = 14
    """`[last id, within ns]`: the receiver's calls after `last id` are not and won't be started."""


KINDS: dict[int, Kind] = {int(kind): kind for kind in Kind}

FLAGS: dict[Kind, tuple[int, ...]] = {
    Kind.CALL: (0, SCOPE),
    **dict.fromkeys((Kind.CANCEL, Kind.CLOSE, Kind.PING, Kind.PONG, Kind.GOODBYE), (0,)),
    **dict.fromkeys((Kind.REPLY, Kind.ERROR, Kind.OPENED), (FROM_CALLEE,)),
    **dict.fromkeys((Kind.ITEM, Kind.CREDIT, Kind.END, Kind.STOP), (0, FROM_CALLEE)),
}
"""The flags that a frame of each kind may have; those of a hello are not judged."""

WITH_DESCRIPTORS = frozenset({Kind.CALL, Kind.REPLY, Kind.OPENED, Kind.ITEM})
"""The kinds whose frames may carry descriptors."""


class EndedBy(enum.IntEnum):
    """Why a terminal error came: set by the framework from the handler's scope, not by it."""

    ITSELF = 0
    CANCEL = 1
    DEADLINE = 2


class HelloPayload(msgspec.Struct, array_like=True, frozen=True):
    """What each side says first."""

    lowest: int
    highest: int
    limits: dict[str, int]
    """`frame_bytes`, `frame_descriptors`, `in_flight`, `channels`."""
    contracts: dict[str, tuple[int, str]]
    """Wire name: version, fingerprint. What a server serves; what a client asks for."""
    process: str
    build: str


class ChannelEnd(enum.IntEnum):
    """Which end of a channel a message gives away."""

    READING = 0
    """The receiver reads: it grants the first credit itself, at most what the message suggests."""
    WRITING = 1
    """The receiver writes: the message carries its first credit."""


class Gift(msgspec.Struct, array_like=True, frozen=True):
    """An end of a channel that a message gives away; values in it name the gift by its index."""

    number: int
    """Unique in its call, growing: odd ones are made by the caller, even ones by the callee."""
    end: ChannelEnd
    items: int
    bytes: int


class CallPayload(msgspec.Struct, array_like=True, frozen=True):
    """A call; the arguments stay encoded until the handler's task decodes them."""

    route: str
    timeout: int | None
    grace: int
    trace: str | None
    arguments: msgspec.Raw
    gifts: tuple[Gift, ...] = ()


class ValuePayload(msgspec.Struct, array_like=True, frozen=True):
    """A reply's value."""

    value: msgspec.Raw


class OpenedPayload(msgspec.Struct, array_like=True, frozen=True):
    """An opened scope's value."""

    value: msgspec.Raw
    gifts: tuple[Gift, ...] = ()


class ErrorPayload(msgspec.Struct, array_like=True, frozen=True):
    """A terminal error."""

    ended_by: int
    error: dict[str, Any]


class CancelPayload(msgspec.Struct, array_like=True, frozen=True):
    """The caller no longer wants the answer."""

    grace: int


class GoodbyePayload(msgspec.Struct, array_like=True, frozen=True):
    """The sender starts no more of the receiver's calls, and ends after `within`."""

    last: int
    within: int


class ClosePayload(msgspec.Struct, array_like=True, frozen=True):
    """The holder leaves its scope; `failed` when its block raised."""

    failed: bool
    grace: int
    """How long the clean-up may take when the block failed."""


class ItemPayload(msgspec.Struct, array_like=True, frozen=True):
    """One item of a channel; its size, for credit, is that of the encoded value."""

    channel: int
    value: msgspec.Raw
    gifts: tuple[Gift, ...] = ()


class CreditPayload(msgspec.Struct, array_like=True, frozen=True):
    """What the reader has room for, beyond what it said before."""

    channel: int
    items: int
    bytes: int


class ChannelEndPayload(msgspec.Struct, array_like=True, frozen=True):
    """Of END and STOP: why the channel ends, nil when nothing is wrong."""

    channel: int
    error: dict[str, Any] | None = None


EXTENSION_TIMESTAMP = -1
"""A date: MessagePack's own timestamp, always UTC."""
EXTENSION_UUID = 1
"""16 bytes."""
EXTENSION_DESCRIPTOR = 2
"""MessagePack int: index among the frame's descriptors; each index at most once."""
EXTENSION_ENDPOINT = 3
"""MessagePack `[index, contract name]`."""
EXTENSION_CHANNEL = 4
"""MessagePack int: index among the frame's gifts; each index at most once."""

UNDECODABLE = (msgspec.MsgspecError, RecursionError, ValueError, OverflowError, TypeError)
"""What decoding hostile bytes can raise."""


class ProtocolError(Exception):
    """The peer broke the protocol; the connection must end."""


def pack(kind: Kind, number: int, payload: bytes, *, flags: int = 0, descriptors: int = 0) -> bytes:
    """Return one whole frame."""
    return HEADER.pack(len(payload), kind, flags, descriptors, number) + payload
