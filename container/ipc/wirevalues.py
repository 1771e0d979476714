"""Wire values that are more than MessagePack: descriptors, endpoints, channels, uuids; their words.

Encoding collects descriptors beside the bytes, in order; decoding makes an `Fd` of each before
anything else can fail, so that closing `Incoming` closes all of them. Contracts (`codec`) and the
typed dictionary (`message`) share these hooks.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, ClassVar, cast

import msgspec
from attrs import define, field

from container.ipc.contract import Contract
from container.ipc.descriptor import Fd, Ownership
from container.ipc.endpoint import Endpoint
from container.ipc.errors import InvalidArgument
from container.ipc.wire.frames import (
    EXTENSION_CHANNEL,
    EXTENSION_DESCRIPTOR,
    EXTENSION_ENDPOINT,
    EXTENSION_UUID,
)

SCALARS: dict[type, str] = {
    str: "str",
    bytes: "bytes",
    bool: "bool",
    int: "int",
    float: "float",
    datetime: "datetime",
    uuid.UUID: "uuid",
    dict: "dict",
    list: "list",
    Fd: "descriptor",
    type(None): "nothing",
}


def type_name(value: object) -> str:
    """Return the word for a wire value's type, for messages."""
    return SCALARS.get(type(value), type(value).__name__)


class WrongType(ValueError):
    """A value is not of the type that was asked for."""

    def __init__(self, wanted: str, found: object) -> None:
        super().__init__(f"expected {wanted}, found {type_name(found)}")
        self.wanted = wanted


def brief(value: object) -> str:
    """Return a value for a message, cut to one line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def word(annotation: Any) -> str:
    """Return the word for a type of a contract, for messages."""
    return SCALARS.get(annotation) or str(getattr(annotation, "__name__", annotation))


class WireDescriptor:
    """A descriptor as a wire value: whoever wants it as an `Fd` claims it.

    No attrs class, nor is `WireEndpoint`: msgspec would encode one as a dictionary, without asking.
    """

    __slots__ = ("incoming", "index")

    def __init__(self, incoming: Incoming, index: int) -> None:
        self.incoming = incoming
        self.index = index

    @property
    def fd(self) -> Fd:
        """The descriptor; still its message's."""
        return self.incoming.descriptors[self.index]

    def claim(self) -> Fd:
        """Return it; from now on it is no longer closed as unclaimed."""
        self.incoming.claimed.add(self.index)
        return self.fd


class WireEndpoint:
    """An endpoint as a wire value."""

    __slots__ = ("contract", "descriptor")

    def __init__(self, descriptor: WireDescriptor, contract: str) -> None:
        self.descriptor = descriptor
        self.contract = contract


class SentEnd(ABC):
    """An end of a channel, as messages see it; `channel` has the real ones."""

    reads: ClassVar[bool]
    """It is the reading end."""
    item: ItemType | None

    @abstractmethod
    def check_given(self) -> None:
        """Raise ValueError if it may not be put into a message."""

    @abstractmethod
    def claimed(self) -> None:
        """The message that brought it has been read, and somebody holds it."""

    @abstractmethod
    def close(self) -> None:
        """Close it; does not wait."""


class WireChannel:
    """An end of a channel as a wire value."""

    __slots__ = ("incoming", "index")

    def __init__(self, incoming: Incoming, index: int) -> None:
        self.incoming = incoming
        self.index = index

    @property
    def end(self) -> SentEnd:
        """The end; still its message's."""
        return self.incoming.ends[self.index]

    def claim(self) -> SentEnd:
        """Return it; from now on it is no longer closed as unclaimed."""
        self.incoming.claimed_ends.add(self.index)
        return self.end


SCALARS[memoryview] = "bytes"
SCALARS[WireChannel] = "channel"
SCALARS[WireDescriptor] = "descriptor"
SCALARS[WireEndpoint] = "endpoint"
_decode_index = msgspec.msgpack.Decoder(int).decode
_decode_endpoint = msgspec.msgpack.Decoder(tuple[int, str]).decode


@define(slots=True)
class Incoming:
    """The descriptors of one received message, each an owned `Fd`."""

    descriptors: list[Fd] = field(factory=list[Fd])
    claimed: set[int] = field(factory=set[int])
    """Indices of those that became a value somebody holds."""
    _named: set[int] = field(factory=set[int])
    ends: Sequence[SentEnd] = ()
    """Ends of channels that the message gives away, in its order."""
    claimed_ends: set[int] = field(factory=set[int])
    _named_ends: set[int] = field(factory=set[int])

    @classmethod
    def of(cls, descriptors: Sequence[int]) -> Incoming:
        """Own received descriptors."""
        return cls([Fd(fd) for fd in descriptors])

    def close(self) -> None:
        """Close those that nobody took, and all ends of channels."""
        for fd in self.descriptors:
            fd.close()
        for end in self.ends:
            end.close()

    def close_unclaimed(self) -> None:
        """Close those that became no value; those that did are in use from now on."""
        for index, fd in enumerate(self.descriptors):
            if index not in self.claimed:
                fd.close()
        for index, end in enumerate(self.ends):
            if index in self.claimed_ends:
                end.claimed()
            else:
                end.close()

    def _name(self, index: int) -> WireDescriptor:
        if not 0 <= index < len(self.descriptors):
            raise ValueError(f"descriptor {index} did not come with this message")
        if index in self._named:
            raise ValueError(f"descriptor {index} is named twice")
        self._named.add(index)
        return WireDescriptor(self, index)

    def extension(self, code: int, data: memoryview) -> object:
        """Decode our extension types; a hook for msgspec."""
        if code == EXTENSION_DESCRIPTOR:
            return self._name(_decode_index(data))
        if code == EXTENSION_UUID:
            return uuid.UUID(bytes=bytes(data))
        if code == EXTENSION_ENDPOINT:
            index, contract = _decode_endpoint(data)
            return WireEndpoint(self._name(index), contract)
        if code == EXTENSION_CHANNEL:
            index = _decode_index(data)
            if not 0 <= index < len(self.ends) or index in self._named_ends:
                raise ValueError(
                    f"channel {index} of {len(self.ends)} is not there, or named twice"
                )
            self._named_ends.add(index)
            return WireChannel(self, index)
        raise ValueError(f"unknown extension type {code}")


NOTHING_IN = Incoming()
"""Stands for what came beside a message with which nothing came; never filled."""
_decode_plain = msgspec.msgpack.Decoder(ext_hook=NOTHING_IN.extension).decode


def decode_value(raw: bytes | msgspec.Raw, incoming: Incoming) -> Any:
    """Decode one value, and give what it names of what came with it."""
    if incoming is NOTHING_IN:
        return _decode_plain(raw)
    return msgspec.msgpack.decode(raw, ext_hook=incoming.extension)


def _nothing_beside(value: object) -> object:
    raise TypeError(f"a {type(value).__name__} can't travel in a message")


_encoder = msgspec.msgpack.Encoder(enc_hook=_nothing_beside)
encode_plain = _encoder.encode
"""Made once: making one costs as much as a small message."""


@define(slots=True, eq=False)
class ItemType:
    """How the items of a channel are encoded."""

    annotation: Any
    unstructure: Callable[[Any], Any]
    structure: Callable[[Any, Any], Any]
    holds: bool
    """Can an item hold descriptors, endpoints or channels, by its type?"""

    @property
    def is_flat(self) -> bool:
        """Is decoding an item no more than copying it?"""
        return self.annotation in (bytes, str)

    def encode(self, value: Any, outgoing: Outgoing | None) -> bytes:
        """Encode an item.

        Raises:
            InvalidArgument: it is not of its type.
        """
        try:
            body = self.unstructure(value)
            if outgoing is None:
                return encode_plain(body)
            return msgspec.msgpack.encode(body, enc_hook=outgoing.hook)
        except Exception as error:
            raise InvalidArgument(f"an item of the channel can't travel: {error}") from error

    def encode_into(self, value: Any, buffer: bytearray) -> None:
        """Encode an item that holds nothing behind what is in a buffer already.

        Raises:
            InvalidArgument: it is not of its type.
        """
        try:
            _encoder.encode_into(self.unstructure(value), buffer, len(buffer))
        except Exception as error:
            raise InvalidArgument(f"an item of the channel can't travel: {error}") from error

    def decode(self, raw: msgspec.Raw, incoming: Incoming) -> Any:
        """Decode an item."""
        return self.structure(decode_value(raw, incoming), self.annotation)


def uuid_out(value: uuid.UUID) -> msgspec.msgpack.Ext:
    """Return a UUID as a wire value. Not a hook: msgspec by itself makes a string of it."""
    return msgspec.msgpack.Ext(EXTENSION_UUID, value.bytes)


@define(slots=True)
class Outgoing:
    """The descriptors of one message to be sent."""

    descriptors: list[Fd] = field(factory=list[Fd])
    endpoints: list[Any] = field(factory=list[Any])
    channels: list[SentEnd] = field(factory=list[SentEnd])

    def filenos(self) -> list[int]:
        """Return the raw descriptors, in the order of the frame."""
        return [fd.fileno() for fd in self.descriptors]

    def hook(self, value: object) -> object:
        """Encode our extension types; a hook for msgspec.

        Raises:
            ValueError: a descriptor was closed or taken, or an endpoint is in the message twice.
        """
        if isinstance(value, Fd):
            index = msgspec.msgpack.encode(self._add(value))
            return msgspec.msgpack.Ext(EXTENSION_DESCRIPTOR, index)
        if isinstance(value, WireDescriptor):
            # Passed on as it came, by a message that was not taken apart.
            return self.hook(value.fd)
        if isinstance(value, WireEndpoint):
            body = (self._add(value.descriptor.fd), value.contract)
            self.endpoints.append(value.descriptor.fd)
            return msgspec.msgpack.Ext(EXTENSION_ENDPOINT, msgspec.msgpack.encode(body))
        if isinstance(value, Endpoint):
            endpoint = cast("Endpoint[Contract]", value)
            if any(endpoint.fd is fd for fd in self.descriptors):
                raise ValueError("the same endpoint is in the message twice")
            body = (self._add(endpoint.fd), endpoint.contract.contract_name)
            self.endpoints.append(endpoint)
            return msgspec.msgpack.Ext(EXTENSION_ENDPOINT, msgspec.msgpack.encode(body))
        if isinstance(value, SentEnd):
            if any(value is end for end in self.channels):
                raise ValueError("the same end of a channel is in the message twice")
            value.check_given()
            self.channels.append(value)
            return msgspec.msgpack.Ext(
                EXTENSION_CHANNEL, msgspec.msgpack.encode(len(self.channels) - 1)
            )
        raise TypeError(f"a {type(value).__name__} can't travel in a message")

    def _add(self, fd: Fd) -> int:
        fd.fileno()
        self.descriptors.append(fd)
        return len(self.descriptors) - 1

    def sent(self, *, result: bool) -> None:
        """Close what was given away: `Fd.give`, endpoints, and for a result all owned ones."""
        for fd in self.descriptors:
            if fd.ownership is Ownership.GIVEN or (result and fd.ownership is Ownership.OWNED):
                fd.close()
        for endpoint in self.endpoints:
            endpoint.close()
