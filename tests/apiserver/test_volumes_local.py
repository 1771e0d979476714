"""Volumes with a size: a real file system in a real file, mounted for who uses it alone."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import trio

from container.apiserver import volumes_local
from container.apiserver.store import mounts_below
from container.apiserver.volumes_local import LocalDriver, parse_options, unmount
from container.contracts.runtime import Mount, MountKind
from container.ipc import Unavailable, Unsupported
from container.runtime import kernel


def _why_not() -> str:
    if os.geteuid() != 0:
        return "needs root"
    if not shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:" + os.environ["PATH"]):
        return "needs mkfs.ext4"
    return "" if os.path.exists("/dev/loop-control") else "needs loop devices"


pytestmark = pytest.mark.skipif(bool(_why_not()), reason=_why_not())


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncGenerator[LocalDriver]:
    """A driver; what is mounted at the end is a failure, and unmounted."""
    for name in ("big", "plain"):
        (tmp_path / name).mkdir()
    yield LocalDriver(lambda name: tmp_path / name)
    left = mounts_below(tmp_path)
    for name in ("big", "plain"):
        unmount(tmp_path / name)
    assert left == []


def write(folder: str, name: str, data: bytes) -> None:
    Path(folder, name).write_bytes(data)


async def test_a_volume_with_a_size_is_full_when_it_is_full(
    driver: LocalDriver, tmp_path: Path
) -> None:
    await driver.create("big", {"size": "8m"})
    before = await driver.usage("big")
    assert os.stat(tmp_path / "big/image").st_size == 8 << 20
    assert before < 2 << 20
    async with driver.mount("big", "one") as path:
        assert os.listdir(path) == []  # no lost+found
        assert os.stat(path).st_mode & 0o7777 == 0o755
        with pytest.raises(OSError, match="No space left"):
            write(path, "file", bytes(9 << 20))
        os.sync()
        assert 5 << 20 < await driver.usage("big") < 9 << 20
        os.unlink(f"{path}/file")
        write(path, "small", b"kept")
    assert mounts_below(tmp_path) == []
    assert await driver.usage("big") < 4 << 20  # freed blocks went back
    async with driver.mount("big", "two") as path:
        assert os.listdir(path) == ["small"]


async def test_it_is_mounted_until_its_last_user_has_left(
    driver: LocalDriver, tmp_path: Path
) -> None:
    await driver.create("big", {"size": "8m"})
    async with driver.mount("big", "one"):
        async with driver.mount("big", "two") as path:
            assert path == f"{tmp_path}/big/_mount/_data"
            assert len(mounts_below(tmp_path)) == 1
        assert len(mounts_below(tmp_path)) == 1
    assert mounts_below(tmp_path) == []


async def test_a_scope_that_is_cancelled_leaves_it_mounted_for_who_comes_next(
    driver: LocalDriver, tmp_path: Path
) -> None:
    await driver.create("big", {"size": "8m"})
    with trio.CancelScope() as scope:
        async with driver.mount("big", "one") as path:
            write(path, "x", b"")
            scope.cancel()
            await trio.sleep_forever()
    assert len(mounts_below(tmp_path)) == 1
    other = LocalDriver(lambda name: tmp_path / name)
    async with other.mount("big", "one") as path:
        assert os.listdir(path) == ["x"]
        assert len(mounts_below(tmp_path)) == 1
    assert mounts_below(tmp_path) == []


async def test_what_is_open_from_outside_does_not_keep_it_mounted(
    driver: LocalDriver, tmp_path: Path
) -> None:
    await driver.create("big", {"size": "8m"})
    async with driver.mount("big", "one") as path:
        looking = os.open(path, os.O_RDONLY)
    assert mounts_below(tmp_path) == []
    os.close(looking)


async def test_a_folder_is_a_folder(driver: LocalDriver, tmp_path: Path) -> None:
    await driver.create("plain", {})
    assert driver.mountpoint("plain") == f"{tmp_path}/plain/_data"
    async with driver.mount("plain", "one") as path:
        assert path == f"{tmp_path}/plain/_data"
        assert mounts_below(tmp_path) == []


async def test_a_file_system_that_is_none_is_told(driver: LocalDriver, tmp_path: Path) -> None:
    (tmp_path / "big/image").write_bytes(bytes(1 << 20))
    with pytest.raises(Unavailable, match="file system of volume big can't be mounted"):
        async with driver.mount("big", "one"):
            raise AssertionError
    assert driver.mountpoint("big") == ""


async def test_what_is_not_installed_is_named(
    driver: LocalDriver, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(volumes_local, "_path", lambda: "/nowhere")
    with pytest.raises(Unsupported, match=r"mkfs\.ext4 is not installed"):
        await driver.create("big", {"size": "8m"})
    assert os.listdir(tmp_path / "big") == []


async def test_where_no_space_is_left_nothing_is_left(driver: LocalDriver, tmp_path: Path) -> None:
    kernel.mount("tmpfs", tmp_path / "big", "tmpfs", 0, "size=64k")
    try:
        with pytest.raises(Unavailable, match="no file system of 8388608 bytes can be made"):
            await driver.create("big", {"size": "8m"})
        assert os.listdir(tmp_path / "big") == []
    finally:
        kernel.unmount(tmp_path / "big", 0)


@pytest.mark.parametrize(
    ("text", "size"),
    [("8388608", 8 << 20), ("8m", 8 << 20), ("8MiB", 8 << 20), ("1G", 1 << 30), ("1tb", 1 << 40)],
)
def test_a_size_has_a_unit_or_none(text: str, size: int) -> None:
    assert parse_options({"size": text}) == size


async def leave_mounted(world: Any, name: str) -> None:
    """Mount a volume as a server does that is killed then."""
    killed = LocalDriver(lambda name: world.paths.volumes / name)
    with trio.CancelScope() as scope:
        async with killed.mount(name, "somebody"):
            scope.cancel()
            await trio.sleep_forever()


async def test_the_next_server_mounts_for_what_runs_and_unmounts_what_a_killed_one_has_left(
    autojump_clock: Any, world: Any, options: Any
) -> None:
    from container.contracts.volumes import VolumeOptions

    try:
        async with world.server() as server:
            for name in ("runs", "ended"):
                await server.volumes.create(VolumeOptions(name, options={"size": "8m"}))
                mount = Mount(MountKind.VOLUME, "/data", name)
                made = await server.create(options(name=name, mounts=(mount,)))
                await server.start(made.id)
                assert world.sandboxes[made.id].spec.mounts[0].source == (
                    f"{world.paths.volumes}/{name}/_mount/_data"
                )
            assert len(mounts_below(world.paths.root)) == 2
        assert mounts_below(world.paths.root) == []
        for name in ("runs", "ended"):
            await leave_mounted(world, name)
        ended = next(key for key, it in world.sandboxes.items() if it.spec.name == "ended")
        world.sandboxes[ended].exit(0)
        async with world.server() as server:
            await trio.sleep(10)
            assert mounts_below(world.paths.root) == [f"{world.paths.volumes}/runs/_mount"]
            await server.delete("runs", force=True)
            assert mounts_below(world.paths.root) == []
            await server.volumes.delete("runs")
    finally:
        unmount(world.paths.root)


async def test_a_mount_of_a_container_that_never_ran_is_unmounted_at_the_next_start(
    autojump_clock: Any, world: Any, options: Any
) -> None:
    from container.contracts.volumes import VolumeOptions

    try:
        async with world.server() as server:
            await server.volumes.create(VolumeOptions("big", options={"size": "8m"}))
            await server.create(options(mounts=(Mount(MountKind.VOLUME, "/data", "big"),)))
        await leave_mounted(world, "big")
        assert len(mounts_below(world.paths.root)) == 1
        async with world.server():
            await trio.sleep(10)
            assert mounts_below(world.paths.root) == []
    finally:
        unmount(world.paths.root)


async def test_a_mount_that_a_killed_server_has_begun_is_waited_for(
    driver: LocalDriver, tmp_path: Path
) -> None:
    await driver.create("big", {"size": "8m"})
    image = os.open(tmp_path / "big/image", os.O_RDONLY)
    fcntl.flock(image, fcntl.LOCK_EX)
    async with trio.open_nursery() as nursery:

        async def mount() -> None:
            async with driver.mount("big", "one"):
                pass

        nursery.start_soon(mount)
        await trio.sleep(0.2)
        assert mounts_below(tmp_path) == []
        os.close(image)


def with_mounts_of_its_own() -> subprocess.Popen[bytes]:
    """Start a process that keeps what is mounted now."""
    script = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep 100"]
    process = subprocess.Popen(script, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


async def test_a_file_system_that_is_still_mounted_elsewhere_is_the_same_one(
    driver: LocalDriver, tmp_path: Path
) -> None:
    await driver.create("big", {"size": "8m"})
    async with driver.mount("big", "one"):
        elsewhere = await trio.to_thread.run_sync(with_mounts_of_its_own)
    try:
        async with driver.mount("big", "two") as path:
            write(path, "new", b"")
            seen = ["nsenter", f"--mount=/proc/{elsewhere.pid}/ns/mnt", "ls", path]
            done = await trio.run_process(seen, capture_stdout=True)
            assert done.stdout == b"new\n"
    finally:
        elsewhere.kill()
        elsewhere.communicate()
