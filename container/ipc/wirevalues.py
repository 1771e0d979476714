"""Wire values that are more than MessagePack: descriptors, endpoints, uuids; the words for all.

Encoding collects descriptors beside the bytes, in order; decoding makes an `Fd` of each before
anything else can fail, so that closing `Incoming` closes all of them. Contracts (`codec`) and the
typed dictionary (`message`) share these hooks.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast

import msgspec
from attrs import define, field

from container.ipc.contract import Contract
from container.ipc.descriptor import Fd, Ownership
from container.ipc.endpoint import Endpoint
from container.ipc.wire.frames import (
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


SCALARS[memoryview] = "bytes"
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

    @classmethod
    def of(cls, descriptors: Sequence[int]) -> Incoming:
        """Own received descriptors."""
        return cls([Fd(fd) for fd in descriptors])

    def close(self) -> None:
        """Close those that nobody took."""
        for fd in self.descriptors:
            fd.close()

    def close_unclaimed(self) -> None:
        """Close those that became no value."""
        for index, fd in enumerate(self.descriptors):
            if index not in self.claimed:
                fd.close()

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
        raise ValueError(f"unknown extension type {code}")


def uuid_out(value: uuid.UUID) -> msgspec.msgpack.Ext:
    """Return a UUID as a wire value. Not a hook: msgspec by itself makes a string of it."""
    return msgspec.msgpack.Ext(EXTENSION_UUID, value.bytes)


@define(slots=True)
class Outgoing:
    """The descriptors of one message to be sent."""

    descriptors: list[Fd] = field(factory=list[Fd])
    endpoints: list[Any] = field(factory=list[Any])

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
