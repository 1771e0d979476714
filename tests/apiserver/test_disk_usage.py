"""What is called reclaimable is what is freed: compared with what the disk itself says."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trio

from container.apiserver.disk_usage import YOUNG
from container.contracts.apiserver import ContainerOptions, ContainerStatus
from container.contracts.images import DeletedImage
from container.contracts.runtime import Mount, MountKind, StopOptions
from container.contracts.usage import DiskUsage, PruneOptions
from container.contracts.volumes import VolumeOptions
from container.storage.disk_usage import disk_bytes
from container.testing.in_process import System, system

EVERYTHING = PruneOptions(images=True, volumes=True)


def on_disk(root: Path) -> int:
    """Return the blocks that a tree takes, by another way than the code's: du's."""
    seen: set[int] = set()
    total = 0
    for folder, _, files in os.walk(root):
        for path in (folder, *(os.path.join(folder, name) for name in files)):
            found = os.lstat(path)
            if found.st_ino not in seen:
                seen.add(found.st_ino)
                total += found.st_blocks * 512
    return total


def write(path: Path, size: int) -> None:
    path.write_bytes(bytes(size))


def reclaimable(usage: DiskUsage) -> dict[str, int]:
    return {total.kind: total.reclaimable_bytes for total in usage.totals}


async def run_once(it: System, image: str, name: str, *mounts: Mount) -> str:
    made = await it.containers.create(
        ContainerOptions(image, name=name, mounts=mounts, network="none", command=("true",))
    )
    await it.containers.start(made.id)
    await it.containers.wait(made.id)
    await trio.sleep(5)
    write(it.paths.containers / made.id / "written", 100_000)
    return made.id


@pytest.mark.parametrize(
    "options",
    [PruneOptions(), PruneOptions(images=True), PruneOptions(volumes=True), EVERYTHING],
    ids=["", "images", "volumes", "everything"],
)
async def test_what_is_reclaimable_is_what_is_freed_to_the_byte(
    autojump_clock: Any, options: PruneOptions
) -> None:
    async with system() as it:
        for name in ("used", "old", "alone"):
            await it.add_image(name, programs=(f"program-of-{name}",))
        anonymous = Mount(MountKind.VOLUME, "/cache")
        named = Mount(MountKind.VOLUME, "/data", "data")
        kept = await it.containers.create(
            ContainerOptions(
                "used", mounts=(anonymous, named), network="none", command=("sleep", "1000000")
            )
        )
        await it.containers.start(kept.id)
        await run_once(it, "old", "ended", anonymous, named)
        loose = await it.volumes.create(VolumeOptions())
        await it.volumes.create(VolumeOptions("unused"))
        for volume in await it.volumes.list():
            write(Path(volume.mountpoint, "file"), 50_000)
        # An image that only the ended container still has.
        await run_once(it, "alone", "last")
        deleted = await it.images.delete("alone", force=True)
        assert isinstance(deleted, DeletedImage)
        before_disk = on_disk(it.paths.root)

        told = await it.usage.measure(options)
        gone = await it.usage.prune(options)
        freed = before_disk - on_disk(it.paths.root)

        promised = reclaimable(told)
        assert {key: promised[key] for key in gone.freed} == gone.freed
        assert sum(promised.values()) == freed
        assert promised["containers"] > 200_000
        assert promised["images"] > 0
        assert (promised["volumes"] > 100_000) == options.volumes
        assert set(gone.containers) == {"ended", "last"}
        assert len(gone.volumes) == (2 if options.volumes else 0)
        assert gone.images == (("localhost/old:latest",) if options.images else ())
        names = {volume.name for volume in await it.volumes.list()}
        assert {"data", "unused"} <= names
        assert (loose.name in names) == (not options.volumes)
        assert [container.id for container in await it.containers.list()] == [kept.id]
        assert sum(reclaimable(await it.usage.measure(options)).values()) == 0
        await it.containers.stop(kept.id, StopOptions(timeout=0))


async def test_sums_are_those_of_the_disk(autojump_clock: Any) -> None:
    async with system() as it:
        await it.add_image("one")
        await it.add_image("two", programs=("more",))
        await it.images.tag("one", "also")
        await run_once(it, "one", "c", Mount(MountKind.VOLUME, "/data", "data"))
        usage = await it.usage.measure(EVERYTHING)
        totals = {total.kind: total for total in usage.totals}
        assert list(totals) == ["images", "containers", "volumes", "networks", "build cache"]
        assert [totals[kind].count for kind in totals] == [2, 1, 1, 0, 0]
        assert [totals[kind].active for kind in totals] == [1, 0, 1, 0, 0]
        images = it.paths.images
        parts = [path for kind in ("blobs/sha256", "holders") for path in (images / kind).iterdir()]
        assert totals["images"].size_bytes == (
            on_disk(images / "snapshots")
            - os.lstat(images / "snapshots").st_blocks * 512
            + sum(os.lstat(path).st_blocks * 512 for path in parts)
        )
        (container,) = usage.containers
        assert container.size_bytes == on_disk(it.paths.containers / container.id)
        assert (container.status, container.reclaimable) == (ContainerStatus.STOPPED, True)
        assert 0 < container.log_bytes < container.size_bytes
        (volume,) = usage.volumes
        assert volume.size_bytes == on_disk(it.paths.volumes / "data")
        assert (volume.used_by, volume.reclaimable) == ((container.id,), False)
        rows = {image.references: image for image in usage.images}
        one = rows["localhost/also:latest", "localhost/one:latest"]
        assert one.holders == (container.id,)
        assert (
            rows["localhost/two:latest",].shared_bytes <= rows["localhost/two:latest",].size_bytes
        )


async def test_a_container_that_is_about_to_start_and_one_that_runs_are_left(
    autojump_clock: Any,
) -> None:
    async with system() as it:
        await it.add_image("one")
        young = await it.containers.create(ContainerOptions("one", network="none"))
        runs = await it.containers.create(
            ContainerOptions("one", network="none", command=("sleep", "1000000"))
        )
        await it.containers.start(runs.id)
        assert (await it.usage.prune(EVERYTHING)).containers == ()
        await trio.sleep((YOUNG + timedelta(seconds=1)).total_seconds())
        assert (await it.usage.prune(EVERYTHING)).containers == (young.name,)
        await it.containers.stop(runs.id, StopOptions(timeout=0))


def test_files_are_counted_once_and_mounts_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(10_000))
    os.link(tmp_path / "a", tmp_path / "b")
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 30)
    (tmp_path / "link").symlink_to("/etc")
    folder = tmp_path.stat().st_blocks * 512
    assert disk_bytes(tmp_path) == (tmp_path / "a").stat().st_blocks * 512 + folder + (
        os.lstat(tmp_path / "link").st_blocks * 512
    )
    assert disk_bytes(tmp_path / "nothing") == 0
    seen: set[tuple[int, int]] = set()
    assert disk_bytes(tmp_path / "a", seen=seen) > 0
    assert disk_bytes(tmp_path / "b", seen=seen) == 0
    if os.path.ismount("/proc"):
        assert disk_bytes(Path("/proc/sys/kernel")) == 0
