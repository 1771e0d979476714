"""`Message`: a typed dictionary with a route, for tools and callers that have no contract.

A contract is lowered to the same thing: the arguments of a call are a dictionary by parameter name,
encoded by the same extension types, and a `Message` with the right keys is such a call. So a
`Message` reaches any server, and a server can't tell it from a proxy's call. What a message is
*not*: a way around the contract. The server checks keys and types as always.

```python
message = Message("greeter/greet")
message.set_string("name", "ada")
message.set_fd("log", Fd.borrow(sys.stderr))
with await call_message(connection, message) as reply:
    print(reply.dict("value").string("text"))
```

Accessors say what they want: `string(key)` raises `InvalidArgument` that names the key, the wanted
and the found type, or says that the key is missing. Descriptors of a received message belong to it
until an accessor hands them out; `close()` closes the others.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import msgspec
import trio

from container.ipc import tracing, wire_errors
from container.ipc.contract import Contract
from container.ipc.descriptor import Fd
from container.ipc.endpoint import Endpoint
from container.ipc.errors import Incompatible, InvalidArgument
from container.ipc.scope import RemoteScope
from container.ipc.strict import reason
from container.ipc.wire.machine import UNDECODABLE
from container.ipc.wirevalues import (
    Incoming,
    ItemType,
    Outgoing,
    WireChannel,
    WireDescriptor,
    WireEndpoint,
    WrongType,
    brief,
    type_name,
    uuid_out,
)

if TYPE_CHECKING:
    from container.ipc.codec import RouteCodec
    from container.ipc.connection import Connection

C = TypeVar("C", bound=Contract)

INT64 = (-(2**63), 2**63 - 1)
UINT64 = (0, 2**64 - 1)

VALUE_KEY = "value"
"""Under this key a reply's message holds the result of the route."""
ERROR_KEY = "error"
"""Under this key a message holds an error."""

_split = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
_borrow = msgspec.msgpack.Decoder(memoryview).decode
_BINARY = frozenset({0xC4, 0xC5, 0xC6})
"""First bytes of MessagePack's byte strings."""


class Message:
    """A route and a typed dictionary.

    Args:
        route: `contract/method`; of a reply, that of its request.
        values: What it holds at first; each value is checked as a setter would.
    """

    __slots__ = ("_incoming", "_values", "route")

    def __init__(self, route: str = "", values: Mapping[str, object] | None = None) -> None:
        self.route = route
        self._values: dict[str, Any] = {}
        self._incoming: Incoming | None = None
        for key, value in (values or {}).items():
            self.set(key, value)

    # --- the dictionary -----------------------------------------------------------------------

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def keys(self) -> tuple[str, ...]:
        """Return the keys, in the order in which they were set."""
        return tuple(self._values)

    def remove(self, key: str) -> None:
        """Take a key away; without it nothing happens. A descriptor under it is not closed."""
        self._values.pop(key, None)

    def type_of(self, key: str) -> str:
        """Return the word for the type of a value, as messages of errors use it.

        Raises:
            InvalidArgument: the key is missing.
        """
        return type_name(self._get(key, "a value"))

    def __repr__(self) -> str:
        shown = ", ".join(f"{key}: {type_name(value)}" for key, value in self._values.items())
        return f"<Message {self.route or '(no route)'} {{{shown}}}>"

    # --- reading ------------------------------------------------------------------------------

    def string(self, key: str) -> str:
        """Return a str."""
        return self._typed(key, str, "str")

    def data(self, key: str) -> bytes:
        """Return a copy of some bytes."""
        return bytes(self._bytes(key))

    def data_no_copy(self, key: str) -> memoryview:
        """Return a read-only view of some bytes, in the buffer of the frame that they came in.

        The whole frame stays in memory as long as the view does.
        """
        return memoryview(self._bytes(key)).toreadonly()

    def bool(self, key: str) -> bool:
        """Return a bool; 1 is none."""
        return self._typed(key, bool, "bool")

    def int64(self, key: str) -> int:
        """Return an integer from -2^63 to 2^63-1."""
        return self._integer(key, "int64", INT64)

    def uint64(self, key: str) -> int:
        """Return an integer from 0 to 2^64-1."""
        return self._integer(key, "uint64", UINT64)

    def double(self, key: str) -> float:
        """Return a float; an integer is one too."""
        value = self._get(key, "float")
        if type(value) not in (int, float):
            raise self._wrong(key, "float", value)
        return float(value)

    def date(self, key: str) -> datetime:
        """Return a point in time, in UTC."""
        return self._typed(key, datetime, "datetime")

    def uuid(self, key: str) -> uuid.UUID:
        """Return a UUID."""
        return self._typed(key, uuid.UUID, "uuid")

    def list(self, key: str) -> list[Any]:
        """Return a copy of a list, plain all the way down.

        Its descriptors are handed out, its endpoints too, as the descriptors that they are.
        """
        return cast("list[Any]", self._plain(self._typed(key, list, "list")))

    def dict(self, key: str) -> Message:
        """Return a copy of a dictionary as a message of the same route, with the same accessors.

        Descriptors that it does not hand out are closed with this message.
        """
        inner = Message(self.route)
        inner._values = {**self._string_keys(key, self._typed(key, dict, "dict"))}
        return inner

    def plain_dict(self, key: str) -> dict[str, Any]:
        """Return a copy of a dictionary, plain all the way down, as `list` does."""
        value = self._string_keys(key, self._typed(key, dict, "dict"))
        return cast("dict[str, Any]", self._plain(value))

    def value(self, key: str) -> Any:
        """Return a copy of whatever is there, plain all the way down, as `list` does."""
        return self._plain(self._get(key, "a value"))

    def fd(self, key: str) -> Fd:
        """Hand out a descriptor; it belongs to the caller from now on."""
        value = self._get(key, "descriptor")
        if isinstance(value, WireDescriptor):
            return self._hand_out(value)
        if isinstance(value, Fd):
            return value
        raise self._wrong(key, "descriptor", value)

    def endpoint(self, key: str, contract: type[C]) -> Endpoint[C]:
        """Hand out an endpoint of a contract; it belongs to the caller from now on."""
        value = self._get(key, "endpoint")
        if isinstance(value, WireEndpoint):
            name = value.contract
        elif isinstance(value, Endpoint):
            name = cast("Endpoint[Contract]", value).contract.contract_name
        else:
            raise self._wrong(key, "endpoint", value)
        if name != contract.contract_name:
            raise InvalidArgument(
                f"{self._at(key)}: expected an endpoint of {contract.contract_name}, "
                f"found one of {brief(name)}"
            )
        if isinstance(value, WireEndpoint):
            return Endpoint(contract, self._hand_out(value.descriptor))
        return cast("Endpoint[C]", value)

    def receiver(self, key: str) -> trio.abc.ReceiveChannel[Any]:
        """Return the reading end of a channel, of a scope's value; see `open_message`."""
        value = self._get(key, "channel")
        end = value.end if isinstance(value, WireChannel) else None
        if not isinstance(end, trio.abc.ReceiveChannel):
            raise self._wrong(key, "the reading end of a channel", value)
        return cast("trio.abc.ReceiveChannel[Any]", end)

    # --- writing ------------------------------------------------------------------------------

    def set(self, key: str, value: object) -> None:
        """Set a value of any type that can travel.

        Raises:
            InvalidArgument: names the key and what can't travel.
        """
        self._values[key] = self._checked(key, value)

    def set_string(self, key: str, value: str) -> None:
        """Set a str."""
        self._set_typed(key, value, str, "str")

    def set_data(self, key: str, value: bytes | bytearray | memoryview) -> None:
        """Set bytes; a copy of what is mutable is taken."""
        if not isinstance(value, (bytes, bytearray, memoryview)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise self._wrong(key, "bytes", value)
        self._values[key] = bytes(value)

    def set_data_no_copy(self, key: str, value: bytes | bytearray | memoryview) -> None:
        """Set bytes without a copy: they must not change until the message is encoded."""
        if not isinstance(value, (bytes, bytearray, memoryview)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise self._wrong(key, "bytes", value)
        self._values[key] = memoryview(value)

    def set_bool(self, key: str, value: bool) -> None:
        """Set a bool."""
        self._set_typed(key, value, bool, "bool")

    def set_int64(self, key: str, value: int) -> None:
        """Set an integer from -2^63 to 2^63-1."""
        self._set_typed(key, self._in_range(key, value, "int64", INT64), int, "int64")

    def set_uint64(self, key: str, value: int) -> None:
        """Set an integer from 0 to 2^64-1."""
        self._set_typed(key, self._in_range(key, value, "uint64", UINT64), int, "uint64")

    def set_double(self, key: str, value: float) -> None:
        """Set a float."""
        if type(value) not in (int, float):
            raise self._wrong(key, "float", value)
        self._values[key] = float(value)

    def set_date(self, key: str, value: datetime) -> None:
        """Set a point in time; it must have a time zone."""
        self._set_typed(key, value, datetime, "datetime")

    def set_uuid(self, key: str, value: uuid.UUID) -> None:
        """Set a UUID."""
        self._set_typed(key, value, uuid.UUID, "uuid")

    def set_list(self, key: str, value: list[Any] | tuple[Any, ...]) -> None:
        """Set a list of what can travel."""
        if type(value) not in (list, tuple):
            raise self._wrong(key, "list", value)
        self.set(key, list(value))

    def set_dict(self, key: str, value: Message | Mapping[str, Any]) -> None:
        """Set a dictionary: a message's values, or a plain one with str keys."""
        if not isinstance(value, (Message, Mapping)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise self._wrong(key, "dict", value)
        self.set(key, value)

    def set_fd(self, key: str, value: Fd) -> None:
        """Set a descriptor. Sending borrows it; `Fd.give` closes it after the send."""
        self._set_typed(key, value, Fd, "descriptor")

    def set_endpoint(self, key: str, value: Endpoint[Any]) -> None:
        """Set an endpoint: sending gives it away."""
        self._set_typed(key, value, Endpoint, "endpoint")

    # --- replies and errors -------------------------------------------------------------------

    def reply(self) -> Message:
        """Return an empty message for the answer to this one."""
        return Message(self.route)

    def set_error(self, error: BaseException) -> None:
        """Make this message say that its route failed; this process joins the error's provenance.

        An exception that is no `ContainerError` is a bug: it travels as `InternalError`.
        """
        self._values[ERROR_KEY] = wire_errors.to_wire(error, self.route)

    def error(self) -> Exception | None:
        """Return the error that this message holds, or None.

        Raises:
            InvalidArgument: what it holds under `error` is none.
        """
        if ERROR_KEY not in self._values:
            return None
        return wire_errors.from_wire(self._typed(ERROR_KEY, dict, "dict"))

    def raise_error(self) -> None:
        """Raise the error that this message holds, if it does."""
        error = self.error()
        if error is not None:
            raise error

    # --- bytes --------------------------------------------------------------------------------

    def encode(self) -> tuple[bytes, Outgoing]:
        """Return the dictionary as MessagePack, and the descriptors that travel beside it.

        Whoever sends them calls `Outgoing.sent` afterwards.

        Raises:
            InvalidArgument: a descriptor was closed or taken, or an endpoint is in it twice.
        """
        outgoing = Outgoing()
        try:
            return msgspec.msgpack.encode(_lowered(self._values), enc_hook=outgoing.hook), outgoing
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise InvalidArgument(f"{self._name()}: {reason(error)}") from error

    @classmethod
    def decode(
        cls, route: str, body: bytes | bytearray | msgspec.Raw, incoming: Incoming
    ) -> Message:
        """Return the message of some bytes; it owns the descriptors of `incoming`, also on failure.

        Byte strings at the top are views of `body`; deeper ones are copies.

        Raises:
            InvalidArgument: the bytes are no typed dictionary; the descriptors are closed.
        """
        message = cls(route)
        message._incoming = incoming
        try:
            for key, raw in _split(body).items():
                message._values[key] = _decoded(raw, incoming)
        except UNDECODABLE as error:
            incoming.close()
            raise InvalidArgument(f"{message._name()} is no message: {reason(error)}") from None
        return message

    @classmethod
    def of_reply(cls, route: str, value: msgspec.Raw | None, incoming: Incoming) -> Message:
        """Return a reply as a message: the route's result is under `value`.

        Raises:
            Incompatible: the reply can't be read; the descriptors are closed.
        """
        message = cls(route)
        message._incoming = incoming
        try:
            if value is None:
                raise ValueError("it is no message")
            message._values[VALUE_KEY] = _decoded(value, incoming)
        except UNDECODABLE as error:
            incoming.close()
            raise Incompatible(f"the reply of {route} can't be read: {reason(error)}") from error
        return message

    # --- descriptors that came with it --------------------------------------------------------

    def close(self) -> None:
        """Close the received descriptors that no accessor handed out. Twice does nothing."""
        if self._incoming is not None:
            self._incoming.close_unclaimed()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- inside -------------------------------------------------------------------------------

    def _name(self) -> str:
        return self.route or "this message"

    def _at(self, key: object) -> str:
        return f"{self._name()}: {key}"

    def _wrong(self, key: object, wanted: str, found: object) -> InvalidArgument:
        return InvalidArgument(f"{self._at(key)}: {WrongType(wanted, found)}")

    def _get(self, key: str, wanted: str) -> Any:
        try:
            return self._values[key]
        except KeyError:
            raise InvalidArgument(f"{self._at(key)}: expected {wanted}, it is missing") from None

    def _typed(self, key: str, kind: type[Any], wanted: str) -> Any:
        value = self._get(key, wanted)
        if type(value) is not kind:
            raise self._wrong(key, wanted, value)
        return value

    def _bytes(self, key: str) -> bytes | memoryview:
        value = self._get(key, "bytes")
        if type(value) not in (bytes, memoryview):
            raise self._wrong(key, "bytes", value)
        return value

    def _set_typed(self, key: str, value: object, kind: type[Any], wanted: str) -> None:
        if type(value) is not kind:
            raise self._wrong(key, wanted, value)
        self.set(key, value)

    def _integer(self, key: str, wanted: str, bounds: tuple[int, int]) -> int:
        return self._in_range(key, self._typed(key, int, wanted), wanted, bounds)

    def _in_range(self, key: object, value: int, wanted: str, bounds: tuple[int, int]) -> int:
        if type(value) is not int:
            raise self._wrong(key, wanted, value)
        if not bounds[0] <= value <= bounds[1]:
            raise InvalidArgument(
                f"{self._at(key)}: {brief(value)} is no {wanted} ({bounds[0]} to {bounds[1]})"
            )
        return value

    def _string_keys(self, key: str, value: dict[Any, Any]) -> dict[str, Any]:
        for inner in value:
            if type(inner) is not str:
                raise self._wrong(f"{key}[{brief(inner)}]", "a str as key", inner)
        return value

    def _checked(self, key: object, value: object, depth: int = 0) -> Any:
        """Return a value as it is kept: lists and dictionaries copied, all types known."""
        if depth > 64:
            raise InvalidArgument(f"{self._name()}: nested too deeply")
        if isinstance(value, Message):
            value = value._values
        kind = type(value)
        if kind is int:
            lowest, highest = INT64[0], UINT64[1]
            return self._in_range(key, cast("int", value), "integer", (lowest, highest))
        if kind is str:
            try:
                cast("str", value).encode()
            except UnicodeEncodeError:
                raise InvalidArgument(
                    f"{self._at(key)}: {brief(value)} is no UTF-8",
                    hint="send it as data, for example by os.fsencode()",
                ) from None
            return value
        if kind is datetime:
            moment = cast("datetime", value)
            if moment.tzinfo is None:
                raise InvalidArgument(f"{self._at(key)}: {moment} has no time zone")
            return moment.astimezone(UTC)
        if kind is bytearray:
            return bytes(cast("bytearray", value))
        if isinstance(value, Mapping):
            entries = self._string_keys(str(key), dict(cast("Mapping[Any, Any]", value)))
            return {k: self._checked(f"{key}.{k}", v, depth + 1) for k, v in entries.items()}
        if isinstance(value, (list, tuple)):
            items = enumerate(cast("list[object]", value))
            return [self._checked(f"{key}[{i}]", item, depth + 1) for i, item in items]
        if value is None or kind in _TRAVELS:
            return value
        raise InvalidArgument(f"{self._at(key)}: a {kind.__name__} can't travel in a message")

    def _hand_out(self, value: WireDescriptor) -> Fd:
        return value.claim()

    def _plain(self, value: Any) -> Any:
        if isinstance(value, WireDescriptor):
            return self._hand_out(value)
        if isinstance(value, WireEndpoint):
            return self._hand_out(value.descriptor)
        if isinstance(value, dict):
            entries = cast("dict[Any, Any]", value)
            return {key: self._plain(item) for key, item in entries.items()}
        if isinstance(value, list):
            return [self._plain(item) for item in cast("list[Any]", value)]
        return value


_TRAVELS = frozenset(
    {bool, float, bytes, memoryview, uuid.UUID, Fd, Endpoint, WireDescriptor, WireEndpoint}
)


def _lowered(value: Any) -> Any:
    if isinstance(value, uuid.UUID):
        return uuid_out(value)
    if isinstance(value, dict):
        entries = cast("dict[str, Any]", value)
        return {key: _lowered(item) for key, item in entries.items()}
    if isinstance(value, list):
        return [_lowered(item) for item in cast("list[Any]", value)]
    return value


def _decoded(raw: msgspec.Raw, incoming: Incoming) -> Any:
    if memoryview(raw)[0] in _BINARY:
        return _borrow(raw)
    return msgspec.msgpack.decode(raw, ext_hook=incoming.extension)


class _MessageCodec:
    """Stand in for a route's codec: what is sent and what comes are messages."""

    arguments_hold = True

    def __init__(self, path: str) -> None:
        self.path = path

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        return args

    def lower(self, values: tuple[Any, ...]) -> msgspec.Raw | dict[str, Any]:
        (message,) = cast("tuple[Message]", values)
        return _lowered(message._values)  # pyright: ignore[reportPrivateUsage]

    def result_of(self, raw: msgspec.Raw | None, incoming: Incoming) -> Message:
        message = Message.of_reply(self.path, raw, incoming)
        # All that came belongs to the block: whoever opened the scope asks for it later.
        incoming.claimed.update(range(len(incoming.descriptors)))
        for index, end in enumerate(incoming.ends):
            end.item = _WIRE_VALUES
            incoming.claimed_ends.add(index)
        return message


def _as_it_is(value: Any, _: Any = None) -> Any:
    return value


_WIRE_VALUES = ItemType(None, _lowered, _as_it_is, holds=True)
"""Items of a channel that nobody here knows the type of."""


@asynccontextmanager
async def open_message(connection: Connection, message: Message) -> AsyncGenerator[Message]:
    """Open a scope's route with a message and hold it while the block runs.

    The block gets its value as a message, under `value`. Descriptors and channels that came with it
    are closed when the block ends. Items of a channel are wire values. All else is as of any scope,
    see `RemoteScope`.
    """
    codec = cast("RouteCodec", _MessageCodec(message.route))
    scope = RemoteScope(connection.calls, codec, (message,), {})
    async with scope as value:
        try:
            yield value
        finally:
            value._incoming.close()


async def call_message(connection: Connection, message: Message) -> Message:
    """Call a route with a message and return the reply's: the result is under `value`.

    Deadline, cancellation and errors are those of any call on the connection. Cancelled before it
    was sent, nothing has happened; the descriptors of `message` stay the caller's, but for given
    ones and endpoints, which are closed.

    Raises:
        ContainerError: what the handler raised, its provenance with it.
        PeerGone: the connection ended first.
        InvalidArgument: the message can't be sent.
    """
    body, outgoing = message.encode()
    event = await connection.calls.call_raw(
        message.route, msgspec.Raw(body), outgoing, tracing.current()
    )
    return Message.of_reply(message.route, event.value, Incoming.of(event.descriptors))
