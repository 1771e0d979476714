"""A real launcher in a short temporary folder, stopped with all that it started."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from container.contracts.launcher import Launcher, ServiceState, ServiceStatus, ServiceUnit
from container.ipc import ContainerError
from container.launcher.boot import ensure_running, wait_stopped
from container.storage.paths import Paths

BOUND = 20.0
"""Seconds for anything that must happen."""


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> Iterator[Paths]:
    """Folders with a short name: a socket's path has at most 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="ct"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    for name in ("CONTAINER_NO_ZYGOTE", "CONTAINER_NO_FRONT", "CONTAINER_LOG"):
        monkeypatch.delenv(name, raising=False)
    found = Paths(root=folder / "root", run=folder / "run")
    yield found
    leftover = processes_of(found)
    deadline = time.monotonic() + 5
    while leftover and time.monotonic() < deadline:  # a killed process takes a moment to go
        time.sleep(0.02)
        leftover = processes_of(found)
    for pid in leftover:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    logs = "".join(f"--- {log}\n{log.read_text()}" for log in found.logs.glob("*.log"))
    shutil.rmtree(folder)
    assert not leftover, f"left running: {leftover}\n{logs}"


def processes_of(paths: Paths) -> dict[int, str]:
    """Return the live processes whose environment names this run directory."""
    mark = f"CONTAINER_RUN={paths.run}".encode()
    found: dict[int, str] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found[int(pid)] = Path(f"/proc/{pid}/comm").read_text().strip()
    return found


class System:
    """A running system and a proxy of its launcher."""

    def __init__(self, paths: Paths, launcher: Launcher) -> None:
        self.paths = paths
        self.launcher = launcher

    async def service(self, name: str) -> ServiceStatus:
        """Return one service's row."""
        status = await self.launcher.status()
        (found,) = [service for service in status.services if service.name == name]
        return found

    async def until(self, name: str, *states: ServiceState) -> ServiceStatus:
        """Wait until a service is in one of these states."""
        with trio.fail_after(BOUND):
            while (service := await self.service(name)).state not in states:  # noqa: ASYNC110
                await trio.sleep(0.01)  # the contract has no route that waits for a state
        return service


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds that nothing tells of: processes and files of others."""
    with trio.fail_after(BOUND):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.02)


async def ask(path: str | Path, line: str = "facts") -> dict[str, Any]:
    """Send one line to a test service; return its answer."""
    with trio.fail_after(BOUND):
        async with await trio.open_unix_socket(str(path)) as stream:
            await stream.send_all(line.encode() + b"\n")
            answer = b"".join([part async for part in stream])
    return json.loads(answer) if answer else {}


def unit(name: str, entry: str = "bare", **options: Any) -> ServiceUnit:
    """Return a unit of a test service with a socket of its own name."""
    options.setdefault("listen", f"{name}.sock")
    options.setdefault("restart_delay", 0.05)
    return ServiceUnit(
        name=name,
        command=(sys.executable, str(Path(__file__).parent / "services.py"), entry),
        entry=f"services:{entry}",
        **options,
    )


@contextlib.asynccontextmanager
async def running(paths: Paths) -> AsyncGenerator[System]:
    """Run a launcher while the block lives; it may be gone already at its end."""
    assert await ensure_running(paths)
    try:
        async with Launcher.connect(paths.launcher_socket) as launcher:
            yield System(paths, launcher)
    finally:
        with trio.move_on_after(BOUND, shield=True):
            await end(paths)


async def end(paths: Paths) -> None:
    """Stop the launcher of a run directory, if there is one, and all of its services."""
    with contextlib.suppress(ContainerError):
        async with Launcher.connect(paths.launcher_socket) as launcher:
            await launcher.shutdown(stop_containers=True)
    await wait_stopped(paths)


@pytest.fixture
async def system(paths: Paths) -> AsyncGenerator[System]:
    """A system without any service but the shipped ones, which nobody connects to."""
    async with running(paths) as found:
        yield found
