"""One process of a container, from its preparation to its exit status.

| state | on | becomes |
|---|---|---|
| (prepared) | the OCI runtime has made it | CREATED for the first process, RUNNING for a further
one | | CREATED | start | RUNNING | | CREATED, RUNNING | the kernel says it ended, its output is in
the log | EXITED |

Exit status: what the kernel reports by pidfd; 128+n for signal n; None when it can't be known.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import trio
from attrs import define, field

from container.contracts.runtime import (
    ExitStatus,
    ProcessSpec,
    ProcessState,
    SandboxProcess,
    Started,
)
from container.ipc import InvalidState
from container.runtime.oci import ContainerProcess, Ended
from container.runtime.stdio import Plumbing

DRAIN_SECONDS = 2.0
"""How long output is awaited after a process has ended: another one may hold its pipe for ever."""


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

    id: str
    spec: ProcessSpec
    plumbing: Plumbing
    state: ProcessState = ProcessState.CREATED
    handle: ContainerProcess | None = None
    """None until the OCI runtime has made it."""
    started_at: datetime | None = None
    exit: ExitStatus | None = None
    exited: trio.Event = field(factory=trio.Event)
    at_end: Callable[[], None] | None = None
    """Called once, when its output has ended and before anybody hears of its end."""
    supervised: bool = False
    """Whether a task awaits its end."""

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

    async def supervise(self, memory_kills: Callable[[], int] | None = None) -> None:
        """Carry its output until it has ended and its output too; then say how it ended.

        Args:
            memory_kills: Returns how many processes the kernel has killed for want of memory.
                Blocking; asked once it has ended.
        """
        handle = self.handle
        assert handle is not None
        self.supervised = True
        try:
            ended = await self._await_end(handle)
        finally:
            self.supervised = False
        # Shielded, since a status that was read is nowhere else; a look at one small file.
        with trio.CancelScope(shield=True):
            kills = 0
            if memory_kills is not None:
                kills = await trio.to_thread.run_sync(memory_kills)
            self.finish(exit_status(ended, out_of_memory=kills > 0))

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
        self.plumbing.close()
        if self.handle is not None:
            self.handle.close()
        if self.at_end is not None:
            self.at_end()
        self.exited.set()
