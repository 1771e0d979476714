"""A helper that was killed comes back and takes its container up again.

What its successor needs is in one small document of the run: what was asked for, and the first
process by pid *and* start time, since a pid alone may be somebody else's by then. The process is
no child of the successor: its end is seen by pidfd, and its status asked of the kernel (Linux
6.15), or unknown.

Output is not lost either: a process holds its log pipes open for reading too (see `log_pipe`), so
that meanwhile it waits at most; the successor opens them again through the process's own
descriptors. What can't come back: a terminal, whose master was the helper's, and further
processes.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
from datetime import datetime
from pathlib import Path

import cattrs
import trio
from attrs import field, frozen
from cattrs.preconf.json import make_converter

from container.contracts.logs import LogStream
from container.contracts.runtime import SandboxSpec
from container.runtime.children import AdoptedProcess
from container.runtime.oci import Ended

NAME = "run.json"
_INFO = struct.Struct("<QQ11Ii")
_GET_INFO = 0xC0000000 | _INFO.size << 16 | 0xFF << 8 | 11
"""PIDFD_GET_INFO. Source: linux/pidfd.h."""
_INFO_EXIT = 1 << 3
_REAP_SECONDS = 5.0
"""The kernel tells the status only when the parent has asked for it, which some do late."""


@frozen
class RunRecord:
    """What is known of a run on disk. Not synced: no run outlives a power loss."""

    spec: SandboxSpec
    pid: int
    start_time: int
    """Of the process, in clock ticks since boot: with the pid it names one process for ever."""
    started_at: datetime | None = None
    outputs: dict[int, int] = field(factory=dict[int, int])
    """Descriptor of the process (1, 2) to the inode of the log's pipe that it is."""


def write_record(folder: Path, record: RunRecord) -> None:
    """Write a run's record. Blocking; what is there is complete."""
    temporary = folder / f".{NAME}"
    temporary.write_text(make_converter().dumps(record))
    temporary.replace(folder / NAME)


def read_record(folder: Path) -> RunRecord | None:
    """Read the record of a run, or None if there is none that can be read. Blocking."""
    try:
        text = (folder / NAME).read_text()
    except OSError:
        return None
    try:
        return make_converter().loads(text, RunRecord)
    except (ValueError, cattrs.BaseValidationError, KeyError):
        return None  # of another version: as good as none, and swept with the rest


def start_time(pid: int) -> int | None:
    """Return when a process was started, or None if it has ended. Source: proc(5)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


class FoundProcess(AdoptedProcess):
    """A container's process that a helper before this one has made.

    Args:
        record: Names it.

    Raises:
        ProcessLookupError: it has ended.
    """

    def __init__(self, record: RunRecord) -> None:
        super().__init__(record.pid)
        # The pidfd first: what it names can't change any more while we look.
        if start_time(record.pid) != record.start_time:
            self.close()
            raise ProcessLookupError(record.pid)

    async def wait(self) -> Ended:
        ended = await super().wait()
        if ended == Ended() and self._pidfd >= 0:
            ended = self._ended = await trio.to_thread.run_sync(_ask_kernel, self._pidfd)
        return ended

    def reopen_outputs(self, outputs: dict[int, int]) -> list[tuple[int, LogStream]]:
        """Open the log's pipes again, for reading, as far as they are still what they were."""
        found: list[tuple[int, LogStream]] = []
        for number, inode in outputs.items():
            try:
                source = os.open(
                    f"/proc/{self.pid}/fd/{number}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
                )
            except OSError:
                continue
            if os.fstat(source).st_ino == inode:
                found.append((source, LogStream(number)))
            else:
                os.close(source)
        return found


def _ask_kernel(pidfd: int) -> Ended:
    poller = select.poll()
    poller.register(pidfd, 0)  # POLLHUP: its parent has reaped it
    poller.poll(_REAP_SECONDS * 1000)
    buffer = bytearray(_INFO.size)
    struct.pack_into("<Q", buffer, 0, _INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, _GET_INFO, buffer)
    except OSError:
        return Ended()
    mask, *_, status = _INFO.unpack(buffer)
    if not mask & _INFO_EXIT:
        return Ended()
    if os.WIFSIGNALED(status):
        return Ended(signal=os.WTERMSIG(status))
    return Ended(code=os.WEXITSTATUS(status))
