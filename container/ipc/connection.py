"""A connection: the machine of the wire, driven by Trio tasks. Calls go out of it and come into it.

The rules that keep it right:

- What reads for callers, writes and keeps time runs in shielded tasks that only the connection
  ends: a cancelled caller still gets its acknowledgement, and a server that is being cancelled
  still sends its terminal frames. They begin when they are first needed.
- What reads never waits for a write: two readers that answer would deadlock after a few full
  buffers.
- At rest an accepted connection is one task: servers hold thousands.

Frames are sent by `writing`, this side's calls wait in `calling`, the peer's run in `handling`,
channels end in `channel_ends`, senders are judged in `judging`.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Container, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio
from attrs import frozen

from container.ipc import awake, tracing, wire_errors
from container.ipc.buffers import Buffers
from container.ipc.calling import Calls
from container.ipc.channel_ends import ChannelEnds
from container.ipc.codec import Incoming
from container.ipc.context import Turn
from container.ipc.errors import Fate, PeerGone
from container.ipc.greeting import Greeting
from container.ipc.handling import Handler, Handlers, Load
from container.ipc.judging import Judge
from container.ipc.liveness import Liveness
from container.ipc.peer import Policy
from container.ipc.reading import Reader
from container.ipc.timers import Timers
from container.ipc.transport import Transport
from container.ipc.wire.limits import Limits
from container.ipc.wire.machine import (
    Budget,
    CallDropped,
    CallReceived,
    CancelReceived,
    CloseReceived,
    CreditReceived,
    EndReceived,
    ErrorReceived,
    Event,
    GoodbyeReceived,
    HelloReceived,
    ItemDropped,
    ItemReceived,
    Machine,
    OpenedReceived,
    PingReceived,
    ReplyReceived,
    State,
    StopReceived,
)
from container.ipc.writing import Writer

logger = logging.getLogger("container.ipc")

_partial = Budget(Limits().partial_bytes, buffer=Buffers().take)

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
    """One conversation; safe to use from any task of the loop. Owns its transport.

    `open_connection` makes one that calls, `serve` runs one that was accepted. `connection_proxy`
    gives the typed face; `calls` is what proxies are made of.

    Args:
        transport: One end, nothing said on it yet.
        accepts: This side judges the peer's hello before it answers with its own.
        policy: Judges the sender of each message.
        limits: Bounds; announced in hello.
        routes: What is served to the peer, by route path.
        offered: Contracts for hello: served (accepting side) or asked for.
        denied: Routes that the contract has and this endpoint does not offer.
        load: What the server runs, shared by its connections.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        accepts: bool,
        routes: Mapping[str, Handler] | None = None,
        offered: Mapping[str, tuple[int, str]] | None = None,
        denied: Container[str] = (),
        policy: Policy,
        limits: Limits,
        load: Load | None = None,
    ) -> None:
        self._transport = transport
        self._accepts = accepts
        self._limits = limits
        self._machine = Machine(limits, _partial)
        self._judge = Judge(policy, transport.connected_uid)
        self._writer = Writer(transport, self._unwritable, self._start_writer, limits.answer_bytes)
        self._ends = ChannelEnds(self._machine, self._writer, limits.decode_inline_bytes)
        self._handlers = Handlers(
            self._machine,
            self._writer,
            self._ends,
            self._judge,
            limits,
            routes or {},
            offered or {},
            denied,
            load or Load(),
        )
        self._liveness = Liveness(
            limits.liveness_seconds,
            self._machine.outgoing,
            lambda: self._writer.send_control(self._machine.ping()),
            self._lose,
            self._start_liveness,
        )
        self._reader = Reader(
            transport,
            self._machine,
            self._liveness,
            self._dispatch,
            self._begin,
            self._lose,
            self._end_handlers,
        )
        self._timers = Timers(self._start_timers)
        self.calls = Calls(
            self._machine,
            self._writer,
            self._ends,
            self._judge,
            limits,
            self._liveness.begin,
            self._timers,
        )
        """What is asked of the peer."""
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
        self._lost: trio.Event | None = None
        """Set once the connection has ended, for who waits for that."""
        self._nursery: trio.Nursery | None = None
        self._io: trio.Nursery | None = None
        """Of the connection's own tasks, once there is one."""
        self._wanted: tuple[tuple[Callable[[], Awaitable[None]], str], ...] = ()
        """Those that are to be run in it."""

    @property
    def lost(self) -> bool:
        """True once the connection has ended, however it did."""
        return self.calls.lost

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

    @property
    def routes_running(self) -> tuple[str, ...]:
        """The route of each call of the peer that runs here."""
        return self._handlers.routes_running

    def statistics(self) -> ConnectionStatistics:
        """Return a frozen look."""
        return ConnectionStatistics(
            pending=len(self.calls.pending),
            handling=len(self._handlers),
            queued_frames=len(self._writer),
            abandoned=self.calls.abandoned,
            overstayed=self._handlers.overstayed,
            descriptors_received=self._machine.descriptors_received,
            descriptors_delivered=self._machine.descriptors_delivered,
        )

    @property
    def takes_calls(self) -> bool:
        """True while new calls can be made: it lives, and the peer has not said goodbye."""
        calls = self.calls
        return not (calls.lost or calls.closed_here or calls.draining is not None)

    async def drain(self, within: float) -> None:
        """Start no more calls of the peer's, and wait until those that run have ended.

        The peer is told: what it calls from now on is *not sent*, and a named service's proxy goes
        to the next instance. Scopes and channels go on, too.

        Args:
            within: Seconds; what runs longer is left to the connection's end.
        """
        if self._machine.says_goodbye:
            self._writer.send_control(self._machine.goodbye(int(within * 1e9)))
            with trio.move_on_after(within):
                await self._handlers.wait_idle()

    def abort(self) -> None:
        """End it as a crash would: the peer loses us, and sees nothing left or cancelled.

        What is awaited on it here, blocks of scopes included, ends with `PeerGone`.
        """
        self._lose("aborted")

    async def wait_lost(self) -> None:
        """Wait until the connection has ended."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self.lost:
            if self._lost is None:
                self._lost = trio.Event()
            await self._lost.wait()

    # --- what comes ---------------------------------------------------------------------------

    def _dispatch(self, event: Event) -> None:
        if isinstance(event, ReplyReceived):
            self.calls.replied(event)
        elif isinstance(event, ItemReceived):
            if event.made_here and not self._judge.admits(event.sender, None):
                self._ends.incoming(event).close()
                self._lose("protocol: an item of a process that is not admitted")
            else:
                self._ends.item(event)
        elif isinstance(event, CallReceived):
            if not self._overfed(event):
                self._handlers.start(event)
        elif isinstance(event, CallDropped):
            Incoming.of(event.descriptors).close()
        elif isinstance(event, CreditReceived):
            self._ends.credit(event)
        elif isinstance(event, EndReceived):
            self._ends.ended(event)
        elif isinstance(event, StopReceived):
            self._ends.stopped(event)
        elif isinstance(event, ItemDropped):
            self._ends.dropped(event)
        elif isinstance(event, OpenedReceived):
            self.calls.opened(event)
        elif isinstance(event, CloseReceived):
            self._handlers.close(event.id, event.failed, event.grace / 1e9)
        elif isinstance(event, ErrorReceived):
            self._take_error(event)
        elif isinstance(event, CancelReceived):
            self._handlers.cancel(event.id, event.grace / 1e9, self._timers)
        elif isinstance(event, PingReceived):
            if self._writer.control_frames < PONGS_QUEUED:
                self._writer.send_control(self._machine.pong(event.token))
        elif isinstance(event, HelloReceived):
            self._greeting.take(event)
        elif isinstance(event, GoodbyeReceived):
            self.calls.drain(event)

    def _begin(self, event: CallReceived, turn: Turn) -> Coroutine[Any, Any, None] | None:
        if self._writer.answers and self._overfed(event):
            return None
        return self._handlers.begin(event, turn)

    def _overfed(self, event: CallReceived) -> bool:
        """End the connection of a peer that calls and does not read: answers would fill memory."""
        if len(self._machine.incoming) + self._writer.answers <= self._limits.in_flight:
            return False
        Incoming.of(event.descriptors).close()
        self._lose(f"protocol: more than {self._limits.in_flight} unanswered calls")
        return True

    def _take_error(self, event: ErrorReceived) -> None:
        if event.id == 0:
            self._greeting.refused(wire_errors.from_wire(event.error))
            self._lose(f"refused: {event.error.get('message')}")
            return
        self.calls.failed(event)

    # --- life and death -----------------------------------------------------------------------

    def _lose(self, why: str) -> None:
        """End the connection: pending calls get their error, handlers are cancelled. Once."""
        if self.lost:
            return
        self.calls.why = why
        self.calls.lost = self._reader.ended = True
        if self._lost is not None:
            self._lost.set()
        if tracing.watchers:
            self._handlers.tell_connection("lost", why)
        self.calls.lose()
        self._handlers.lose()
        self._writer.end()
        self._greeting.end()
        for descriptor in self._machine.abandon():
            os.close(descriptor)
        if self._io is not None:
            self._io.cancel_scope.cancel()

    def _unwritable(self, why: str) -> None:
        if self._accepts or self._machine.peer is not None:
            self._lose(why)
        # Else the server has closed without waiting for our hello, and may have said why: what it
        # said, and the end, are still to be read.

    def _start_writer(self) -> None:
        self._start(self._writer.run, "connection writer")

    def _start_timers(self) -> None:
        self._start(self._timers.run, "connection timers")

    def _start_liveness(self) -> None:
        if self._transport.pings and math.isfinite(self._limits.liveness_seconds):
            self._start(self._liveness.watch, "connection pings")

    def _start_reader(self) -> None:
        self._start(self._reader.run, "connection reader")

    def _start(self, run: Callable[[], Awaitable[None]], name: str) -> None:
        """Run one of the connection's own tasks until it ends."""
        if self._io is not None:
            self._io.start_soon(run, name=name)
        elif self._nursery is not None and not self.lost:
            self._wanted += ((run, name),)
            if len(self._wanted) == 1:
                self._nursery.start_soon(self._run_io, name=name)

    async def _run_io(self) -> None:
        # A nursery of their own, since a cancelled caller starts some of them: Trio takes no task
        # more into a nursery while it tells that one's tasks that they are cancelled.
        with trio.CancelScope(shield=True):
            try:
                async with trio.open_nursery() as nursery:
                    if self.lost:
                        return
                    self._io = nursery
                    (first, _), *others = self._wanted
                    for run, name in others:
                        nursery.start_soon(run, name=name)
                    await first()
            finally:
                self._io = None
                self._lose("closed")

    def _end_handlers(self) -> None:
        self._handlers.stop()
        self._start_reader()

    async def _greet(self, wait: Callable[[], Awaitable[None]]) -> None:
        await self._greeting.exchange(wait)
        if self.lost:
            raise PeerGone(
                f"the connection ended before a hello came ({self.calls.why})",
                fate=Fate.REFUSED,
                why=self.calls.why or "closed",
            )

    async def serve(self, met: Callable[[], bool]) -> None:
        """Judge the peer's hello, then run its calls until the connection ends.

        Cancelling it ends the handlers first; their terminal frames still leave.

        Args:
            met: Called once the peer's hello was admitted, before it can call; False if it is not
                to be served any more.

        Raises:
            PeerGone, PermissionDenied, Incompatible: no conversation came about.
        """
        looking = awake.add(self._transport.descriptor)
        try:
            await self._greet(self._read_hello)
            if not met():
                return
            async with trio.open_nursery() as self._nursery:
                try:
                    self._handlers.open(self._nursery)
                    # The peer calls as soon as it has read this.
                    self._greeting.say()
                    if tracing.watchers:
                        self._handlers.tell_connection("connected", self.peer_process)
                    await self._reader.lead(self._nursery)
                finally:
                    self._nursery.cancel_scope.cancel()
                    await self._end()
        finally:
            self._lose("closed")
            awake.remove(looking, self._transport.descriptor)
            self._transport.close()

    async def _end(self) -> None:
        """Wait until the handlers have ended, which were cancelled, and end."""
        self._handlers.stop()
        try:
            with trio.CancelScope(shield=True):
                await self._handlers.wait_idle()
            await self._close()
        finally:
            self._lose("closed")

    def _read_hello(self) -> Awaitable[None]:
        return self._reader.run(self._greeting.is_over)

    @asynccontextmanager
    async def hold(self) -> AsyncGenerator[None]:
        """Greet the peer, and be there for calls while the block runs.

        Raises:
            PeerGone, PermissionDenied, Incompatible, Overloaded: no conversation came about.
        """
        # What the block raises must not be wrapped in a group by the nursery of our own tasks, so
        # it is carried around it.
        raised: BaseException | None = None
        looking = awake.add(self._transport.descriptor)
        async with trio.open_nursery() as self._nursery:
            self._start_reader()
            try:
                await self._greet(self._greeting.wait)
                yield
            except BaseException as error:
                raised = error
            try:
                await self._close()
            finally:
                awake.remove(looking, self._transport.descriptor)
                self._transport.close()
        if raised is not None:
            raise raised

    async def _close(self) -> None:
        """End what is awaited here, write what is queued, bounded, say goodbye, and end."""
        if not self.lost and self._accepts:
            # What was called before the goodbye is refused by name, not dropped: our own reader
            # begins, and reads what is there.
            for _ in range(2):
                await trio.lowlevel.cancel_shielded_checkpoint()
        if not self.lost:
            self.calls.close()
            if self._machine.says_goodbye and self._machine.state is State.OPEN:
                self._writer.send_control(self._machine.goodbye(0))
            with trio.move_on_after(self._limits.drain_seconds, shield=True):
                await self._writer.drain()
        self._lose("closed")


@asynccontextmanager
async def open_connection(
    transport: Transport,
    *,
    policy: Policy,
    limits: Limits | None = None,
    offered: Mapping[str, tuple[int, str]] | None = None,
) -> AsyncGenerator[Connection]:
    """Speak to a server on a transport while the block runs; owns the transport.

    Args:
        transport: One end, nothing said on it yet.
        policy: Judges the sender of each message.
        limits: Bounds; announced in hello.
        offered: Contracts that are asked for.

    Raises:
        PeerGone, PermissionDenied, Incompatible, Overloaded: no conversation came about.
    """
    connection = Connection(
        transport, accepts=False, offered=offered, policy=policy, limits=limits or Limits()
    )
    async with connection.hold():
        yield connection
