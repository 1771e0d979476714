"""The logs of services: one file per kind of service, bounded, and read when a start failed.

All runtime helpers share `runtime.log`: a file per container would outlive the container. The
writers append (O_APPEND) to an open file, which nobody can make them close; so a file that is too
large is copied aside and emptied, as logrotate's `copytruncate` does. A line that is written
between the last read of the copy and the truncation is lost; the file is read to its end first, so
that this is a matter of microseconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

from attrs import frozen

from container.ipc import Unavailable

LINES = 5
"""Last lines that a failed start shows."""
TAIL_BYTES = 16 * 1024
LINE_BOUND = 300
"""Characters of a line that are shown."""


@frozen
class Logs:
    """The folder of all logs."""

    folder: Path

    def path(self, name: str) -> Path:
        """Return where the service of this name logs: what is before its first dot counts."""
        return self.folder / f"{name.partition('.')[0]}.log"

    def open(self, name: str) -> int:
        """Open a service's log for appending (mode 0600); return the descriptor.

        Raises:
            Unavailable: it can't be opened.
        """
        path = self.path(name)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Unavailable(f"the log {path} can't be opened: {error.strerror}") from error

    def mark(self, name: str) -> int:
        """Return how long a log is now: what a start logs is behind that."""
        try:
            return self.path(name).stat().st_size
        except OSError:
            return 0

    def last_lines(self, name: str, mark: int, pid: int | None) -> list[str]:
        """Return the last lines behind a mark, without those that say to be another process's."""
        try:
            with self.path(name).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                begin = mark if mark <= size else 0  # it was emptied meanwhile
                file.seek(max(begin, size - TAIL_BYTES))
                text = file.read(TAIL_BYTES).decode(errors="replace")
        except OSError:
            return []
        lines = [line for raw in text.splitlines() if (line := _readable(raw, pid))]
        return lines[-LINES:]

    def note(self, name: str, message: str) -> None:
        """Write a line of the launcher's own into a service's log."""
        line = {
            "time": datetime.now(UTC).isoformat(),
            "level": "error",
            "process": "container-launcher",
            "pid": os.getpid(),
            "message": f"{name}: {message}",
        }
        with contextlib.suppress(OSError, Unavailable):
            fd = self.open(name)
            try:
                os.write(fd, json.dumps(line, ensure_ascii=False).encode() + b"\n")
            finally:
                os.close(fd)

    def bound(self, name: str, size: int) -> bool:
        """Move a log of more than `size` bytes to `<name>.log.1`; return whether it had.

        What cannot be moved, because the disk is full say, is emptied all the same.
        """
        path = self.path(name)
        try:
            if path.stat().st_size <= size:
                return False
            with path.open("r+b") as source:
                beside = path.with_name(path.name + ".1")
                with contextlib.suppress(OSError), beside.open("wb") as to:
                    os.fchmod(to.fileno(), 0o600)
                    shutil.copyfileobj(source, to)
                source.truncate(0)
        except OSError:
            return False
        return True


def _readable(raw: str, pid: int | None) -> str:
    """Return what a person reads of a line; nothing if it is another process's."""
    try:
        record = json.loads(raw)
        message = str(record["message"])
        if pid is not None and record.get("pid") not in (pid, None):
            return ""
        if "error" in record:
            message += ": " + str(record["error"]).strip().rpartition("\n")[2]
    except (ValueError, TypeError, KeyError):
        message = raw.strip()
    return message.replace("\n", " ")[:LINE_BOUND]
