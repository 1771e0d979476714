"""The runtime helper's service: one container, from its bundle to its exit status.

| phase | on | becomes |
|---|---|---|
| EMPTY | bootstrap | CREATED: root mounted, bundle written, first process waits |
| CREATED | start of `init` | RUNNING |
| RUNNING | pause | PAUSED, until resume, or a signal that ends it |
| these three | `init` has ended | STOPPED, and all that the kernel held for it is taken down |
| any | shutdown | all is gone, `ended` is set |

Everything that a container leaves behind has one owner here and one place where it goes:
`_tear_down`. A helper that was killed left its container running, or something half done: its
successor takes it up, or undoes it, when it opens (see `adoption.py`).

What is *not* here: the wire, the gate, the registration with a launcher; see `process.py`.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import trio

from container.contracts.logs import LogStream, open_log
from container.contracts.network import Attachment
from container.contracts.runtime import (
    INIT,
    ExitStatus,
    LogFiles,
    ProcessSpec,
    ProcessState,
    Sandbox,
    SandboxNetwork,
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
    Unsupported,
)
from container.runtime.adoption import take_up
from container.runtime.bundle import BundleFiles, check_process, check_spec
from container.runtime.keeping import Keeper, NoKeeper
from container.runtime.log import LogWriter
from container.runtime.machinery import Machinery
from container.runtime.making import (
    has_begun,
    make_process,
    resolve_further,
    unless_ended,
    write_bundle,
)
from container.runtime.oci import OciRuntime
from container.runtime.processes import ManagedProcess
from container.runtime.records import Found, Records, RunRecord, Step
from container.runtime.signals import parse_signal
from container.runtime.stdio import Plumbing
from container.runtime.sweeping import KILL_SECONDS, attempt, bounded, sweep

TEAR_DOWN_SECONDS = 15.0
"""For killing, deleting, unmounting; no cancellation cuts it short."""
ENDED_MAX = 64
"""Further processes of whose end the next helper can tell."""
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
        keeper: Who keeps descriptors for the next helper; None: there will be none.
        kept: What was kept for this one, by name; its descriptors are taken over.
    """

    def __init__(
        self,
        folder: Path,
        container_id: str,
        machinery: Machinery | None = None,
        keeper: Keeper | None = None,
        kept: dict[str, Fd] | None = None,
    ) -> None:
        self._folder = folder
        self._id = container_id
        self._machinery = machinery or Machinery.real(folder, container_id)
        self._files = BundleFiles(folder / "bundle" / "run")
        self._records = Records(folder / "bundle" / "records")
        self._keeper = keeper or NoKeeper()
        self._kept = {} if kept is None else kept
        self._run: RunRecord | None = None
        self._numbers = itertools.count()
        self._ended_records: list[int] = []
        self._adopted = False
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
            with bounded(TEAR_DOWN_SECONDS):
                if self._phase is not SandboxPhase.EMPTY:
                    await self._tear_down()

    async def begin(self) -> None:
        for process in self._processes.values():
            if process.id != INIT and process.state is not ProcessState.EXITED:
                self.nursery.start_soon(self._supervise_further, process)
        first = self._processes.get(INIT)
        if first is None:
            return
        if first.state is ProcessState.EXITED or (self._run is not None and self._run.ending):
            self.nursery.start_soon(self._end_run)
        if first.state is not ProcessState.EXITED:
            self.nursery.start_soon(self._supervise_first, first)

    # --- taking up a run ---

    async def _take_up(self) -> None:
        """Take up the container whose helper was killed, or undo what it had begun."""
        found = await trio.to_thread.run_sync(self._records.read)
        try:
            if found is not None and found.run.spec.id == self._id:
                if found.first is None:
                    await self._undo(found)
                else:
                    await self._go_on(found)
        except ContainerError as error:
            _log.warning("the last run of container %s is not taken up: %s", self._id, error)
        finally:
            for name, unused in self._kept.items():
                unused.close()
                self._keeper.drop(name)
            self._kept.clear()
        if self._phase is SandboxPhase.EMPTY:
            await trio.to_thread.run_sync(self._close_log)

    async def _undo(self, found: Found) -> None:
        _log.info("what was begun of container %s is undone", self._id)
        with bounded(TEAR_DOWN_SECONDS):
            await self._machinery.runtime(found.run.spec.runtime).settle(self._id)
            await sweep(self._files, self._machinery)
            await trio.to_thread.run_sync(self._records.clear)

    async def _go_on(self, found: Found) -> None:
        taken = await take_up(
            found, self._folder, self._machinery, self._records, self._keeper, self._kept
        )
        self._run, self._spec, self._runtime, self._log = (
            *(found.run, found.run.spec),
            *(taken.runtime, taken.log),
        )
        self._processes, self._phase = taken.processes, taken.phase
        self._numbers = itertools.count(max(p.number for p in found.processes) + 1)
        self._ended_records = [
            p.number for p in found.processes if p.step is Step.ENDED and p.id != INIT
        ]
        self._adopted = True
        self._processes[INIT].at_end = self._first_ended
        if taken.phase is SandboxPhase.STOPPED:
            self._first_ended()
        _log.info("took up container %s, which is %s", self._id, taken.phase.value)

    def _close_log(self) -> None:
        if not (self._folder / "log").is_dir():
            return
        with LogWriter(self._folder / "log") as log:
            log.mark(LogStream.END)  # or a follower would wait for it for ever

    # --- bootstrap ---

    async def bootstrap(self, spec: SandboxSpec, stdio: Stdio, namespace: Fd | None = None) -> None:
        if spec.network in ("networks", "shared"):
            raise Unsupported(f"the network mode {spec.network!r} is not there yet")
        async with self.exclusive("container"):
            if self._adopted and self._phase is SandboxPhase.STOPPED:
                # Its end is known to whoever asked; a new run must not depend on who was killed.
                with bounded(TEAR_DOWN_SECONDS):
                    await self._tear_down()
                self._processes.clear()
                self._phase = SandboxPhase.EMPTY
            if self._phase is not SandboxPhase.EMPTY:
                raise InvalidState(f"container {self._id} was bootstrapped already")
            if spec.id != self._id:
                raise InvalidArgument(f"this helper is for container {self._id}, not {spec.id}")
            check_spec(spec)
            parse_signal(spec.stop_signal)
            runtime = self._machinery.runtime(spec.runtime)
            await sweep(self._files, self._machinery)
            self._spec, self._runtime = spec, runtime
            self._down = self._ending = self._adopted = False
            self._memory_kills = 0
            try:
                await self._create(spec, stdio, runtime)
            except BaseException:
                with bounded(TEAR_DOWN_SECONDS):
                    await self._tear_down()
                    await trio.to_thread.run_sync(self._records.clear)
                self._processes.clear()
                self._run = self._spec = self._runtime = self._log = None
                self._phase = SandboxPhase.EMPTY
                raise

    async def _create(self, spec: SandboxSpec, stdio: Stdio, runtime: OciRuntime) -> None:
        run = self._run = RunRecord.new(spec)
        self._numbers = itertools.count()
        await trio.to_thread.run_sync(self._begin_run, run)
        root = await self._machinery.root.mount(spec.layers, volatile=not spec.keep_log)
        await trio.to_thread.run_sync(
            write_bundle, self._files, self._machinery.machine, spec, root
        )
        if spec.keep_log:
            self._log = await trio.to_thread.run_sync(LogWriter, self._folder / "log")
            self._log.mark(LogStream.START)
        process = self._processes[INIT] = self._new_process(
            INIT, spec.process, Plumbing.lay(spec.process, stdio, self._log)
        )
        process.at_end = self._first_ended
        await make_process(
            process,
            self._files.folder,
            lambda folder, descriptors, console: runtime.create(
                spec.id, folder, descriptors, console
            ),
        )
        await process.note(Step.MADE)
        self._phase = SandboxPhase.CREATED
        self.nursery.start_soon(self._supervise_first, process)

    def _begin_run(self, run: RunRecord) -> None:
        self._records.begin(run)
        self._files.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _new_process(self, process: str, spec: ProcessSpec, plumbing: Plumbing) -> ManagedProcess:
        assert self._run is not None
        number = next(self._numbers)
        return ManagedProcess(
            *(number, self._run.label(number), process),
            *(spec, plumbing, self._records, self._keeper),
        )

    async def _supervise_first(self, process: ManagedProcess) -> None:
        await process.supervise(self._killed_for_memory)
        await self._end_run()

    async def _end_run(self) -> None:
        with bounded(TEAR_DOWN_SECONDS):
            await self._tear_down()

    def _first_ended(self) -> None:
        self._phase = SandboxPhase.STOPPED
        if self._log is not None:
            self._log.mark(LogStream.END)
            self._log.close()

    def _killed_for_memory(self) -> bool:
        # What we have killed ourselves was not; though others of it may have been, before.
        return self._count_memory_kills() > 0 and not self._ending

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
        self._processes[process] = self._new_process(
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
            # Shielded: what was made but not noted would run on unseen. All of it is bounded.
            with trio.CancelScope(shield=True):
                if process == INIT:
                    await self._start_first(managed)
                else:
                    await self._start_further(managed)
            return managed.started()

    async def _start_first(self, managed: ManagedProcess) -> None:
        assert self._runtime is not None
        managed.doubtful = False
        if not await unless_ended(managed, self._runtime.start(self._id)):
            raise InvalidState(f"process {managed.id!r} ended before it was started")
        managed.started_at = datetime.now(UTC)
        if managed.state is ProcessState.CREATED:
            managed.state = ProcessState.RUNNING
            self._phase = SandboxPhase.RUNNING
            await managed.note(Step.STARTED)

    async def _start_further(self, managed: ManagedProcess) -> None:
        runtime = self._runtime
        assert runtime is not None
        first = self._process(INIT).running()
        try:
            process = await trio.to_thread.run_sync(resolve_further, managed.spec, first.root)
            await managed.note(Step.MAKING)
            await make_process(
                managed,
                self._files.folder,
                lambda folder, descriptors, console: runtime.execute(
                    self._id, folder, process, descriptors, console
                ),
            )
        except BaseException:
            # What can't be started now never will: its id is free again, its descriptors closed.
            managed.finish(ExitStatus(code=None))
            self._processes.pop(managed.id, None)
            await trio.to_thread.run_sync(self._records.remove, managed.number)
            if self._phase is not SandboxPhase.RUNNING:
                raise InvalidState(f"container {self._id} has ended") from None
            raise
        managed.started_at = datetime.now(UTC)
        managed.state = ProcessState.RUNNING
        await managed.note(Step.STARTED)
        self.nursery.start_soon(self._supervise_further, managed)

    async def _supervise_further(self, process: ManagedProcess) -> None:
        await process.supervise()
        # Written down for who has not heard of it: what ended long ago nobody asks for any more.
        self._ended_records.append(process.number)
        while len(self._ended_records) > ENDED_MAX:
            await trio.to_thread.run_sync(self._records.remove, self._ended_records.pop(0))

    def _process(self, process: str) -> ManagedProcess:
        try:
            return self._processes[process]
        except KeyError:
            raise NotFound(f"container {self._id} has no process {process!r}") from None

    async def kill(self, process: str, signal: str) -> None:
        number = parse_signal(signal)
        managed = self._process(process)
        handle = managed.running()
        if number != 9:
            await self._begun(managed)
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
                await sweep(self._files, self._machinery)
            return ExitStatus(code=None)
        assert self._spec is not None
        number = parse_signal(options.signal or self._spec.stop_signal)
        first = self._process(INIT)
        if first.state is ProcessState.RUNNING and number != 9 and options.timeout != 0:
            bound = math.inf if options.timeout is None else options.timeout
            with trio.move_on_after(bound):
                await self._begun(first)
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

    async def _begun(self, process: ManagedProcess) -> None:
        if process.id == INIT and process.state is ProcessState.RUNNING:
            assert self._runtime is not None
            await has_begun(self._runtime, process.running())

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
            await self._begun(self._process(INIT))
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

    async def network_namespace(self) -> Fd:
        self._check_running()
        pid = self._process(INIT).running().pid
        return Fd(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    async def join_network(self, network: SandboxNetwork) -> Attachment:
        raise Unsupported("networks are not there yet")

    async def leave_network(self, network: str) -> None:
        raise Unsupported("networks are not there yet")

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
            with bounded(TEAR_DOWN_SECONDS):
                async with self.exclusive("container"):
                    if self._phase is SandboxPhase.EMPTY:
                        await sweep(self._files, self._machinery)
                    else:
                        await self._tear_down()
                    await trio.to_thread.run_sync(self._records.clear)
                    await self._keeper.flush()
        finally:
            self.ended.set()  # no checkpoint after it: the reply leaves before we are ended

    async def _tear_down(self) -> None:
        """Kill what runs; delete container, control group, mount and bundle. Called shielded."""
        async with self.exclusive("tear down"):
            if self._down:
                return
            self._ending = True
            first = self._processes.get(INIT)
            if self._run is not None and first and first.state is not ProcessState.EXITED:
                await trio.to_thread.run_sync(self._records.note_ending, self._run)
            for process in self._processes.values():
                if process.handle is not None and process.state is not ProcessState.EXITED:
                    self._signal(process, 9)
            await attempt("resume the container", self._thaw())
            for process in tuple(self._processes.values()):
                await self._end_process(process)
            if self._log is not None:
                self._log.close()
            if self._runtime is not None:
                await attempt("delete the container", self._runtime.delete(self._id))
            await sweep(self._files, self._machinery)
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
                    await process.supervise(self._killed_for_memory)
        process.finish(ExitStatus(code=None, exited_at=datetime.now(UTC)))
