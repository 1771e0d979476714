"""The processes below this one: adopt what they leave behind, signal them, end them all.

A process group or a session does not hold a tree together: `setsid` leaves both, and a daemon does
just that. The kernel's own tie is parentage, and with PR_SET_CHILD_SUBREAPER an orphan comes back
to the process that asked for it, so nothing below it can get away. What is *not* done here: control
groups. A library that makes them in a folder which systemd or a person owns does harm, and needs
rights that most programs don't have.

Source: PR_SET_CHILD_SUBREAPER(2const), PR_SET_PDEATHSIG(2const), proc_pid_task(5).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Iterator

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Make orphans of this process's descendants its children."""
    _prctl("PR_SET_CHILD_SUBREAPER", PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; end at once if it has ended already.

    Only for a child of a process with one thread: the signal comes when the *thread* that forked
    ends. (A worker thread of Trio ends after ten idle seconds.)
    """
    _prctl("PR_SET_PDEATHSIG", PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def _prctl(name: str, option: int, argument: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, argument, 0, 0, 0):
        raise OSError(ctypes.get_errno(), name)


def descendants(root: int) -> Iterator[tuple[int, int]]:
    """Yield `(pid, its parent)` of each process below one, nearest first, zombies included.

    A moment's look: a process that forks meanwhile may have children that are not seen.
    """
    waiting = [root]
    while waiting:
        parent = waiting.pop(0)
        for pid in _children(parent):
            waiting.append(pid)
            yield pid, parent


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with (
                contextlib.suppress(OSError),
                open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file,
            ):
                found += map(int, file.read().split())
    except OSError:
        pass  # it has ended
    return found


def signal_descendants(number: int) -> None:
    """Send a signal to all processes below this one; one that is gone, or not ours, is no error.

    A process that was not seen, because it was forked just now, does not get it.
    """
    for pid, parent in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(pid)
            try:
                # The number may be another process's since it was read; held now, it can't change.
                if _parent(pid) == parent:
                    signal.pidfd_send_signal(pidfd, number)
            finally:
                os.close(pidfd)


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])


def reap(ended: Callable[[int, int], object]) -> bool:
    """Reap all children that have ended; `ended` gets pid and wait status of each.

    Returns:
        False if this process has no child any more.
    """
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
        ended(pid, status)
