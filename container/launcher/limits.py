"""Limits of a service's process, set from outside while it waits at its gate.

Never above what this process has itself: raising a hard limit needs a privilege that a launcher in
a container does not have, and a value that is refused would be worse than a smaller one.

Source: prlimit(2), proc_pid_oom_score_adj(5), setpriority(2), systemd.exec(5).
"""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Callable

from container.contracts.launcher import ServiceUnit

_log = logging.getLogger(__name__)


def raise_open_files() -> int:
    """Let this process open as many descriptors as it may; return what its services get by default.

    The launcher holds two or more for each container. Its services keep the limit that it was
    started with: programs in containers inherit it, and some of them close each number up to it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft


def limit_open_files(pid: int, soft: int) -> None:
    """Set how many descriptors another process may open; never above our own hard limit.

    Raises:
        OSError: it is gone.
    """
    _set(pid, resource.RLIMIT_NOFILE, soft)


def _set(pid: int, which: int, soft: int) -> None:
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.prlimit(pid, which, (soft, hard))


def limit(unit: ServiceUnit, pid: int, open_files: int) -> None:
    """Set the limits of a unit for a process. One that can't be set is told in the log.

    Args:
        unit: Says which.
        pid: A process that waits.
        open_files: Descriptors, for a unit that does not say how many.
    """

    def adjust() -> None:
        with open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(unit.oom_score_adjust))

    steps: list[tuple[str, Callable[[], None]]] = [
        ("open files", lambda: limit_open_files(pid, unit.open_files or open_files)),
    ]
    core_size, nice = unit.core_size, unit.nice
    if core_size is not None:
        steps.append(("core size", lambda: _set(pid, resource.RLIMIT_CORE, core_size)))
    if unit.oom_score_adjust is not None:
        steps.append(("OOM score", adjust))
    if nice is not None:
        steps.append(("nice", lambda: os.setpriority(os.PRIO_PROCESS, pid, nice)))
    for what, step in steps:
        try:
            step()
        except OSError as error:
            _log.warning("%s of %s can't be set: %s", what, unit.name, error.strerror)
