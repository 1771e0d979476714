"""A private system of real processes and real containers, owned by this program."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import trio

import container
from container.contracts.apiserver import ContainerOptions, ContainerStatus, Health
from container.contracts.runtime import StopOptions
from container.embed import ContainerFailed, connect_system, open_system
from container.ipc import NotFound, Unavailable
from container.storage.paths import Paths
from container.testing.busybox import find_busybox, write_layout


def _has_busybox() -> bool:
    try:
        find_busybox()
    except FileNotFoundError:
        return False
    return True


pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="containers need root"),
    pytest.mark.skipif(
        shutil.which("runc") is None and shutil.which("crun") is None,
        reason="no OCI runtime is installed",
    ),
    pytest.mark.skipif(not _has_busybox(), reason="no static busybox is installed"),
]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small image as a folder."""
    folder = tmp_path_factory.mktemp("layout")
    write_layout(folder)
    return folder


@pytest.fixture
async def system(layout: Path, tmp_path: Path) -> AsyncGenerator[Any]:
    """A private system that has the image `demo`."""
    async with open_system(tmp_path / "root") as opened:
        await opened.load(layout)
        yield opened


def processes_of(run: Path) -> list[str]:
    """Return the command lines of processes that belong to a run directory."""
    mark = f"CONTAINER_RUN={run}".encode()
    found: list[str] = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
                found.append(f"{pid} {line.decode()}")
        except OSError:
            continue
    return found


def alive(pid: object) -> bool:
    """Say whether a process is there."""
    return os.path.exists(f"/proc/{pid}")


async def gone(pid: object, within: float = 20) -> None:
    """Wait until a process is gone that is not ours to wait for."""
    with trio.fail_after(within):
        while alive(pid):  # noqa: ASYNC110
            await trio.sleep(0.05)


async def test_a_container_is_a_block(system: Any) -> None:
    with trio.fail_after(60):
        async with system.run("demo", ["sh", "-c", "echo out; echo err >&2; exit 3"]) as c:
            assert (await c.wait()).code == 3
            assert await c.stdout.receive_some() == b"out\n"
            assert await c.stderr.receive_some() == b"err\n"
        assert await system.containers.list() == ()
        with pytest.raises(ContainerFailed, match="status 1"):
            async with system.run("demo", ["false"], check=True) as c:
                await c.wait()


async def test_exec_stdin_and_kill(system: Any) -> None:
    with trio.fail_after(60):
        async with system.run("demo", ["cat"], stdin=True, environment={"A": "1"}) as c:
            await c.stdin.send_all(b"through")
            assert await c.stdout.receive_some() == b"through"
            result = await c.exec(
                ["sh", "-c", "echo $A $B; cat"], input=b"in", environment={"B": "2"}
            )
            assert (result.code, result.stdout) == (0, b"1 2\nin")
            with pytest.raises(NotFound):
                await c.exec(["no-such-command"])
            await c.kill("KILL")
            assert (await c.wait()).code == 137


async def test_leaving_a_block_leaves_nothing(system: Any) -> None:
    with trio.fail_after(60):
        async with system.run("demo", ["sleep", "1000"]) as c:
            pid = (await system.containers.get(c.id)).pid
            assert alive(pid)
        assert not alive(pid)
        with trio.move_on_after(1) as scope:
            async with system.run("demo", ["sleep", "1000"]) as c:
                await c.wait()
        assert scope.cancelled_caught
        assert await system.containers.list() == ()
        assert [path.name for path in (system.paths.root / "containers").iterdir()] == []


async def test_many_containers_live_beside_each_other(system: Any) -> None:
    async def one(number: int) -> None:
        async with system.run("demo", ["echo", str(number)], check=True) as c:
            await c.wait()
            assert await c.stdout.receive_some() == f"{number}\n".encode()

    with trio.fail_after(110):
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(one, number)
        assert await system.containers.list() == ()


async def test_a_killed_api_server_loses_no_container_and_no_exit_status(system: Any) -> None:
    with trio.fail_after(100):
        made = await system.containers.create(
            ContainerOptions(
                "demo", name="web", network="none", command=("sh", "-c", "sleep 3; exit 7")
            )
        )
        async with system.run("demo", ["cat"], stdin=True) as attached:
            await system.containers.start("web")
            async with Health.connect(system.paths.apiserver_socket) as health:
                os.kill((await health.ping()).pid, signal.SIGKILL)
            async with connect_system(system.paths) as again:
                running = await again.containers.get("web")
                assert (running.id, running.status) == (made.id, ContainerStatus.RUNNING)
                assert (await again.containers.wait("web")).code == 7
                # An attached client speaks to the helper itself.
                await attached.stdin.send_all(b"still here")
                assert await attached.stdout.receive_some() == b"still here"
                await attached.stdin.aclose()
                assert (await attached.wait()).code == 0
                await again.containers.delete("web")
                await again.containers.delete(attached.id, True)


async def test_a_stopped_container_starts_again(system: Any) -> None:
    with trio.fail_after(60):
        await system.containers.create(
            ContainerOptions(
                "demo", name="web", network="none", command=("sh", "-c", "echo run; sleep 1000")
            )
        )
        for _ in range(2):
            await system.containers.start("web")
            stopped = await system.containers.stop("web", StopOptions(timeout=0.2))
            assert stopped.exit is not None
            assert stopped.exit.code == 137
        files = await system.containers.logs("web")
        with files.data, files.index:
            assert os.pread(files.data.fileno(), 100, 0) in (b"run\nrun\n", b"run\n")
        await system.containers.delete("web")


async def test_a_private_system_is_gone_with_its_block(layout: Path) -> None:
    with trio.fail_after(60):
        async with container.open_system() as system:
            await system.load(layout)
            paths = system.paths
            async with system.run("demo", ["sleep", "1000"]):
                assert len(processes_of(paths.run)) >= 4
        assert not paths.run.exists()
        assert not paths.root.exists()
        assert processes_of(paths.run) == []


OWNER = """
import os, sys, trio
import container

async def main():
    async with container.open_system(sys.argv[1]) as system:
        await system.load(sys.argv[2])
        async with system.run("demo", ["sleep", "1000"]) as c:
            pid = (await system.containers.get(c.id)).pid
            print(system.paths.run, pid, flush=True)
            await trio.sleep_forever()

trio.run(main)
"""


async def test_even_sigkill_of_the_owner_ends_all(layout: Path, tmp_path: Path) -> None:
    with trio.fail_after(100):
        owner = await trio.lowlevel.open_process(
            [sys.executable, "-c", OWNER, str(tmp_path / "root"), str(layout)],
            stdout=subprocess.PIPE,
        )
        assert owner.stdout is not None
        async with owner.stdout:
            line = b""
            while not line.endswith(b"\n"):
                part = await owner.stdout.receive_some()
                assert part, "the owner ended"
                line += part
        run, pid = line.decode().split()
        assert alive(pid)
        owner.kill()
        await owner.wait()
        await gone(pid)
        while processes_of(Path(run)):  # noqa: ASYNC110 (they are not ours to wait for)
            await trio.sleep(0.05)
        shutil.rmtree(run)
        mounts = await trio.Path("/proc/self/mountinfo").read_text()
        assert str(tmp_path) not in mounts


async def test_connecting_where_no_system_runs_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no container system runs") as caught:
        async with connect_system(Paths(root=tmp_path, run=tmp_path / "run")):
            raise AssertionError("connected")
    assert "container system start" in (caught.value.hint or "")
