"""One end of a connection as a state machine: bytes and descriptors in, events out, frames to send out.

Rule 1: everything that decides whether a frame is legal lives in this file. Rule 2: this file knows no
socket, no clock and no task. Rule 3: an error of the peer's raises `ProtocolError` once; after it, and
after the end, nothing is received any more, and the descriptors that were not given out are returned by
`abandon()` to be closed.

States of the connection:

    OPENING --hello received--> OPEN --goodbye received--> DRAINING
       any --error with id 0, broken bytes, end--> CLOSED

States of a call that this side made (`outgoing`):

    state       event                  becomes
    SENT        cancel sent            CANCELLING
    SENT        reply / error          ended
    CANCELLING  reply / error          ended
    CANCELLING  abandoned locally      ABANDONED   (its id stays taken until the terminal comes)
    ABANDONED   reply / error          ended, dropped

States of a call that the peer made (`incoming`):

    RUNNING     cancel received        CANCELLED
    RUNNING     reply / error sent     ended
    CANCELLED   reply / error sent     ended
    ended       cancel received        ignored

Ids are issued by the caller from 1 upwards and never reused. A terminal for an id that is not open, a
second cancel, an id that does not grow, more unanswered ids than announced: each is a protocol error.

Descriptors: the kernel glues frames together and hands descriptors over early, never late. So
descriptors are matched by count, in order: at a frame's header all of its descriptors must be here,
and at the end of the bytes none may be left over.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Hashable, Sequence

import msgspec
from attrs import define, field, frozen

from container.ipc.wire.frames import (
    FROM_CALLEE,
    HEADER,
    HEADER_BYTES,
    KINDS,
    MAGIC,
    PROTOCOL_VERSIONS,
    CallPayload,
    CancelPayload,
    EndedBy,
    ErrorPayload,
    GoodbyePayload,
    HelloPayload,
    Kind,
    ValuePayload,
    pack,
)
from container.ipc.wire.limits import Limits


class ProtocolError(Exception):
    """The peer broke the protocol; the connection must end."""


class State(enum.Enum):
    """The life of a connection."""

    OPENING = "opening"
    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"


class Outgoing(enum.Enum):
    """A call that this side made."""

    SENT = "sent"
    CANCELLING = "cancelling"
    ABANDONED = "abandoned"


class Incoming(enum.Enum):
    """A call that the peer made."""

    RUNNING = "running"
    CANCELLED = "cancelled"


@define(slots=True)
class HelloReceived:
    """The peer introduced itself; `compatible` is False when no common version exists."""

    payload: HelloPayload
    sender: Hashable
    compatible: bool


@define(slots=True)
class CallReceived:
    """The peer calls. `payload` is None when the body is no call: answer it with an error."""

    id: int
    payload: CallPayload | None
    descriptors: list[int]
    sender: Hashable


@define(slots=True)
class ReplyReceived:
    """A terminal with a value; `value` is None when the body is no value."""

    id: int
    value: msgspec.Raw | None
    descriptors: list[int]
    sender: Hashable
    abandoned: bool


@define(slots=True)
class ErrorReceived:
    """A terminal with an error; id 0 speaks of the connection."""

    id: int
    ended_by: EndedBy
    error: dict[str, object]
    sender: Hashable
    abandoned: bool


@define(slots=True)
class CancelReceived:
    """The caller no longer wants the answer of a running call."""

    id: int
    grace: int
    sender: Hashable


@define(slots=True)
class PingReceived:
    """Answer with `pong(token)`."""

    token: int


@define(slots=True)
class PongReceived:
    """The peer lives."""

    token: int


@define(slots=True)
class GoodbyeReceived:
    """The peer starts no call with an id after `last`."""

    last: int
    within: int


Event = (
    HelloReceived
    | CallReceived
    | ReplyReceived
    | ErrorReceived
    | CancelReceived
    | PingReceived
    | PongReceived
    | GoodbyeReceived
)


@define
class Budget:
    """Bytes of partly received frames that several connections share."""

    limit: int
    used: int = 0

    def change(self, by: int) -> bool:
        """Take or give back bytes; False when there are not enough."""
        if by > 0 and self.used + by > self.limit:
            return False
        self.used += by
        return True


@frozen
class _IncomingCall:
    state: Incoming
    sender: Hashable


_decode_call = msgspec.msgpack.Decoder(CallPayload).decode
_decode_value = msgspec.msgpack.Decoder(ValuePayload).decode
_decode_error = msgspec.msgpack.Decoder(ErrorPayload).decode
_decode_cancel = msgspec.msgpack.Decoder(CancelPayload).decode
_decode_hello = msgspec.msgpack.Decoder(HelloPayload).decode
_decode_goodbye = msgspec.msgpack.Decoder(GoodbyePayload).decode
_encode = msgspec.msgpack.Encoder().encode

UNDECODABLE = (msgspec.MsgspecError, RecursionError, ValueError, UnicodeDecodeError)
"""What decoding hostile bytes can raise."""


@define(eq=False)
class Machine:
    """One end of a connection."""

    limits: Limits
    budget: Budget
    state: State = State.OPENING
    peer: HelloPayload | None = None
    outgoing: dict[int, Outgoing] = field(factory=dict[int, Outgoing])
    incoming: dict[int, _IncomingCall] = field(factory=dict[int, _IncomingCall])
    descriptors_received: int = 0
    descriptors_delivered: int = 0
    last_incoming: int = 0
    _next_id: int = 1
    _hello_sent: bool = False
    _buffer: bytearray = field(factory=bytearray)
    _buffer_sender: Hashable = None
    _accounted: int = 0
    _descriptors: deque[int] = field(factory=deque[int])
    _pings: int = 0

    # --- what is sent -------------------------------------------------------------------------

    @property
    def peer_in_flight(self) -> int:
        """How many unanswered calls the peer accepts."""
        return self.peer.limits.get("in_flight", 1) if self.peer is not None else 1

    @property
    def peer_frame_bytes(self) -> int:
        """The largest payload that may be sent."""
        theirs = self.peer.limits.get("frame_bytes", 0) if self.peer is not None else 65536
        return min(self.limits.frame_bytes, theirs)

    def hello(self, contracts: dict[str, tuple[int, str]], process: str, build: str) -> bytes:
        """Return this side's hello; it is the first frame."""
        assert not self._hello_sent
        self._hello_sent = True
        announced = {
            "frame_bytes": self.limits.frame_bytes,
            "frame_descriptors": self.limits.frame_descriptors,
            "in_flight": self.limits.in_flight,
        }
        payload = HelloPayload(*PROTOCOL_VERSIONS, announced, contracts, process, build)
        return pack(Kind.HELLO, MAGIC, _encode(payload))

    def call(self, payload: bytes, descriptors: int = 0) -> tuple[int, bytes]:
        """Open a call; return its id and frame."""
        assert self.state is State.OPEN
        number = self._next_id
        self._next_id = number + 1
        self.outgoing[number] = Outgoing.SENT
        return number, HEADER.pack(len(payload), Kind.CALL, 0, descriptors, number) + payload

    def withdraw(self, number: int) -> None:
        """Forget a call of which no byte was sent; its id is skipped."""
        del self.outgoing[number]

    def cancel(self, number: int, grace: int) -> bytes:
        """Return the cancel frame of a call."""
        assert self.outgoing[number] is Outgoing.SENT
        self.outgoing[number] = Outgoing.CANCELLING
        return pack(Kind.CANCEL, number, _encode(CancelPayload(grace)))

    def abandon_call(self, number: int) -> None:
        """Stop waiting for a call: its late terminal is dropped."""
        self.outgoing[number] = Outgoing.ABANDONED

    def reply(self, number: int, payload: bytes, descriptors: int = 0) -> bytes:
        """End a call of the peer's with a value; return the frame."""
        del self.incoming[number]
        return (
            HEADER.pack(len(payload), Kind.REPLY, FROM_CALLEE, descriptors, number) + payload
        )

    def error(self, number: int, ended_by: EndedBy, error: dict[str, object]) -> bytes:
        """End a call of the peer's, or with id 0 the connection, with an error; return the frame."""
        if number:
            del self.incoming[number]
        return pack(Kind.ERROR, number, _encode(ErrorPayload(ended_by, error)), flags=FROM_CALLEE)

    def error_instead(self, number: int, error: dict[str, object]) -> bytes:
        """Return the terminal of a call whose reply was made and could not be sent at all."""
        payload = _encode(ErrorPayload(EndedBy.ITSELF, error))
        return pack(Kind.ERROR, number, payload, flags=FROM_CALLEE)

    def ping(self) -> bytes:
        """Return a ping; at most one is pending."""
        self._pings += 1
        return pack(Kind.PING, self._pings, b"")

    def pong(self, token: int) -> bytes:
        """Return the answer to a ping."""
        return pack(Kind.PONG, token, b"")

    def goodbye(self, within: int) -> bytes:
        """Return the frame that says which calls were the last."""
        return pack(Kind.GOODBYE, 0, _encode(GoodbyePayload(self.last_incoming, within)))

    # --- what is received ---------------------------------------------------------------------

    def receive(
        self, data: bytes, descriptors: Sequence[int] = (), sender: Hashable = None
    ) -> list[Event]:
        """Take what one read gave; return what it means.

        Args:
            data: Bytes of one sender, not empty.
            descriptors: Received with them; this machine owns them until an event carries them out.
            sender: Who sent the bytes, from the kernel.

        Raises:
            ProtocolError: the connection must end. Events before the fault are lost with it.
        """
        if descriptors:
            self._descriptors.extend(descriptors)
            self.descriptors_received += len(descriptors)
        if self.state is State.CLOSED:
            return []
        buffer: bytes | bytearray = data
        held = len(self._buffer)
        if held:
            if sender != self._buffer_sender:
                raise self._fault("one frame came from two senders")
            self._buffer += data
            buffer = self._buffer
        events: list[Event] = []
        position, total = 0, len(buffer)
        with memoryview(buffer) as view:
            while total - position >= HEADER_BYTES:
                length, code, flags, count, number = HEADER.unpack_from(view, position)
                kind = self._check(length, code, count, number)
                end = position + HEADER_BYTES + length
                if end > total:
                    break
                payload = bytes(view[position + HEADER_BYTES : end])
                position = end
                taken = [self._descriptors.popleft() for _ in range(count)] if count else []
                try:
                    event = self._frame(kind, flags, number, payload, taken, sender)
                except BaseException:
                    self._descriptors.extendleft(reversed(taken))
                    self._return(events)
                    raise
                if event is not None:
                    self.descriptors_delivered += len(taken)
                    events.append(event)
        left = total - position
        try:
            if not left and self._descriptors:
                raise self._fault("more descriptors came than the frames said")
            if len(self._descriptors) > self.limits.frame_descriptors:
                raise self._fault("too many descriptors")
            if not self.budget.change(left - self._accounted):
                raise self._fault("too many partly received bytes in this process")
            self._accounted = left
        except ProtocolError:
            self._return(events)
            raise
        if held:
            del self._buffer[:position]
        elif left:
            self._buffer += memoryview(data)[position:]
        if left:
            self._buffer_sender = sender
        return events

    def end(self) -> None:
        """Take the end of the bytes; a frame half received, or none, makes no difference."""
        self.state = State.CLOSED

    def abandon(self) -> list[int]:
        """Return the descriptors that no event carried out; the caller closes them."""
        self.state = State.CLOSED
        self.budget.change(-self._accounted)
        self._accounted = 0
        self._buffer.clear()
        left = list(self._descriptors)
        self._descriptors.clear()
        return left

    def _return(self, events: list[Event]) -> None:
        # Events that never leave give their descriptors back, so that `abandon` hands them out.
        for event in events:
            if isinstance(event, (CallReceived, ReplyReceived)):
                self.descriptors_delivered -= len(event.descriptors)
                self._descriptors.extend(event.descriptors)

    def _fault(self, message: str) -> ProtocolError:
        self.state = State.CLOSED
        return ProtocolError(message)

    def _check(self, length: int, code: int, count: int, number: int) -> Kind:
        # Called at every header, before memory for the payload is taken.
        kind = KINDS.get(code)
        if self.state is State.OPENING:
            if kind is Kind.ERROR and number == 0:
                pass
            elif kind is not Kind.HELLO or number != MAGIC:
                raise self._fault("this is not the protocol: the first frame is no hello")
            if length > 65536:
                raise self._fault(f"a hello of {length} bytes")
        elif kind is None:
            raise self._fault(f"unknown frame kind {code}")
        if length > self.limits.frame_bytes:
            raise self._fault(f"a frame of {length} bytes; {self.limits.frame_bytes} are allowed")
        if count > self.limits.frame_descriptors:
            raise self._fault(f"a frame with {count} descriptors")
        if count > len(self._descriptors):
            raise self._fault("fewer descriptors came than the frame said")
        assert kind is not None
        return kind

    def _frame(
        self,
        kind: Kind,
        flags: int,
        number: int,
        payload: bytes,
        descriptors: list[int],
        sender: Hashable,
    ) -> Event | None:
        if descriptors and kind not in (Kind.CALL, Kind.REPLY):
            raise self._fault(f"a {kind.name.lower()} frame carries no descriptors")
        match kind:
            case Kind.CALL:
                return self._call(number, payload, descriptors, sender)
            case Kind.REPLY:
                abandoned = self._terminal(number, "reply")
                value: msgspec.Raw | None
                try:
                    value = _decode_value(payload).value
                except UNDECODABLE:
                    value = None
                return ReplyReceived(number, value, descriptors, sender, abandoned)
            case Kind.ERROR:
                return self._error(number, payload, sender)
            case Kind.CANCEL:
                return self._cancel(number, payload, sender)
            case Kind.PING:
                return PingReceived(number)
            case Kind.PONG:
                return PongReceived(number)
            case Kind.HELLO:
                return self._hello(payload, sender)
            case Kind.GOODBYE:
                try:
                    goodbye = _decode_goodbye(payload)
                except UNDECODABLE:
                    raise self._fault("a goodbye that can't be read") from None
                self.state = State.DRAINING
                return GoodbyeReceived(goodbye.last, goodbye.within)
            case _:
                raise self._fault(f"{kind.name.lower()} frames belong to open scopes; none is open")

    def _hello(self, payload: bytes, sender: Hashable) -> HelloReceived:
        if self.state is not State.OPENING:
            raise self._fault("a second hello")
        try:
            hello = _decode_hello(payload)
        except UNDECODABLE:
            raise self._fault("a hello that can't be read") from None
        compatible = (
            hello.lowest <= PROTOCOL_VERSIONS[1] and hello.highest >= PROTOCOL_VERSIONS[0]
        )
        self.peer = hello
        self.state = State.OPEN
        return HelloReceived(hello, sender, compatible)

    def _call(
        self, number: int, payload: bytes, descriptors: list[int], sender: Hashable
    ) -> CallReceived:
        if number <= self.last_incoming:
            raise self._fault(f"call id {number} does not grow")
        if len(self.incoming) >= self.limits.in_flight:
            raise self._fault(f"more than {self.limits.in_flight} unanswered calls")
        self.last_incoming = number
        self.incoming[number] = _IncomingCall(Incoming.RUNNING, sender)
        call: CallPayload | None
        try:
            call = _decode_call(payload)
        except UNDECODABLE:
            call = None
        return CallReceived(number, call, descriptors, sender)

    def _terminal(self, number: int, what: str) -> bool:
        state = self.outgoing.pop(number, None)
        if state is None:
            raise self._fault(f"{what} for call {number}, which is not open")
        return state is Outgoing.ABANDONED

    def _error(self, number: int, payload: bytes, sender: Hashable) -> ErrorReceived:
        abandoned = self._terminal(number, "error") if number else False
        try:
            error = _decode_error(payload)
            ended_by = EndedBy(error.ended_by)
            body = error.error
        except UNDECODABLE:
            ended_by = EndedBy.ITSELF
            body = {"code": "incompatible", "message": "the peer sent an error that can't be read"}
        if number == 0:
            self.state = State.CLOSED
        return ErrorReceived(number, ended_by, body, sender, abandoned)

    def _cancel(self, number: int, payload: bytes, sender: Hashable) -> CancelReceived | None:
        call = self.incoming.get(number)
        if call is None:
            if number > self.last_incoming:
                raise self._fault(f"cancel for call {number}, which was never made")
            return None
        if call.state is Incoming.CANCELLED:
            raise self._fault(f"a second cancel for call {number}")
        if call.sender != sender:
            raise self._fault(f"call {number} was cancelled by another process than its caller")
        try:
            grace = _decode_cancel(payload).grace
        except UNDECODABLE:
            raise self._fault("a cancel that can't be read") from None
        self.incoming[number] = _IncomingCall(Incoming.CANCELLED, sender)
        return CancelReceived(number, max(0, grace), sender)
