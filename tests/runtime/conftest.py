"""A busybox layer, and sandboxes on the played and the real OCI runtimes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import frozen

from container.contracts.runtime import ProcessSpec, SandboxSpec, Stdio
from container.ipc import Fd
from container.runtime.cgroup import CgroupFolders, cgroup_path
from container.runtime.command_line import find_runtime
from container.runtime.service import SandboxService
from container.storage.watch import Change, watch
from container.testing.oci import Play, RecordedNamespaces, RecordedRuntime, recorded_machinery

from .attached import Place
from .networks import Helper, network_helper

APPLETS = """
    sh true false cat echo sleep id ls env mount dd head wc kill stty hostname grep ps yes nc
    tty test touch mkdir pwd seq readlink stat printf
"""
PATH = "PATH=/usr/bin:/bin"


def busybox() -> str | None:
    return next((p for p in ("/bin/busybox", "/usr/bin/busybox") if os.path.exists(p)), None)


def real_runtime_missing(name: str) -> str:
    """Return why a real OCI runtime can't be used here, or an empty string."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which(name) is None and not os.path.exists(f"/usr/sbin/{name}"):
        return f"{name} is not installed"
    if busybox() is None:
        return "no static busybox is installed"
    return ""


def runtimes(*names: str) -> list[Any]:
    return [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                name != "recorded" and bool(real_runtime_missing(name)),
                reason=f"{name}: {real_runtime_missing(name)}",
            ),
        )
        for name in names
    ]


@pytest.fixture(scope="session")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with busybox, its applets, and a few users."""
    program = busybox()
    if program is None:
        pytest.skip("no static busybox is installed")
    root = tmp_path_factory.mktemp("layer")
    for folder in ("bin", "etc", "tmp", "root", "proc", "sys", "dev"):
        (root / folder).mkdir()
    (root / "tmp").chmod(0o1777)
    shutil.copy(program, root / "bin/busybox")
    for applet in APPLETS.split():
        (root / "bin" / applet).symlink_to("busybox")
    (root / "bin/plain").write_text("neither a program nor a script\n")
    (root / "bin/plain").chmod(0o755)
    (root / "bin/unexecutable").write_text("#!/bin/sh\n")
    (root / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nada:x:1000:1000::/home/ada:/bin/sh\nbroken:x:no:1::/:\n"
    )
    (root / "etc/group").write_text("root:x:0:\nada:x:1000:\nextra:x:2000:ada,bob\n")
    return root


async def _ready_then_trap(play: Play) -> int:
    play.handled[15] = 7
    await play.write(b"ready\n")

    await trio.sleep_forever()
    return 0


async def _both_streams(play: Play) -> int:
    await play.write(b"out\n")
    await play.write(b"err\n", 2)
    return 0


async def _size(play: Play) -> int:
    size = os.get_terminal_size(play.stdio[0])
    await play.write(b"%d %d\n" % (size.lines, size.columns))
    line = await play.read()
    await play.write(b"got " + line)
    return 0


TRAP = ("sh", "-c", 'trap "exit 7" TERM; echo ready; while :; do sleep 0.05; done')
BOTH = ("sh", "-c", "echo out; echo err >&2")
SIZE = ("sh", "-c", "stty size; read line; echo got $line")
PLAYED = {TRAP: _ready_then_trap, BOTH: _both_streams, SIZE: _size}


@frozen
class Bench:
    """One sandbox under test."""

    service: SandboxService
    layer: Path
    folder: Path
    runtime: str

    def spec(
        self, *arguments: str, process: dict[str, Any] | None = None, **rest: Any
    ) -> SandboxSpec:
        fields: dict[str, Any] = {"environment": (PATH,), **(process or {})}
        return SandboxSpec(
            id=self.folder.name,
            name="tested",
            hostname="tested",
            layers=rest.pop("layers", (str(self.layer),)),
            process=ProcessSpec(arguments=arguments, **fields),
            runtime=None if self.runtime == "recorded" else self.runtime,
            **rest,
        )

    async def run(self, *arguments: str, **rest: Any) -> int | None:
        """Run a command to its end; return its exit code."""
        await self.service.bootstrap(self.spec(*arguments, **rest), Stdio())
        started = await self.service.start("init")
        for fd in (started.terminal, started.terminal_input):
            if fd is not None:
                fd.close()
        return (await self.service.wait("init")).code

    async def said(self, wanted: bytes) -> None:
        """Return when the log holds some bytes."""
        with watch(self.folder / "log" / "index", change=Change.MODIFIED) as changes:
            while wanted not in self.log():
                await changes.changed()

    def log(self) -> bytes:
        """Return all that the log's data file holds."""
        return (self.folder / "log" / "data").read_bytes()


@asynccontextmanager
async def sandbox(
    runtime: str, folder: Path, layer: Path, name: str = "t"
) -> AsyncGenerator[Bench]:
    """Open a sandbox of its own folder; nothing of it is left afterwards."""
    container = f"{name}{os.getpid()}"
    place = folder / container
    place.mkdir()
    async with AsyncExitStack() as stack:
        machinery = None
        if runtime == "recorded":
            recorded = await stack.enter_async_context(RecordedRuntime(PLAYED))
            machinery = recorded_machinery(place, recorded)
        else:
            find_runtime(runtime)
        service = SandboxService(place, container, machinery)
        async with service:
            yield Bench(service, layer, place, runtime)
    assert not (place / "bundle" / "run").exists()
    assert not CgroupFolders(cgroup_path(container)).folders()


def pipe() -> tuple[int, Fd]:
    """Return a pipe: our reading end, and the writing end as an argument."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    return read_end, Fd(write_end)


def read_all(fd: int) -> bytes:
    """Read to the end, and close."""
    with os.fdopen(fd, "rb") as file:
        return file.read()


def environment(*variables: str) -> Sequence[str]:
    return (PATH, *variables)


@pytest.fixture
async def bounded() -> AsyncGenerator[None]:
    with trio.fail_after(20):
        yield


@pytest.fixture
def sockets() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ctn") as folder:
        yield Path(folder)


@pytest.fixture
async def web(sockets: Path) -> AsyncGenerator[Helper]:
    async with network_helper(sockets, "web") as helper:
        yield helper


@pytest.fixture
async def db(sockets: Path) -> AsyncGenerator[Helper]:
    async with network_helper(sockets, "db") as helper:
        yield helper


@pytest.fixture
async def place(tmp_path: Path) -> AsyncGenerator[Place]:
    async with RecordedRuntime() as runtime:
        yield Place(tmp_path, runtime, RecordedNamespaces())
