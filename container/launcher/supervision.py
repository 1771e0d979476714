"""The life of one service: listen, start, watch, start again, stop.

| state | on | becomes |
|---|---|---|
| LISTENING | a connection, or `start` | RUNNING |
| RUNNING | exit 0 (but `restart = "always"`), or an exit after `stop` | LISTENING |
| RUNNING | a failure | BACKOFF, or FAILED when there were `restart_limit` within 30 s |
| BACKOFF | its delay is over, or `start` | RUNNING |
| BACKOFF | a connection, if what failed was proven | RUNNING |
| FAILED | `start`, or a connection 30 s after the last failure | RUNNING |
| RUNNING | `stop`, `remove`, shutdown | STOPPING |

A RUNNING service whose unit says `Ready.NOTIFY` becomes ready by its own word (`readiness`). One
that is not ready in time, or ready and silent for too long, is killed, which is a failure.

Proven is a service that said that it is ready and lived on for a while. The delays are there for
what can't live: one that could serve who waits is started at once, and its failure is the first of
a row. It counts as any other to the limit.

While a service is FAILED its connections are accepted and closed, so that callers get an answer and
not a wait without end. A service that ends without serving the connection that it was started for
counts as failed, whatever its status: it would be started again at once, for ever.

When a failure is followed by another start, after which delay, and how many are too many, is the
framework's `Supervised`. What is here is what a service adds: it has a process and a socket, and
waits for a reason to start.
"""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import trio
from attrs import define, field

from container.contracts.launcher import Ready, Restart, ServiceState, ServiceStatus, ServiceUnit
from container.ipc import (
    Backoff,
    ContainerError,
    Intensity,
    Supervised,
    SupervisionFailed,
    Unavailable,
)
from container.launcher.children import Process
from container.launcher.readiness import Life
from container.launcher.refusing import Refusal
from container.launcher.rundir import Inode, unlink_socket
from container.launcher.spawner import Spawner

WINDOW = 30.0
"""Seconds in which failures count together."""
LONGEST_DELAY = 10.0
PROVEN = 1.0
"""Seconds of a life, since it said that it is ready, that show that the service can live."""
ACCEPT_SECONDS = 0.1
ABORT_BOUND = 2.0
"""Seconds for a process that hangs to write where it does (SIGABRT), before SIGKILL."""

_log = logging.getLogger(__name__)


def _now() -> datetime:
    return datetime.now(UTC)


async def _nothing(unit: ServiceUnit) -> None:
    await trio.lowlevel.checkpoint()


@define(eq=False)
class Service:
    """One registered service. Its `run` is a task of the launcher's."""

    unit: ServiceUnit
    path: Path | None
    listener: socket.socket | None
    inode: Inode | None
    spawner: Spawner
    prepare: Callable[[ServiceUnit], Awaitable[None]] = _nothing
    """Starts what the unit requires; raises if that can't be."""
    refusal: Refusal = field(factory=Refusal)
    """Of connections, while it is FAILED."""
    state: ServiceState = ServiceState.LISTENING
    process: Process | None = None
    since: datetime = field(factory=_now)
    restarts: int = 0
    last_exit: int | None = None
    starting: bool = False
    """Whether what it requires is started, or its process."""
    supervision: trio.CancelScope = field(factory=trio.CancelScope)
    ended: trio.Event = field(factory=trio.Event)
    """Set when `run` has ended."""
    problem: str = ""
    """Its last failure."""
    problem_at: datetime | None = None
    _life: Life = field(init=False)
    """Of the process that runs, or of the next one."""
    _preparing: trio.CancelScope = field(factory=trio.CancelScope)
    _supervised: Supervised[None] | None = None
    _proven: bool = False
    """Whether its last life was."""
    _wanted: trio.Event = field(factory=trio.Event)
    _changed: trio.Event = field(factory=trio.Event)
    _listening: trio.Lock = field(factory=trio.Lock)
    """Trio lets one task wait for one descriptor."""
    _log_mark: int = 0
    """How long its log was before its process."""
    _forking: bool = False
    _stopping: bool = False

    def __attrs_post_init__(self) -> None:
        self._life = Life(self.unit)

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
            ready=self._life.ready or self.process is None,
            said=self._life.said,
            problem=self.problem,
            problem_at=self.problem_at,
        )

    # --- commands ---

    async def start(self) -> None:
        """Start it now; return once it is ready. A service that runs is waited for at most.

        Raises:
            Unavailable: it can't be started, or it did not become ready.
        """
        await trio.lowlevel.checkpoint()
        while self.state is ServiceState.STOPPING or (self._life.stopping and self.process):
            await self._change()
        life = self._life
        if self.state is not ServiceState.RUNNING:
            self._wanted.set()
            self._forgive()
            self._notify()
        await life.decided.wait()
        if life.problem is not None:
            raise life.problem

    def adopt(self, process: Process) -> None:
        """Take a process that ran before this launcher, and is ready."""
        self.process = process
        self._life.begin(ready=True)
        self._become(ServiceState.RUNNING)

    def hear(self, fields: Mapping[str, str]) -> None:
        """Take what its process says of itself."""
        ready = self._life.ready
        self._life.hear(fields)
        if ready != self._life.ready:
            self._notify()

    async def stop(self) -> None:
        """Stop its process: SIGTERM, its stop timeout, SIGKILL. Its socket stays.

        Cancellation leaves the process with its SIGTERM.
        """
        await trio.lowlevel.checkpoint()
        self._preparing.cancel()
        while self._forking:
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

    async def retire(self) -> None:
        """Stop it for good: no connection starts it again."""
        await self.stop()
        self.supervision.cancel()
        await self.ended.wait()

    async def wait_decided(self) -> None:
        """Wait while it is being started, until it is ready or has failed."""
        while self.starting or (self.process is not None and not self._life.decided.is_set()):
            await self._change()

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
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._hasten)
                    await self._live()
        finally:
            self.ended.set()
            self._life.fail(Unavailable(f'service "{self.unit.name}" was removed'))
            self._notify()

    async def _live(self) -> None:
        """Serve; after too many failures, serve anew once they are forgiven."""
        unit = self.unit
        # Without restarts a failure is followed by the wait for the next connection.
        restarts = unit.restart is not Restart.NO
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

    async def _hasten(self) -> None:
        """End a delay as soon as somebody connects, if what failed was proven."""
        while True:
            if not (self._proven and self.state is ServiceState.BACKOFF and self.listener):
                await self._change()
            elif await self._connection_or_change() and self._supervised is not None:
                self._supervised.resume()
                await self._change()

    async def _serve(self) -> None:
        """Run its processes, each when there is a reason to, until one fails.

        Raises:
            ContainerError: it can't be started, or it ended badly.
        """
        while True:
            if self.process is None:  # else it was adopted
                if self.state is ServiceState.LISTENING:
                    await self._until_wanted()
                if not await self._start():
                    continue
            assert self.process is not None
            status = await self._until_ended(self.process)
            failure = self._gone(status)
            if failure is not None:
                raise failure

    async def _until_ended(self, process: Process) -> int:
        """Return its status once the process has ended; killed, if it does not say what is due."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, process, self._life)
            status = await process.wait()
            nursery.cancel_scope.cancel()
        return status

    async def _watch(self, process: Process, life: Life) -> None:
        reason = await life.until_overdue()
        if self._stopping:
            return  # its end is bounded already
        life.verdict = reason
        _log.error("%s is killed: %s", self.unit.name, reason)
        self.spawner.surroundings.logs.note(self.unit.name, f"killed: {reason}")
        if life.ready and not life.stopping:
            await process.end(ABORT_BOUND, signal.SIGABRT)
        else:
            await process.end(0 if life.stopping else self.unit.stop_timeout)

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
                if not self.refusal.refuse(self.listener):
                    # No descriptor is left, and nothing tells when there is one again.
                    await trio.sleep(ACCEPT_SECONDS)

    async def _connection_or_change(self) -> bool:
        assert self.listener is not None
        readable = False

        async def listen(scope: trio.CancelScope, listener: socket.socket) -> None:
            nonlocal readable
            async with self._listening:
                await trio.lowlevel.wait_readable(listener)
            readable = True
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, nursery.cancel_scope, self.listener)
            await self._change()
            nursery.cancel_scope.cancel()
        return readable

    async def _start(self) -> bool:
        """Start its process; False if it was stopped before there was one.

        Raises:
            ContainerError: it can't be started.
        """
        again = self.state in (ServiceState.BACKOFF, ServiceState.FAILED)
        name = self.unit.name
        problem: ContainerError | None = None
        self.starting = True
        try:
            with trio.CancelScope() as self._preparing:
                await self.prepare(self.unit)
            if self._preparing.cancelled_caught:
                self._next(Unavailable(f'service "{name}" was stopped before it was started'))
                self._become(ServiceState.LISTENING)
                return False
            self._forking = True
            self._log_mark = self.spawner.surroundings.logs.mark(name)
            self.process = await self.spawner.spawn(self.unit, self.listener)
        except ContainerError as error:
            problem = error
        except OSError as error:
            problem = Unavailable(f'service "{name}" can\'t be started: {error.strerror}')
        finally:
            self.starting = self._forking = False
            self._wanted = trio.Event()
            self._notify()
        if problem is not None:
            self._failed(problem)
            raise problem
        self.restarts += again
        self._life.begin()
        self._become(ServiceState.RUNNING)
        return True

    def _gone(self, status: int) -> ContainerError | None:
        """Note that the process has ended; return its failure, if it is one."""
        assert self.process is not None
        pid, life = self.process.pid, self._life
        self.process.close()
        self.process = None
        self.last_exit = None if status == -1 else status
        unserved = self.listener is not None and _readable(self.listener)
        said_ready = life.ready and self.unit.ready is Ready.NOTIFY
        self._proven = said_ready and life.served >= PROVEN
        ended_well = (
            status == 0
            and self.unit.restart is not Restart.ALWAYS
            and life.verdict is None
            and (said_ready or not unserved)
        )
        if self._stopping or ended_well:
            stopped, self._stopping = self._stopping, False
            how = "was stopped" if stopped else "ended"
            self._next(Unavailable(f'service "{self.unit.name}" {how} before it was ready'))
            self._become(ServiceState.LISTENING)
            return None
        what = "an unknown status" if status == -1 else f"status {status}"
        problem = life.verdict or f"it ended with {what}"
        if not life.ready:
            logs = self.spawner.surroundings.logs
            lines = logs.last_lines(self.unit.name, self._log_mark, pid)
            problem += "; the last lines of its log: " + (" | ".join(lines) or "none")
        if self._proven and self._supervised is not None:
            self._supervised.calm()
        failure = Unavailable(
            f'service "{self.unit.name}" failed: {problem}',
            hint=f"see {self.spawner.surroundings.logs.path(self.unit.name)}",
        )
        self._failed(failure, problem)
        return failure

    def _failed(self, failure: ContainerError, problem: str | None = None) -> None:
        self.problem = problem or failure.message
        self.problem_at = _now()
        self._next(failure)
        restarts = self.unit.restart is not Restart.NO
        self._become(ServiceState.BACKOFF if restarts else ServiceState.LISTENING)

    def _next(self, problem: ContainerError) -> None:
        """End a life, which has failed if it was not ready; who asks from now on has the next."""
        self._life.fail(problem)
        self._life = Life(self.unit)

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
