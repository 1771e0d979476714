"""A runtime helper that kills itself, once, at a chosen step of a chosen call.

A step is any look at or change of the world that Python makes: opening, renaming and removing
files, starting programs, using sockets, calling the C library. `KILLED_IN` names the call, or
several that follow each other, `KILLED_AT` the number of the step, `KILLED_FLAG` a file that is
removed when it happens: the next helper lives. Without a number the steps are counted, and written
to the flag's file at the end.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

from container.runtime import process
from container.runtime.service import SandboxService

STEPS = (
    *("open", "ctypes.dlsym", "ctypes.call_function", "fcntl.ioctl", "subprocess.Popen"),
    *("os.", "shutil.", "socket."),
)


class Killer:
    """Count steps while a call is in progress, for the first time."""

    def __init__(self, calls: list[str], at: int, flag: Path) -> None:
        self.at = at
        self.flag = flag
        self.count = 0
        self.active = False
        self.rest = calls
        for call in calls:
            self.watch(call)
        sys.addaudithook(self.step)

    def watch(self, call: str) -> None:
        original = getattr(SandboxService, call)

        @functools.wraps(original)
        async def watched(*arguments: Any, **named: Any) -> Any:
            ours = self.rest[:1] == [call] and os.path.exists(self.flag)  # noqa: ASYNC240
            if ours:
                del self.rest[0]
                self.active = True
            try:
                return await original(*arguments, **named)
            finally:
                if ours and not self.rest:
                    self.active = False
                    if not self.at and not self.flag.read_text():
                        self.flag.write_text(str(self.count))

        setattr(SandboxService, call, watched)

    def step(self, event: str, _: tuple[object, ...]) -> None:
        if not self.active or not event.startswith(STEPS):
            return
        self.count += 1
        if self.count == self.at:
            self.active = False
            os.unlink(self.flag)
            os.kill(os.getpid(), 9)


def main() -> int:
    """Run the helper."""
    if call := os.environ.get("KILLED_IN"):
        Killer(call.split(), int(os.environ.get("KILLED_AT", "0")), Path(os.environ["KILLED_FLAG"]))
    return process.main()
