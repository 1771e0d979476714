"""The installed `container` command, driven as a user would, in a private system.

Every test is followed by an audit: no process, mount, control group or socket more than before it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from attrs import frozen

from container.testing.busybox import write_layout
from container.testing.network import NetworkNamespace

COMMAND = Path(sys.executable).with_name("container")


def _why_not() -> str | None:
    if os.geteuid() != 0:
        return "needs root"
    if not (shutil.which("runc") or shutil.which("crun")):
        return "needs an OCI runtime (runc or crun)"
    if not Path("/bin/busybox").exists():
        return "needs a static busybox (busybox-static)"
    return None if COMMAND.exists() else "the container command is not installed beside this Python"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip everything here where it can't run, saying why."""
    reason = _why_not()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.system)
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@frozen
class Census:
    """What a system has besides its documents."""

    processes: frozenset[str]
    mounts: frozenset[str]
    cgroups: frozenset[str]
    sockets: frozenset[str]
    descriptors: tuple[tuple[str, int], ...]
    """Of the long-lived processes, by name."""


@frozen
class Machine:
    """One private system and the command line that drives it."""

    folder: Path
    environment: dict[str, str]

    @property
    def root(self) -> Path:
        """State of the system."""
        return Path(self.environment["CONTAINER_ROOT"])

    @property
    def run_folder(self) -> Path:
        """Sockets of the system."""
        return Path(self.environment["CONTAINER_RUN"])

    def start(self, *arguments: str, **options: object) -> subprocess.Popen[bytes]:
        """Start one command line; the caller waits for it."""
        return subprocess.Popen(  # type: ignore[call-overload]
            [str(COMMAND), *arguments],
            env={**self.environment, **options.pop("extra", {})},  # type: ignore[dict-item]
            **options,
        )

    def run(
        self,
        *arguments: str,
        stdin: bytes | None = None,
        status: int | None = 0,
        extra: dict[str, str] | None = None,
        timeout: float = 60,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run one command line to its end and check its exit status."""
        done = subprocess.run(
            [str(COMMAND), *arguments],
            env={**self.environment, **(extra or {})},
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=timeout,
            check=False,
            cwd=cwd,
        )
        if status is not None:
            assert done.returncode == status, (arguments, done)
        return done

    def text(self, *arguments: str, **options: object) -> str:
        """Run one command line and return what it printed."""
        return self.run(*arguments, **options).stdout.decode()  # type: ignore[arg-type]

    def refused(self, *arguments: str, status: int, **options: object) -> str:
        """Run a command line that must fail; return stderr: one sentence, no traceback."""
        done = self.run(*arguments, status=status, **options)  # type: ignore[arg-type]
        said = done.stderr.decode()
        lines = [line for line in said.splitlines() if not line.startswith("hint: ")]
        assert "Traceback" not in said, said
        assert len(lines) <= 2, said
        return said

    def census(self) -> Census:
        """Count what is there now."""
        mark = f"CONTAINER_RUN={self.run_folder}".encode()
        processes: set[str] = set()
        descriptors: list[tuple[str, int]] = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if mark not in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    continue
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                processes.add(f"{pid} {command.strip()}")
                count = len(os.listdir(f"/proc/{pid}/fd"))
                descriptors.append((f"{pid} {command.strip()}", count))
        mounts = {
            line.split()[4]
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if line.split()[4].startswith(str(self.folder))
        }
        cgroups = {
            str(path)
            for top in ("/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids")
            for path in Path(top).glob("container*/*")
            if path.is_dir()
        }
        sockets = {
            str(path.relative_to(self.run_folder))
            for path in self.run_folder.rglob("*")
            if path.is_socket()
        }
        return Census(
            frozenset(processes),
            frozenset(mounts),
            frozenset(cgroups),
            frozenset(sockets),
            tuple(sorted(descriptors)),
        )

    def settled(self, wanted: Census, seconds: float = 10) -> Census:
        """Return a census equal to `wanted` if there is one within some seconds, else the last."""
        end = time.monotonic() + seconds
        while True:
            now = self.census()
            if now == wanted or time.monotonic() > end:
                return now
            time.sleep(0.02)  # what ends by itself announces it to nobody outside the system


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout of busybox on disk."""
    folder = tmp_path_factory.mktemp("image") / "demo"
    write_layout(folder, name="demo")
    return folder


@contextlib.contextmanager
def private_machine(prefix: str = "ct-") -> Iterator[Machine]:
    """Yield a private system, not yet started; whatever runs of it at the end is stopped."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir="/run"))
    environment = {
        **os.environ,
        "CONTAINER_ROOT": str(folder / "root"),
        "CONTAINER_RUN": str(folder / "run"),
        "CONTAINER_DEFAULT_REGISTRY": "127.0.0.1:1",
        "NO_COLOR": "1",
    }
    machine = Machine(folder, environment)
    try:
        yield machine
    finally:
        machine.run("system", "stop", "--containers", status=None)
        left = machine.settled(Census(frozenset(), frozenset(), frozenset(), frozenset(), ()))
        shutil.rmtree(folder, ignore_errors=True)
        assert not left.processes
        assert not left.mounts


@pytest.fixture(scope="session")
def shared_machine(layout: Path) -> Iterator[Machine]:
    """One system for all tests that leave it as it was."""
    with private_machine() as machine:
        machine.run("image", "load", "-i", str(layout))
        machine.run("run", "--rm", "demo", "true")
        yield machine


@pytest.fixture
def machine(shared_machine: Machine) -> Iterator[Machine]:
    """The shared system; the test leaves in it what was in it."""
    before = shared_machine.census()
    yield shared_machine
    after = shared_machine.settled(before)
    assert after == before


@pytest.fixture
def own_machine(layout: Path) -> Iterator[Machine]:
    """A system of the test's own, image loaded."""
    with private_machine() as machine:
        machine.run("image", "load", "-i", str(layout))
        yield machine


@pytest.fixture(scope="module")
def machine_with_networks(layout: Path) -> Iterator[Machine]:
    """A system in a network namespace of its own, in which this process is meanwhile, too."""
    with NetworkNamespace() as place, place.entered(), private_machine() as machine:
        del machine.environment["CONTAINER_NETWORK"]
        machine.run("image", "load", "-i", str(layout))
        yield machine


def lines(output: bytes | str) -> Sequence[str]:
    """Return the lines of an output."""
    return (output if isinstance(output, str) else output.decode()).splitlines()
