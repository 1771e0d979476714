"""A real launcher, and containers whose helpers it starts again when they are killed."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from attrs import define, evolve

from container.contracts.launcher import Launcher
from container.contracts.logs import LogStream, decode_records
from container.contracts.runtime import (
    ProcessSpec,
    Sandbox,
    SandboxGate,
    SandboxNetwork,
    SandboxSpec,
)
from container.ipc import ContainerError, PeerGone
from container.launcher.boot import ensure_running, wait_stopped
from container.runtime.cgroup import CgroupFolders, cgroup_path
from container.runtime.process import unit
from container.storage.paths import Paths

from .conftest import PATH
from .networks import Helper

BOUND = 20.0
"""Seconds for anything that must happen."""
_numbers = itertools.count(1)


@define(eq=False)
class Survivor:
    """One container, whose helper may be killed."""

    system: System
    id: str
    call: str = ""
    """In which the helper kills itself."""
    at: int = 0
    socket: str = ""
    terminal: bool = False
    networks: tuple[SandboxNetwork, ...] = ()
    helpers: tuple[Helper, ...] = ()
    """Of networks, which live as long as the test."""

    @property
    def folder(self) -> Path:
        return self.system.paths.containers / self.id

    @property
    def flag(self) -> Path:
        return self.system.paths.root / f"{self.id}.flag"

    @property
    def killed(self) -> bool:
        return not self.flag.exists()

    async def register(self) -> None:
        """Make it known to whatever launcher there is."""
        own = unit(self.id, ("container-runtime", self.id))
        if self.call:
            environment = {
                "KILLED_IN": self.call,
                "KILLED_AT": str(self.at),
                "KILLED_FLAG": str(self.flag),
            }
            own = evolve(own, entry="killed_helper:main", environment=environment)
        self.socket = await self.system.launcher.register(own)

    @asynccontextmanager
    async def sandbox(self) -> AsyncGenerator[Sandbox]:
        """Connect to the container's helper, which that starts if need be."""
        with trio.fail_after(BOUND):
            async with AsyncExitStack() as stack:
                while True:
                    try:
                        gate = await stack.enter_async_context(SandboxGate.connect(self.socket))
                        endpoint = await gate.open()
                        break
                    except PeerGone:
                        # A helper that is ending took the connection: the next one will.
                        await trio.sleep(0.01)
                yield await stack.enter_async_context(endpoint.connect())

    async def helper(self) -> int:
        """Return the helper's pid."""
        for service in (await self.system.launcher.status()).services:
            if service.name == f"runtime.{self.id}" and service.pid is not None:
                return service.pid
        raise LookupError(self.id)

    async def registered(self) -> None:
        """Wait until the launcher knows the helper's process."""
        with trio.fail_after(BOUND):
            while True:
                with contextlib.suppress(LookupError):
                    await self.helper()
                    return
                await trio.sleep(0.005)  # a helper registers by itself

    async def kill(self) -> None:
        """Kill the helper; return when the launcher has seen it."""
        pid = await self.helper()
        os.kill(pid, signal.SIGKILL)
        with trio.fail_after(BOUND), contextlib.suppress(LookupError):
            while await self.helper() == pid:  # noqa: ASYNC110
                await trio.sleep(0.002)  # no route tells of it

    def spec(self, *arguments: str, **options: Any) -> SandboxSpec:
        fields: dict[str, Any] = {"environment": (PATH,), "terminal": self.terminal}
        fields |= options.pop("process", {})
        if self.networks:
            options |= {"network": "networks", "networks": self.networks}
        return SandboxSpec(
            id=self.id,
            name="tested",
            hostname="tested",
            layers=(str(self.system.layer),),
            process=ProcessSpec(arguments=arguments, **fields),
            runtime=self.system.runtime,
            **options,
        )

    def log(self) -> bytes:
        """Return what the log's index says the container wrote, checked to be without a gap."""
        end = 0
        for record in decode_records((self.folder / "log" / "index").read_bytes()):
            assert record.offset == end, "the log has a gap"
            end += record.length
        # Read later: a helper at work may have added to both.
        data = (self.folder / "log" / "data").read_bytes()
        assert end <= len(data)
        return data[:end]

    def ended(self) -> bool:
        """Return whether the log says of each run that it began and that it has ended."""
        found = decode_records((self.folder / "log" / "index").read_bytes())
        marks = [r.stream for r in found if r.stream in (LogStream.START, LogStream.END)]
        return (
            marks == [LogStream.START, LogStream.END] * (len(marks) // 2)
            and found[-1].stream is LogStream.END
        )

    def inside(self) -> set[int]:
        """Return the processes of the container."""
        for folder in CgroupFolders(cgroup_path(self.id)).folders():
            return set(map(int, (folder / "cgroup.procs").read_text().split()))
        return set()

    async def gone(self) -> None:
        """Check that the container's end has left nothing, once its helper has ended."""
        await self.system.launcher.remove(f"runtime.{self.id}")
        assert not CgroupFolders(cgroup_path(self.id)).folders()
        assert not (self.folder / "bundle" / "run").exists()
        assert not (self.folder / "bundle" / "records").exists()
        state = str(self.folder / "bundle" / "run" / "state").encode()
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{entry}/cmdline").read_bytes()  # noqa: ASYNC240
                assert state not in words


@define(eq=False)
class System:
    """A running launcher."""

    paths: Paths
    launcher: Launcher
    layer: Path
    runtime: str = "runc"

    async def container(self, call: str = "", at: int = 0) -> Survivor:
        """Return a container that is registered, and whose helper dies as it is told."""
        survivor = Survivor(self, f"a{os.getpid()}x{next(_numbers)}", call, at)
        survivor.folder.mkdir(parents=True)
        survivor.flag.touch()
        await survivor.register()
        return survivor


@contextlib.contextmanager
def launcher_running() -> Generator[Paths]:
    """Run a launcher while the block lives, on folders that are gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="ct"))
    paths = Paths(root=folder / "root", run=folder / "run")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)

    async def begin() -> None:
        assert await ensure_running(paths)
        async with Launcher.connect(paths.launcher_socket) as launcher:
            await _without_apiserver(launcher)

    async def end() -> None:
        with trio.move_on_after(BOUND), contextlib.suppress(ContainerError):
            async with Launcher.connect(paths.launcher_socket) as launcher:
                await launcher.shutdown(stop_containers=True)
        await wait_stopped(paths)

    try:
        trio.run(begin)
        yield paths
    finally:
        trio.run(end)
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
        shutil.rmtree(folder)


@asynccontextmanager
async def connected(paths: Paths, layer: Path, runtime: str = "runc") -> AsyncGenerator[System]:
    """Connect to a launcher for the block."""
    try:
        async with Launcher.connect(paths.launcher_socket) as launcher:
            yield System(paths, launcher, layer, runtime)
    finally:
        for log in paths.logs.glob("*.log"):
            print(f"--- {log.name}\n{log.read_text()}")  # shown when a test fails


async def _without_apiserver(launcher: Launcher) -> None:
    # It ends helpers of containers that it does not know: ours.
    await launcher.remove("apiserver")


@asynccontextmanager
async def next_launcher(system: System) -> AsyncGenerator[None]:
    """Kill the launcher and start the next one; `system` speaks to that in the block."""
    last = (await system.launcher.status()).pid
    os.kill(last, signal.SIGKILL)
    await until(lambda: not alive(last))
    assert await ensure_running(system.paths)
    async with Launcher.connect(system.paths.launcher_socket) as launcher:
        await _without_apiserver(launcher)
        system.launcher = launcher
        yield


def alive(pid: int) -> bool:
    """Return whether a process runs; one that nobody has reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds that nothing tells of: processes and files of others."""
    with trio.fail_after(BOUND):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.005)
