"""The life of one service: listen, start, watch, start again, stop.

| state | on | becomes |
|---|---|---|
| LISTENING | a connection, or `start` | RUNNING |
| RUNNING | exit 0 (but `restart = "always"`), or an exit after `stop` | LISTENING |
| RUNNING | a failure | BACKOFF, or FAILED when there were `restart_limit` within 30 s |
| BACKOFF | its delay is over, or `start` | RUNNING |
| FAILED | `start`, or a connection 30 s after the last failure | RUNNING |
| RUNNING | `stop`, `remove`, shutdown | STOPPING |

While a service is FAILED its connections are accepted and closed, so that callers get an answer and
not a wait without end. A service that ends without serving the connection that it was started for
counts as failed, whatever its status: it would be started again at once, for ever.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections import deque
from datetime import UTC, datetime
from pathlib import Path

import trio
from attrs import define, field

from container.contracts.launcher import Restart, ServiceState, ServiceStatus, ServiceUnit
from container.ipc import ContainerError, Unavailable
from container.launcher.children import Process
from container.launcher.rundir import Inode, unlink_socket
from container.launcher.spawner import Spawner

WINDOW = 30.0
"""Seconds in which failures count together."""
LONGEST_DELAY = 10.0

_log = logging.getLogger(__name__)


def _now() -> datetime:
    return datetime.now(UTC)


@define(eq=False)
class Service:
    """One registered service. Its `run` is a task of the launcher's."""

    unit: ServiceUnit
    path: Path | None
    listener: socket.socket | None
    inode: Inode | None
    spawner: Spawner
    state: ServiceState = ServiceState.LISTENING
    process: Process | None = None
    since: datetime = field(factory=_now)
    restarts: int = 0
    last_exit: int | None = None
    supervision: trio.CancelScope = field(factory=trio.CancelScope)
    ended: trio.Event = field(factory=trio.Event)
    """Set when `run` has ended."""
    _failures: deque[float] = field(factory=lambda: deque[float](maxlen=1000))
    _wanted: trio.Event = field(factory=trio.Event)
    _changed: trio.Event = field(factory=trio.Event)
    _starting: bool = False
    _stopping: bool = False
    _problem: ContainerError | None = None
    """Why the last start failed."""

    def status(self) -> ServiceStatus:
        """Return what `system status` shows."""
        return ServiceStatus(
            name=self.unit.name,
            description=self.unit.description,
            state=self.state,
            pid=self.process.pid if self.process is not None else None,
            socket=None if self.path is None else str(self.path),
            since=self.since,
            restarts=self.restarts,
            last_exit=self.last_exit,
        )

    # --- commands ---

    async def start(self) -> None:
        """Start it now; return once it runs. A service that runs is left alone.

        Raises:
            Unavailable: it can't be started.
        """
        await trio.lowlevel.checkpoint()
        while self.state is ServiceState.STOPPING:
            await self._change()
        if self.state is ServiceState.RUNNING:
            return
        self._failures.clear()
        self._problem = None
        self._wanted.set()
        self._notify()
        while self._wanted.is_set() and not self.ended.is_set():
            await self._change()
        if self._problem is not None:
            raise self._problem

    async def stop(self) -> None:
        """Stop its process: SIGTERM, its stop timeout, SIGKILL. Its socket stays.

        Cancellation leaves the process with its SIGTERM.
        """
        await trio.lowlevel.checkpoint()
        while self._starting:
            await self._change()
        process = self.process
        self._failures.clear()
        if process is None:
            if self.state in (ServiceState.BACKOFF, ServiceState.FAILED):
                self._become(ServiceState.LISTENING)
            return
        self._stopping = True
        self._become(ServiceState.STOPPING)
        status = await process.end(self.unit.stop_timeout)
        if status == 137:
            _log.warning("%s did not end by itself in time", self.unit.name)
        while self.process is process and not self.ended.is_set():
            await self._change()
        if self.process is process:  # nobody supervises it any more
            self._gone(status)

    def wake(self) -> None:
        """Look again: its listener was changed."""
        self._notify()

    def close(self) -> None:
        """Close and unlink its socket, and let its process go."""
        if self.listener is not None:
            self.listener.close()
            self.listener = None
        if self.path is not None:
            unlink_socket(self.path, self.inode)
        self.let_go()

    def let_go(self) -> None:
        """Forget its process and close the socket here; both go on without this launcher."""
        if self.process is not None:
            self.process.close()
            self.process = None
        if self.listener is not None:
            self.listener.close()
            self.listener = None

    # --- the task ---

    async def run(self) -> None:
        """Supervise until cancelled. The process, if there is one then, is left as it is."""
        try:
            with self.supervision:
                if self.process is not None:  # adopted
                    await self._watch(self.process)
                while True:
                    if not self._wanted.is_set():
                        await self._until_wanted()
                    await self._start_once()
                    if self.process is not None:
                        await self._watch(self.process)
        finally:
            self.ended.set()
            self._notify()

    async def _until_wanted(self) -> None:
        """Wait for a reason to start, in whatever state this is."""
        while not self._wanted.is_set():
            if self.state is ServiceState.BACKOFF:
                with trio.move_on_after(self._delay()):
                    await self._change()
                    continue
                return
            if self.listener is None:
                await self._change()
                continue
            if not await self._connection_or_change():
                continue
            if self.state is not ServiceState.FAILED or not self._recent_failures():
                return
            with contextlib.suppress(OSError):
                self.listener.accept()[0].close()

    async def _connection_or_change(self) -> bool:
        assert self.listener is not None
        readable = False

        async def listen(scope: trio.CancelScope, listener: socket.socket) -> None:
            nonlocal readable
            await trio.lowlevel.wait_readable(listener)
            readable = True
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, nursery.cancel_scope, self.listener)
            await self._change()
            nursery.cancel_scope.cancel()
        return readable

    async def _start_once(self) -> None:
        again = self.state in (ServiceState.BACKOFF, ServiceState.FAILED)
        self._problem = None
        self._starting = True
        try:
            self.process = await self.spawner.spawn(self.unit, self.listener)
        except ContainerError as error:
            self._problem = error
        except OSError as error:
            self._problem = Unavailable(
                f'service "{self.unit.name}" can\'t be started: {error.strerror}'
            )
        finally:
            self._starting = False
            self._notify()
        self._wanted = trio.Event()
        if self._problem is not None:
            _log.error("%s: %s", self.unit.name, self._problem)
            self._failed()
            return
        self.restarts += again
        self._become(ServiceState.RUNNING)

    async def _watch(self, process: Process) -> None:
        status = await process.wait()
        self._gone(status)

    def _gone(self, status: int) -> None:
        assert self.process is not None
        self.process.close()
        self.process = None
        self.last_exit = None if status == -1 else status
        if self._stopping:
            self._stopping = False
            self._become(ServiceState.LISTENING)
            return
        unserved = self.listener is not None and _readable(self.listener)
        if status == 0 and self.unit.restart is not Restart.ALWAYS and not unserved:
            self._become(ServiceState.LISTENING)
            return
        _log.warning("%s ended with status %s", self.unit.name, status)
        self._failed()

    def _failed(self) -> None:
        self._failures.append(trio.current_time())
        if self._recent_failures() >= self.unit.restart_limit:
            _log.error("%s failed too often", self.unit.name)
            self._become(ServiceState.FAILED)
        elif self.unit.restart is Restart.NO:
            self._become(ServiceState.LISTENING)
        else:
            self._become(ServiceState.BACKOFF)

    def _recent_failures(self) -> int:
        begin = trio.current_time() - WINDOW
        while self._failures and self._failures[0] < begin:
            self._failures.popleft()
        return len(self._failures)

    def _delay(self) -> float:
        doublings = max(0, self._recent_failures() - 1)
        return min(LONGEST_DELAY, self.unit.restart_delay * 2.0 ** min(doublings, 30))

    def _become(self, state: ServiceState) -> None:
        self.state = state
        self.since = _now()
        self._notify()

    def _notify(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def _change(self) -> None:
        await self._changed.wait()


def _readable(listener: socket.socket) -> bool:
    import select

    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))
