"""Helpers of networks as processes of their own, started as the launcher starts them."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from attrs import define

_ACTIVATE = 'export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"'


@define
class Helper:
    """A socket that is always there, and the process behind it."""

    at: Path
    command: Sequence[str]
    environment: dict[str, str]
    listener: socket.socket
    process: subprocess.Popen[bytes] | None = None

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start the process."""
        fd = self.listener.fileno()
        self.process = subprocess.Popen(
            ["bash", "-c", f"exec 3<&{fd}; {_ACTIVATE}", "bash", *self.command],
            env={**os.environ, **self.environment, **environment},
            pass_fds=(fd,),
        )
        return self.process

    def kill(self) -> None:
        """Kill it, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        """Ask it to end; return its exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(10)


@contextmanager
def helper(at: Path, command: Sequence[str], **environment: str) -> Iterator[Helper]:
    """Hold a helper's socket for a block; the process, if there is one, is killed at its end."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(at))
        listener.listen()
        made = Helper(at, command, environment, listener)
        try:
            yield made
        finally:
            if made.process is not None:
                made.kill()
