"""One process of a container, from its preparation to its exit status.

| state | on | becomes |
|---|---|---|
| (prepared) | the first process was made | CREATED |
| (prepared) | a further process was made | RUNNING |
| CREATED | start | RUNNING |
| CREATED, RUNNING | the kernel says it ended, its output is in the log | EXITED |

Exit status: what the kernel reports by pidfd; 128+n for signal n; None when it can't be known.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Self

import trio
from attrs import define, evolve, field

from container.contracts.runtime import (
    ExitStatus,
    ProcessSpec,
    ProcessState,
    SandboxProcess,
    Started,
)
from container.ipc import InvalidState
from container.runtime.keeping import Keeper
from container.runtime.oci import ContainerProcess, Ended
from container.runtime.records import ProcessRecord, Records, Step, start_time
from container.runtime.stdio import Plumbing

DRAIN_SECONDS = 2.0
"""How long output is awaited after a process has ended: another one may hold its pipe for ever."""
_log = logging.getLogger(__name__)


def exit_status(ended: Ended, *, out_of_memory: bool = False) -> ExitStatus:
    """Return how a process ended, as the contract says it."""
    code = 128 + ended.signal if ended.signal is not None else ended.code
    return ExitStatus(
        code=code,
        signal=ended.signal,
        # An init that lost a child to the kernel's choice and ended by itself was not killed.
        out_of_memory=out_of_memory and code == 137,
        exited_at=datetime.now(UTC),
    )


@define(eq=False)
class ManagedProcess:
    """A process that this helper has made or is about to make."""

    number: int
    """0 for the first; names it in records."""
    label: str
    """Names it at the keeper."""
    id: str
    spec: ProcessSpec
    plumbing: Plumbing
    records: Records
    keeper: Keeper
    state: ProcessState = ProcessState.CREATED
    handle: ContainerProcess | None = None
    """None until the OCI runtime has made it."""
    started_at: datetime | None = None
    exit: ExitStatus | None = None
    exited: trio.Event = field(factory=trio.Event)
    at_end: Callable[[], None] | None = None
    """Called once, when its output has ended and before anybody hears of its end."""
    claimed: trio.Event = field(factory=trio.Event)
    """Set once somebody starts it, or it has ended."""
    supervised: bool = False
    """Whether a task awaits its end."""
    doubtful: bool = False
    """Whether it was found before its start was noted, and may have been started or not."""
    _kept: list[str] = field(factory=list[str])
    _began: int = 0
    _noting: trio.Lock = field(factory=trio.Lock)
    _end_noted: bool = False

    @classmethod
    def found(
        cls,
        label: str,
        record: ProcessRecord,
        plumbing: Plumbing,
        records: Records,
        keeper: Keeper,
        handle: ContainerProcess | None,
    ) -> Self:
        """Return a process that a helper before this one has made."""
        states = {Step.STARTED: ProcessState.RUNNING, Step.ENDED: ProcessState.EXITED}
        self = cls(
            record.number,
            label,
            record.id,
            record.spec,
            plumbing,
            records,
            keeper,
            state=states.get(record.step, ProcessState.CREATED),
            handle=handle,
            started_at=record.started_at,
            exit=record.exit,
            doubtful=record.step is Step.MADE,
        )
        self._began = record.start_time
        if self.state is ProcessState.EXITED:
            self.exited.set()
        return self

    def has_begun(self) -> None:
        """Note that it runs, or did, though nobody has said that it was started."""
        self.state, self.started_at = ProcessState.RUNNING, datetime.now(UTC)
        if self.handle is not None:
            self.doubtful = start_time(self.handle.pid) != self._began

    def record(self, step: Step, status: ExitStatus | None = None) -> ProcessRecord:
        """Return what is to be written of it."""
        pid = 0 if self.handle is None else self.handle.pid
        if pid and not self._began:
            self._began = start_time(pid)
        return ProcessRecord(
            number=self.number,
            id=self.id,
            step=step,
            spec=self.spec,
            pid=pid,
            start_time=self._began,
            started_at=self.started_at,
            exit=status,
            outputs=self.plumbing.outputs(),
        )

    async def note(self, step: Step) -> None:
        """Write down how far it has come, if its end is not written down yet."""
        async with self._noting:
            if not self._end_noted:
                await trio.to_thread.run_sync(self._write, self.record(step))

    def _write(self, record: ProcessRecord) -> None:
        try:
            self.records.write(record)
        except OSError as error:
            # No space is left, or the run is over and its folder gone: no reason to fail for.
            _log.warning("process %s can't be written down: %s", self.id, error)

    def keep(self) -> None:
        """Have all that the next helper needs of it kept: its descriptors, and what names it."""
        named = self.plumbing.descriptors()
        if self.handle is not None and (pidfd := self.handle.descriptor()) is not None:
            named["process"] = pidfd
        for what, descriptor in named.items():
            name = f"{self.label}.{what}"
            if name not in self._kept:
                self._kept.append(name)
                self.keeper.keep(name, descriptor)

    def describe(self) -> SandboxProcess:
        """Return what the contract shows of it."""
        alive = self.handle is not None and self.state is not ProcessState.EXITED
        return SandboxProcess(
            id=self.id,
            pid=self.handle.pid if alive and self.handle is not None else None,
            state=self.state,
            arguments=self.spec.arguments,
            started_at=self.started_at,
            exit=self.exit,
        )

    def running(self) -> ContainerProcess:
        """Return its handle.

        Raises:
            InvalidState: it has not been made, or has ended.
        """
        if self.handle is None or self.state is ProcessState.EXITED:
            how = "has ended" if self.state is ProcessState.EXITED else "has not been started"
            raise InvalidState(f"process {self.id!r} {how}")
        return self.handle

    def started(self) -> Started:
        """Return what `start` returns; new descriptors each time.

        Raises:
            InvalidState: it ended without having been started.
        """
        if self.started_at is None or self.handle is None:
            raise InvalidState(f"process {self.id!r} ended before it was started")
        terminal, terminal_input = self.plumbing.hand_out()
        return Started(
            pid=self.handle.pid,
            started_at=self.started_at,
            terminal=terminal,
            terminal_input=terminal_input,
        )

    async def supervise(self, killed_for_memory: Callable[[], bool] | None = None) -> None:
        """Carry its output until it has ended and its output too; then say how it ended.

        Args:
            killed_for_memory: Whether the kernel may have killed it for want of memory. Blocking;
                asked once it has ended.
        """
        handle = self.handle
        assert handle is not None
        self.supervised = True
        try:
            ended = await self._await_end(handle)
        finally:
            self.supervised = False
        # Shielded: a few small files.
        with trio.CancelScope(shield=True):
            async with self._noting:
                self._end_noted = True
                status = await trio.to_thread.run_sync(self._write_end, ended, killed_for_memory)
            self.finish(status)

    def _write_end(self, ended: Ended, killed_for_memory: Callable[[], bool] | None) -> ExitStatus:
        # Written before anybody hears of it, and before the kernel forgets it.
        memory = killed_for_memory is not None and killed_for_memory()
        status = exit_status(ended, out_of_memory=memory)
        if self.doubtful and status.code == 1:
            # So ends the OCI runtime's own first program when the helper that starts it is killed
            # in the middle; and so may the container's command. They can't be told apart.
            status = evolve(status, code=None)
        self._write(self.record(Step.ENDED, status))
        return status

    async def _await_end(self, handle: ContainerProcess) -> Ended:
        ended = Ended()
        carried = trio.Event()

        async def carry() -> None:
            await self.plumbing.carry()
            carried.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry)
            ended = await handle.wait()
            with trio.move_on_after(DRAIN_SECONDS):
                await carried.wait()
            nursery.cancel_scope.cancel()
        return ended

    def finish(self, status: ExitStatus) -> None:
        """Note its end and let go of all that it had; the first call counts."""
        if self.state is ProcessState.EXITED:
            return
        self.state = ProcessState.EXITED
        self.exit = status
        self.claimed.set()
        for name in self._kept:
            self.keeper.drop(name)
        self.plumbing.close()
        if self.handle is not None:
            self.handle.close()
        if self.at_end is not None:
            self.at_end()
        self.exited.set()
