"""What is wrong with volumes is found, named, and repaired only where that is safe."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from attrs import evolve

from container.apiserver.store import ContainerStore, mounts_below
from container.apiserver.volumes_local import unmount
from container.apiserver.volumes_store import VolumeStore
from container.audit import Remedy, audit, repair
from container.contracts.runtime import Mount, MountKind
from container.contracts.volumes import Volume
from container.runtime import kernel
from container.storage.paths import Paths
from tests.audit.conftest import ID, container, found

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def volume(paths: Paths) -> Path:
    """A volume at rest."""
    return make(paths, Volume("data", "local", NOW))


def make(paths: Paths, volume: Volume) -> Path:
    store = VolumeStore(paths.volumes)
    store.load()
    store.begin(volume)
    (store.place(volume.name) / ("image" if volume.options else "_data")).mkdir()
    store.commit(volume.name)
    return store.place(volume.name)


def use(paths: Paths, name: str, **changes: object) -> None:
    store = ContainerStore(paths.containers)
    store.load()
    mounts = (Mount(MountKind.VOLUME, "/d", name),)
    store.create(evolve(container("sha256:" + "1" * 64), mounts=mounts, **changes))


async def kinds(paths: Paths) -> dict[str, str]:
    report = await audit(paths, settle=0)
    return {it.kind.value: it.what for it in report.findings if it.kind.value != "lease"}


async def test_a_volume_at_rest_is_clean_and_counted(paths: Paths, volume: Path) -> None:
    report = await audit(paths, settle=0)
    assert report.clean, report.findings
    assert report.looked_at["volumes"] == 1


async def test_a_broken_document_is_named_and_never_touched(paths: Paths, volume: Path) -> None:
    (volume / "volume.json").write_text("{")
    finding = (await found(paths))["broken"]
    assert str(volume / "volume.json") in finding.what
    assert await repair(paths, finding) is None
    assert (volume / "volume.json").read_text() == "{"


@pytest.mark.parametrize("end", ["new", "gone"])
async def test_half_a_volume_is_removed(paths: Paths, volume: Path, end: str) -> None:
    half = paths.volumes / f".data.{end}"
    os.rename(volume, half)
    finding = (await found(paths))["leftover"]
    assert (finding.subject, finding.action) == (str(half), Remedy.REMOVE)
    assert await repair(paths, finding) == "it was removed"
    assert os.listdir(paths.volumes) == []


async def test_half_a_volume_of_a_plugin_is_left_to_its_driver(paths: Paths) -> None:
    make(paths, Volume("far", "shelf", NOW)).rename(paths.volumes / ".far.gone")
    finding = (await found(paths))["leftover"]
    assert finding.action is Remedy.START
    assert await repair(paths, finding) is None


async def test_a_stranger_among_volumes_is_left_alone(paths: Paths, volume: Path) -> None:
    (paths.volumes / "not a volume").mkdir()
    assert (await found(paths))["stranger"].action is Remedy.PERSON


@pytest.mark.parametrize("options", [{}, {"size": "8m"}])
async def test_a_volume_without_its_data_is_found(paths: Paths, options: dict[str, str]) -> None:
    folder = make(paths, Volume("data", "local", NOW, options))
    (folder / ("image" if options else "_data")).rmdir()
    assert "the data of volume data is not there" in (await kinds(paths))["volume"]


async def test_a_container_without_its_volume_is_found_if_it_ever_ran(paths: Paths) -> None:
    use(paths, "gone")
    assert "volume" not in await kinds(paths)
    (paths.containers / ID / "container.json").unlink()
    (paths.containers / ID).rmdir()
    use(paths, "gone", started_at=NOW)
    assert (await kinds(paths))["volume"] == "volume gone of container name-0123 is not there"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_a_mount_that_nobody_uses_is_unmounted(paths: Paths) -> None:
    folder = make(paths, Volume("data", "local", NOW, {"size": "8m"}))
    use(paths, "data")
    (folder / "_mount").mkdir()
    kernel.mount("tmpfs", folder / "_mount", "tmpfs", 0, "size=64k")
    try:
        report = await audit(paths, settle=0)
        (finding,) = [it for it in report.findings if it.kind.value == "mount"]
        assert finding.subject == f"{folder}/_mount"
        assert await repair(paths, finding) == "it was unmounted"
        assert mounts_below(folder) == []
    finally:
        unmount(folder)
