"""The runtime helper's service: what can be asked of one container.

How a run of it begins and ends is in `run.py`, with the table of its phases.

What is *not* here: the wire, the gate, the registration with a launcher; see `process.py`.
"""

from __future__ import annotations

import math
import signal
from datetime import UTC, datetime

import trio
from attrs import evolve

from container.contracts.logs import open_log
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
from container.ipc import AlreadyExists, Fd, InvalidArgument, InvalidState, Unavailable
from container.runtime.bundle import check_process
from container.runtime.making import has_begun, make_process, resolve_further, unless_ended
from container.runtime.processes import ManagedProcess
from container.runtime.records import Step
from container.runtime.run import ALIVE, TEAR_DOWN_SECONDS, SandboxRun
from container.runtime.signals import parse_signal
from container.runtime.stdio import Plumbing
from container.runtime.sweeping import KILL_SECONDS, bounded, sweep
from container.runtime.traffic import traffic

PROCESSES_MAX = 4096
"""Processes that are known at once; ended ones make room."""
CLAIM_SECONDS = 30.0
"""Seconds for a further process to be started, from when it was prepared."""


class SandboxService(SandboxRun, Sandbox):
    """Serve one container; see `SandboxRun` for what it is made of."""

    async def bootstrap(self, spec: SandboxSpec, stdio: Stdio, namespace: Fd | None = None) -> None:
        async with self.exclusive("container"):
            await self._bootstrap(spec, stdio, namespace)

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
        self.nursery.start_soon(self._expire, self._processes[process])
        await trio.lowlevel.checkpoint_if_cancelled()

    async def _expire(self, managed: ManagedProcess) -> None:
        """Let go of a further process that nobody comes to start: who reads its output waits."""
        with trio.move_on_after(CLAIM_SECONDS):
            await managed.claimed.wait()
            return
        async with self.exclusive(f"start {managed.id}"):
            if not managed.claimed.is_set():
                managed.finish(ExitStatus(code=None))
                self._processes.pop(managed.id, None)

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
            managed.claimed.set()
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
        if self._phase in ALIVE:
            await trio.to_thread.run_sync(self._count_memory_kills)
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        first = self._processes.get(INIT)
        return SandboxState(
            id=self._id,
            phase=self._phase,
            processes=tuple(process.describe() for process in self._processes.values()),
            networks=self._networking.attachments(),
            out_of_memory=bool(first and first.exit and first.exit.out_of_memory),
            out_of_memory_kills=self._memory_kills,
        )

    async def statistics(self) -> SandboxStatistics:
        usage = None
        if self._phase in ALIVE:
            usage = await trio.to_thread.run_sync(self._machinery.cgroup.usage)
        if usage is None:
            raise InvalidState(f"container {self._id} does not run")
        if self._spec is None or self._spec.network in ("host", "shared"):
            return usage
        pid = self._process(INIT).running().pid
        seen = await trio.to_thread.run_sync(traffic, pid)
        if seen is None:
            return usage
        return evolve(usage, received_bytes=seen[0], sent_bytes=seen[1])

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

    # --- networks ---

    def _check_there(self) -> None:
        if self._phase not in ALIVE or self._ending:
            raise InvalidState(f"container {self._id} is not there")

    async def network_namespace(self) -> Fd:
        async with self.exclusive("networks"):
            self._check_there()
            return await self._networking.hand_out()

    async def join_network(self, network: SandboxNetwork) -> Attachment:
        async with self.exclusive("networks"):
            self._check_there()
            return await self._networking.join(network)

    async def leave_network(self, network: str) -> None:
        async with self.exclusive("networks"):
            self._check_there()
            await self._networking.leave(network)

    async def dial(self, port: int) -> Fd:
        if not 1 <= port <= 65535:
            raise InvalidArgument(f"{port} is no TCP port")
        self._check_running()
        return await self._machinery.connect(self._process(INIT).running().pid, port)

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
