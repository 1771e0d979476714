"""One end of a connection as a state machine: bytes and descriptors in, events and frames out.

Rule 1: what decides whether a frame is legal lives here, in `framing` and in `channels`. Rule 2:
this file knows no socket, no clock and no task. Rule 3: an error of the peer's raises
`ProtocolError` once; after it, and after the end, nothing is received any more, and the descriptors
that no event carried out are returned by `abandon()` to be closed.

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

A scope is such a call with more between: `scopes` has what is not in the states above.

    SENT        opened received                  SENT, opened
    opened      close sent                       opened, closing
    opened      reply / error received           ended by the callee
    CANCELLING  opened received                  CANCELLING, dropped

States of a call that the peer made (`incoming`):

    RUNNING     cancel received                  CANCELLED
    RUNNING     reply / error sent               ended
    CANCELLED   reply / error sent               ended
    RUNNING     opened sent (a scope)            RUNNING, opened
    opened      close received                   opened, closing
    ended       cancel, close received           ignored
    -           call after our goodbye           dropped: not started, not answered

Ids are issued by the caller from 1 upwards and never reused. A terminal for an id that is not open,
a second cancel, an id that does not grow, more unanswered ids than announced: each is a protocol
error. What is legal on a channel is in `channels`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import msgspec
from attrs import define, field

from container.ipc.wire.channels import Channel
from container.ipc.wire.events import CallDropped as CallDropped
from container.ipc.wire.events import CallReceived as CallReceived
from container.ipc.wire.events import CancelReceived as CancelReceived
from container.ipc.wire.events import CloseReceived as CloseReceived
from container.ipc.wire.events import CreditReceived as CreditReceived
from container.ipc.wire.events import EndReceived as EndReceived
from container.ipc.wire.events import ErrorReceived as ErrorReceived
from container.ipc.wire.events import Event as Event
from container.ipc.wire.events import GoodbyeReceived as GoodbyeReceived
from container.ipc.wire.events import HelloReceived as HelloReceived
from container.ipc.wire.events import ItemDropped as ItemDropped
from container.ipc.wire.events import ItemReceived as ItemReceived
from container.ipc.wire.events import OpenedReceived as OpenedReceived
from container.ipc.wire.events import PingReceived as PingReceived
from container.ipc.wire.events import PongReceived as PongReceived
from container.ipc.wire.events import ReplyReceived as ReplyReceived
from container.ipc.wire.events import StopReceived as StopReceived
from container.ipc.wire.frames import (
    FROM_CALLEE,
    HEADER,
    HEADER_BYTES,
    MAGIC,
    PROTOCOL_VERSIONS,
    SCOPE,
    CallPayload,
    CancelPayload,
    ClosePayload,
    EndedBy,
    ErrorPayload,
    Gift,
    GoodbyePayload,
    HelloPayload,
    Kind,
    OpenedPayload,
    ValuePayload,
    pack,
)
from container.ipc.wire.frames import UNDECODABLE as UNDECODABLE
from container.ipc.wire.frames import ProtocolError as ProtocolError
from container.ipc.wire.framing import Framing, Payload
from container.ipc.wire.limits import LEAST
from container.ipc.wire.states import Budget as Budget
from container.ipc.wire.states import Incoming as Incoming
from container.ipc.wire.states import IncomingCall, OutgoingScope
from container.ipc.wire.states import Outgoing as Outgoing
from container.ipc.wire.states import State as State

_decode_call = msgspec.msgpack.Decoder(CallPayload).decode
_decode_value = msgspec.msgpack.Decoder(ValuePayload).decode
_decode_error = msgspec.msgpack.Decoder(ErrorPayload).decode
_decode_cancel = msgspec.msgpack.Decoder(CancelPayload).decode
_decode_hello = msgspec.msgpack.Decoder(HelloPayload).decode
_decode_opened = msgspec.msgpack.Decoder(OpenedPayload).decode
_decode_close = msgspec.msgpack.Decoder(ClosePayload).decode
_decode_goodbye = msgspec.msgpack.Decoder(GoodbyePayload).decode
_encode = msgspec.msgpack.Encoder().encode
CARRIERS = (CallReceived, ReplyReceived, CallDropped, OpenedReceived, ItemReceived, ItemDropped)
"""The events that carry descriptors out."""
_unpack = HEADER.unpack_from
_pack = HEADER.pack
_CALL, _REPLY = int(Kind.CALL), int(Kind.REPLY)
"""Plain ints: comparing enum members costs more than unpacking the header."""


@define(eq=False)
class Machine(Framing):
    """One end of a connection.

    Args:
        limits: What this side announces and holds the peer to.
        budget: Partly received bytes, shared with the process's other connections.
    """

    peer: HelloPayload | None = None
    peer_in_flight: int = LEAST["in_flight"]
    """How many unanswered calls the peer accepts."""
    peer_frame_bytes: int = LEAST["frame_bytes"]
    """The largest payload that may be sent."""
    peer_frame_descriptors: int = LEAST["frame_descriptors"]
    """The most descriptors that one frame may carry."""
    outgoing: dict[int, Outgoing] = field(factory=dict[int, Outgoing])
    incoming: dict[int, IncomingCall] = field(factory=dict[int, IncomingCall])
    scopes: dict[int, OutgoingScope] = field(factory=dict[int, OutgoingScope])
    """Of the calls in `outgoing`, those that open scopes."""
    last_incoming: int = 0
    _next_id: int = 1
    _farewell: int | None = None
    _farewell_heard: int | None = None
    _pings: int = 0

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
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
            "channels": self.limits.channels,
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

    def open_scope(self, payload: bytes, descriptors: int = 0) -> tuple[int, bytes]:
        """Open a call that opens a scope; return its id and frame."""
        number, _ = self.call(b"")
        self.scopes[number] = OutgoingScope()
        return number, pack(Kind.CALL, number, payload, flags=SCOPE, descriptors=descriptors)

    def close(self, number: int, failed: bool, grace: int) -> bytes:
        """Leave a scope; return the frame."""
        scope = self.scopes[number]
        assert scope.opened
        assert not scope.closing
        scope.closing = True
        return pack(Kind.CLOSE, number, _encode(ClosePayload(failed, grace)))

    def opened(self, number: int, payload: bytes, descriptors: int = 0) -> bytes:
        """Say that a scope of the peer's is open; return the frame."""
        call = self.incoming[number]
        assert call.scope
        assert not call.opened
        call.opened = True
        return pack(Kind.OPENED, number, payload, flags=FROM_CALLEE, descriptors=descriptors)

    def withdraw(self, number: int) -> None:
        """Forget a call of which no byte was sent; its id is skipped."""
        del self.outgoing[number]
        self._forget(number)

    def _forget(self, number: int) -> None:
        """A call that this side made has ended."""
        self.scopes.pop(number, None)
        self.channels.made.pop(number, None)

    def cancel(self, number: int, grace: int) -> bytes:
        """Return the cancel frame of a call."""
        assert self.outgoing[number] is Outgoing.SENT
        self.outgoing[number] = Outgoing.CANCELLING
        return pack(Kind.CANCEL, number, _encode(CancelPayload(grace)))

    def abandon_call(self, number: int) -> None:
        """Stop waiting for a call: its late terminal is dropped."""
        assert self.outgoing[number] is Outgoing.CANCELLING
        self.outgoing[number] = Outgoing.ABANDONED
        self.channels.made.pop(number, None)

    def reply(self, number: int, payload: bytes, descriptors: int = 0) -> bytes:
        """End a call of the peer's with a value; return the frame."""
        del self.incoming[number]
        if self.channels.heard:
            self.channels.heard.pop(number, None)
        return _pack(len(payload), _REPLY, FROM_CALLEE, descriptors, number) + payload

    def error(self, number: int, ended_by: EndedBy, error: dict[str, object]) -> bytes:
        """End a call of the peer's, or with id 0 the connection, with an error; return the frame.

        An error that is larger than the peer's frames is cut to its code and its sentence.
        """
        if number:
            del self.incoming[number]
            self.channels.heard.pop(number, None)
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

    @property
    def says_goodbye(self) -> bool:
        """True if a goodbye means something: both sides have said hello, and neither the end."""
        return self._hello_sent and self.state in (State.OPEN, State.DRAINING)

    # --- what is received ---------------------------------------------------------------------

    def end(self) -> None:
        """Take the end of the bytes; a frame half received, or none, makes no difference."""
        self.state = State.CLOSED

    def abandon(self) -> list[int]:
        """End, and return the descriptors that no event carried out; the caller closes them."""
        self.state = State.CLOSED
        self.budget.change(-self._accounted)
        self._accounted = 0
        self._parts.clear()
        self._buffer = None
        self.outgoing.clear()
        self.incoming.clear()
        self.scopes.clear()
        self.channels.made.clear()
        self.channels.heard.clear()
        left = list(self._descriptors)
        self._descriptors.clear()
        return left

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

    def _frame(
        self, kind: Kind, flags: int, number: int, payload: Payload, count: int, sender: Hashable
    ) -> Event | None:
        match kind:
            case Kind.CALL:
                return self._call(number, payload, count, sender, scope=bool(flags & SCOPE))
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
            case Kind.OPENED:
                return self._opened(number, payload, count, sender)
            case Kind.CLOSE:
                return self._close(number, payload, sender)
            case Kind.ITEM | Kind.CREDIT | Kind.END | Kind.STOP:
                return self._of_channel(kind, flags, number, payload, count, sender)

    def _hello(self, payload: Payload, sender: Hashable) -> HelloReceived:
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
        self.channels.peer_most = min(self.limits.channels, peer["channels"])

    def _call(
        self, number: int, payload: Payload, count: int, sender: Hashable, scope: bool = False
    ) -> CallReceived | CallDropped:
        if number <= self.last_incoming:
            raise self._fault(f"call id {number} does not grow")
        if self._farewell is not None:
            self.last_incoming = number
            return CallDropped(number, self._take(count))
        if len(self.incoming) >= self.limits.in_flight:
            raise self._fault(f"more than {self.limits.in_flight} unanswered calls")
        self.last_incoming = number
        self.incoming[number] = IncomingCall(Incoming.RUNNING, sender, scope)
        call: CallPayload | None
        try:
            call = _decode_call(payload)
        except UNDECODABLE:
            call = None
        event = CallReceived(number, call, self._take(count) if count else [], sender, scope)
        if call is not None and call.gifts:
            event.channels = self._gifts(False, number, sender, call.gifts, event)
        return event

    def _gifts(
        self,
        made_here: bool,
        number: int,
        sender: Hashable,
        gifts: Sequence[Gift],
        event: CallReceived | OpenedReceived | ItemReceived | ItemDropped,
    ) -> list[Channel]:
        try:
            return self.channels.take(made_here, number, sender, gifts)
        except ProtocolError as error:
            # The event does not leave: `abandon` hands its descriptors out.
            self.descriptors_delivered -= len(event.descriptors)
            self._descriptors.extend(event.descriptors)
            raise self._fault(str(error)) from None

    def _reply(self, number: int, payload: Payload, count: int, sender: Hashable) -> ReplyReceived:
        scope = self.scopes.get(number) if self.scopes else None
        if scope is not None and not scope.opened:
            raise self._fault(f"a reply for scope {number}, which was not opened")
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
        if self.scopes or self.channels.made:
            self._forget(number)
        return state is Outgoing.ABANDONED

    def _error(self, number: int, payload: Payload, sender: Hashable) -> ErrorReceived:
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

    def _cancel(self, number: int, payload: Payload, sender: Hashable) -> CancelReceived | None:
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

    def _opened(
        self, number: int, payload: Payload, count: int, sender: Hashable
    ) -> OpenedReceived:
        scope = self.scopes.get(number)
        if scope is None or scope.opened:
            raise self._fault(f"opened for call {number}, which opens no scope")
        scope.opened = True
        try:
            body = _decode_opened(payload)
        except UNDECODABLE:
            body = None
        value = None if body is None else body.value
        dropped = self.outgoing[number] is not Outgoing.SENT
        descriptors = self._take(count) if count else []
        event = OpenedReceived(number, value, descriptors, sender, dropped)
        if body is not None and body.gifts and self.outgoing[number] is not Outgoing.ABANDONED:
            event.channels = self._gifts(True, number, sender, body.gifts, event)
        return event

    def _close(self, number: int, payload: Payload, sender: Hashable) -> CloseReceived | None:
        call = self.incoming.get(number)
        if call is None:
            if not 0 < number <= self.last_incoming:
                raise self._fault(f"close of scope {number}, which was never opened")
            return None
        if not call.opened or call.closing or call.state is Incoming.CANCELLED:
            raise self._fault(f"close of call {number}, which is no open scope")
        if call.sender != sender:
            raise self._fault(f"scope {number} was closed by another process than its holder")
        try:
            body = _decode_close(payload)
        except UNDECODABLE:
            raise self._fault("a close that can't be read") from None
        call.closing = True
        return CloseReceived(number, body.failed, max(0, body.grace), sender)

    def _of_channel(
        self, kind: Kind, flags: int, number: int, payload: Payload, count: int, sender: Hashable
    ) -> Event | None:
        made_here = bool(flags & FROM_CALLEE)
        live = number in self.outgoing if made_here else number in self.incoming
        call = self.channels.of(made_here, number)
        if call is None and not 0 < number < (
            self._next_id if made_here else self.last_incoming + 1
        ):
            raise self._fault(f"a channel of call {number}, which was never made")
        if call is None and live and self.outgoing.get(number) is not Outgoing.ABANDONED:
            raise self._fault(f"call {number} has no channel")
        try:
            if kind is not Kind.ITEM:
                return self.channels.other_received(kind, call, number, payload, sender)
            event, gifts = self.channels.item_received(call, number, payload, sender)
        except ProtocolError as error:
            raise self._fault(str(error)) from None
        if count:
            event.descriptors = self._take(count)
        if gifts and call is not None:
            channels = self._gifts(made_here, number, sender, gifts, event)
            event.channels = channels
        return event

    def _goodbye(self, payload: Payload) -> GoodbyeReceived:
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
            self.withdraw(number)
        return GoodbyeReceived(goodbye.last, max(0, goodbye.within))
