"""A connection: the machine of the wire, driven by Trio tasks. Calls go out of it and come into it.

The rules that keep it right:

- Reader, writer and timers run in a shielded scope that only the connection ends: a cancelled caller
  still gets its acknowledgement, and a server that is being cancelled still sends its terminal frames.
- The reader never waits for a write: two readers that answer would deadlock after a few full buffers.
- `_pending.pop(id)` is the one gate to a waiting caller: whoever pops it reschedules the task, once.
- A frame of which no byte was sent can be withdrawn; one begun is finished by the writer task.
"""

from __future__ import annotations

import enum
import errno
import logging
import math
import os
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import outcome
import trio
from attrs import define, field, frozen

from container.ipc import context, tracing, wire_errors
from container.ipc.codec import Incoming, Outgoing, RouteCodec
from container.ipc.errors import (
    CallCancelled,
    ContainerError,
    DeadlineExceeded,
    Fate,
    Incompatible,
    InvalidArgument,
    Overloaded,
    PeerGone,
    PermissionDenied,
    Unavailable,
    UnknownRoute,
)
from container.ipc.peer import Peer, Policy, Sender, admits
from container.ipc.transport import Transport, TransportBroken
from container.ipc.wire.frames import EndedBy
from container.ipc.wire.limits import Limits
from container.ipc.wire.machine import (
    Budget,
    CallReceived,
    CancelReceived,
    ErrorReceived,
    Event,
    GoodbyeReceived,
    HelloReceived,
    Machine,
    PingReceived,
    ProtocolError,
    ReplyReceived,
    State,
)

logger = logging.getLogger("container.ipc")

_partial = Budget(Limits().partial_bytes)
SLACK = 0.001
"""Added to a callee's deadline, so that the caller's own fires first."""


class _Stage(enum.Enum):
    """Where a call stands, seen from its caller."""

    WRITING = "writing"
    SENT = "sent"
    HELD = "held"
    """A deadline terminal came before the caller's own deadline."""
    CANCELLING = "cancelling"


@define(slots=True, eq=False)
class _Call:
    id: int
    route: str
    task: trio.lowlevel.Task
    stage: _Stage = _Stage.SENT
    frame: _Frame | None = None
    raise_cancel: Callable[[], Any] | None = None
    held: ErrorReceived | None = None


@define(slots=True, eq=False)
class _Frame:
    """Bytes to be sent, whole and in order, with their descriptors at the first byte."""

    view: memoryview
    descriptors: list[int]
    call: _Call | None = None
    written: trio.Event | None = None
    begun: bool = False


@frozen
class Handler:
    """What serves one route."""

    codec: RouteCodec
    method: Callable[..., Awaitable[Any]]


@frozen
class ConnectionStatistics:
    """A look at a connection."""

    pending: int
    """Calls made here that wait for their terminal frame."""
    handling: int
    """Calls of the peer that run here."""
    queued_frames: int
    abandoned: int
    """Calls whose handler overstayed the grace, since the beginning."""
    overstayed: int
    """Handlers here that overstayed their caller's grace, since the beginning."""
    descriptors_received: int
    descriptors_delivered: int


class Connection:
    """One conversation. Made by `open_connection`; safe to use from any task of the loop.

    `proxy(Contract)` gives the typed face; `call` is what proxies are made of.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        accepts: bool,
        routes: Mapping[str, Handler] | None = None,
        offered: Mapping[str, tuple[int, str]] | None = None,
        denied: frozenset[str] = frozenset(),
        policy: Policy,
        limits: Limits,
    ) -> None:
        self._transport = transport
        self._accepts = accepts
        self._routes = routes or {}
        self._offered = dict(offered or {})
        self._denied = denied
        self._policy = policy
        self._limits = limits
        self._machine = Machine(limits, _partial)
        self._pending: dict[int, _Call] = {}
        self._handling: dict[int, context.Handling] = {}
        self._control: deque[_Frame] = deque()
        self._queue: deque[_Frame] = deque()
        self._wake_writer = trio.Event()
        self._room = trio.lowlevel.ParkingLot()
        self._awaiting = trio.lowlevel.ParkingLot()
        self._ready = trio.Event()
        self._lost = trio.Event()
        self._why: str | None = None
        self._refusal: Exception | None = None
        self._io: trio.Nursery | None = None
        self._handlers: trio.Nursery | None = None
        self._peers: dict[Hashable, Peer] = {}
        self._heard = False
        self._draining: int | None = None
        self._abandoned = 0
        self._overstayed = 0

    # --- looking at it ------------------------------------------------------------------------

    @property
    def lost(self) -> bool:
        """True once the connection has ended, however it did."""
        return self._lost.is_set()

    @property
    def peer_contracts(self) -> dict[str, tuple[int, str]]:
        """What the peer serves: version and fingerprint by contract name."""
        peer = self._machine.peer
        return {} if peer is None else peer.contracts

    @property
    def peer_process(self) -> str:
        """The peer's own name for itself, for messages."""
        return "" if self._machine.peer is None else self._machine.peer.process

    @property
    def peer_pids(self) -> tuple[int, ...]:
        """Processes that have sent something on this connection."""
        return tuple(peer.pid for peer in self._peers.values())

    def statistics(self) -> ConnectionStatistics:
        """Return a frozen look."""
        return ConnectionStatistics(
            pending=len(self._pending),
            handling=len(self._handling),
            queued_frames=len(self._control) + len(self._queue),
            abandoned=self._abandoned,
            overstayed=self._overstayed,
            descriptors_received=self._machine.descriptors_received,
            descriptors_delivered=self._machine.descriptors_delivered,
        )

    async def wait_lost(self) -> None:
        """Wait until the connection has ended."""
        await self._lost.wait()

    # --- calling ------------------------------------------------------------------------------

    async def call(self, codec: RouteCodec, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make a call and return its result; what `semantics` promises of a call is kept here.

        The caller's deadline travels with it. A cancelled caller waits, at most the grace, for its
        handler's end; a reply that was already on its way wins.

        Raises:
            ContainerError: what the handler raised, its provenance with it.
            PeerGone: the connection ended first.
        """
        values = codec.lower(codec.bind(args, kwargs))
        if not tracing.active():
            return await self._call(codec, values, tracing.current())
        span = tracing.begin("client", codec.route.path, tracing.current())
        try:
            result = await self._call(codec, values, span.traceparent)
        except BaseException as error:
            tracing.finish(span, error)
            raise
        tracing.finish(span)
        return result

    async def _call(self, codec: RouteCodec, values: dict[str, Any], trace: str | None) -> Any:
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self.lost and self._full():
            await self._room.park()
        route = codec.route.path
        outgoing = Outgoing()
        try:
            if self.lost or self._draining is not None:
                raise self._gone(route, Fate.NOT_SENT)
            grace = context.grace_of_task(self._limits.grace_seconds)
            remaining = trio.current_effective_deadline() - trio.current_time()
            timeout = None if math.isinf(remaining) else math.ceil(max(remaining, 0) * 1e9)
            payload = msgspec.msgpack.encode(
                (route, timeout, int(grace * 1e9), trace, values), enc_hook=outgoing.hook
            )
            self._check_size(route, payload, outgoing)
            event = await self._exchange(route, payload, outgoing.filenos(), grace)
        finally:
            outgoing.sent(result=False)
        incoming = Incoming.of(event.descriptors)
        try:
            if event.value is not None and len(event.value) > self._limits.decode_inline_bytes:
                with trio.CancelScope(shield=True):
                    result = await trio.to_thread.run_sync(codec.result_of, event.value, incoming)
            else:
                result = codec.result_of(event.value, incoming)
        except BaseException:
            incoming.close()
            raise
        if incoming.descriptors:
            incoming.close_unclaimed()
        return result

    def _full(self) -> bool:
        return len(self._machine.outgoing) >= self._machine.peer_in_flight

    def _check_size(self, route: str, payload: bytes, outgoing: Outgoing) -> None:
        if len(payload) > self._machine.peer_frame_bytes:
            raise InvalidArgument(
                f"{route}: the message has {len(payload)} bytes, "
                f"{self._machine.peer_frame_bytes} are allowed",
                hint="pass a descriptor (a pipe, a file, a memfd) instead of the bytes",
            )
        if len(outgoing.descriptors) > self._limits.frame_descriptors:
            raise InvalidArgument(
                f"{route}: the message has {len(outgoing.descriptors)} descriptors, "
                f"{self._limits.frame_descriptors} are allowed"
            )

    async def _exchange(
        self, route: str, payload: bytes, descriptors: list[int], grace: float
    ) -> ReplyReceived:
        number, data = self._machine.call(payload, len(descriptors))
        call = _Call(number, route, trio.lowlevel.current_task())
        frame = _Frame(memoryview(data), descriptors, call)
        try:
            self._transmit(frame, self._queue)
        except OSError as error:
            self._machine.withdraw(number)
            if error.errno in (errno.ETOOMANYREFS, errno.EMFILE):
                raise Overloaded(
                    f"{route}: too many descriptors of this user are in flight"
                ) from error
            raise
        if self.lost:
            raise self._gone(route, Fate.NOT_SENT)
        # Only now: losing the connection wakes what is pending, and this task does not wait yet.
        self._pending[number] = call
        if frame.view:
            call.stage, call.frame = _Stage.WRITING, frame
        self._awaiting.unpark_all()

        def abort(raise_cancel: Callable[[], Any]) -> trio.lowlevel.Abort:
            # Called once, must not raise: after it only a terminal, the grace's end or the
            # connection's end can wake this task.
            if call.stage is _Stage.HELD:
                self._pending.pop(number, None)
                return trio.lowlevel.Abort.SUCCEEDED
            if call.stage is _Stage.WRITING and not frame.begun:
                self._queue.remove(frame)
                self._pending.pop(number, None)
                self._machine.withdraw(number)
                self._room.unpark()
                return trio.lowlevel.Abort.SUCCEEDED
            call.stage, call.raise_cancel = _Stage.CANCELLING, raise_cancel
            self._send_control(self._machine.cancel(number, int(grace * 1e9)))
            assert self._io is not None
            self._io.start_soon(self._grace_timer, call, grace)
            return trio.lowlevel.Abort.FAILED

        return await trio.lowlevel.wait_task_rescheduled(abort)

    async def _grace_timer(self, call: _Call, grace: float) -> None:
        await trio.sleep(grace)
        if self._pending.get(call.id) is not call:
            return
        if call.stage is _Stage.HELD:
            assert call.held is not None
            self._wake(call, outcome.Error(wire_errors.from_wire(call.held.error)))
            return
        self._abandoned += 1
        self._machine.abandon_call(call.id)
        logger.warning("%s overstayed the grace of %.3f s; its answer is dropped", call.route, grace)
        assert call.raise_cancel is not None
        self._wake(call, outcome.capture(call.raise_cancel))

    def _wake(self, call: _Call, result: outcome.Outcome[Any]) -> None:
        if self._pending.pop(call.id, None) is call:
            trio.lowlevel.reschedule(call.task, result)

    def _gone(self, route: str, fate: Fate) -> PeerGone:
        why = self._why or ("draining" if self._draining is not None else "closed")
        who = self.peer_process or "the peer"
        text = {
            Fate.NOT_SENT: "it was not sent",
            Fate.UNKNOWN: "whether it was done is not known",
            Fate.REFUSED: "it was refused",
        }[fate]
        return PeerGone(f"{route}: {who} is gone ({why}); {text}", fate=fate, why=why)

    # --- writing ------------------------------------------------------------------------------

    def _transmit(self, frame: _Frame, queue: deque[_Frame]) -> None:
        """Send a frame at once if nothing is queued, else queue it. Never waits."""
        if not self._control and not self._queue:
            try:
                self._push(frame)
            except BlockingIOError:
                pass
            except OSError as error:
                if error.errno in (errno.ETOOMANYREFS, errno.EMFILE) and not frame.begun:
                    raise
                self._lose(f"closed: {error.strerror}")
                return
            if not frame.view:
                return
        if frame.begun:
            queue.appendleft(frame)
        else:
            queue.append(frame)
        self._wake_writer.set()

    def _push(self, frame: _Frame) -> None:
        while frame.view:
            taken = self._transport.send(frame.view, frame.descriptors)
            frame.begun = True
            frame.descriptors = []
            frame.view = frame.view[taken:]
        if frame.written is not None:
            frame.written.set()

    def _send_control(self, data: bytes) -> None:
        if not self.lost:
            self._transmit(_Frame(memoryview(data), []), self._control)

    async def _send_terminal(self, data: bytes, descriptors: list[int]) -> None:
        """Send a handler's reply and wait until it is written or the connection is lost."""
        frame = _Frame(memoryview(data), descriptors, written=trio.Event())
        self._transmit(frame, self._queue)
        if frame.view and not self.lost:
            assert frame.written is not None
            with trio.CancelScope(shield=True):
                await frame.written.wait()

    async def _write(self) -> None:
        while True:
            await self._wake_writer.wait()
            self._wake_writer = trio.Event()
            while self._control or self._queue:
                # A frame begun is finished first; then control frames, then the others.
                begun = bool(self._queue) and self._queue[0].begun
                queue = self._queue if begun or not self._control else self._control
                frame = queue[0]
                try:
                    self._push(frame)
                except BlockingIOError:
                    await self._transport.wait_writable()
                    continue
                except OSError as error:
                    if error.errno in (errno.ETOOMANYREFS, errno.EMFILE) and not frame.begun:
                        queue.popleft()
                        self._refuse_overloaded(frame)
                        continue
                    self._lose(f"closed: {error.strerror}")
                    return
                queue.popleft()
                if frame.call is not None and frame.call.stage is _Stage.WRITING:
                    frame.call.stage = _Stage.SENT

    def _refuse_overloaded(self, frame: _Frame) -> None:
        call = frame.call
        if call is not None and call.id in self._pending:
            self._machine.withdraw(call.id)
            error = Overloaded(f"{call.route}: too many descriptors of this user are in flight")
            self._wake(call, outcome.Error(error))
        elif frame.written is not None:
            frame.written.set()

    # --- reading ------------------------------------------------------------------------------

    async def _read(self) -> None:
        transport, machine = self._transport, self._machine
        while not self.lost:
            try:
                data, descriptors, sender = transport.receive()
            except BlockingIOError:
                await transport.wait_readable()
                continue
            except TransportBroken as error:
                self._lose(f"protocol: {error}")
                return
            except OSError as error:
                self._lose(f"closed: {error.strerror or error}")
                return
            if not data:
                self._lose("closed")
                return
            self._heard = True
            try:
                events = machine.receive(data, descriptors, sender)
            except ProtocolError as error:
                logger.warning("connection with %s ended: %s", self.peer_process or "a peer", error)
                self._lose(f"protocol: {error}")
                return
            for event in events:
                self._dispatch(event)
            if len(data) >= 65536:
                # A flood on one connection must not starve the other tasks.
                await trio.lowlevel.cancel_shielded_checkpoint()

    def _dispatch(self, event: Event) -> None:
        if isinstance(event, ReplyReceived):
            self._room.unpark()
            call = self._pending.get(event.id)
            if event.abandoned or call is None:
                Incoming.of(event.descriptors).close()
                return
            if not self._admits(event.sender, None):
                Incoming.of(event.descriptors).close()
                self._wake(call, outcome.Error(self._stranger(event.sender, call.route)))
                return
            self._wake(call, outcome.Value(event))
        elif isinstance(event, CallReceived):
            self._start_handler(event)
        elif isinstance(event, ErrorReceived):
            self._take_error(event)
        elif isinstance(event, CancelReceived):
            self._take_cancel(event)
        elif isinstance(event, PingReceived):
            # A flood of pings must not fill memory while nothing can be written.
            if len(self._control) < 64:
                self._send_control(self._machine.pong(event.token))
        elif isinstance(event, HelloReceived):
            self._take_hello(event)
        elif isinstance(event, GoodbyeReceived):
            self._draining = event.last
            for call in [c for c in self._pending.values() if c.id > event.last]:
                self._wake(call, outcome.Error(self._gone(call.route, Fate.NOT_SENT)))

    def _take_error(self, event: ErrorReceived) -> None:
        if event.id == 0:
            self._refusal = wire_errors.from_wire(event.error)
            self._lose(f"refused: {event.error.get('message')}")
            return
        self._room.unpark()
        call = self._pending.get(event.id)
        if event.abandoned or call is None:
            return
        if event.ended_by is EndedBy.ITSELF:
            self._wake(call, outcome.Error(wire_errors.from_wire(event.error)))
        elif call.stage is _Stage.CANCELLING:
            assert call.raise_cancel is not None
            self._wake(call, outcome.capture(call.raise_cancel))
        elif event.ended_by is EndedBy.DEADLINE:
            # The caller's own scope should fire now; if it moved its deadline later, the callee's
            # word stands once the grace is over.
            call.stage, call.held = _Stage.HELD, event
            assert self._io is not None
            self._io.start_soon(self._grace_timer, call, self._limits.grace_seconds)
        else:
            self._wake(call, outcome.Error(wire_errors.from_wire(event.error)))

    def _take_cancel(self, event: CancelReceived) -> None:
        handling = self._handling.get(event.id)
        if handling is None:
            return
        handling.cancelled = True
        handling.grace = event.grace / 1e9
        handling.cancel()
        assert self._io is not None
        self._io.start_soon(self._watch_overstay, handling)

    async def _watch_overstay(self, handling: context.Handling) -> None:
        await trio.sleep(handling.grace)
        if self._handling.get(handling.id) is handling:
            self._overstayed += 1
            handling.overstayed = True
            logger.warning("%s overstays its caller's grace", handling.route)

    def _take_hello(self, event: HelloReceived) -> None:
        peer = self._peer(event.sender)
        if not event.compatible:
            theirs = event.payload
            error = Incompatible(
                f"{wire_errors.process_name()} speaks protocol version 1, "
                f"{theirs.process or 'the peer'} speaks {theirs.lowest} to {theirs.highest}",
                hint="use the same version of container at both ends",
            )
        elif not admits(self._policy, peer, None):
            error = self._stranger(event.sender, "hello")
        else:
            self._transport.admit_descriptors()
            if self._accepts:
                self._say_hello()
            self._ready.set()
            return
        if self._accepts:
            wire = wire_errors.to_wire(error, "hello")
            self._send_control(self._machine.error(0, EndedBy.ITSELF, wire))
        else:
            self._refusal = error
        self._lose(f"refused: {error.message}")

    def _say_hello(self) -> None:
        from container import __version__

        self._send_control(
            self._machine.hello(self._offered, wire_errors.process_name(), __version__)
        )

    # --- judging ------------------------------------------------------------------------------

    def _peer(self, sender: Hashable) -> Peer:
        known = self._peers.get(sender)
        if known is None:
            assert isinstance(sender, Sender)
            uid = self._transport.connected_uid
            known = Peer(pid=sender.pid, uid=sender.uid, gid=sender.gid, connected_uid=uid)
            if len(self._peers) < 64:
                self._peers[sender] = known
        return known

    def _admits(self, sender: Hashable, route: str | None) -> bool:
        return admits(self._policy, self._peer(sender), route)

    def _stranger(self, sender: Hashable, route: str) -> PermissionDenied:
        peer = self._peer(sender)
        return PermissionDenied(
            f"{route}: a process of user {peer.uid} is not admitted",
            hint=f"{wire_errors.process_name()} runs as user {os.geteuid()}",
        )

    # --- handling -----------------------------------------------------------------------------

    def _start_handler(self, event: CallReceived) -> None:
        payload = event.payload
        handler = None
        error: ContainerError | None = None
        route = "" if payload is None else payload.route
        if payload is None:
            error = InvalidArgument("the body of this call is no message")
        elif not self._admits(event.sender, route):
            error = self._stranger(event.sender, route)
        elif self._handlers is None:
            error = Unavailable(f"{route}: {wire_errors.process_name()} serves nothing here")
        else:
            handler = self._routes.get(route)
            if handler is None and route in self._denied:
                error = PermissionDenied(f"this endpoint does not offer {route}")
            elif handler is None:
                served = ", ".join(sorted(self._offered)) or "nothing"
                error = UnknownRoute(f"no route {route!r} here; served: {served}")
        if error is not None:
            Incoming.of(event.descriptors).close()
            wire = wire_errors.to_wire(error, route)
            self._send_control(self._machine.error(event.id, EndedBy.ITSELF, wire))
            return
        assert payload is not None
        assert handler is not None
        assert self._handlers is not None
        deadline = math.inf
        if payload.timeout is not None:
            deadline = trio.current_time() + max(0, payload.timeout) / 1e9 + SLACK
        handling = context.Handling(
            id=event.id,
            route=route,
            peer=self._peer(event.sender),
            grace=max(0, payload.grace) / 1e9,
            scope=trio.CancelScope(deadline=deadline),
        )
        self._handling[event.id] = handling
        self._handlers.start_soon(
            self._handle, handling, handler, payload, event.descriptors, name=f"call {route}"
        )

    async def _handle(
        self,
        handling: context.Handling,
        handler: Handler,
        payload: Any,
        descriptors: list[int],
    ) -> None:
        context.enter(handling)
        tracing.enter(payload.trace)
        span = None
        if tracing.active():
            span = tracing.begin("server", handling.route, payload.trace, handling.peer.pid)
            tracing.enter(span.traceparent)
        incoming = Incoming.of(descriptors)
        outgoing = Outgoing()
        failure: BaseException | None = None
        reply: bytes | None = None
        stopped = False
        try:
            with handling.scope:
                reply = await self._work(handler, payload, incoming, outgoing)
        except trio.Cancelled as cancelled:
            stopped = True
            failure = cancelled
            raise
        except (KeyboardInterrupt, SystemExit):
            stopped = True
            raise
        except BaseException as error:
            failure = error
        finally:
            incoming.close()
            handling.cancel_detached()
            with trio.CancelScope(shield=True):
                await self._answer(handling, reply, outgoing, failure, stopped)
            if span is not None:
                tracing.finish(span, failure)

    async def _work(
        self, handler: Handler, payload: Any, incoming: Incoming, outgoing: Outgoing
    ) -> bytes:
        if len(payload.arguments) > self._limits.decode_inline_bytes:
            arguments = await trio.to_thread.run_sync(
                handler.codec.arguments, payload.arguments, incoming
            )
        else:
            arguments = handler.codec.arguments(payload.arguments, incoming)
        incoming.close_unclaimed()
        result = await handler.method(**arguments)
        # Encoding runs in the same step as the handler's return: a cancel that comes later finds
        # the work done, and the reply wins.
        reply = handler.codec.result(result, outgoing)
        self._check_size(handler.codec.route.path, reply, outgoing)
        return reply

    async def _answer(
        self,
        handling: context.Handling,
        reply: bytes | None,
        outgoing: Outgoing,
        failure: BaseException | None,
        stopped: bool,
    ) -> None:
        """Send the one terminal frame of a call, unless the connection has ended."""
        del self._handling[handling.id]
        try:
            if self.lost:
                return
            if reply is not None:
                descriptors = outgoing.filenos()
                data = self._machine.reply(handling.id, reply, len(descriptors))
                try:
                    await self._send_terminal(data, descriptors)
                except OSError as error:
                    # Nothing was written: the call still gets its one terminal.
                    overloaded = Overloaded(f"{handling.route}: {error.strerror}")
                    wire = wire_errors.to_wire(overloaded, handling.route)
                    self._send_control(self._machine.error_instead(handling.id, wire))
                return
            ended_by = EndedBy.ITSELF
            error: BaseException
            if stopped:
                error = Unavailable(f"{handling.route}: {wire_errors.process_name()} is stopping")
            elif failure is None:
                ended_by = EndedBy.CANCEL if handling.cancelled else EndedBy.DEADLINE
                error = (
                    CallCancelled(f"{handling.route} was cancelled")
                    if handling.cancelled
                    else DeadlineExceeded(f"{handling.route}: the deadline passed")
                )
            else:
                error = failure
            wire = wire_errors.to_wire(error, handling.route)
            self._send_control(self._machine.error(handling.id, ended_by, wire))
        finally:
            outgoing.sent(result=True)

    async def serve(self) -> None:
        """Run the peer's calls until the connection ends; cancelling it ends them first."""
        try:
            async with trio.open_nursery() as nursery:
                self._handlers = nursery
                await self._lost.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._handlers = None

    def stop_detached(self) -> None:
        """End the detached blocks of running handlers: the server is going down."""
        for handling in tuple(self._handling.values()):
            handling.cancel_detached()

    # --- life and death -----------------------------------------------------------------------

    def _lose(self, why: str) -> None:
        """End the connection: pending calls get their error, handlers are cancelled. Once."""
        if self.lost:
            return
        self._why = why
        self._lost.set()
        for call in list(self._pending.values()):
            if call.stage is _Stage.CANCELLING:
                logger.info("%s was cancelled; its fate is unknown: %s", call.route, why)
                assert call.raise_cancel is not None
                self._wake(call, outcome.capture(call.raise_cancel))
            elif call.stage is _Stage.HELD:
                assert call.held is not None
                self._wake(call, outcome.Error(wire_errors.from_wire(call.held.error)))
            else:
                frame = call.frame
                unsent = frame is not None and bool(frame.view)
                fate = Fate.NOT_SENT if unsent else Fate.UNKNOWN
                self._wake(call, outcome.Error(self._gone(call.route, fate)))
        for handling in tuple(self._handling.values()):
            handling.cancel()
        for frame in (*self._control, *self._queue):
            if frame.written is not None:
                frame.written.set()
        self._queue.clear()
        self._control.clear()
        self._ready.set()
        self._room.unpark_all()
        self._awaiting.unpark_all()
        for descriptor in self._machine.abandon():
            os.close(descriptor)
        if self._io is not None:
            self._io.cancel_scope.cancel()

    async def _watch_liveness(self) -> None:
        """Ping a mute peer while calls are awaited; a frozen one is lost after the bound.

        An expired ping counts only if this timer woke on time and the socket was then read dry:
        otherwise it was this process that was frozen. Two in a row are needed.
        """
        third = self._limits.liveness_seconds / 3
        missed = 0
        pinged = False
        while True:
            if not self._pending:
                missed, pinged = 0, False
                await self._awaiting.park()
                continue
            self._heard = False
            before = trio.current_time()
            await trio.sleep(third)
            late = trio.current_time() - before > third * 1.2
            await trio.lowlevel.cancel_shielded_checkpoint()  # the reader reads what is there
            if self._heard or late:
                missed, pinged = 0, False
                continue
            if pinged:
                missed += 1
                if missed >= 2:
                    self._lose("unresponsive")
                    return
            self._send_control(self._machine.ping())
            pinged = True

    async def _run_io(self) -> None:
        with trio.CancelScope(shield=True):
            try:
                async with trio.open_nursery() as nursery:
                    self._io = nursery
                    if self.lost:
                        return
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._read)
                    if self._transport.pings and math.isfinite(self._limits.liveness_seconds):
                        nursery.start_soon(self._watch_liveness)
            finally:
                self._io = None
                self._lose("closed")

    async def _greet(self) -> None:
        """Exchange hellos; a side that accepts judges the other's before it says its own."""
        if not self._accepts:
            self._say_hello()
        seconds = (
            self._limits.hello_seconds if self._accepts else self._limits.launch_seconds
        )
        with trio.move_on_after(seconds) as scope:
            await self._ready.wait()
        if scope.cancelled_caught:
            self._lose("unresponsive")
            raise PeerGone(
                f"no hello within {seconds:.0f} s", fate=Fate.REFUSED, why="unresponsive"
            )
        if self._refusal is not None:
            raise self._refusal
        if self.lost:
            raise PeerGone(
                f"the connection ended before a hello came ({self._why})",
                fate=Fate.REFUSED,
                why=self._why or "closed",
            )

    async def _close(self) -> None:
        """Write what is queued, bounded, say goodbye, and end."""
        if not self.lost:
            if self._machine.state is State.OPEN:
                self._send_control(self._machine.goodbye(0))
            with trio.move_on_after(self._limits.drain_seconds, shield=True):
                while (self._control or self._queue) and not self.lost:
                    frame = (self._queue or self._control)[-1]
                    frame.written = frame.written or trio.Event()
                    await frame.written.wait()
        self._lose("closed")


@asynccontextmanager
async def open_connection(
    transport: Transport,
    *,
    accepts: bool,
    policy: Policy,
    limits: Limits | None = None,
    routes: Mapping[str, Handler] | None = None,
    offered: Mapping[str, tuple[int, str]] | None = None,
    denied: frozenset[str] = frozenset(),
) -> AsyncGenerator[Connection]:
    """Speak on a transport while the block runs; owns the transport.

    Args:
        transport: One end, nothing said on it yet.
        accepts: This side judges the peer's hello before it answers with its own.
        policy: Judges the sender of each message.
        limits: Bounds; announced in hello.
        routes: What is served to the peer, by route path.
        offered: Contracts for hello: served (accepting side) or asked for.
        denied: Routes that the contract has and this endpoint does not offer.

    Raises:
        PeerGone, PermissionDenied, Incompatible: no conversation came about.
    """
    connection = Connection(
        transport,
        accepts=accepts,
        routes=routes,
        offered=offered,
        denied=denied,
        policy=policy,
        limits=limits or Limits(),
    )
    # What the block raises must not be wrapped in a group by the nursery of our own tasks, so it
    # is carried around it.
    raised: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection._run_io)  # pyright: ignore[reportPrivateUsage]
        try:
            await connection._greet()  # pyright: ignore[reportPrivateUsage]
            yield connection
        except BaseException as error:
            raised = error
        try:
            await connection._close()  # pyright: ignore[reportPrivateUsage]
        finally:
            transport.close()
    if raised is not None:
        raise raised

