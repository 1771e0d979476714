"""A connection: the machine of the wire, driven by Trio tasks. Calls go out of it and come into it.

The rules that keep it right:

- Reader, writer and timers run in a shielded scope that only the connection ends: a cancelled
  caller still gets its acknowledgement, and a server that is being cancelled still sends its
  terminal frames.
- The reader never waits for a write: two readers that answer would deadlock after a few full
  buffers.
- `_pending.pop(id)` is the one gate to a waiting caller: whoever pops it reschedules the task,
  once.

Frames are sent by `writing`, the peer's calls run in `handling`, senders are judged in `judging`.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import outcome
import trio
from attrs import frozen

from container.ipc import context, tracing, wire_errors
from container.ipc.codec import NOTHING_IN, NOTHING_OUT, Incoming, Outgoing, RouteCodec, encode
from container.ipc.errors import ContainerError, Fate, Overloaded, PeerGone
from container.ipc.greeting import Greeting
from container.ipc.handling import Handler, Handlers, check_size
from container.ipc.judging import Judge
from container.ipc.liveness import Liveness
from container.ipc.peer import Policy
from container.ipc.pending import Call, Stage
from container.ipc.transport import READ_BYTES, Transport, TransportBroken
from container.ipc.wire.frames import EndedBy
from container.ipc.wire.limits import Limits
from container.ipc.wire.machine import (
    Budget,
    CallDropped,
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
from container.ipc.writing import TOO_MANY_DESCRIPTORS, Writer

logger = logging.getLogger("container.ipc")

_partial = Budget(Limits().partial_bytes)
PONGS_QUEUED = 64
"""A flood of pings must not fill memory while nothing can be written."""


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
        self._limits = limits
        self._machine = Machine(limits, _partial)
        self._judge = Judge(policy, transport.connected_uid)
        self._writer = Writer(transport, self._lose)
        self._handlers = Handlers(
            self._machine, self._writer, self._judge, limits, routes or {}, offered or {}, denied
        )
        self._pending: dict[int, Call] = {}
        self._room = trio.lowlevel.ParkingLot()
        self._liveness = Liveness(
            limits.liveness_seconds,
            self._pending,
            lambda: self._writer.send_control(self._machine.ping()),
            self._lose,
        )
        self._greeting = Greeting(
            self._machine,
            self._writer,
            self._judge,
            transport,
            limits,
            offered or {},
            accepts,
            self._lose,
        )
        self.lost = False
        """True once the connection has ended, however it did."""
        self._lost = trio.Event()
        self._why: str | None = None
        self._closed_here = False
        self._io: trio.Nursery | None = None
        self._draining: int | None = None
        self._abandoned = 0

    # --- looking at it ------------------------------------------------------------------------

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
    def peer_build(self) -> str:
        """The version of the program at the other end; empty before its hello."""
        return "" if self._machine.peer is None else self._machine.peer.build

    @property
    def peer_pids(self) -> tuple[int, ...]:
        """Processes that have sent something on this connection."""
        return self._judge.pids

    def statistics(self) -> ConnectionStatistics:
        """Return a frozen look."""
        return ConnectionStatistics(
            pending=len(self._pending),
            handling=len(self._handlers),
            queued_frames=len(self._writer),
            abandoned=self._abandoned,
            overstayed=self._handlers.overstayed,
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
            trio.ClosedResourceError: this side's own block of the connection ended.
        """
        values = codec.lower(codec.bind(args, kwargs))
        outgoing = Outgoing() if codec.arguments_hold else NOTHING_OUT
        trace = tracing.current()
        if not tracing.active():
            event = await self.call_raw(codec.path, values, outgoing, trace)
            if not event.descriptors and self._is_small(event):
                return codec.result_of(event.value, NOTHING_IN)
            return await self._decode(codec, event)
        span = tracing.begin("client", codec.path, trace)
        try:
            event = await self.call_raw(codec.path, values, outgoing, span.traceparent)
            result = await self._decode(codec, event)
        except BaseException as error:
            tracing.finish(span, error)
            raise
        tracing.finish(span)
        return result

    async def call_raw(
        self, route: str, values: Any, outgoing: Outgoing, trace: str | None
    ) -> ReplyReceived:
        """Make a call without a contract, as `message.call_message` does.

        Args:
            route: `contract/method`.
            values: The arguments by name, wire values; or encoded already, as `msgspec.Raw`.
            outgoing: Holds the descriptors that encoded values refer to.
            trace: W3C trace context.

        Returns:
            The reply, not decoded; its descriptors belong to the caller, at once.
        """
        encoded = False
        try:
            until = trio.current_effective_deadline()
            if until == -math.inf:
                await trio.lowlevel.checkpoint_if_cancelled()
            machine = self._machine
            while not self.lost and len(machine.outgoing) >= machine.peer_in_flight:
                await self._room.park()
                until = trio.current_effective_deadline()
            if self.lost or self._closed_here or self._draining is not None:
                raise self._gone(route, Fate.NOT_SENT)
            grace = context.grace_of_task(self._limits.grace_seconds)
            timeout = None
            if until != math.inf:
                timeout = math.ceil(max(until - trio.current_time(), 0) * 1e9)
            encoded = True
            payload = encode((route, timeout, int(grace * 1e9), trace, values), outgoing, route)
            descriptors: Sequence[int] = outgoing.filenos() if outgoing.descriptors else ()
            if descriptors or len(payload) > machine.peer_frame_bytes:
                check_size(route, payload, outgoing, machine)
            abort = self._begin(route, payload, descriptors, grace)
            return await trio.lowlevel.wait_task_rescheduled(abort)
        finally:
            if outgoing is not NOTHING_OUT:
                if not encoded:
                    # What was given away is closed however the call ends: encoding finds it.
                    with suppress(ContainerError):
                        encode(values, outgoing, route)
                outgoing.sent(result=False)

    def _is_small(self, event: ReplyReceived) -> bool:
        return event.value is None or len(event.value) <= self._limits.decode_inline_bytes

    async def _decode(self, codec: RouteCodec, event: ReplyReceived) -> Any:
        incoming = Incoming.of(event.descriptors)
        try:
            # Not a checkpoint for small replies: the value must not be lost to a cancellation.
            if self._is_small(event):
                result = codec.result_of(event.value, incoming)
            else:
                result = await self._decode_aside(codec, event, incoming)
        except BaseException:
            incoming.close()
            raise
        incoming.close_unclaimed()
        return result

    async def _decode_aside(
        self, codec: RouteCodec, event: ReplyReceived, incoming: Incoming
    ) -> Any:
        with trio.CancelScope(shield=True):
            return await trio.to_thread.run_sync(codec.result_of, event.value, incoming)

    def _begin(
        self, route: str, payload: bytes, descriptors: Sequence[int], grace: float
    ) -> Callable[[Callable[[], Any]], trio.lowlevel.Abort]:
        """Send a call of this task; return what its wait for the terminal is aborted with."""
        number, data = self._machine.call(payload, len(descriptors))
        try:
            frame = self._writer.transmit(data, descriptors)
        except OSError as error:
            self._forget(number)
            if error.errno in TOO_MANY_DESCRIPTORS:
                raise self._overloaded(route) from error
            raise
        if self.lost:
            raise self._gone(route, Fate.NOT_SENT)
        call = Call(number, route, trio.lowlevel.current_task(), frame)
        # Only now: losing the connection wakes what is pending, and this task does not wait yet.
        self._pending[number] = call
        if frame is not None and descriptors:
            frame.refused = lambda: self._refused(call)
        self._liveness.begin()

        def abort(raise_cancel: Callable[[], Any]) -> trio.lowlevel.Abort:
            # Called once, must not raise: after it only a terminal, the grace's end or the
            # connection's end can wake this task.
            if call.stage is Stage.HELD:
                self._pending.pop(number, None)
                return trio.lowlevel.Abort.SUCCEEDED
            if frame is not None and self._writer.withdraw(frame):
                self._pending.pop(number, None)
                self._forget(number)
                return trio.lowlevel.Abort.SUCCEEDED
            call.stage, call.raise_cancel = Stage.CANCELLING, raise_cancel
            self._writer.send_control(self._machine.cancel(number, int(grace * 1e9)))
            assert self._io is not None
            self._io.start_soon(self._grace_timer, call, grace)
            return trio.lowlevel.Abort.FAILED

        return abort

    def _forget(self, number: int) -> None:
        """Give back the id of a call of which no byte was sent."""
        self._machine.withdraw(number)
        self._room.unpark()

    def _overloaded(self, route: str) -> Overloaded:
        return Overloaded(f"{route}: too many descriptors of this user are in flight")

    def _refused(self, call: Call) -> None:
        if call.id in self._pending:
            self._forget(call.id)
            self._wake(call, outcome.Error(self._overloaded(call.route)))

    @trio.lowlevel.enable_ki_protection
    async def _grace_timer(self, call: Call, grace: float) -> None:
        await trio.sleep(grace)
        if self._pending.get(call.id) is not call:
            return
        if call.stage is Stage.HELD:
            assert call.held is not None
            self._wake(call, outcome.Error(wire_errors.from_wire(call.held.error)))
            return
        self._abandoned += 1
        self._machine.abandon_call(call.id)
        logger.warning(
            "%s overstayed the grace of %.3f s; its answer is dropped", call.route, grace
        )
        assert call.raise_cancel is not None
        self._wake(call, outcome.capture(call.raise_cancel))

    def _wake(self, call: Call, result: outcome.Outcome[Any]) -> None:
        if self._pending.pop(call.id, None) is call:
            trio.lowlevel.reschedule(call.task, result)

    def _gone(self, route: str, fate: Fate) -> Exception:
        if self._closed_here:
            return trio.ClosedResourceError(f"{route}: this connection was closed here")
        why = self._why or ("draining" if self._draining is not None else "closed")
        who = self.peer_process or "the peer"
        text = {
            Fate.NOT_SENT: "it was not sent",
            Fate.UNKNOWN: "whether it was done is not known",
            Fate.REFUSED: "it was refused",
        }[fate]
        return PeerGone(f"{route}: {who} is gone ({why}); {text}", fate=fate, why=why)

    # --- reading ------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
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
            self._liveness.heard = True
            try:
                events = machine.receive(data, descriptors, sender)
            except ProtocolError as error:
                logger.warning("connection with %s ended: %s", self.peer_process or "a peer", error)
                self._lose(f"protocol: {error}")
                return
            for event in events:
                self._dispatch(event)
            if len(data) < READ_BYTES:
                # All was read: asking again would cost a system call to hear so.
                await transport.wait_readable()
            else:
                # A flood on one connection must not starve the other tasks.
                await trio.lowlevel.cancel_shielded_checkpoint()

    def _dispatch(self, event: Event) -> None:
        if isinstance(event, ReplyReceived):
            if self._room:
                self._room.unpark()
            call = self._pending.pop(event.id, None)
            if event.abandoned or call is None:
                Incoming.of(event.descriptors).close()
            elif self._judge.admits(event.sender, None):
                trio.lowlevel.reschedule(call.task, outcome.Value(event))
            else:
                Incoming.of(event.descriptors).close()
                stranger = self._judge.stranger(event.sender, call.route)
                trio.lowlevel.reschedule(call.task, outcome.Error(stranger))
        elif isinstance(event, CallReceived):
            if self._writer.answers and self._overfed():
                Incoming.of(event.descriptors).close()
                self._lose(f"protocol: more than {self._limits.in_flight} unanswered calls")
                return
            self._handlers.start(event)
        elif isinstance(event, CallDropped):
            Incoming.of(event.descriptors).close()
        elif isinstance(event, ErrorReceived):
            self._take_error(event)
        elif isinstance(event, CancelReceived):
            assert self._io is not None
            self._handlers.cancel(event.id, event.grace / 1e9, self._io)
        elif isinstance(event, PingReceived):
            if self._writer.control_frames < PONGS_QUEUED:
                self._writer.send_control(self._machine.pong(event.token))
        elif isinstance(event, HelloReceived):
            self._greeting.take(event)
        elif isinstance(event, GoodbyeReceived):
            self._draining = event.last
            for call in [c for c in self._pending.values() if c.id > event.last]:
                if call.frame is not None:
                    self._writer.withdraw(call.frame)
                self._end(call, Fate.NOT_SENT)

    def _overfed(self) -> bool:
        # It calls and does not read: its answers would fill memory.
        return len(self._machine.incoming) + self._writer.answers > self._limits.in_flight

    def _take_error(self, event: ErrorReceived) -> None:
        if event.id == 0:
            self._greeting.refused(wire_errors.from_wire(event.error))
            self._lose(f"refused: {event.error.get('message')}")
            return
        self._room.unpark()
        call = self._pending.get(event.id)
        if event.abandoned or call is None:
            return
        if not self._judge.admits(event.sender, None):
            self._wake(call, outcome.Error(self._judge.stranger(event.sender, call.route)))
        elif event.ended_by is EndedBy.ITSELF:
            self._wake(call, outcome.Error(wire_errors.from_wire(event.error)))
        elif call.stage is Stage.CANCELLING:
            assert call.raise_cancel is not None
            self._wake(call, outcome.capture(call.raise_cancel))
        elif event.ended_by is EndedBy.DEADLINE:
            # The caller's own scope should fire now; if it moved its deadline later, the callee's
            # word stands once the grace is over.
            call.stage, call.held = Stage.HELD, event
            assert self._io is not None
            self._io.start_soon(self._grace_timer, call, self._limits.grace_seconds)
        else:
            self._wake(call, outcome.Error(wire_errors.from_wire(event.error)))

    async def serve(self) -> None:
        """Run the peer's calls until the connection ends; cancelling it ends them first.

        An accepting side says its hello here, when its handlers can run: the peer calls as soon
        as it has read it.
        """
        await self._handlers.serve(self._greeting.say if self._accepts else None)

    # --- life and death -----------------------------------------------------------------------

    def _lose(self, why: str) -> None:
        """End the connection: pending calls get their error, handlers are cancelled. Once."""
        if self.lost:
            return
        self._why = why
        self.lost = True
        self._lost.set()
        for call in list(self._pending.values()):
            # Fewer than all bytes reached the kernel: then it can't have been done.
            waits = call.frame is not None and call.frame.view
            self._end(call, Fate.NOT_SENT if waits else Fate.UNKNOWN)
        self._handlers.lose()
        self._writer.end()
        self._greeting.over.set()
        self._room.unpark_all()
        for descriptor in self._machine.abandon():
            os.close(descriptor)
        if self._io is not None:
            self._io.cancel_scope.cancel()

    def _end(self, call: Call, fate: Fate) -> None:
        """End a call whose terminal frame will not come."""
        if call.stage is Stage.CANCELLING:
            logger.info("%s was cancelled; its fate is unknown: %s", call.route, self._why)
            assert call.raise_cancel is not None
            self._wake(call, outcome.capture(call.raise_cancel))
        elif call.stage is Stage.HELD:
            assert call.held is not None
            self._wake(call, outcome.Error(wire_errors.from_wire(call.held.error)))
        else:
            self._wake(call, outcome.Error(self._gone(call.route, fate)))

    async def _run_io(self) -> None:
        with trio.CancelScope(shield=True):
            try:
                async with trio.open_nursery() as nursery:
                    self._io = nursery
                    if self.lost:
                        return
                    nursery.start_soon(self._writer.run)
                    nursery.start_soon(self._read)
                    if self._transport.pings and math.isfinite(self._limits.liveness_seconds):
                        nursery.start_soon(self._liveness.watch)
            finally:
                self._io = None
                self._lose("closed")

    async def _greet(self) -> None:
        await self._greeting.exchange()
        if self.lost:
            raise PeerGone(
                f"the connection ended before a hello came ({self._why})",
                fate=Fate.REFUSED,
                why=self._why or "closed",
            )

    async def _close(self) -> None:
        """End what is awaited here, write what is queued, bounded, say goodbye, and end."""
        if not self.lost:
            self._closed_here = self._draining is None
            for call in list(self._pending.values()):
                withdrawn = call.frame is not None and self._writer.withdraw(call.frame)
                if not withdrawn and call.stage is Stage.SENT:
                    self._writer.send_control(self._machine.cancel(call.id, 0))
                self._end(call, Fate.UNKNOWN)
            self._room.unpark_all()
            if self._machine.state is State.OPEN:
                self._writer.send_control(self._machine.goodbye(0))
            with trio.move_on_after(self._limits.drain_seconds, shield=True):
                await self._writer.drain()
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
