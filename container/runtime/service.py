"""The runtime helper's service: one container, from its bundle to its exit status.

| phase | on | becomes |
|---|---|---|
| EMPTY | bootstrap | CREATED: root mounted, bundle written, first process waits |
| CREATED | start of `init` | RUNNING |
| RUNNING | pause | PAUSED, until resume, or a signal that ends it |
| these three | `init` has ended | STOPPED, and all that the kernel held for it is taken down |
| any | shutdown | all is gone, `ended` is set |

Everything that a container leaves behind has one owner here and one place where it goes:
`_tear_down`. A helper that was killed left its container running: its successor takes it up when
it opens (see `adoption.py`). What is left of a run that is over it sweeps at `bootstrap`, `stop`
or `shutdown`, by the container's control group.

What is *not* here: the wire, the gate, the registration with a launcher; see `process.py`.
"""

from __future__ import annotations

import logging
import math
import shutil
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

import trio

from container.contracts.logs import LogStream, open_log
from container.contracts.runtime import (
    INIT,
    ExitStatus,
    LogFiles,
    ProcessSpec,
    ProcessState,
    Sandbox,
    SandboxPhase,
    SandboxSpec,
    SandboxState,
    SandboxStatistics,
    Started,
    Stdio,
    StopOptions,
    TerminalSize,
)
from container.ipc import (
    Actor,
    AlreadyExists,
    ContainerError,
    Fd,
    InvalidArgument,
    InvalidState,
    NotFound,
    Unavailable,
)
from container.runtime.adoption import (
    FoundProcess,
    RunRecord,
    read_record,
    start_time,
    write_record,
)
from container.runtime.bundle import (
    BundleFiles,
    check_process,
    check_spec,
    configuration,
    process_configuration,
)
from container.runtime.children import AdoptedProcess
from container.runtime.command import missing_command
from container.runtime.inside import InsideRoot
from container.runtime.log import LogWriter
from container.runtime.machinery import Machinery
from container.runtime.oci import ContainerProcess, OciRuntime, ProcessStdio
from container.runtime.processes import ManagedProcess
from container.runtime.signals import parse_signal
from container.runtime.stdio import Plumbing
from container.runtime.terminal import console_socket
from container.runtime.user import resolve_user

TEAR_DOWN_SECONDS = 15.0
"""For killing, deleting, unmounting; no cancellation cuts it short."""
KILL_SECONDS = 10.0
"""From SIGKILL to the end of a process, which only a wedged kernel takes."""
START_SECONDS = 1.0
"""From the end of a process to giving up on an OCI runtime that starts it."""
PROCESSES_MAX = 4096
"""Processes that are known at once; ended ones make room."""

_ALIVE = (SandboxPhase.CREATED, SandboxPhase.RUNNING, SandboxPhase.PAUSED)

_log = logging.getLogger(__name__)


class SandboxService(Actor, Sandbox):
    """Run one container.

    Args:
        folder: The container's; `bundle` and `log` in it are ours.
        container_id: Its id.
        machinery: What it works with; None takes this machine's.
    """

    def __init__(self, folder: Path, container_id: str, machinery: Machinery | None = None) -> None:
        self._folder = folder
        self._id = container_id
        self._machinery = machinery or Machinery.real(folder, container_id)
        self._files = BundleFiles(folder / "bundle" / "run")
        self._phase = SandboxPhase.EMPTY
        self._spec: SandboxSpec | None = None
        self._runtime: OciRuntime | None = None
        self._log: LogWriter | None = None
        self._processes: dict[str, ManagedProcess] = {}
        self._down = False
        self._ending = False
        self._memory_kills = 0
        self.ended = trio.Event()
        """Set when `shutdown` is done: the process that serves this may end."""

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        await self._take_up()
        try:
            yield
        finally:
            # Whoever ends us without `shutdown` ends the container too: nobody would own it.
            with _bounded(TEAR_DOWN_SECONDS):
                if self._phase is not SandboxPhase.EMPTY:
                    await self._tear_down()

    async def begin(self) -> None:
        first = self._processes.get(INIT)
        if first is not None:
            self.nursery.start_soon(self._supervise_first, first)

    # --- taking up a run ---

    async def _take_up(self) -> None:
        """Take up a container whose helper was killed, if there is one and it lives."""
        record = await trio.to_thread.run_sync(read_record, self._files.folder)
        if record is None or record.spec.id != self._id:
            return
        spec = record.spec
        try:
            runtime = self._machinery.runtime(spec.runtime)
            handle = FoundProcess(record)
        except (ProcessLookupError, ContainerError) as error:
            _log.info("the last run of container %s is not taken up: %s", self._id, error)
            if spec.keep_log:
                await trio.to_thread.run_sync(self._close_log)
            return
        sources: list[tuple[int, LogStream]] = []
        if spec.keep_log:
            self._log = LogWriter(self._folder / "log")
            sources = handle.reopen_outputs(record.outputs)
        started = record.started_at is not None
        self._spec, self._runtime = spec, runtime
        self._processes[INIT] = ManagedProcess(
            INIT,
            spec.process,
            Plumbing.resume(self._log, sources),
            state=ProcessState.RUNNING if started else ProcessState.CREATED,
            handle=handle,
            started_at=record.started_at,
            at_end=self._first_ended,
        )
        self._phase = SandboxPhase.RUNNING if started else SandboxPhase.CREATED
        _log.info("took up container %s, process %s", self._id, record.pid)

    def _close_log(self) -> None:
        with LogWriter(self._folder / "log") as log:
            log.mark(LogStream.END)  # or a follower would wait for it for ever

    def _write_record(self, process: ManagedProcess) -> None:
        assert self._spec is not None
        if not isinstance(process.handle, AdoptedProcess):
            return
        began = start_time(process.handle.pid)
        if began is None:
            return
        outputs = process.plumbing.outputs()
        record = RunRecord(self._spec, process.handle.pid, began, process.started_at, outputs)
        try:
            write_record(self._files.folder, record)
        except OSError as error:
            # No space is left, or the run is over and its folder gone: no reason to fail a start.
            _log.warning("the run's record can't be written: %s", error)

    # --- bootstrap ---

    async def bootstrap(self, spec: SandboxSpec, stdio: Stdio) -> None:
        async with self.exclusive("container"):
            if self._phase is not SandboxPhase.EMPTY:
                raise InvalidState(f"container {self._id} was bootstrapped already")
            if spec.id != self._id:
                raise InvalidArgument(f"this helper is for container {self._id}, not {spec.id}")
            check_spec(spec)
            parse_signal(spec.stop_signal)
            runtime = self._machinery.runtime(spec.runtime)
            await self._sweep()
            self._spec, self._runtime = spec, runtime
            self._down = self._ending = False
            self._memory_kills = 0
            try:
                await self._create(spec, stdio, runtime)
            except BaseException:
                with _bounded(TEAR_DOWN_SECONDS):
                    await self._tear_down()
                self._processes.clear()
                self._spec = self._runtime = self._log = None
                self._phase = SandboxPhase.EMPTY
                raise

    async def _create(self, spec: SandboxSpec, stdio: Stdio, runtime: OciRuntime) -> None:
        await trio.to_thread.run_sync(
            lambda: self._files.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        )
        root = await self._machinery.root.mount(spec.layers, volatile=not spec.keep_log)
        await trio.to_thread.run_sync(self._write_bundle, spec, root)
        if spec.keep_log:
            self._log = await trio.to_thread.run_sync(LogWriter, self._folder / "log")
            self._log.mark(LogStream.START)
        process = ManagedProcess(
            INIT,
            spec.process,
            Plumbing.lay(spec.process, stdio, self._log),
            at_end=self._first_ended,
        )
        self._processes[INIT] = process
        await self._make(
            process,
            lambda folder, descriptors, console: runtime.create(
                spec.id, folder, descriptors, console
            ),
        )
        await trio.to_thread.run_sync(self._write_record, process)
        self._phase = SandboxPhase.CREATED
        self.nursery.start_soon(self._supervise_first, process)

    def _write_bundle(self, spec: SandboxSpec, root: Path) -> None:
        process = spec.process
        with InsideRoot.open(root) as inside:
            user = resolve_user(process.user, inside)
            files = self._files.write_etc(spec)
            whole = configuration(spec, user, root, files, self._machinery.machine)
            # Where a mount of the user's may bring the folder or the command, we can't look.
            if not spec.mounts and (error := missing_command(process, inside)):
                raise error
            if not any(
                PurePosixPath(process.working_directory).is_relative_to(mount.destination)
                for mount in spec.mounts
            ):
                _make_working_directory(inside, process.working_directory, user.uid, user.gid)
        self._files.write(whole)

    async def _make(
        self,
        process: ManagedProcess,
        make: Callable[[Path, ProcessStdio, str | None], Awaitable[ContainerProcess]],
    ) -> None:
        """Have the OCI runtime make a process, and take its terminal over if it has one."""
        folder = self._files.folder
        plumbing = process.plumbing
        if not process.spec.terminal:
            process.handle = await make(folder, plumbing.stdio, None)
        else:
            name = f"tty-{len(self._processes)}"
            async with console_socket(folder, name) as console:
                process.handle = await make(folder, plumbing.stdio, name)
                # It is in the socket's queue by now.
                plumbing.terminal_arrived(await console.receive())
        plumbing.made()

    async def _supervise_first(self, process: ManagedProcess) -> None:
        await process.supervise(self._count_memory_kills)
        with _bounded(TEAR_DOWN_SECONDS):
            await self._tear_down()

    def _first_ended(self) -> None:
        self._phase = SandboxPhase.STOPPED
        if self._log is not None:
            self._log.mark(LogStream.END)
            self._log.close()

    def _count_memory_kills(self) -> int:
        # The group's own count ends with the group.
        self._memory_kills = max(self._memory_kills, self._machinery.cgroup.out_of_memory_kills())
        return self._memory_kills

    # --- processes ---

    async def create_process(self, process: str, spec: ProcessSpec, stdio: Stdio) -> None:
        check_process(spec)
        self._check_running()
        known = self._processes.get(process)
        if known is not None and known.state is not ProcessState.EXITED:
            raise AlreadyExists(f"process {process!r} exists")
        self._make_room()
        self._processes[process] = ManagedProcess(
            process, spec, Plumbing.lay(spec, stdio, None, keep=True)
        )
        await trio.lowlevel.checkpoint_if_cancelled()

    def _check_running(self) -> None:
        if self._phase is SandboxPhase.PAUSED:
            raise InvalidState(f"container {self._id} is paused", hint="resume it first")
        if self._phase is not SandboxPhase.RUNNING:
            raise InvalidState(f"container {self._id} does not run")

    def _make_room(self) -> None:
        ended = [p.id for p in self._processes.values() if p.state is ProcessState.EXITED]
        for name in ended[: max(0, len(self._processes) - PROCESSES_MAX + 1)]:
            if name != INIT:
                del self._processes[name]
        if len(self._processes) >= PROCESSES_MAX:
            raise InvalidState(f"container {self._id} has {PROCESSES_MAX} processes already")

    async def start(self, process: str) -> Started:
        async with self.exclusive(f"start {process}"):
            managed = self._process(process)
            if managed.started_at is not None:
                return managed.started()
            if managed.state is ProcessState.EXITED:
                raise InvalidState(f"process {process!r} ended before it was started")
            if process != INIT:
                self._check_running()
            # Shielded: a further process that was made but not noted would run on unseen. The OCI
            # runtime's calls are bounded.
            with trio.CancelScope(shield=True):
                if process == INIT:
                    await self._start_first(managed)
                else:
                    await self._start_further(managed)
            return managed.started()

    async def _start_first(self, managed: ManagedProcess) -> None:
        assert self._runtime is not None
        if not await _unless_ended(managed, self._runtime.start(self._id)):
            raise InvalidState(f"process {managed.id!r} ended before it was started")
        managed.started_at = datetime.now(UTC)
        if managed.state is ProcessState.CREATED:
            managed.state = ProcessState.RUNNING
            self._phase = SandboxPhase.RUNNING
            await trio.to_thread.run_sync(self._write_record, managed)

    async def _start_further(self, managed: ManagedProcess) -> None:
        runtime = self._runtime
        assert runtime is not None
        first = self._process(INIT).running()
        try:
            process = await trio.to_thread.run_sync(_resolve_further, managed.spec, first.root)
            await self._make(
                managed,
                lambda folder, descriptors, console: runtime.execute(
                    self._id, folder, process, descriptors, console
                ),
            )
        except BaseException:
            # What can't be started now never will: its id is free again, its descriptors closed.
            managed.finish(ExitStatus(code=None))
            self._processes.pop(managed.id, None)
            if self._phase is not SandboxPhase.RUNNING:
                raise InvalidState(f"container {self._id} has ended") from None
            raise
        managed.started_at = datetime.now(UTC)
        managed.state = ProcessState.RUNNING
        self.nursery.start_soon(managed.supervise)

    def _process(self, process: str) -> ManagedProcess:
        try:
            return self._processes[process]
        except KeyError:
            raise NotFound(f"container {self._id} has no process {process!r}") from None

    async def kill(self, process: str, signal: str) -> None:
        number = parse_signal(signal)
        handle = self._process(process).running()
        try:
            handle.send_signal(number)
        except ProcessLookupError:
            raise InvalidState(f"process {process!r} has ended") from None
        if number == 9 and process == INIT:
            self._ending = True
            await self._thaw()
        await trio.lowlevel.checkpoint_if_cancelled()

    async def resize(self, process: str, size: TerminalSize) -> None:
        managed = self._process(process)
        if not managed.spec.terminal:
            raise InvalidState(f"process {process!r} has no terminal")
        if not managed.plumbing.resize(size):
            managed.plumbing.terminal_size = size  # it gets it when its terminal comes
        await trio.lowlevel.checkpoint_if_cancelled()

    async def wait(self, process: str) -> ExitStatus:
        managed = self._process(process)
        await managed.exited.wait()
        assert managed.exit is not None
        return managed.exit

    async def stop(self, options: StopOptions) -> ExitStatus:
        if options.timeout is not None and not options.timeout >= 0:
            raise InvalidArgument(f"a timeout of {options.timeout:g} s is negative")
        if self._phase is SandboxPhase.EMPTY:
            async with self.exclusive("container"):
                await self._sweep()
            return ExitStatus(code=None)
        assert self._spec is not None
        number = parse_signal(options.signal or self._spec.stop_signal)
        first = self._process(INIT)
        if first.state is ProcessState.RUNNING and number != 9 and options.timeout != 0:
            bound = math.inf if options.timeout is None else options.timeout
            with trio.move_on_after(bound):
                self._signal(first, number)
                await self._set_going(first)
                await first.exited.wait()
        await self._kill_all(first)
        assert first.exit is not None
        return first.exit

    async def _set_going(self, first: ManagedProcess) -> None:
        """Let a container that was made to stand still get the signal that was sent to it."""
        await self._thaw()
        # As systemd does, whether it is stopped or not: a SIGSTOP may be on its way too.
        self._signal(first, signal.SIGCONT)

    def _signal(self, process: ManagedProcess, number: int) -> None:
        try:
            process.running().send_signal(number)
        except (ProcessLookupError, InvalidState):
            pass  # it ended by itself meanwhile

    async def pause(self) -> None:
        async with self.exclusive("freezer"):
            if self._phase is SandboxPhase.PAUSED:
                return
            if self._phase is not SandboxPhase.RUNNING or self._ending:
                raise InvalidState(f"container {self._id} does not run")
            assert self._runtime is not None
            # Shielded: a frozen group that nobody noted would seem to hang. Freezing is bounded.
            with trio.CancelScope(shield=True):
                try:
                    await self._runtime.pause(self._id)
                except Unavailable:
                    if self._phase is not SandboxPhase.RUNNING:
                        raise InvalidState(f"container {self._id} has ended") from None
                    raise
            if self._phase is SandboxPhase.RUNNING:
                self._phase = SandboxPhase.PAUSED

    async def resume(self) -> None:
        if self._phase not in (SandboxPhase.RUNNING, SandboxPhase.PAUSED):
            raise InvalidState(f"container {self._id} does not run")
        await self._thaw()

    async def _thaw(self) -> None:
        async with self.exclusive("freezer"):
            if self._phase is not SandboxPhase.PAUSED:
                return
            assert self._runtime is not None
            with trio.CancelScope(shield=True):
                await self._runtime.resume(self._id)
            if self._phase is SandboxPhase.PAUSED:
                self._phase = SandboxPhase.RUNNING

    async def _kill_all(self, first: ManagedProcess) -> None:
        if not first.exited.is_set():
            self._ending = True
            # With the first process of a pid namespace the kernel kills all others.
            self._signal(first, 9)
            await trio.to_thread.run_sync(self._machinery.cgroup.kill)
            await self._thaw()  # on v1 the dead don't end while they are frozen
        with trio.move_on_after(KILL_SECONDS) as scope:
            await first.exited.wait()
        if scope.cancelled_caught:
            raise Unavailable(f"container {self._id} does not end: the kernel holds it")

    # --- questions ---

    async def state(self) -> SandboxState:
        if self._phase in _ALIVE:
            await trio.to_thread.run_sync(self._count_memory_kills)
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        first = self._processes.get(INIT)
        return SandboxState(
            id=self._id,
            phase=self._phase,
            processes=tuple(process.describe() for process in self._processes.values()),
            out_of_memory=bool(first and first.exit and first.exit.out_of_memory),
            out_of_memory_kills=self._memory_kills,
        )

    async def statistics(self) -> SandboxStatistics:
        usage = None
        if self._phase in _ALIVE:
            usage = await trio.to_thread.run_sync(self._machinery.cgroup.usage)
        if usage is None:
            raise InvalidState(f"container {self._id} does not run")
        return usage

    async def dial(self, port: int) -> Fd:
        if not 1 <= port <= 65535:
            raise InvalidArgument(f"{port} is no TCP port")
        self._check_running()
        return await self._machinery.connect(self._process(INIT).running().pid, port)

    async def logs(self) -> LogFiles:
        if self._spec is not None and not self._spec.keep_log:
            raise InvalidState(
                f"container {self._id} keeps no log: its output went straight to whoever ran it",
                hint="run it detached, or without --rm, to keep one",
            )
        try:
            return await trio.to_thread.run_sync(open_log, self._folder / "log")
        except FileNotFoundError:
            raise InvalidState(f"container {self._id} was never started: it has no log") from None

    # --- the end ---

    async def shutdown(self) -> None:
        try:
            with _bounded(TEAR_DOWN_SECONDS):
                async with self.exclusive("container"):
                    if self._phase is SandboxPhase.EMPTY:
                        await self._sweep()
                    else:
                        await self._tear_down()
        finally:
            self.ended.set()  # no checkpoint after it: the reply leaves before we are ended

    async def _tear_down(self) -> None:
        """Kill what runs; delete container, control group, mount and bundle. Called shielded."""
        async with self.exclusive("tear down"):
            if self._down:
                return
            self._ending = True
            for process in self._processes.values():
                if process.handle is not None and process.state is not ProcessState.EXITED:
                    self._signal(process, 9)
            await _attempt("resume the container", self._thaw())
            for process in tuple(self._processes.values()):
                await self._end_process(process)
            if self._log is not None:
                self._log.close()
            if self._runtime is not None:
                await _attempt("delete the container", self._runtime.delete(self._id))
            await self._sweep()
            self._down = True
            if self._phase is not SandboxPhase.EMPTY:
                self._phase = SandboxPhase.STOPPED

    async def _end_process(self, process: ManagedProcess) -> None:
        if process.handle is not None and process.state is not ProcessState.EXITED:
            # Its supervisor may be gone with our nursery, or never have been started.
            with trio.move_on_after(KILL_SECONDS):
                if process.supervised:
                    await process.exited.wait()
                else:
                    await process.supervise(self._count_memory_kills)
        process.finish(ExitStatus(code=None, exited_at=datetime.now(UTC)))

    async def _sweep(self) -> None:
        """Remove what is left of a run, whoever made it: processes, group, mount, bundle."""
        if not await trio.to_thread.run_sync(self._files.folder.is_dir):
            return
        cgroup = self._machinery.cgroup
        with trio.move_on_after(KILL_SECONDS):
            # A process may fork between the kill and its own end: killed again until none is left.
            while not await trio.to_thread.run_sync(cgroup.remove):
                await trio.to_thread.run_sync(cgroup.kill)
        await _attempt("unmount the root", self._machinery.root.unmount())
        await trio.to_thread.run_sync(lambda: shutil.rmtree(self._files.folder, ignore_errors=True))


def _bounded(seconds: float) -> trio.CancelScope:
    return trio.CancelScope(shield=True, deadline=trio.current_time() + seconds)


async def _attempt(what: str, work: Awaitable[None]) -> None:
    """Do one step of a tear-down; the next ones are done even if it fails."""
    try:
        await work
    except Exception:
        _log.exception("can't %s", what)


async def _unless_ended(process: ManagedProcess, work: Awaitable[None]) -> bool:
    """Await some work, but hardly longer than the process lives; return whether it was done."""
    done = False
    failure: ContainerError | None = None
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            await process.exited.wait()
            # It may have been started and have ended before the work could say so.
            await trio.sleep(START_SECONDS)
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        try:
            await work
            done = True
        except ContainerError as error:
            failure = error  # raised outside: the nursery would wrap it in a group
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return done


def _make_working_directory(inside: InsideRoot, path: str, user: int, group: int) -> None:
    try:
        inside.make_folder(path, user, group)
    except NotADirectoryError:
        raise InvalidArgument(f"working directory {path!r} is not a folder") from None
    except OSError as error:
        raise InvalidArgument(
            f"working directory {path!r} can't be used: {error.strerror}"
        ) from error


def _resolve_further(spec: ProcessSpec, root: Path) -> dict[str, object]:
    """Return the OCI form of a further process, resolved in what the first one sees."""
    with InsideRoot.open(root) as inside:
        user = resolve_user(spec.user, inside)
        if error := missing_command(spec, inside):
            raise error
        if inside.stat(spec.working_directory) is None:
            raise InvalidArgument(
                f"working directory {spec.working_directory!r} is not in the container"
            )
    return process_configuration(spec, user)
