"""Who reads a connection: its own reader, or the task that will run the call that comes.

A handler that never waits (most do not) runs in the very step that received its call, and its reply
leaves in that step: no task is made, and the loop does not go round in between. So the tasks of an
accepting connection take turns to *lead*: the leader reads, and runs what it has read itself. Once
a handler waits for the first time, the leader hands the reading on, and is a handler's task from
then on; when that has ended it stands by. The first leader is the connection's one task, and at
rest there is no other.

`Reader.run` reads and runs nothing. It does so where no handlers are, and in a shielded task of its
own while they are being ended, so that what still comes is heard.
"""

from __future__ import annotations

import contextvars
import logging
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import trio

from container.ipc.context import Turn
from container.ipc.liveness import Liveness
from container.ipc.transport import READ_BYTES, Transport, TransportBroken
from container.ipc.wire.events import CallReceived, CancelReceived, Event
from container.ipc.wire.machine import Machine, ProtocolError

logger = logging.getLogger("container.ipc")

STANDING_BY = 4
"""So many tasks of one connection wait for their turn to lead; more end."""

MAIN = 2**30
"""The connection's own task always waits for its turn."""

Begin = Callable[[CallReceived, Turn], Coroutine[Any, Any, None] | None]


def _never() -> bool:
    return False


class Reader:
    """Read one connection.

    Args:
        transport: What is read.
        machine: Makes events of bytes.
        liveness: Told that something came.
        dispatch: Acts on an event; does not wait.
        hands_over: `hand_over` will be called.
        begin: Makes the coroutine that serves a call; None if the call was refused.
        lose: Ends the connection.
        end_handlers: Called once the leader is cancelled: no more handlers are to run, and somebody
            else is to read.
    """

    def __init__(
        self,
        transport: Transport,
        machine: Machine,
        liveness: Liveness,
        dispatch: Callable[[Event], None],
        begin: Begin,
        lose: Callable[[str], None],
        end_handlers: Callable[[], None],
    ) -> None:
        self.transport = transport
        self._machine = machine
        self._liveness = liveness
        self.dispatch = dispatch
        self.begin = begin
        self._lose = lose
        self.end_handlers = end_handlers
        self.ended = False
        self.full = False
        """The last read filled its buffer: more may be there."""
        self.leading: trio.Nursery | None = None
        """Where leaders live."""
        self.standing_by: list[trio.lowlevel.Task] = []

    @trio.lowlevel.enable_ki_protection
    async def run(self, enough: Callable[[], bool] = _never) -> None:
        """Read until the connection ends, or it is enough."""
        while not (self.ended or enough()):
            events = self.take()
            if events is not None:
                for event in events:
                    self.dispatch(event)
                if self.full:
                    # A flood on one connection must not starve the other tasks.
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    continue
                # Else all was read: asking again would cost a system call to hear so.
            if not (self.ended or enough()):
                await self.transport.wait_readable()

    def take(self) -> list[Event] | None:
        """Return what one read gave; None if nothing is there."""
        machine = self._machine
        buffer = machine.room
        data, count = b"", 0
        try:
            if buffer is None:
                room = READ_BYTES
                missing = machine.missing
                if missing > READ_BYTES:
                    room = min(missing, LARGE_READ)
                data, descriptors, sender = self.transport.receive(room)
                count = len(data)
            else:
                room = len(buffer)
                count, descriptors, sender = self.transport.receive_into(buffer)
        except BlockingIOError:
            self.full = False
            return None
        except TransportBroken as error:
            self._lose(f"protocol: {error}")
            return []
        except OSError as error:
            self._lose(f"closed: {error.strerror or error}")
            return []
        if not count:
            self._lose("closed")
            return []
        self.full = count == room
        self._liveness.heard = True
        try:
            if buffer is not None:
                return machine.filled(count, descriptors, sender)
            return machine.receive(data, descriptors, sender)
        except ProtocolError as error:
            who = "a peer" if machine.peer is None else machine.peer.process or "a peer"
            logger.warning("connection with %s ended: %s", who, error)
            self._lose(f"protocol: {error}")
            return []

    # --- leaders ------------------------------------------------------------------------------

    def lead(self, nursery: trio.Nursery) -> Coroutine[Any, Any, None]:
        """Lead, serve and stand by in turn with tasks of a nursery, until the connection ends.

        Cancelled, no more handlers are run; what was read until then was acted on.
        """
        self.leading = nursery
        return _Leader(self, MAIN).run()

    def pass_on(self) -> None:
        """Let another task lead."""
        assert self.leading is not None
        if self.standing_by:
            trio.lowlevel.reschedule(self.standing_by.pop())
        else:
            self.leading.start_soon(_Leader(self, STANDING_BY).run, name="connection leader")


class _Leader:
    """A task that reads, and runs what it has read."""

    __slots__ = ("_leads", "_most", "_reader", "_rest", "_turn")

    def __init__(self, reader: Reader, most: int) -> None:
        self._reader = reader
        self._most = most
        """It ends where so many stand by already."""
        self._leads = True
        self._rest: list[Event] = []
        self._turn = Turn()

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Lead, serve and stand by in turn."""
        reader = self._reader
        task = trio.lowlevel.current_task()
        try:
            while not reader.ended:
                # What was served is not kept while this task waits.
                events = event = handler = None
                if reader.full:
                    await trio.lowlevel.checkpoint()
                else:
                    await reader.transport.wait_readable()
                events = reader.take()
                if events is None:
                    continue
                if len(events) > 1 and any(isinstance(it, CancelReceived) for it in events):
                    # A call that is cancelled in the same read is not started.
                    for event in events:
                        reader.dispatch(event)
                    continue
                for index, event in enumerate(events):
                    if not isinstance(event, CallReceived):
                        reader.dispatch(event)
                        continue
                    handler = reader.begin(event, self._turn)
                    if handler is None:
                        continue
                    assert event.payload is not None
                    task.name = f"call {event.payload.route}"
                    self._rest = events[index + 1 :] if index + 1 < len(events) else NOTHING
                    await _serve(handler, contextvars.copy_context(), self.waits)
                    if not self._leads:
                        if not await self._stand_by():
                            return
                        break
        finally:
            self._turn.close()
            if self._leads:
                reader.end_handlers()

    def waits(self) -> None:
        """The handler waits for the first time: what was and will be read is now others'."""
        self._leads = False
        reader = self._reader
        for event in self._rest:
            reader.dispatch(event)
        reader.pass_on()

    async def _stand_by(self) -> bool:
        """Wait for the next turn to lead; False if there are enough that do."""
        waiting = self._reader.standing_by
        if len(waiting) >= self._most:
            return False
        task = trio.lowlevel.current_task()
        waiting.append(task)

        def abort(_: Callable[[], Any]) -> trio.lowlevel.Abort:
            waiting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        task.name = STANDING_BY_NAME
        await trio.lowlevel.wait_task_rescheduled(abort)
        self._leads = True
        return True


STANDING_BY_NAME = "connection stand-by"
NOTHING: list[Event] = []
LARGE_READ = 262144
"""What is read at once of a large frame: more than a socket's buffer holds is not there."""


@types.coroutine
def _serve(
    handler: Coroutine[Any, Any, None], context: contextvars.Context, waits: Callable[[], None]
) -> Generator[Any, Any, None]:
    """Run a handler in this task, in a context of its own; tell when it first waits."""
    step: Callable[[Any], Any] = handler.send
    value: Any = None
    waited = False
    while True:
        try:
            trap = context.run(step, value)
        except StopIteration:
            return
        if not waited:
            waited = True
            waits()
        try:
            value = yield trap
        except BaseException as error:
            step, value = handler.throw, error
        else:
            step = handler.send
