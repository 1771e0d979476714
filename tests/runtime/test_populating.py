"""A volume's first use: what of the image is in it then, and what a crash leaves."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from container.contracts.runtime import Mount, MountKind
from container.ipc import NotFound, Unavailable
from container.runtime import kernel, populating
from container.runtime.mounts import all_mounts
from container.runtime.populating import READY, populate_volumes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
CAPABILITY = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A container's root with something at /data."""
    data = tmp_path / "root/data"
    (data / "inner").mkdir(parents=True)
    (data / "file").write_text("from the image")
    os.chown(data / "file", 1000, 1001)
    (data / "file").chmod(0o4751)
    os.setxattr(data / "file", "security.capability", CAPABILITY)
    os.utime(data / "file", ns=(1, 2))
    os.link(data / "file", data / "inner/same")
    (data / "link").symlink_to("/etc/passwd")
    os.mkfifo(data / "fifo")
    os.mknod(data / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.chown(data, 33, 34)
    data.chmod(0o2770)
    os.setxattr(data, "user.mark", b"of the folder")
    return tmp_path / "root"


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """An empty volume's data."""
    (tmp_path / "volume/_data").mkdir(parents=True)
    return tmp_path / "volume/_data"


def at(volume: Path, destination: str = "/data", **rest: Any) -> list[Mount]:
    return [Mount(MountKind.VOLUME, destination, str(volume), **rest)]


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


async def test_an_empty_volume_gets_all_that_the_image_has_there(root: Path, volume: Path) -> None:
    before = os.stat(volume).st_ino
    await populate_volumes(at(volume), root)
    assert names(volume) == ["fifo", "file", "inner", "inner/same", "link", "null"]
    file = (volume / "file").stat()
    assert (file.st_uid, file.st_gid, stat.S_IMODE(file.st_mode)) == (1000, 1001, 0o4751)
    assert file.st_mtime_ns == 2
    assert os.getxattr(volume / "file", "security.capability") == CAPABILITY
    assert (volume / "inner/same").stat().st_ino == file.st_ino
    assert os.readlink(volume / "link") == "/etc/passwd"
    assert stat.S_ISFIFO((volume / "fifo").stat().st_mode)
    assert (volume / "null").stat().st_rdev == os.makedev(1, 3)
    top = os.stat(volume)
    assert (top.st_uid, top.st_gid, stat.S_IMODE(top.st_mode)) == (33, 34, 0o2770)
    assert os.getxattr(volume, "user.mark") == b"of the folder"
    assert top.st_ino == before  # whoever has it mounted sees it
    assert names(volume.parent) == ["_data", *(f"_data/{name}" for name in names(volume))]


async def test_a_volume_with_anything_in_it_stays_as_it_is(root: Path, volume: Path) -> None:
    (volume / "mine").touch()
    await populate_volumes(at(volume), root)
    assert names(volume) == ["mine"]
    assert os.stat(volume).st_uid == 0


async def test_nocopy_leaves_a_volume_empty(root: Path, volume: Path) -> None:
    await populate_volumes(at(volume, populate=False), root)
    assert names(volume) == []
    assert os.stat(volume).st_uid == 0


async def test_an_empty_folder_of_the_image_gives_its_owner_and_mode(
    root: Path, volume: Path
) -> None:
    (root / "var/lib/mine").mkdir(parents=True)
    os.chown(root / "var/lib/mine", 70, 71)
    (root / "var/lib/mine").chmod(0o700)
    await populate_volumes(at(volume, "/var/lib/mine"), root)
    top = os.stat(volume)
    assert (top.st_uid, top.st_gid, stat.S_IMODE(top.st_mode)) == (70, 71, 0o700)


@pytest.mark.parametrize("destination", ["/nowhere", "/data/file", "/data/file/below", "/loop"])
async def test_where_the_image_has_no_folder_a_volume_stays_empty(
    root: Path, volume: Path, destination: str
) -> None:
    (root / "loop").symlink_to("loop")
    await populate_volumes(at(volume, destination), root)
    assert names(volume) == []


@pytest.mark.parametrize("target", ["{outside}", "../../../../../../{outside}", "up/{outside}"])
async def test_no_link_of_an_image_leads_out_of_its_root(
    root: Path, volume: Path, tmp_path: Path, target: str
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").touch()
    (root / "up").symlink_to("../../../..")
    (root / "out").symlink_to(target.format(outside=tmp_path / "secret"))
    await populate_volumes(at(volume, "/out"), root)
    assert names(volume) == []


async def test_a_link_of_an_image_is_followed_inside_its_root(root: Path, volume: Path) -> None:
    (root / "way").symlink_to("/data/inner")
    await populate_volumes(at(volume, "/way"), root)
    assert names(volume) == ["same"]


async def test_of_two_containers_at_once_one_populates(root: Path, volume: Path) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(populate_volumes, at(volume), root)
    assert names(volume) == ["fifo", "file", "inner", "inner/same", "link", "null"]
    assert names(volume.parent)[0] == "_data"


class Killed(BaseException):
    """What a kill does to the code: nothing after it is done."""


def killing(function: Any, countdown: Iterator[int]) -> Any:
    """Return a function that is one step: at the last of the countdown it is not taken."""

    def call(*args: Any, **rest: Any) -> Any:
        if next(countdown, 0) == 0:
            raise Killed
        return function(*args, **rest)

    return call


STEPS = (
    (os, "rename"),
    (os, "chown"),
    (os, "utime"),
    (populating, "_run_copy"),
    (populating, "sync_file_system"),
    (populating, "sync_folder"),
    (shutil, "rmtree"),
)


async def test_a_kill_at_any_step_leaves_a_volume_that_its_next_use_makes_whole(
    root: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    whole = ["fifo", "file", "inner", "inner/same", "link", "null"]
    killed = True
    step = 0
    while killed:
        volume = tmp_path / str(step) / "_data"
        volume.mkdir(parents=True)
        countdown = iter(range(step, -1, -1))
        with monkeypatch.context() as patched:
            for module, name in STEPS:
                patched.setattr(module, name, killing(getattr(module, name), countdown))
            try:
                await populate_volumes(at(volume), root)
                killed = False
            except Killed:
                pass
        assert (volume.parent / READY).exists() or names(volume) in ([], whole), step
        # One that wants no copy makes whole what was begun, and begins nothing.
        await populate_volumes(at(volume, populate=False), root)
        assert names(volume) in ([], whole), step
        await populate_volumes(at(volume), root)
        assert names(volume) == whole, step
        assert os.listdir(volume.parent) == ["_data"], step
        step += 1
    assert step > 12


async def test_a_volume_that_is_a_mount_of_its_own_is_populated_within_itself(
    root: Path, volume: Path, tmp_path: Path
) -> None:
    kernel.mount("tmpfs", volume, "tmpfs", 0, "size=1m")
    try:
        await populate_volumes(at(volume), root)
        assert names(volume) == ["fifo", "file", "inner", "inner/same", "link", "null"]
        assert stat.S_IMODE(os.stat(volume).st_mode) == 0o2770
    finally:
        kernel.unmount(volume, 0)


async def test_no_space_is_told_and_leaves_the_volume_empty(root: Path, volume: Path) -> None:
    (root / "data/large").write_bytes(bytes(1 << 20))
    kernel.mount("tmpfs", volume, "tmpfs", 0, "size=64k")
    try:
        with pytest.raises(Unavailable, match=r"volume at /data .* No space left"):
            await populate_volumes(at(volume), root)
        assert names(volume) == []
    finally:
        kernel.unmount(volume, 0)


async def test_a_cancelled_copy_ends_at_once_and_leaves_the_volume_empty(
    root: Path, volume: Path, monkeypatch: Any
) -> None:
    (volume.parent / "cp").write_text("#!/bin/sh\nexec sleep 1000\n")
    (volume.parent / "cp").chmod(0o755)
    monkeypatch.setenv("PATH", f"{volume.parent}:{os.environ['PATH']}")
    with trio.move_on_after(0.2) as scope:
        await populate_volumes(at(volume), root)
    assert scope.cancelled_caught
    assert names(volume) == []


@pytest.mark.parametrize("anonymous", [False, True])
async def test_what_goes_with_its_container_is_not_synced(
    root: Path, volume: Path, monkeypatch: Any, anonymous: bool
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(populating, "sync_file_system", synced.append)
    await populate_volumes(at(volume, anonymous=anonymous), root, volatile=True)
    assert bool(synced) == (not anonymous)
    assert "file" in names(volume)


async def test_a_volume_that_is_not_there_is_told(root: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"the data of the volume .*/gone' does not exist"):
        await populate_volumes(at(tmp_path / "gone"), root)


async def test_a_waiting_container_can_be_cancelled(root: Path, volume: Path) -> None:
    folder = os.open(volume.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with trio.move_on_after(0.2) as scope:
            await populate_volumes(at(volume), root)
        assert scope.cancelled_caught
    finally:
        os.close(folder)
    await populate_volumes(at(volume), root)
    assert "file" in names(volume)


def test_a_volume_is_bound_as_its_user_wants(volume: Path) -> None:
    (mount,) = all_mounts([], {}, (Mount(MountKind.VOLUME, "/d", str(volume), read_only=True),))
    assert mount["source"] == str(volume)
    assert {"rbind", "ro", "nosuid", "nodev"} <= set(mount["options"])
