"""Calls of an OCI runtime that outlived the helper which made them.

Such a program goes on when its helper is killed, and would make a container that nobody knows of
after the next helper has looked. It is told by its command line, which names the state folder of
its one container.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path

_END_SECONDS = 2.0
"""From SIGKILL to a program's end."""


def end_calls(state: Path) -> int:
    """Kill all programs that work on a state folder, with their groups; return how many there were.

    Blocks until they have ended, or two seconds each.
    """
    count = 0
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or not _works_on(int(entry), state):
            continue
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(int(entry))
            try:
                if _works_on(int(entry), state):  # asked again: now it can't be another
                    count += 1
                    _kill_group(int(entry), pidfd)
            finally:
                os.close(pidfd)
    return count


def _works_on(pid: int, state: Path) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(state) in words


def _kill_group(pid: int, pidfd: int) -> None:
    # Each call has a session of its own; what it forked is in its group or in the control group.
    if os.getpgid(pid) == pid:
        os.killpg(pid, signal.SIGKILL)
    else:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    select.select([pidfd], [], [], _END_SECONDS)
