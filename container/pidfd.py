"""How a process ended that is another's child, told to whoever held its pidfd in time."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

_INFO = struct.Struct("=QQ11Ii")
"""Source: linux/pidfd.h, `struct pidfd_info`, its first 64 bytes."""
_GET_INFO = 0xC0000000 | _INFO.size << 16 | 0xFF << 8 | 11
"""PIDFD_GET_INFO. Source: linux/pidfd.h."""
_INFO_EXIT = 1 << 3


def wait_status(pidfd: int) -> int | None:
    """Return a reaped process's status as wait(2) gives it; None if that is not known.

    Known on Linux 6.15 and newer, and once its parent has asked for it.
    """
    try:
        raw = fcntl.ioctl(pidfd, _GET_INFO, _INFO.pack(_INFO_EXIT, *[0] * 13))
    except OSError:
        return None
    mask, *_, status = _INFO.unpack(raw)
    return status if mask & _INFO_EXIT else None


def zombie_status(pid: int) -> int | None:
    """Return an ended process's status as wait(2) gives it, before its parent has asked for it.

    None if that is not known: the process runs, was reaped, or is one that we may not trace.

    Source: proc_pid_stat(5), `exit_code`; what is not permitted reads as 0.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        os.readlink(f"/proc/{pid}/ns/user")  # the same permission, and here it is told
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return int(fields[49]) if fields[0] == "Z" else None
