"""The callee's side of a connection: one task a call, exactly one terminal frame a call.

A call that may not run gets its error at once, without a task. One that runs does so under a scope
with its caller's deadline, and its terminal frame leaves even while the server is being cancelled:
handlers live in a nursery that the server's scope reaches, the reader and the writer outside of it.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Container, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, cast

import msgspec
import trio
from attrs import define, frozen

from container.ipc import context, tracing, wire_errors
from container.ipc.channel_ends import ChannelEnds
from container.ipc.codec import NOTHING_IN, NOTHING_OUT, Incoming, Outgoing, RouteCodec
from container.ipc.errors import (
    CallCancelled,
    ContainerError,
    DeadlineExceeded,
    HolderFailed,
    Incompatible,
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    Unavailable,
    UnknownRoute,
)
from container.ipc.idle import IdleTimer
from container.ipc.judging import Judge
from container.ipc.peer import Peer
from container.ipc.timers import Timers
from container.ipc.wire.frames import CallPayload, EndedBy, Gift
from container.ipc.wire.limits import Limits
from container.ipc.wire.machine import CallReceived, Machine
from container.ipc.writing import Frame, Writer

logger = logging.getLogger("container.ipc")

NOTHING = msgspec.msgpack.encode((None,))
"""The reply of a scope that has ended."""
_connections = itertools.count(1)
SLACK = 0.001
"""Added to a callee's deadline, so that the caller's own fires first."""


@define(eq=False)
class Load:
    """What one server runs, on all of its connections."""

    running: int = 0
    """Calls and scopes."""
    idle: IdleTimer | None = None
    """Told of them."""

    def begin(self) -> None:
        """Count one more."""
        self.running += 1
        if self.idle is not None:
            self.idle.begin()

    def end(self) -> None:
        """Count one less."""
        self.running -= 1
        if self.idle is not None:
            self.idle.end()


@frozen
class Handler:
    """What serves one route."""

    codec: RouteCodec
    method: Callable[..., Any]
    """Returns an awaitable; of a scope, an async context manager."""


def check_size(route: str, payload: bytes, outgoing: Outgoing, machine: Machine) -> None:
    """Refuse a message that the peer, or we, would not accept.

    Raises:
        InvalidArgument: too many bytes or descriptors; nothing was sent.
    """
    if len(payload) > machine.peer_frame_bytes:
        raise InvalidArgument(
            f"{route}: the message has {len(payload)} bytes, "
            f"{machine.peer_frame_bytes} are allowed",
            hint="pass a descriptor (a pipe, a file, a memfd) instead of the bytes",
        )
    if len(outgoing.descriptors) > machine.peer_frame_descriptors:
        raise InvalidArgument(
            f"{route}: the message has {len(outgoing.descriptors)} descriptors, "
            f"{machine.peer_frame_descriptors} are allowed"
        )


def with_gifts(payload: bytes, gifts: Sequence[Gift]) -> bytes:
    """Return a call's or an opening's payload with what it gives away as one element more."""
    return bytes((payload[0] + 1,)) + payload[1:] + msgspec.msgpack.encode(gifts)


async def _await(handler: Coroutine[Any, Any, None]) -> None:
    await handler


class Handlers:
    """Run the calls of one connection's peer.

    Args:
        machine: The connection's.
        writer: Where terminal frames go.
        ends: The channels' of the connection.
        judge: Of the senders.
        limits: Of the connection.
        routes: What is served, by route path.
        offered: Names of what is served, for messages.
        denied: Routes that the contract has and this endpoint does not offer.
        load: What the server runs, this connection included.
    """

    def __init__(
        self,
        machine: Machine,
        writer: Writer,
        ends: ChannelEnds,
        judge: Judge,
        limits: Limits,
        routes: Mapping[str, Handler],
        offered: Mapping[str, tuple[int, str]],
        denied: Container[str],
        load: Load,
    ) -> None:
        self._load = load
        self._machine = machine
        self._writer = writer
        self._ends = ends
        self._judge = judge
        self._limits = limits
        self._routes = routes
        self._offered = offered
        self._denied = denied
        self._nursery: trio.Nursery | None = None
        self._running: dict[int, context.Handling] = {}
        self._answering: set[trio.CancelScope] = set()
        self._stopping = False
        self._idle: trio.Event | None = None
        """Set once nothing runs, for who waits for that."""
        self._lost = False
        self.overstayed = 0
        """Handlers that overstayed their caller's grace."""
        self._at_end: set[Callable[[], None]] = set()
        self._connection = next(_connections)

    def __len__(self) -> int:
        return len(self._running)

    @property
    def routes_running(self) -> tuple[str, ...]:
        """The route of each call that runs."""
        return tuple(handling.route for handling in self._running.values())

    # --- running them -------------------------------------------------------------------------

    def open(self, nursery: trio.Nursery) -> None:
        """Run calls in a nursery from now on; it is cancelled when the connection ends."""
        self._nursery = nursery

    async def wait_idle(self) -> None:
        """Wait until no handler runs, and the answers of those that ran have left."""
        while self._running or self._answering:
            if self._idle is None:
                self._idle = trio.Event()
            await self._idle.wait()

    def _rests(self) -> None:
        if self._idle is not None and not (self._running or self._answering):
            self._idle.set()
            self._idle = None

    def stop(self) -> None:
        """Start no more handlers, end detached blocks, and bound how long answers may wait.

        The handlers themselves are ended by their nursery. A terminal frame that the peer does not
        read delays the end by at most the drain time.
        """
        if self._stopping:
            return
        self._stopping = True
        for handling in tuple(self._running.values()):
            handling.cancel_detached()
        for scope in self._answering:
            scope.deadline = trio.current_time() + self._limits.drain_seconds

    def lose(self) -> None:
        """End every handler: the connection has ended."""
        self._lost = True
        for handling in tuple(self._running.values()):
            handling.cancel()
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
        at_end, self._at_end = self._at_end, set()
        for callback in at_end:
            callback()

    def cancel(self, number: int, grace: float, timers: Timers) -> None:
        """End a call; its caller waits `grace` seconds for its end."""
        handling = self._running.get(number)
        if handling is None:
            return
        handling.cancelled = True
        handling.grace = grace
        if tracing.watchers:
            self._tell("cancel", handling)
        handling.cancel()
        handling.timer = timers.after(grace, lambda: self._overstays(handling))

    def close(self, number: int, failed: bool, grace: float) -> None:
        """The holder of a scope leaves it; a failed block's clean-up may take `grace` seconds."""
        handling = self._running.get(number)
        if handling is not None and handling.closing is not None:
            handling.failed = grace if failed else None
            handling.closing.set()
            if tracing.watchers:
                self._tell("closing", handling, outcome="failed" if failed else "ok")

    def _overstays(self, handling: context.Handling) -> None:
        if self._running.get(handling.id) is handling:
            self.overstayed += 1
            handling.overstayed = True
            logger.warning("%s overstays its caller's grace", handling.route)

    def start(self, event: CallReceived) -> None:
        """Run a call in a task of its own, or refuse it. Never waits."""
        handler = self.begin(event)
        if handler is not None:
            assert self._nursery is not None
            assert event.payload is not None
            self._nursery.start_soon(_await, handler, name=f"call {event.payload.route}")

    def begin(
        self, event: CallReceived, turn: context.Turn | None = None
    ) -> Coroutine[Any, Any, None] | None:
        """Return what serves a call and sends its terminal; None if the call was refused.

        Args:
            event: The call.
            turn: Of the task that will run it, if that serves other calls too.
        """
        payload = event.payload
        if payload is None:
            self._refuse_call(event, "", InvalidArgument("the body of this call is no message"))
            return None
        route = payload.route
        peer = self._judge.peer(event.sender)
        handler = self._routes.get(route)
        refusal = self._refusal(event, peer, route, handler)
        if refusal is not None:
            self._refuse_call(event, route, refusal)
            return None
        assert handler is not None
        deadline = math.inf
        if payload.timeout is not None:
            deadline = trio.current_time() + max(0, payload.timeout) / 1e9 + SLACK
        scope = trio.CancelScope(deadline=deadline) if turn is None else turn.until(deadline)
        handling = context.Handling(
            id=event.id,
            route=route,
            sender=event.sender,
            peer=peer,
            grace=max(0, payload.grace) / 1e9,
            scope=scope,
            at_end=self._at_end,
            began=trio.current_time() if tracing.watchers else 0.0,
        )
        self._running[event.id] = handling
        self._load.begin()
        incoming = NOTHING_IN
        if event.descriptors or event.channels:
            incoming = self._ends.owned(False, event.id, event.descriptors, event.channels)
        if event.scope:
            handling.closing = trio.Event()
        return self._handle(handling, handler, payload, incoming, turn or scope)

    def _refusal(
        self, event: CallReceived, peer: Peer, route: str, handler: Handler | None
    ) -> ContainerError | None:
        """Return why a call may not run; None if it may."""
        if not self._judge.admits_peer(peer, route):
            return self._judge.stranger(event.sender, route)
        if self._stopping:
            return Unavailable(f"{route}: {wire_errors.process_name()} is stopping")
        if self._nursery is None:
            return Unavailable(f"{route}: {wire_errors.process_name()} serves nothing here")
        if handler is not None:
            if self._load.running >= self._limits.handlers:
                return Overloaded(f"{route}: {self._limits.handlers} calls run here already")
            if event.scope is not handler.codec.is_scope:
                kind = "scope" if handler.codec.is_scope else "call"
                return Incompatible(f"{route} is a {kind} here: the two sides differ in versions")
            return None
        if route in self._denied:
            return PermissionDenied(f"this endpoint does not offer {route}")
        served = ", ".join(sorted(self._offered)) or "nothing"
        return UnknownRoute(f"no route {route!r} here; served: {served}")

    def _refuse_call(self, event: CallReceived, route: str, error: ContainerError) -> None:
        """Answer a call that may not run."""
        Incoming.of(event.descriptors).close()  # its channels end with the call
        if tracing.watchers:
            self._tell_refused(event, route, error)
        data = self._machine.error(event.id, EndedBy.ITSELF, wire_errors.to_wire(error, route))
        self._writer.send_control(data, answer=True)

    # --- telling of it, when somebody watches ---------------------------------------------------

    def _tell(self, kind: tracing.StepKind, handling: context.Handling, **fields: Any) -> None:
        tracing.step(
            kind,
            self._routes,
            self._connection,
            peer=handling.peer,
            call=handling.id,
            route=handling.route,
            seconds=trio.current_time() - handling.began if handling.began else 0.0,
            **fields,
        )

    def tell_connection(self, kind: tracing.StepKind, outcome: str) -> None:
        """Tell those who watch that this connection is there, or is lost."""
        peers = self._judge.peers
        peer = peers[0] if peers else None
        tracing.step(kind, self._routes, self._connection, peer=peer, outcome=outcome)

    def _tell_refused(self, event: CallReceived, route: str, error: ContainerError) -> None:
        tracing.step(
            "refused",
            self._routes,
            self._connection,
            peer=self._judge.peer(event.sender),
            call=event.id,
            route=route,
            outcome=tracing.outcome_of(error),
        )

    def _tell_ended(
        self, handling: context.Handling, reply: bytes | None, failure: BaseException | None
    ) -> None:
        outcome = tracing.outcome_of(failure)
        if reply is None and failure is None:
            outcome = "cancelled" if handling.cancelled else "deadline"
        self._tell("ended", handling, size=len(reply or b""), outcome=outcome)

    # --- one call -----------------------------------------------------------------------------

    @trio.lowlevel.disable_ki_protection
    async def _handle(
        self,
        handling: context.Handling,
        handler: Handler,
        payload: CallPayload,
        incoming: Incoming,
        scope: AbstractContextManager[Any],
    ) -> None:
        context.enter(handling)
        span = None
        if payload.trace is not None:
            tracing.enter(payload.trace)
        if tracing.sinks:
            span = tracing.begin("server", handling.route, payload.trace, handling.peer.pid)
            tracing.enter(span.traceparent)
        outgoing = Outgoing() if handler.codec.result_holds else NOTHING_OUT
        failure: BaseException | None = None
        reply: bytes | None = None
        stopped = False
        try:
            with scope:
                if handling.over or self._stopping:
                    # Cancelled before the first step: the handler is not started.
                    await trio.lowlevel.checkpoint()
                codec, raw = handler.codec, payload.arguments
                if len(raw) > self._limits.decode_inline_bytes:
                    arguments = await trio.to_thread.run_sync(codec.arguments, raw, incoming)
                else:
                    arguments = codec.arguments(raw, incoming)
                if incoming is not NOTHING_IN:
                    incoming.close_unclaimed()
                if tracing.watchers:
                    self._tell("call", handling, size=len(raw), arguments=arguments)
                if handling.closing is not None:
                    await self._hold(handling, codec, handler.method(**arguments), outgoing)
                    reply = NOTHING
                    return
                result = await handler.method(**arguments)
                # Encoding runs in the same step as the handler's return: a cancel that comes later
                # finds the work done, and the reply wins.
                encoded = codec.result(result, outgoing)
                if outgoing.descriptors or len(encoded) > self._machine.peer_frame_bytes:
                    check_size(codec.path, encoded, outgoing, self._machine)
                reply = encoded
        except trio.Cancelled as cancelled:
            stopped = True
            failure = cancelled
            raise
        except (KeyboardInterrupt, SystemExit):
            stopped = True
            raise
        except BaseException as error:
            failure = error
            # Where several tasks of the handler were cancelled, its nursery raises a group of that.
            if isinstance(error, BaseExceptionGroup):
                group = cast("BaseExceptionGroup[BaseException]", error)
                if group.split(trio.Cancelled)[1] is None:
                    stopped = True
                    raise
        finally:
            if incoming is not NOTHING_IN:
                incoming.close()
            handling.over = True
            handling.scope = context.ENDED
            if handling.detached:
                handling.cancel_detached()
            del self._running[handling.id]
            if handling.timer is not None:
                handling.timer.drop()
            self._load.end()
            self._rests()
            frame = None
            if not self._lost:
                if reply is not None:
                    frame = self._reply(handling, reply, outgoing)
                else:
                    self._fail(handling, failure, stopped)
            if frame is not None:
                await self._written(frame)
            if handling.closing is None and outgoing.descriptors:
                outgoing.sent(result=True)
            if span is not None:
                tracing.finish(span, failure)
            if tracing.watchers:
                self._tell_ended(handling, reply, failure)

    def _fail(
        self, handling: context.Handling, failure: BaseException | None, stopped: bool
    ) -> None:
        """Send the error that ends a call."""
        ended_by = EndedBy.ITSELF
        error: BaseException
        if stopped:
            error = Unavailable(f"{handling.route}: {wire_errors.process_name()} is stopping")
        elif failure is None and handling.failed is not None and not handling.cancelled:
            error = DeadlineExceeded(
                f"{handling.route}: clean-up after its holder failed overstayed {handling.failed} s"
            )
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
        # Behind the items that were sent before; without any, before everything else.
        ordered = self._ends.finish(False, handling.id)
        data = self._machine.error(handling.id, ended_by, wire)
        self._writer.transmit(data, (), answer=True, control=not ordered)

    async def _hold(
        self,
        handling: context.Handling,
        codec: RouteCodec,
        manager: AbstractAsyncContextManager[Any],
        outgoing: Outgoing,
    ) -> None:
        """Run a scope: open it, hold it until its holder leaves, clean up.

        The call's deadline bounds the opening; in the step that says so it becomes infinite.
        """
        assert handling.closing is not None
        failure: HolderFailed | None = None
        try:
            async with manager as value:
                encoded = codec.result(value, outgoing)
                gifts = self._ends.gifts(False, handling.id, outgoing.channels)
                if gifts:
                    encoded = with_gifts(encoded, gifts)
                check_size(codec.path, encoded, outgoing, self._machine)
                descriptors = outgoing.filenos()
                data = self._machine.opened(handling.id, encoded, len(descriptors))
                refused = self._overloaded(codec.path)
                try:
                    frame = self._writer.transmit(data, descriptors)
                except OSError:
                    raise refused from None
                if frame is not None:
                    self._writer.count(frame)
                if gifts:
                    sender = handling.sender
                    self._ends.give(False, handling.id, sender, outgoing.channels, gifts)
                handling.scope.deadline = math.inf
                if tracing.watchers:
                    self._tell("opened", handling, size=len(encoded))
                try:
                    if frame is not None and descriptors:
                        await self._written(frame)
                finally:
                    outgoing.sent(result=True)
                await handling.closing.wait()
                if handling.failed is not None:
                    handling.scope.deadline = trio.current_time() + handling.failed
                    failure = HolderFailed(f"the block of {codec.path}'s holder failed")
                    raise failure
        except HolderFailed as error:
            if error is not failure:
                raise
        except BaseExceptionGroup as group:
            told, rest = group.split(lambda error: error is failure)
            if told is None:
                raise
            if rest is not None:
                raise rest from None

    def _overloaded(self, route: str) -> Overloaded:
        return Overloaded(f"{route}: too many descriptors of this user are in flight")

    def _reply(self, handling: context.Handling, reply: bytes, outgoing: Outgoing) -> Frame | None:
        """Send the value that ends a call.

        Returns:
            A reply that has not left whole: its handler's task waits for that.
        """
        if self._ends:
            self._ends.finish(False, handling.id)
        descriptors: Sequence[int] = ()
        if outgoing.descriptors and handling.closing is None:
            descriptors = outgoing.filenos()
        data = self._machine.reply(handling.id, reply, len(descriptors))
        try:
            frame = self._writer.transmit(data, descriptors, answer=True)
        except OSError:
            self._refuse(handling)
            return None
        if frame is not None:
            frame.refused = lambda: self._refuse(handling)
        return frame

    async def _written(self, frame: Frame) -> None:
        """Wait until a reply has left: big ones wait in their handler's task."""
        frame.written = trio.Event()
        with trio.CancelScope(shield=True) as scope:
            if self._stopping:
                scope.deadline = trio.current_time() + self._limits.drain_seconds
            self._answering.add(scope)
            try:
                await frame.written.wait()
            finally:
                self._answering.discard(scope)
                self._rests()
                # Its descriptors close now: it can't be sent any more.
                self._writer.withdraw(frame)

    def _refuse(self, handling: context.Handling) -> None:
        # Nothing was written: the call still gets its one terminal.
        wire = wire_errors.to_wire(self._overloaded(handling.route), handling.route)
        self._writer.send_control(self._machine.error_instead(handling.id, wire), answer=True)
