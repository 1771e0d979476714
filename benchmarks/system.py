"""A system of ours for measuring: private folders, one image, gone at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from benchmarks.worker import PeerUnavailable
from container.testing.busybox import write_layout

IMAGE = "bench"


@frozen
class System:
    """The installed `container`, at folders of its own."""

    command: str
    environment: dict[str, str]
    layout: Path
    """The image as an OCI layout directory, for peers."""
    folder: Path

    @property
    def trace(self) -> Path:
        """Where spans are written, if the system was opened with a trace."""
        return self.folder / "trace.jsonl"

    def argv(self, *arguments: str) -> list[str]:
        """Return the whole command line."""
        return [self.command, *arguments]

    def call(self, *arguments: str) -> str:
        """Run a command to its end and return what it printed."""
        done = subprocess.run(
            self.argv(*arguments), env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()
            raise PeerUnavailable(f"container {arguments[0]}: {said[-1]}")
        return done.stdout.strip()


@contextmanager
def open_system(*, traced: bool = False, within: str | None = None) -> Generator[System]:
    """Hold a running system that has one image, named `bench`.

    Args:
        traced: Have every process write its spans to `System.trace`.
        within: The folder for all of its state; None is the temporary folder.

    Raises:
        PeerUnavailable: it can't run here; the message says why.
    """
    if os.geteuid() != 0:
        raise PeerUnavailable("containers need root")
    with tempfile.TemporaryDirectory(prefix="bench-", dir=within) as name:
        folder = Path(name)
        environment = {
            **os.environ,
            "CONTAINER_ROOT": str(folder / "root"),
            "CONTAINER_RUN": str(folder / "run"),
        }
        layout = folder / "layout"
        write_layout(layout, name=IMAGE)
        command = str(Path(sys.executable).with_name("container"))
        system = System(command=command, environment=environment, layout=layout, folder=folder)
        if traced:
            environment["CONTAINER_TRACE"] = str(system.trace)
        system.call("system", "start")
        try:
            system.call("image", "load", "-i", str(layout))
            yield system
        finally:
            system.call("system", "stop", "--containers")
