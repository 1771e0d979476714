"""Processes that became ours because we are a subreaper, held by pidfd.

An OCI runtime forks the container's process and ends; the kernel then makes the process a child of
its nearest living subreaper. So its exit status can be read as any child's, by pidfd: no pid is
ever looked up twice, and no other child's status is taken away. It is read without reaping: that is
done by `close`, when it was written down, and till then the kernel keeps it for the next helper.

A process that a helper before this one has made is no child of ours: its end is seen by pidfd, and
its status asked of the kernel (Linux 6.15), or of the launcher, whose child it is.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

import trio

from container.pidfd import wait_status
from container.runtime.oci import ContainerProcess, Ended
from container.runtime.records import start_time

_REAP_SECONDS = 5.0
"""The kernel tells the status only when the parent has asked for it, which some do late."""


class AdoptedProcess(ContainerProcess):
    """A process that is or will be a child of this one.

    Args:
        pid: Of a process that can't have been reaped by anybody else.

    Raises:
        ProcessLookupError: there is no such process.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.root = Path(f"/proc/{pid}/root")
        self._pidfd = os.pidfd_open(pid)
        self._ended: Ended | None = None

    @property
    def reaped(self) -> bool:
        """Whether its status was read and written down, or is wanted no more."""
        return self._pidfd < 0

    def descriptor(self) -> int | None:
        return self._pidfd if self._pidfd >= 0 else None

    async def wait(self) -> Ended:
        while self._ended is None:
            await trio.lowlevel.wait_readable(self._pidfd)
            self._look()
        return self._ended

    def _look(self) -> None:
        try:
            status = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            # Its parent still lives, or another process inherited it: its status is not ours to
            # read.
            self._ended = Ended()
            return
        if status is None:
            return
        if status.si_code == os.CLD_EXITED:
            self._ended = Ended(code=status.si_status)
        else:
            self._ended = Ended(signal=status.si_status)

    def send_signal(self, number: int) -> None:
        if self._ended is not None or self._pidfd < 0:
            raise ProcessLookupError(self.pid)
        signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            if self._ended is None:
                self._ended = Ended()
            try:
                os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                pass
            if trio.lowlevel.in_trio_run():
                trio.lowlevel.notify_closing(pidfd)
            os.close(pidfd)


class FoundProcess(AdoptedProcess):
    """A container's process that a helper before this one has made.

    Args:
        pid: Of it.
        began: Its start time: with the pid it names it.
        pidfd: Of it, where one was kept; owned.
        orphan: Asks a launcher how a process ended.
    """

    def __init__(
        self,
        pid: int,
        began: int,
        pidfd: int | None,
        orphan: Callable[[int], Awaitable[int | None]],
    ) -> None:
        self._orphan = orphan
        self._start_time = began
        if pidfd is not None:
            self.pid, self.root = pid, Path(f"/proc/{pid}/root")
            self._pidfd, self._ended = pidfd, None
            return
        try:
            super().__init__(pid)
            # The pidfd first: what it names can't change any more while we look.
            if start_time(pid) != began:
                self.close()
        except ProcessLookupError:
            self._pidfd = -1
        self._ended = None

    async def wait(self) -> Ended:
        if self._ended is None:
            ended = await super().wait() if self._pidfd >= 0 else Ended()
            if ended == Ended():
                self._ended = None  # until the others were asked: this may be cancelled
                ended = await self._ask()
            self._ended = ended
        return self._ended

    async def _ask(self) -> Ended:
        ended = _read_zombie(self.pid, self._start_time)
        if ended == Ended() and self._pidfd >= 0:
            ended = await trio.to_thread.run_sync(_ask_kernel, self._pidfd)
        return Ended(code=await self._orphan(self.pid)) if ended == Ended() else ended


def _read_zombie(pid: int, began: int) -> Ended:
    """Return how a process ended whose parent has not asked for it yet. Source: proc(5)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return Ended()
    fields = text[text.rindex(")") + 2 :].split()
    if fields[0] != "Z" or int(fields[19]) != began:
        return Ended()
    return _from_status(int(fields[49]))


def _ask_kernel(pidfd: int) -> Ended:
    poller = select.poll()
    poller.register(pidfd, 0)  # POLLHUP: its parent has reaped it
    poller.poll(_REAP_SECONDS * 1000)
    status = wait_status(pidfd)
    return Ended() if status is None else _from_status(status)


def _from_status(status: int) -> Ended:
    if os.WIFSIGNALED(status):
        return Ended(signal=os.WTERMSIG(status))
    return Ended(code=os.WEXITSTATUS(status))


def is_half_made(pid: int) -> bool:
    """Return whether a process has not yet begun to run its container's command, and lives."""
    return _half_made(pid) not in ("", "Z")


def reap_group(group: int) -> bool:
    """Reap ended children of one process group; return whether others of it still live.

    A program that was killed leaves its children to us, and nobody else asks for their status.
    """
    while True:
        try:
            if os.waitid(os.P_PGID, group, os.WEXITED | os.WNOHANG) is None:
                return True
        except ChildProcessError:
            return False


def reap_half_made(known: Collection[int]) -> bool:
    """Reap ended children that an OCI runtime had begun to turn into a container's process.

    Such a one has left its process group, and is told by the OCI runtime's name, which it bears
    until it runs the container's command.

    Args:
        known: Processes whose status somebody still wants.

    Returns:
        Whether there are others that still live.
    """
    alive = False
    for pid in _children():
        state = _half_made(pid) if pid not in known else ""
        if state == "Z":
            try:
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                pass
        elif state:
            alive = True
    return alive


def _children() -> list[int]:
    found: list[int] = []
    for task in os.listdir("/proc/self/task"):
        try:
            found += map(int, Path(f"/proc/self/task/{task}/children").read_text().split())
        except OSError:
            pass  # a thread that ended meanwhile
    return found


def _half_made(pid: int) -> str:
    """Return the state of a half-made process (proc(5): `Z` has ended); empty for any other."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    name = stat[stat.index("(") + 1 : stat.rindex(")")]
    return stat[stat.rindex(")") + 2] if name.startswith("runc:[") or name == "crun" else ""
