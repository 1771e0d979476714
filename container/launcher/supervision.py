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

When a failure is followed by another start, after which delay, and how many are too many, is the
framework's `Supervised`. What is here is what a service adds: it has a process and a socket, and
waits for a reason to start.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from datetime import UTC, datetime
from pathlib import Path

import trio
from attrs import define, field

from container.contracts.launcher import Restart, ServiceState, ServiceStatus, ServiceUnit
from container.ipc import (
    Backoff,
    ContainerError,
    Intensity,
    Supervised,
    SupervisionFailed,
    Unavailable,
)
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
    _supervised: Supervised[None] | None = None
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
        self._problem = None
        self._wanted.set()
        self._forgive()
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
        if process is None and self.state in (ServiceState.BACKOFF, ServiceState.FAILED):
            self._become(ServiceState.LISTENING)
        self._forgive()
        if process is None:
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
        unit = self.unit
        # Without restarts a failure is followed by the wait for the next connection.
        restarts = unit.restart is not Restart.NO
        try:
            with self.supervision:
                while True:
                    self._supervised = Supervised(
                        self._serve,
                        name=f"service {unit.name}",
                        backoff=Backoff(unit.restart_delay if restarts else 0.0, LONGEST_DELAY),
                        intensity=Intensity(unit.restart_limit - 1, WINDOW),
                    )
                    try:
                        await self._supervised.run()
                    except SupervisionFailed as error:
                        _log.error("%s", error)
                        self._become(ServiceState.FAILED)
                        await self._until_forgiven()
        finally:
            self.ended.set()
            self._notify()

    async def _serve(self) -> None:
        """Run its processes, each when there is a reason to, until one fails.

        Raises:
            ContainerError: it can't be started, or it ended badly.
        """
        while True:
            if self.process is None:  # else it was adopted
                if self.state is ServiceState.LISTENING:
                    await self._until_wanted()
                await self._start()
            assert self.process is not None
            status = await self.process.wait()
            failure = self._gone(status)
            if failure is not None:
                raise failure

    async def _until_wanted(self) -> None:
        """Wait for a start that is asked for, or for a connection."""
        while not self._wanted.is_set():
            if self.listener is None:
                await self._change()
            elif await self._connection_or_change():
                return

    async def _until_forgiven(self) -> None:
        """Accept and close, until it is asked for or a connection comes after a while."""
        until = trio.current_time() + WINDOW
        while self.state is ServiceState.FAILED and not self._wanted.is_set():
            if self.listener is None:
                await self._change()
            elif await self._connection_or_change():
                if trio.current_time() > until:
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

    async def _start(self) -> None:
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
            self._failed()
            raise self._problem
        self.restarts += again
        self._become(ServiceState.RUNNING)

    def _gone(self, status: int) -> ContainerError | None:
        """Note that the process has ended; return its failure, if it is one."""
        assert self.process is not None
        self.process.close()
        self.process = None
        self.last_exit = None if status == -1 else status
        unserved = self.listener is not None and _readable(self.listener)
        ended_well = status == 0 and self.unit.restart is not Restart.ALWAYS and not unserved
        if self._stopping or ended_well:
            self._stopping = False
            self._become(ServiceState.LISTENING)
            return None
        self._failed()
        return Unavailable(f"it ended with status {status}")

    def _failed(self) -> None:
        restarts = self.unit.restart is not Restart.NO
        self._become(ServiceState.BACKOFF if restarts else ServiceState.LISTENING)

    def _forgive(self) -> None:
        if self._supervised is not None:
            self._supervised.reset()

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
