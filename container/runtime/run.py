"""One run of a container: how it begins, is taken up after its helper was killed, and ends.

| phase | on | becomes |
|---|---|---|
| EMPTY | bootstrap | CREATED: root mounted, networks attached, first process waits |
| CREATED | start of `init` | RUNNING |
| RUNNING | pause | PAUSED, until resume, or a signal that ends it |
| these three | `init` has ended | STOPPED, and all that the kernel held for it is taken down |
| any | shutdown | all is gone, `ended` is set |

Everything that a container leaves behind has one owner here and one place where it goes:
`_tear_down`. A helper that was killed left its container running, or something half done: its
successor takes it up, or undoes it, when it opens (see `adoption.py`).

What is *not* here: what can be asked of a container that is there; see `service.py`.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import trio

from container.contracts.logs import LogStream
from container.contracts.runtime import (
    INIT,
    ExitStatus,
    ProcessSpec,
    ProcessState,
    SandboxPhase,
    SandboxSpec,
    Stdio,
)
from container.ipc import Actor, ContainerError, Fd, InvalidArgument, InvalidState, NotFound
from container.ipc.nursery import together
from container.runtime.adoption import take_up
from container.runtime.bundle import BundleFiles, check_spec
from container.runtime.keeping import Keeper, NoKeeper
from container.runtime.log import LogWriter
from container.runtime.machinery import Machinery
from container.runtime.making import make_process, write_bundle
from container.runtime.names_files import NamesFiles
from container.runtime.networking import Networking, check_network_mode
from container.runtime.oci import OciRuntime
from container.runtime.populating import populate_volumes
from container.runtime.processes import ManagedProcess
from container.runtime.records import Found, Records, RunRecord, Step
from container.runtime.signals import parse_signal
from container.runtime.stdio import Plumbing
from container.runtime.sweeping import KILL_SECONDS, attempt, bounded, sweep, there

TEAR_DOWN_SECONDS = 15.0
"""For killing, deleting, unmounting; no cancellation cuts it short."""
ENDED_MAX = 64
"""Further processes of whose end the next helper can tell."""

ALIVE = (SandboxPhase.CREATED, SandboxPhase.RUNNING, SandboxPhase.PAUSED)

_log = logging.getLogger(__name__)


class SandboxRun(Actor):
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
        self._names = NamesFiles(self._files.folder)
        self._records = Records(folder / "bundle" / "records")
        self._networking = Networking(
            self._machinery.namespaces,
            self._machinery.connect_network,
            self._records,
            self._names,
        )
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
        async with self._networking.open():
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

    def launcher_came(self) -> None:
        """Hear that there is a launcher, the first or another one."""
        self._networking.launcher_came()

    # --- taking up a run ---

    async def _take_up(self) -> None:
        """Take up the container whose helper was killed, or undo what it had begun."""
        found = None
        if there(self._records.folder) or there(self._folder / "log"):
            found = await trio.to_thread.run_sync(self._look_back)
        try:
            if found is not None:
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
        if found is not None and self._phase is SandboxPhase.EMPTY:
            await trio.to_thread.run_sync(self._close_log)

    def _look_back(self) -> Found | None:
        found = self._records.read()
        if found is not None and found.run.spec.id == self._id:
            return found
        self._close_log()
        return None

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
        elif not found.run.ending:
            await self._take_up_networks(found, self._processes[INIT])
        _log.info("took up container %s, which is %s", self._id, taken.phase.value)

    async def _take_up_networks(self, found: Found, first: ManagedProcess) -> None:
        try:
            await self._networking.take_up(found.run.spec, found.networks, first.running().pid)
        except InvalidState:
            pass  # it has just ended, and its namespace with it

    def _close_log(self) -> None:
        if not (self._folder / "log").is_dir():
            return
        with LogWriter(self._folder / "log") as log:
            log.mark(LogStream.END)  # or a follower would wait for it for ever

    # --- bootstrap ---

    async def _bootstrap(self, spec: SandboxSpec, stdio: Stdio, namespace: Fd | None) -> None:
        """Begin a run; the caller is alone with the container."""
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
        check_network_mode(spec, namespace)
        parse_signal(spec.stop_signal)
        runtime = self._machinery.runtime(spec.runtime)
        await sweep(self._files, self._machinery)
        self._spec, self._runtime = spec, runtime
        self._down = self._ending = self._adopted = False
        self._memory_kills = 0
        try:
            await self._create(spec, stdio, runtime, namespace)
        except BaseException:
            with bounded(TEAR_DOWN_SECONDS):
                await self._tear_down()
                await trio.to_thread.run_sync(self._records.clear)
            self._processes.clear()
            self._run = self._spec = self._runtime = self._log = None
            self._phase = SandboxPhase.EMPTY
            raise

    async def _create(
        self, spec: SandboxSpec, stdio: Stdio, runtime: OciRuntime, namespace: Fd | None
    ) -> None:
        run = self._run = RunRecord.new(spec)
        self._numbers = itertools.count()
        await trio.to_thread.run_sync(self._begin_run, run)
        # The OCI runtime's work takes longer than the networks', and needs the namespace alone.
        process, _ = await together(
            lambda: self._make_first(spec, stdio, runtime),
            lambda: self._networking.begin(spec, namespace),
        )
        if spec.networks:
            await self._networking.write_down()
        await process.note(Step.MADE)
        self._phase = SandboxPhase.CREATED
        self.nursery.start_soon(self._supervise_first, process)

    async def _make_first(
        self, spec: SandboxSpec, stdio: Stdio, runtime: OciRuntime
    ) -> ManagedProcess:
        root = await self._machinery.root.mount(spec.layers, volatile=not spec.keep_log)
        await populate_volumes(spec.mounts, root, volatile=not spec.keep_log)
        network = await self._networking.path()
        await trio.to_thread.run_sync(
            *(write_bundle, self._files, self._names),
            *(self._machinery.machine, spec, root, network),
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
        return process

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

    def _signal(self, process: ManagedProcess, number: int) -> None:
        try:
            process.running().send_signal(number)
        except (ProcessLookupError, InvalidState):
            pass  # it ended by itself meanwhile

    # --- the end ---

    async def _thaw(self) -> None:
        async with self.exclusive("freezer"):
            if self._phase is not SandboxPhase.PAUSED:
                return
            assert self._runtime is not None
            with trio.CancelScope(shield=True):
                await self._runtime.resume(self._id)
            if self._phase is SandboxPhase.PAUSED:
                self._phase = SandboxPhase.RUNNING

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
            # Not before the processes have ended: their last words may go over a network.
            await together(
                lambda: attempt("leave the networks", self._networking.end()),
                self._delete,
            )
            self._down = True
            if self._phase is not SandboxPhase.EMPTY:
                self._phase = SandboxPhase.STOPPED

    async def _delete(self) -> None:
        if self._runtime is not None:
            await attempt("delete the container", self._runtime.delete(self._id))
        await sweep(self._files, self._machinery)

    async def _end_process(self, process: ManagedProcess) -> None:
        if process.handle is not None and process.state is not ProcessState.EXITED:
            # Its supervisor may be gone with our nursery, or never have been started.
            with trio.move_on_after(KILL_SECONDS):
                if process.supervised:
                    await process.exited.wait()
                else:
                    await process.supervise(self._killed_for_memory)
        process.finish(ExitStatus(code=None, exited_at=datetime.now(UTC)))
