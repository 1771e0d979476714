"""Processes that became ours because we are a subreaper, held by pidfd.

An OCI runtime forks the container's process and ends; the kernel then makes the process a child of
its nearest living subreaper. So its exit status can be read as any child's, by pidfd: no pid is
ever looked up twice, and no other child's status is taken away.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection
from pathlib import Path

import trio

from container.runtime.oci import ContainerProcess, Ended


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
        """Whether its status was read, or is wanted no more."""
        return self._ended is not None

    async def wait(self) -> Ended:
        while self._ended is None:
            await trio.lowlevel.wait_readable(self._pidfd)
            self._reap()
        return self._ended

    def _reap(self) -> None:
        try:
            status = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
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
            if trio.lowlevel.in_trio_run():
                trio.lowlevel.notify_closing(pidfd)
            os.close(pidfd)


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
