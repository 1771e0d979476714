"""The caller's side of a connection: calls that wait for their terminal, scopes that are held.

`pending.pop(id)` is the one gate to a waiting caller: whoever pops it reschedules the task, once.
Where a call stands, and what ends it, is the table in `pending`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import outcome
import trio

from container.ipc import context, tracing, wire_errors
from container.ipc.channel_ends import ChannelEnds
from container.ipc.codec import NOTHING_IN, NOTHING_OUT, Incoming, Outgoing, RouteCodec, encode
from container.ipc.errors import ContainerError, Fate, Overloaded, PeerGone, Unsupported
from container.ipc.handling import check_size, with_gifts
from container.ipc.judging import Judge
from container.ipc.pending import Call, Stage
from container.ipc.scope import RemoteScope
from container.ipc.timers import Timers
from container.ipc.wire.frames import EndedBy, Gift
from container.ipc.wire.limits import Limits
from container.ipc.wire.machine import (
    ErrorReceived,
    GoodbyeReceived,
    Machine,
    OpenedReceived,
    ReplyReceived,
)
from container.ipc.writing import TOO_MANY_DESCRIPTORS, Writer

logger = logging.getLogger("container.ipc")


def _nothing() -> None:
    """Stand for the cancellation of a scope's holder, which the holder itself raises."""


class Calls:
    """What this side asked of the peer of one connection.

    Args:
        machine: The connection's.
        writer: Where frames go.
        ends: The channels' of the connection.
        judge: Of the senders.
        limits: Of the connection.
        begun: Called when something is awaited.
        timers: Of the connection.
    """

    def __init__(
        self,
        machine: Machine,
        writer: Writer,
        ends: ChannelEnds,
        judge: Judge,
        limits: Limits,
        begun: Callable[[], None],
        timers: Timers,
    ) -> None:
        self._machine = machine
        self._writer = writer
        self._ends = ends
        self._judge = judge
        self._limits = limits
        self._inline = limits.decode_inline_bytes
        self._begun = begun
        self._timers = timers
        self.pending: dict[int, Call] = {}
        self.held: dict[int, RemoteScope] = {}
        """Scopes that are open and not being left."""
        self.room = trio.lowlevel.ParkingLot()
        """Where callers wait that the peer would not accept yet."""
        self.abandoned = 0
        self.lost = False
        self.why: str | None = None
        self.closed_here = False
        self.draining: int | None = None

    @property
    def peer_process(self) -> str:
        """The peer's own name for itself, for messages."""
        return "" if self._machine.peer is None else self._machine.peer.process

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
        if codec.arguments_hold or tracing.sinks:
            return await self._call_long(codec, values)
        # Nearly every call: all of it in this frame, since each more costs at every step.
        until = trio.current_effective_deadline()
        machine = self._machine
        if until == -math.inf or len(machine.outgoing) >= machine.peer_in_flight:
            until = await self._wait_for_room()
        path = codec.path
        if self.lost or self.closed_here or self.draining is not None:
            raise self.gone(path, Fate.NOT_SENT)
        grace = context.grace_of_task(self._limits.grace_seconds)
        timeout = None
        if until != math.inf:
            timeout = math.ceil(max(until - trio.current_time(), 0) * 1e9)
        head = (path, timeout, int(grace * 1e9), tracing.current(), values)
        payload = encode(head, NOTHING_OUT, path)
        if len(payload) > machine.peer_frame_bytes:
            check_size(path, payload, NOTHING_OUT, machine)
        number, data = machine.call(payload)
        frame = self._writer.transmit(data, ())
        if self.lost:
            raise self.gone(path, Fate.NOT_SENT)
        # Only now: losing the connection wakes what is pending, and this task does not wait yet.
        call = Call(self, number, path, trio.lowlevel.current_task(), frame, grace)
        self.pending[number] = call
        self._begun()
        event = await trio.lowlevel.wait_task_rescheduled(call.abort)
        raw = event.value
        if not event.descriptors and (raw is None or len(raw) <= self._inline):
            return codec.result_of(raw, NOTHING_IN)
        return await self._decode(codec, event)

    async def _call_long(self, codec: RouteCodec, values: dict[str, Any]) -> Any:
        """Make a call whose arguments may hold something, or that somebody watches."""
        outgoing = Outgoing() if codec.arguments_hold else NOTHING_OUT
        trace = tracing.current()
        if not tracing.sinks:
            event = await self.call_raw(codec.path, values, outgoing, trace)
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
        self,
        route: str,
        values: Any,
        outgoing: Outgoing,
        trace: str | None,
        scope: RemoteScope | None = None,
    ) -> Any:
        """Make a call without a contract, as `message.call_message` does.

        Args:
            route: `contract/method`.
            values: The arguments by name, wire values; or encoded already, as `msgspec.Raw`.
            outgoing: Holds the descriptors that encoded values refer to.
            trace: W3C trace context.
            scope: What the call opens, if it opens one.

        Returns:
            The reply, not decoded, or what opened the scope; its descriptors belong to the caller,
            at once.
        """
        encoded = False
        try:
            machine = self._machine
            until = await self._wait_for_room()
            if self.lost or self.closed_here or self.draining is not None:
                raise self.gone(route, Fate.NOT_SENT)
            grace = context.grace_of_task(self._limits.grace_seconds)
            timeout = None
            if until != math.inf:
                timeout = math.ceil(max(until - trio.current_time(), 0) * 1e9)
            encoded = True
            payload = encode((route, timeout, int(grace * 1e9), trace, values), outgoing, route)
            descriptors: Sequence[int] = outgoing.filenos() if outgoing.descriptors else ()
            gifts: Sequence[Gift] = ()
            if outgoing.channels:
                gifts = self._ends.gifts(True, 0, outgoing.channels)
                payload = with_gifts(payload, gifts)
            if descriptors or len(payload) > machine.peer_frame_bytes:
                check_size(route, payload, outgoing, machine)
            call = self._begin(route, payload, descriptors, grace, scope)
            if gifts:
                self._ends.give(True, call.id, None, outgoing.channels, gifts)
            return await trio.lowlevel.wait_task_rescheduled(call.abort)
        finally:
            if outgoing is not NOTHING_OUT:
                if not encoded:
                    # What was given away is closed however the call ends: encoding finds it.
                    with suppress(ContainerError):
                        encode(values, outgoing, route)
                outgoing.sent(result=False)

    async def _wait_for_room(self) -> float:
        """Wait until the peer accepts a call more; return the task's effective deadline.

        A checkpoint only if the task is cancelled, or has to wait.
        """
        until = trio.current_effective_deadline()
        if until == -math.inf:
            await trio.lowlevel.checkpoint_if_cancelled()
        machine = self._machine
        while not self.lost and len(machine.outgoing) >= machine.peer_in_flight:
            await self.room.park()
            until = trio.current_effective_deadline()
        return until

    def _is_small(self, event: ReplyReceived | OpenedReceived) -> bool:
        return event.value is None or len(event.value) <= self._inline

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
        self, codec: RouteCodec, event: ReplyReceived | OpenedReceived, incoming: Incoming
    ) -> Any:
        with trio.CancelScope(shield=True):
            return await trio.to_thread.run_sync(codec.result_of, event.value, incoming)

    def _begin(
        self,
        route: str,
        payload: bytes,
        descriptors: Sequence[int],
        grace: float,
        scope: RemoteScope | None,
    ) -> Call:
        """Send a call of this task; return what it waits with."""
        if scope is None:
            number, data = self._machine.call(payload, len(descriptors))
        else:
            number, data = self._machine.open_scope(payload, len(descriptors))
            scope.number = number
        try:
            frame = self._writer.transmit(data, descriptors)
        except OSError as error:
            self._forget(number)
            if error.errno in TOO_MANY_DESCRIPTORS:
                raise self._overloaded(route) from error
            raise
        if self.lost:
            raise self.gone(route, Fate.NOT_SENT)
        call = Call(self, number, route, trio.lowlevel.current_task(), frame, grace)
        call.scope = scope
        # Only now: as in `call`.
        self.pending[number] = call
        if frame is not None and descriptors:
            frame.refused = lambda: self._refused(call)
        self._begun()
        return call

    def abort(self, call: Call, raise_cancel: Callable[[], Any]) -> trio.lowlevel.Abort:
        """End the wait of a cancelled caller; `Call.abort` of each call is this.

        Called once, must not raise: after it only a terminal, the grace's end or the connection's
        end can wake the task.
        """
        if call.stage is Stage.HELD:
            self.pending.pop(call.id, None)
            return trio.lowlevel.Abort.SUCCEEDED
        if call.frame is not None and self._writer.withdraw(call.frame):
            self.pending.pop(call.id, None)
            self._forget(call.id)
            return trio.lowlevel.Abort.SUCCEEDED
        if call.stage is Stage.SENT:
            self._cancel(call, raise_cancel)
        else:
            call.raise_cancel = raise_cancel
        return trio.lowlevel.Abort.FAILED

    def _cancel(self, call: Call, raise_cancel: Callable[[], Any]) -> None:
        """Send the cancel of a call; its wait ends with its terminal or with the grace."""
        call.stage, call.raise_cancel = Stage.CANCELLING, raise_cancel
        self._writer.send_control(self._machine.cancel(call.id, int(call.grace * 1e9)))
        call.timer = self._timers.after(call.grace, lambda: self._grace_over(call))

    def _forget(self, number: int) -> None:
        """Give back the id of a call of which no byte was sent."""
        self._machine.withdraw(number)
        self._ends.finish(True, number)
        self.room.unpark()

    # --- holding scopes -------------------------------------------------------------------------

    async def open_scope(
        self, scope: RemoteScope, codec: RouteCodec, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Open a scope and return its value; no checkpoint is between the two.

        Raises: as `call` does.
        """
        if not self.lost and self._machine.channels.peer_most == 0:
            raise Unsupported(f"{codec.path}: {self.peer_process or 'the peer'} speaks no scopes")
        values = codec.lower(codec.bind(args, kwargs))
        outgoing = Outgoing() if codec.arguments_hold else NOTHING_OUT
        event: OpenedReceived
        incoming: Incoming
        event, incoming = await self.call_raw(codec.path, values, outgoing, scope.trace, scope)
        try:
            if self._is_small(event):
                value = codec.result_of(event.value, incoming)
            else:
                value = await self._decode_aside(codec, event, incoming)
        except BaseException:
            incoming.close()
            if event.id in self.held:
                with suppress(ContainerError):
                    await self.cancel_scope(scope)
            raise
        incoming.close_unclaimed()
        return value

    async def close_scope(self, scope: RemoteScope, *, failed: bool = False) -> None:
        """Leave a scope whose block has ended; return once the callee's clean-up has.

        Raises:
            ContainerError: what the clean-up raised.
            PeerGone: the connection ended first.
        """
        grace = context.grace_of_task(self._limits.grace_seconds)
        del self.held[scope.number]
        data = self._machine.close(scope.number, failed, int(grace * 1e9) if failed else 0)
        # No control frame: it must not overtake items.
        self._writer.transmit(data, ())
        call = self._await_end(scope, grace)
        if failed:
            # The callee bounds the clean-up of a failed block; this is for one that does not.
            call.timer = self._timers.after(2 * grace, lambda: self._close_over(call))
        await trio.lowlevel.wait_task_rescheduled(call.abort)

    async def cancel_scope(self, scope: RemoteScope) -> None:
        """Leave a scope whose holder is cancelled; wait for its clean-up, at most the grace.

        Raises: as `close_scope` does.
        """
        grace = context.grace_of_task(self._limits.grace_seconds)
        del self.held[scope.number]
        self._writer.send_control(self._machine.cancel(scope.number, int(grace * 1e9)))
        call = self._await_end(scope, grace)
        call.stage, call.raise_cancel = Stage.CANCELLING, _nothing
        call.timer = self._timers.after(grace, lambda: self._grace_over(call))
        with trio.CancelScope(shield=True):
            await trio.lowlevel.wait_task_rescheduled(call.abort)

    def _await_end(self, scope: RemoteScope, grace: float) -> Call:
        """Enter this task as what waits for a scope's terminal."""
        if self.lost:
            raise self.gone(scope.route, Fate.UNKNOWN)
        call = Call(self, scope.number, scope.route, trio.lowlevel.current_task(), None, grace)
        self.pending[call.id] = call
        return call

    def _close_over(self, call: Call) -> None:
        if self.pending.get(call.id) is call and call.stage is Stage.SENT:
            self._cancel(call, _nothing)

    def _overloaded(self, route: str) -> Overloaded:
        return Overloaded(f"{route}: too many descriptors of this user are in flight")

    def _refused(self, call: Call) -> None:
        if call.id in self.pending:
            self._forget(call.id)
            self._wake(call, outcome.Error(self._overloaded(call.route)))

    def _grace_over(self, call: Call) -> None:
        if self.pending.get(call.id) is not call:
            return
        if call.stage is Stage.HELD:
            assert call.held is not None
            self._wake(call, outcome.Error(wire_errors.from_wire(call.held.error)))
            return
        self.abandoned += 1
        self._machine.abandon_call(call.id)
        self._ends.finish(True, call.id)
        logger.warning(
            "%s overstayed the grace of %.3f s; its answer is dropped", call.route, call.grace
        )
        assert call.raise_cancel is not None
        self._wake(call, outcome.capture(call.raise_cancel))

    def _wake(self, call: Call, result: outcome.Outcome[Any]) -> None:
        if self.pending.pop(call.id, None) is call:
            if call.timer is not None:
                call.timer.drop()
            trio.lowlevel.reschedule(call.task, result)

    def gone(self, route: str, fate: Fate) -> Exception:
        """Return the error of what the end of the connection ended."""
        if self.closed_here:
            return trio.ClosedResourceError(f"{route}: this connection was closed here")
        why = self.why or ("draining" if self.draining is not None else "closed")
        who = self.peer_process or "the peer"
        text = {
            Fate.NOT_SENT: "it was not sent",
            Fate.UNKNOWN: "whether it was done is not known",
            Fate.REFUSED: "it was refused",
        }[fate]
        return PeerGone(f"{route}: {who} is gone ({why}); {text}", fate=fate, why=why)

    # --- what comes -----------------------------------------------------------------------------

    def replied(self, event: ReplyReceived) -> None:
        """A terminal with a value."""
        if self.room:
            self.room.unpark()
        call = self.pending.pop(event.id, None)
        if self._ends:
            self._ends.finish(True, event.id)
        if event.abandoned or call is None:
            Incoming.of(event.descriptors).close()
            if self.held and event.id in self.held:
                self.held.pop(event.id).ended(outcome.Value(None))
        elif self._judge.admits(event.sender, None):
            if call.timer is not None:
                call.timer.drop()
            trio.lowlevel.reschedule(call.task, outcome.Value(event))
        else:
            Incoming.of(event.descriptors).close()
            stranger = self._judge.stranger(event.sender, call.route)
            trio.lowlevel.reschedule(call.task, outcome.Error(stranger))

    def opened(self, event: OpenedReceived) -> None:
        """A scope is open."""
        incoming = self._ends.incoming(event)
        call = self.pending.get(event.id)
        if event.dropped or call is None or call.stage is not Stage.SENT:
            # A reply that wins is for calls only: what was opened is being closed again.
            incoming.close()
            return
        assert call.scope is not None
        if not self._judge.admits(event.sender, None):
            incoming.close()
            stranger = outcome.Error(self._judge.stranger(event.sender, call.route))
            call.grace = 0
            self._cancel(call, stranger.unwrap)
            return
        self.held[event.id] = call.scope
        self._wake(call, outcome.Value((event, incoming)))

    def failed(self, event: ErrorReceived) -> None:
        """A terminal with an error."""
        self.room.unpark()
        held = self.held.pop(event.id, None)
        if held is not None:
            error = wire_errors.from_wire(event.error)
            # First: who reads in the block is cancelled, and takes no channel's end for a stream's.
            held.ended(outcome.Error(error))
            self._ends.finish(True, event.id, error, "the scope that the channel came with failed")
            return
        self._ends.finish(True, event.id)
        call = self.pending.get(event.id)
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
            grace = self._limits.grace_seconds
            call.timer = self._timers.after(grace, lambda: self._grace_over(call))
        else:
            self._wake(call, outcome.Error(wire_errors.from_wire(event.error)))

    def drain(self, event: GoodbyeReceived) -> None:
        """The peer starts no call after a last one."""
        self.draining = event.last
        for call in [call for call in self.pending.values() if call.id > event.last]:
            if call.frame is not None:
                self._writer.withdraw(call.frame)
            self._ends.finish(True, call.id)
            self._end(call, Fate.NOT_SENT)

    # --- ends -----------------------------------------------------------------------------------

    def lose(self) -> None:
        """The connection has ended."""
        for call in list(self.pending.values()):
            # Fewer than all bytes reached the kernel: then it can't have been done.
            waits = call.frame is not None and call.frame.view
            self._end(call, Fate.NOT_SENT if waits else Fate.UNKNOWN)
        self._end_held()
        self._ends.lose(self.gone("a channel", Fate.UNKNOWN))
        self.room.unpark_all()

    def close(self) -> None:
        """This side's block of the connection has ended: nothing is awaited any more."""
        self.closed_here = self.draining is None
        for call in list(self.pending.values()):
            withdrawn = call.frame is not None and self._writer.withdraw(call.frame)
            if not withdrawn and call.stage is Stage.SENT:
                self._writer.send_control(self._machine.cancel(call.id, 0))
            self._end(call, Fate.UNKNOWN)
        for number in self.held:
            self._writer.send_control(self._machine.cancel(number, 0))
        self._end_held()
        self.room.unpark_all()

    def _end_held(self) -> None:
        for scope in list(self.held.values()):
            scope.ended(outcome.Error(self.gone(scope.route, Fate.UNKNOWN)))
        self.held.clear()

    def _end(self, call: Call, fate: Fate) -> None:
        """End a call whose terminal frame will not come."""
        if call.stage is Stage.CANCELLING:
            logger.info("%s was cancelled; its fate is unknown: %s", call.route, self.why)
            assert call.raise_cancel is not None
            self._wake(call, outcome.capture(call.raise_cancel))
        elif call.stage is Stage.HELD:
            assert call.held is not None
            self._wake(call, outcome.Error(wire_errors.from_wire(call.held.error)))
        else:
            self._wake(call, outcome.Error(self.gone(call.route, fate)))
