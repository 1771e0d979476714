"""One end of a connection as a state machine: bytes and descriptors in, events and frames out.

Rule 1: everything that decides whether a frame is legal lives in this file. Rule 2: this file knows
no socket, no clock and no task. Rule 3: an error of the peer's raises `ProtocolError` once; after
it, and after the end, nothing is received any more, and the descriptors that no event carried out
are returned by `abandon()` to be closed.

States of the connection:

    OPENING   hello received                          OPEN
    OPENING   hello of another version received       CLOSED
    OPEN      goodbye received                        DRAINING    (no new calls from here)
    any       error with id 0, broken bytes, end      CLOSED

The side that accepted says its hello only after it has judged the other's; until then no other
frame and no descriptor may come.

States of a call that this side made (`outgoing`):

    SENT        cancel sent                      CANCELLING
    SENT        reply / error received           ended
    SENT        withdrawn (no byte was sent)     ended
    CANCELLING  reply / error received           ended
    CANCELLING  abandoned locally                ABANDONED   (its id stays taken)
    ABANDONED   reply / error received           ended, dropped
    any         goodbye with a smaller last id   ended       (it was not started)

States of a call that the peer made (`incoming`):

    RUNNING     cancel received                  CANCELLED
    RUNNING     reply / error sent               ended
    CANCELLED   reply / error sent               ended
    ended       cancel received                  ignored
    -           call after our goodbye           dropped: not started, not answered

Ids are issued by the caller from 1 upwards and never reused. A terminal for an id that is not open,
a second cancel, an id that does not grow, more unanswered ids than announced: each is a protocol
error.

Descriptors: the kernel glues frames together and hands descriptors over early, never late. So they
are matched by count, in order: at a frame's header all of its descriptors must be here, and those
that are here after the last header belong to that frame, or to one whose header is not whole yet.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Hashable, Sequence

import msgspec
from attrs import define, field

from container.ipc.wire.events import CallDropped as CallDropped
from container.ipc.wire.events import CallReceived as CallReceived
from container.ipc.wire.events import CancelReceived as CancelReceived
from container.ipc.wire.events import ErrorReceived as ErrorReceived
from container.ipc.wire.events import Event as Event
from container.ipc.wire.events import GoodbyeReceived as GoodbyeReceived
from container.ipc.wire.events import HelloReceived as HelloReceived
from container.ipc.wire.events import PingReceived as PingReceived
from container.ipc.wire.events import PongReceived as PongReceived
from container.ipc.wire.events import ReplyReceived as ReplyReceived
from container.ipc.wire.frames import (
    FLAGS,
    FROM_CALLEE,
    HEADER,
    HEADER_BYTES,
    HELLO_BYTES,
    KINDS,
    MAGIC,
    PROTOCOL_VERSIONS,
    WITH_DESCRIPTORS,
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
from container.ipc.wire.limits import LEAST, Limits


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


@define
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
_unpack = HEADER.unpack_from
_pack = HEADER.pack
_CALL, _REPLY = int(Kind.CALL), int(Kind.REPLY)
"""Plain ints: comparing enum members costs more than unpacking the header."""

UNDECODABLE = (msgspec.MsgspecError, RecursionError, ValueError, OverflowError, TypeError)
"""What decoding hostile bytes can raise."""


@define(eq=False)
class Machine:
    """One end of a connection.

    Args:
        limits: What this side announces and holds the peer to.
        budget: Partly received bytes, shared with the process's other connections.
    """

    limits: Limits
    budget: Budget
    state: State = State.OPENING
    peer: HelloPayload | None = None
    peer_in_flight: int = LEAST["in_flight"]
    """How many unanswered calls the peer accepts."""
    peer_frame_bytes: int = LEAST["frame_bytes"]
    """The largest payload that may be sent."""
    peer_frame_descriptors: int = LEAST["frame_descriptors"]
    """The most descriptors that one frame may carry."""
    outgoing: dict[int, Outgoing] = field(factory=dict[int, Outgoing])
    incoming: dict[int, _IncomingCall] = field(factory=dict[int, _IncomingCall])
    descriptors_received: int = 0
    descriptors_delivered: int = 0
    last_incoming: int = 0
    _next_id: int = 1
    _hello_sent: bool = False
    _farewell: int | None = None
    _farewell_heard: int | None = None
    _buffer: bytearray = field(factory=bytearray)
    _buffer_sender: Hashable = None
    _accounted: int = 0
    _descriptors: deque[int] = field(factory=deque[int])
    _pings: int = 0

    def __attrs_post_init__(self) -> None:
        self._heed({})

    # --- what is sent -------------------------------------------------------------------------

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
        return number, _pack(len(payload), _CALL, 0, descriptors, number) + payload

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
        assert self.outgoing[number] is Outgoing.CANCELLING
        self.outgoing[number] = Outgoing.ABANDONED

    def reply(self, number: int, payload: bytes, descriptors: int = 0) -> bytes:
        """End a call of the peer's with a value; return the frame."""
        del self.incoming[number]
        return _pack(len(payload), _REPLY, FROM_CALLEE, descriptors, number) + payload

    def error(self, number: int, ended_by: EndedBy, error: dict[str, object]) -> bytes:
        """End a call of the peer's, or with id 0 the connection, with an error; return the frame.

        An error that is larger than the peer's frames is cut to its code and its sentence.
        """
        if number:
            del self.incoming[number]
        return self.error_instead(number, error, ended_by)

    def error_instead(
        self, number: int, error: dict[str, object], ended_by: EndedBy = EndedBy.ITSELF
    ) -> bytes:
        """Return the terminal of a call whose reply was made and could not be sent at all."""
        payload = _encode(ErrorPayload(ended_by, error))
        if len(payload) > self.peer_frame_bytes:
            message = str(error.get("message", ""))[: self.peer_frame_bytes // 8]
            cut: dict[str, object] = {"code": error.get("code"), "message": message}
            payload = _encode(ErrorPayload(ended_by, cut))
        return pack(Kind.ERROR, number, payload, flags=FROM_CALLEE)

    def ping(self) -> bytes:
        """Return a ping."""
        self._pings += 1
        return pack(Kind.PING, self._pings, b"")

    def pong(self, token: int) -> bytes:
        """Return the answer to a ping."""
        return pack(Kind.PONG, token, b"")

    def goodbye(self, within: int) -> bytes:
        """Return the frame that says which calls were the last; later ones are dropped.

        It may be said again, with another `within`; the last id stays.
        """
        if self._farewell is None:
            self._farewell = self.last_incoming
        return pack(Kind.GOODBYE, 0, _encode(GoodbyePayload(self._farewell, within)))

    # --- what is received ---------------------------------------------------------------------

    def receive(
        self, data: bytes, descriptors: Sequence[int] = (), sender: Hashable = None
    ) -> list[Event]:
        """Take what one read gave; return what it means.

        Args:
            data: Bytes of one sender, not empty.
            descriptors: Received with them; owned here until an event carries them out.
            sender: Who sent the bytes, from the kernel.

        Raises:
            ProtocolError: the connection must end. Events of this read before the fault are lost
                with it, their descriptors stay here for `abandon()`.
        """
        if descriptors:
            self._descriptors.extend(descriptors)
            self.descriptors_received += len(descriptors)
        if self.state is State.CLOSED:
            return []
        if not self._buffer and not self._descriptors and self.state is State.OPEN:
            # Nearly every read gives one whole frame of a call without descriptors.
            whole = self._whole(data, sender)
            if whole:
                return whole
        buffer: bytes | bytearray = data
        held = len(self._buffer)
        if held:
            if sender != self._buffer_sender:
                raise self._fault("one frame came from two senders")
            self._buffer += data
            buffer = self._buffer
        events: list[Event] = []
        try:
            position = self._frames(buffer, sender, events)
        except BaseException:
            # Events that never leave give their descriptors back, so that `abandon` hands them out.
            for event in events:
                if isinstance(event, (CallReceived, ReplyReceived, CallDropped)):
                    self.descriptors_delivered -= len(event.descriptors)
                    self._descriptors.extend(event.descriptors)
            raise
        if held:
            del self._buffer[:position]
        elif position < len(data):
            self._buffer += memoryview(data)[position:]
        self._buffer_sender = sender
        return events

    def _whole(self, data: bytes, sender: Hashable) -> list[Event]:
        """Take a call or a reply that is all there is; nothing of whatever is not just that."""
        if len(data) < HEADER_BYTES:
            return []
        length, code, flags, count, number = _unpack(data)
        if (
            length != len(data) - HEADER_BYTES
            or count
            or length > self.limits.frame_bytes
            or not self._hello_sent
        ):
            return []
        if code == _CALL and flags == 0:
            return [self._call(number, data[HEADER_BYTES:], 0, sender)]
        if code == _REPLY and flags == FROM_CALLEE:
            return [self._reply(number, data[HEADER_BYTES:], 0, sender)]
        return []

    def _frames(self, buffer: bytes | bytearray, sender: Hashable, events: list[Event]) -> int:
        """Take the whole frames of a buffer; return where the rest begins."""
        position, total = 0, len(buffer)
        expected: int | None = None
        with memoryview(buffer) as view:
            while total - position >= HEADER_BYTES:
                length, code, flags, count, number = HEADER.unpack_from(view, position)
                kind = self._check(length, code, flags, count, number)
                end = position + HEADER_BYTES + length
                if end > total:
                    expected = count
                    break
                payload = bytes(view[position + HEADER_BYTES : end])
                position = end
                event = self._frame(kind, number, payload, count, sender)
                if event is not None:
                    events.append(event)
                if self.state is State.CLOSED:
                    return total
        left = total - position
        self._check_left(left, expected)
        return position

    def _check_left(self, left: int, expected: int | None) -> None:
        if self._descriptors:
            admitted = self._hello_sent and self.state is not State.OPENING
            most = self.limits.frame_descriptors if left and admitted else 0
            if len(self._descriptors) > (most if expected is None else expected):
                raise self._fault("more descriptors came than the frames said")
        # Small rests are free, so that a few greedy connections can't end all the others.
        counted = max(0, left - self.limits.partial_free_bytes)
        if not self.budget.change(counted - self._accounted):
            raise self._fault("too many partly received bytes in this process")
        self._accounted = counted

    def end(self) -> None:
        """Take the end of the bytes; a frame half received, or none, makes no difference."""
        self.state = State.CLOSED

    def abandon(self) -> list[int]:
        """End, and return the descriptors that no event carried out; the caller closes them."""
        self.state = State.CLOSED
        self.budget.change(-self._accounted)
        self._accounted = 0
        self._buffer.clear()
        self.outgoing.clear()
        self.incoming.clear()
        left = list(self._descriptors)
        self._descriptors.clear()
        return left

    def _fault(self, message: str) -> ProtocolError:
        self.state = State.CLOSED
        return ProtocolError(message)

    def _check(self, length: int, code: int, flags: int, count: int, number: int) -> Kind:
        # Called at every header, before memory for the payload is taken.
        kind = KINDS.get(code)
        if self.state is State.OPENING:
            if number != (MAGIC if kind is Kind.HELLO else 0) or kind not in (
                Kind.HELLO,
                Kind.ERROR,
            ):
                raise self._fault("this is not the protocol: the first frame is no hello")
            if length > HELLO_BYTES:
                raise self._fault(f"a hello of {length} bytes; {HELLO_BYTES} are allowed")
        elif kind is None:
            raise self._fault(f"unknown frame kind {code}")
        elif not self._hello_sent and kind is not Kind.HELLO:
            raise self._fault(f"a {kind.name.lower()} frame before our hello")
        elif kind is not Kind.HELLO and flags not in FLAGS[kind]:
            raise self._fault(f"a {kind.name.lower()} frame with flags {flags}")
        if length > self.limits.frame_bytes:
            raise self._fault(f"a frame of {length} bytes; {self.limits.frame_bytes} are allowed")
        if count:
            if count > self.limits.frame_descriptors:
                raise self._fault(
                    f"a frame with {count} descriptors; {self.limits.frame_descriptors} are allowed"
                )
            if kind is None or kind not in WITH_DESCRIPTORS:
                raise self._fault(f"frames of kind {code} carry no descriptors")
            if count > len(self._descriptors):
                raise self._fault("fewer descriptors came than the frame said")
        assert kind is not None
        return kind

    def _frame(
        self, kind: Kind, number: int, payload: bytes, count: int, sender: Hashable
    ) -> Event | None:
        match kind:
            case Kind.CALL:
                return self._call(number, payload, count, sender)
            case Kind.REPLY:
                return self._reply(number, payload, count, sender)
            case Kind.ERROR:
                return self._error(number, payload, sender)
            case Kind.CANCEL:
                return self._cancel(number, payload, sender)
            case Kind.PING:
                return PingReceived(number)
            case Kind.PONG:
                if not 0 < number <= self._pings:
                    raise self._fault("a pong without its ping")
                return PongReceived(number)
            case Kind.HELLO:
                return self._hello(payload, sender)
            case Kind.GOODBYE:
                return self._goodbye(payload)
            case _:
                raise self._fault(f"{kind.name.lower()} frames belong to open scopes; none is open")

    def _take(self, count: int) -> list[int]:
        if not count:
            return []
        self.descriptors_delivered += count
        return [self._descriptors.popleft() for _ in range(count)]

    def _hello(self, payload: bytes, sender: Hashable) -> HelloReceived:
        if self.state is not State.OPENING:
            raise self._fault("a second hello")
        try:
            hello = _decode_hello(payload)
        except UNDECODABLE:
            raise self._fault("a hello that can't be read") from None
        if any(hello.limits.get(limit, 1) < 1 for limit in ("frame_bytes", "in_flight")):
            raise self._fault("a hello whose limits allow nothing")
        compatible = hello.lowest <= PROTOCOL_VERSIONS[1] and hello.highest >= PROTOCOL_VERSIONS[0]
        self.peer = hello
        self._heed(hello.limits)
        self.state = State.OPEN if compatible else State.CLOSED
        return HelloReceived(hello, sender, compatible)

    def _heed(self, announced: dict[str, int]) -> None:
        """Send no more than both sides allow; kept, since every message is checked against it."""
        peer = LEAST | announced
        self.peer_in_flight = peer["in_flight"]
        self.peer_frame_bytes = min(self.limits.frame_bytes, peer["frame_bytes"])
        self.peer_frame_descriptors = min(self.limits.frame_descriptors, peer["frame_descriptors"])

    def _call(
        self, number: int, payload: bytes, count: int, sender: Hashable
    ) -> CallReceived | CallDropped:
        if number <= self.last_incoming:
            raise self._fault(f"call id {number} does not grow")
        if self._farewell is not None:
            self.last_incoming = number
            return CallDropped(number, self._take(count))
        if len(self.incoming) >= self.limits.in_flight:
            raise self._fault(f"more than {self.limits.in_flight} unanswered calls")
        self.last_incoming = number
        self.incoming[number] = _IncomingCall(Incoming.RUNNING, sender)
        call: CallPayload | None
        try:
            call = _decode_call(payload)
        except UNDECODABLE:
            call = None
        return CallReceived(number, call, self._take(count) if count else [], sender)

    def _reply(self, number: int, payload: bytes, count: int, sender: Hashable) -> ReplyReceived:
        abandoned = self._terminal(number, "reply")
        value: msgspec.Raw | None
        try:
            value = _decode_value(payload).value
        except UNDECODABLE:
            value = None
        return ReplyReceived(number, value, self._take(count) if count else [], sender, abandoned)

    def _terminal(self, number: int, what: str) -> bool:
        state = self.outgoing.pop(number, None)
        if state is None:
            raise self._fault(f"{what} for call {number}, which is not open")
        return state is Outgoing.ABANDONED

    def _error(self, number: int, payload: bytes, sender: Hashable) -> ErrorReceived:
        abandoned = self._terminal(number, "error") if number else False
        ended_by = EndedBy.ITSELF
        body: dict[str, object]
        try:
            error = _decode_error(payload)
            body = error.error
            # A reason that a newer peer knows and we don't: the error itself still stands.
            if 0 <= error.ended_by < len(EndedBy):
                ended_by = EndedBy(error.ended_by)
        except UNDECODABLE:
            body = {"code": "incompatible", "message": "the peer sent an error that can't be read"}
        if number == 0:
            self.state = State.CLOSED
        return ErrorReceived(number, ended_by, body, sender, abandoned)

    def _cancel(self, number: int, payload: bytes, sender: Hashable) -> CancelReceived | None:
        call = self.incoming.get(number)
        if call is None:
            if not 0 < number <= self.last_incoming:
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
        call.state = Incoming.CANCELLED
        return CancelReceived(number, max(0, grace), sender)

    def _goodbye(self, payload: bytes) -> GoodbyeReceived:
        try:
            goodbye = _decode_goodbye(payload)
        except UNDECODABLE:
            raise self._fault("a goodbye that can't be read") from None
        before = self._next_id - 1 if self._farewell_heard is None else self._farewell_heard
        if not 0 <= goodbye.last <= before:
            raise self._fault(f"a goodbye after call {goodbye.last}, of {before}")
        self._farewell_heard = goodbye.last
        self.state = State.DRAINING
        for number in [number for number in self.outgoing if number > goodbye.last]:
            del self.outgoing[number]
        return GoodbyeReceived(goodbye.last, max(0, goodbye.within))
