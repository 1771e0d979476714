"""A runtime helper that kills itself, once, at a chosen step of a chosen call.

A step is any look at or change of the world that Python makes: opening, renaming and removing
files, starting programs, using sockets, calling the C library. `KILLED_IN` names the call,
`KILLED_AT` the number of the step, `KILLED_FLAG` a file that is removed when it happens: the next
helper lives. Without a number the steps are counted, and written to the flag's file at the end.
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
    """Count steps while a call is in progress."""

    def __init__(self, call: str, at: int, flag: Path) -> None:
        self.at = at
        self.flag = flag
        self.count = 0
        self.active = False
        original = getattr(SandboxService, call)

        @functools.wraps(original)
        async def watched(*arguments: Any) -> Any:
            self.active = os.path.exists(flag)  # noqa: ASYNC240
            try:
                return await original(*arguments)
            finally:
                if self.active and not self.at:
                    self.active = False
                    flag.write_text(str(self.count))  # noqa: ASYNC240

        setattr(SandboxService, call, watched)
        sys.addaudithook(self.step)

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
        Killer(call, int(os.environ.get("KILLED_AT", "0")), Path(os.environ["KILLED_FLAG"]))
    return process.main()
