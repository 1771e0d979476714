"""A kill or a power failure at any step of what is done with volumes: the next start heals."""

from __future__ import annotations

import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from container.apiserver.store import ContainerStore
from container.apiserver.volumes_local import LocalDriver
from container.apiserver.volumes_store import VolumeStore
from container.contracts.apiserver import ContainerStatus
from container.contracts.runtime import Mount, MountKind
from container.contracts.volumes import Volume, VolumeOptions
from container.testing.power_loss import PowerLoss
from tests.apiserver.conftest import EPOCH
from tests.faults.test_power_loss import every_crash

MOUNTS = (Mount(MountKind.VOLUME, "/data", "named"), Mount(MountKind.VOLUME, "/cache"))


class Moments(trio.abc.Instrument):
    """Copies of all that is on disk, each time that a task has done something to it."""

    def __init__(self, world: Any) -> None:
        self.root = world.paths.root
        self.seen: dict[str, dict[str, bytes | None]] = {}

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        last, files = None, self._files()
        while files != last:  # worker threads go on while we look
            last, files = files, self._files()
        self.seen.setdefault(repr(files), files)

    def _files(self) -> dict[str, bytes | None]:
        try:
            return {
                str(path.relative_to(self.root)): None if path.is_dir() else path.read_bytes()
                for path in sorted(self.root.rglob("*"))
            }
        except OSError:
            return self._files()


def restore(files: dict[str, bytes | None], root: Path) -> None:
    root.mkdir(parents=True)
    for name, content in files.items():
        if content is None:
            (root / name).mkdir(exist_ok=True)
        else:
            (root / name).write_bytes(content)
            (root / name).chmod(0o600)


async def create(world: Any, server: Any, options: Any) -> None:
    await server.create(options(name="web", mounts=MOUNTS))


async def fail_to_create(world: Any, server: Any, options: Any) -> None:
    world.faults.errors["images.prepare"] = RuntimeError("no")
    with pytest.raises(RuntimeError):
        await create(world, server, options)


async def start(world: Any, server: Any, options: Any) -> None:
    await create(world, server, options)
    await server.start("web")


async def delete(world: Any, server: Any, options: Any) -> None:
    await create(world, server, options)
    await server.start("web")
    await server.delete("web", force=True, volumes=True)


async def remove_itself(world: Any, server: Any, options: Any) -> None:
    made = await server.create(options(name="web", mounts=MOUNTS, auto_remove=True))
    await server.start("web")
    world.sandboxes[made.id].exit(0)
    await trio.sleep(5)


async def volumes_alone(world: Any, server: Any, options: Any) -> None:
    await server.volumes.create(VolumeOptions("named"))
    await server.volumes.create(VolumeOptions())
    await server.volumes.prune()
    await server.volumes.delete("named")


OPERATIONS: dict[str, Callable[[Any, Any, Any], Awaitable[None]]] = {
    "create": create,
    "a creation that fails": fail_to_create,
    "start": start,
    "delete": delete,
    "the end of one that removes itself": remove_itself,
    "volumes alone": volumes_alone,
}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_from_any_moment_the_next_server_comes_to_volumes_that_belong_to_somebody(
    autojump_clock: Any, world: Any, options: Any, operation: str, tmp_path: Path
) -> None:
    moments = Moments(world)
    async with world.server() as server:
        trio.lowlevel.add_instrument(moments)
        try:
            await OPERATIONS[operation](world, server, options)
        finally:
            trio.lowlevel.remove_instrument(moments)
    assert len(moments.seen) > 5
    for number, files in enumerate(moments.seen.values()):
        other = type(world)(tmp_path / str(number))
        restore(files, other.paths.root)
        async with other.launcher:
            await _heals(other, f"moment {number}: {sorted(files)}")


async def _heals(world: Any, where: str) -> None:
    async with world.server() as server:
        await trio.sleep(200)
        found = await server.list()
        names = {volume.name for volume in await server.volumes.list()}
        assert names == set(os.listdir(world.paths.volumes)), where
        for container in found:
            if container.status is not ContainerStatus.RUNNING:
                await server.start(container.id)
            names = {volume.name for volume in await server.volumes.list()}
            wanted = {mount.source for mount in container.mounts}
            assert wanted <= names, where
            await server.delete(container.id, force=True, volumes=True)
        left = {volume.name for volume in await server.volumes.list()}
        if found:
            assert left <= {"named"}, where
        # One that nobody asked a container for may have been made a moment ago by its user.
        for volume in await server.volumes.list():
            await server.volumes.delete(volume.name)
        assert os.listdir(world.paths.volumes) == [], where
        assert world.left() == [], where


async def test_no_moment_of_a_removal_leaves_an_anonymous_volume_without_a_container(
    autojump_clock: Any, world: Any, options: Any, tmp_path: Path
) -> None:
    moments = Moments(world)
    async with world.server() as server:
        trio.lowlevel.add_instrument(moments)
        try:
            await delete(world, server, options)
        finally:
            trio.lowlevel.remove_instrument(moments)
    for number, files in enumerate(moments.seen.values()):
        other = type(world)(tmp_path / str(number))
        restore(files, other.paths.root)
        async with other.launcher, other.server() as server:
            await trio.sleep(200)
            used = {mount.source for it in await server.list() for mount in it.mounts}
            loose = {it.name for it in await server.volumes.list() if it.anonymous} - used
            assert loose == set(), sorted(files)


# --- power ---


async def test_a_power_failure_leaves_a_volume_whole_or_not_at_all(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    store = VolumeStore(disk / "volumes")
    store.load()
    driver = LocalDriver(store.place)
    with PowerLoss(disk) as loss:
        store.begin(Volume("data", "local", EPOCH))
        await driver.create("data", {})
        store.commit("data")
        loss.acknowledge("made")
        store.give_up("data")
        loss.acknowledge("gone")
        store.sweep("data")

    def check(place: Path, acknowledged: tuple[object, ...]) -> None:
        again = VolumeStore(place / "volumes")
        loaded = again.load()
        assert loaded.broken == {}
        there = [volume.name for volume in loaded.volumes]
        if acknowledged == ("made",) and not loaded.unfinished:
            assert there == ["data"]
        if "gone" in acknowledged:
            assert there == []
        for volume in loaded.volumes:
            assert (again.place(volume.name) / "_data").is_dir()
        for name in loaded.unfinished:
            again.sweep(name)
        assert sorted(os.listdir(place / "volumes")) == there

    assert every_crash(loss, tmp_path, check) > 10


async def test_a_power_failure_in_a_removal_leaves_no_anonymous_volume_without_its_container(
    tmp_path: Path,
) -> None:
    from attrs import evolve

    from tests.audit.conftest import container

    disk = tmp_path / "disk"
    disk.mkdir()
    containers, volumes = ContainerStore(disk / "containers"), VolumeStore(disk / "volumes")
    containers.load()
    volumes.load()
    mount = Mount(MountKind.VOLUME, "/cache", "anon", anonymous=True)
    one = evolve(container("0123456789ab"), mounts=(mount,))
    with PowerLoss(disk, names_with_files=True) as loss:
        containers.create(one)
        volumes.begin(Volume("anon", "local", EPOCH, anonymous=True))
        await LocalDriver(volumes.place).create("anon", {})
        volumes.commit("anon")
        containers.mark_removing(one.id, volumes=True)
        volumes.give_up("anon")
        volumes.sweep("anon")
        containers.remove(one.id)

    def check(place: Path, acknowledged: tuple[object, ...]) -> None:
        found = ContainerStore(place / "containers")
        loaded = found.load()
        there = VolumeStore(place / "volumes").load().volumes
        for key in loaded.removing:
            removed, goes = found.load_removed(key)
            assert removed is not None
            assert goes or not there
        if not loaded.containers and not loaded.removing:
            assert there == ()
        shutil.rmtree(place / "volumes", ignore_errors=True)

    assert every_crash(loss, tmp_path, check) > 20
