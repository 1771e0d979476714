"""What is wrong on disk is found, named, and repaired only where that is safe."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from container.audit import Remedy, audit, repair
from container.images.service import ImagesService
from container.ipc import InvalidState
from container.storage.locks import try_lock
from container.storage.paths import Paths
from tests.audit.conftest import ID, found
from tests.images.conftest import load, small_layout


def tree(folder: Path) -> list[tuple[str, bytes]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(str(path), path.read_bytes()) for path in files]


async def test_a_system_that_never_was_is_clean(paths: Paths) -> None:
    assert (await audit(paths, settle=0)).clean
    shutil.rmtree(paths.root)
    report = await audit(paths, settle=0, deep=True)
    assert report.clean
    assert not report.running
    assert not paths.root.exists()


async def test_a_system_at_rest_is_clean_and_counted(system: Paths) -> None:
    before = tree(system.root)
    report = await audit(system, settle=0, deep=True)
    assert report.clean, report.findings
    assert report.looked_at["containers"] == report.looked_at["images"] == 1
    assert report.looked_at["blobs"] == 3
    assert report.looked_at["holds"] == 1
    assert tree(system.root) == before


@pytest.mark.parametrize("raw", [b"", b'{"schema": 1, "val', b'{"schema": 99, "value": {}}'])
async def test_a_broken_document_is_named_and_never_touched(system: Paths, raw: bytes) -> None:
    path = system.containers / ID / "container.json"
    path.write_bytes(raw)
    finding = (await found(system))["broken"]
    assert finding.subject == str(path)
    assert str(path) in finding.what
    assert finding.action is Remedy.PERSON
    assert await repair(system, finding) is None
    assert path.read_bytes() == raw


async def test_another_containers_document_is_broken(system: Paths) -> None:
    path = system.containers / ID / "container.json"
    body = json.loads(path.read_bytes())
    body["value"]["id"] = "f" * 12
    path.write_text(json.dumps(body))
    assert "of another container" in (await found(system))["broken"].what


@pytest.mark.parametrize("place", ["containers/.{id}.new/x", "containers/{id}/.x.json.q.writing"])
async def test_what_was_half_made_is_removed(system: Paths, place: str) -> None:
    path = system.root / place.format(id=ID)
    path.parent.mkdir(exist_ok=True)
    path.touch()
    finding = (await found(system))["leftover"]
    assert await repair(system, finding) == "it was removed"
    assert (await audit(system, settle=0)).clean


async def test_what_is_half_made_is_the_owners_while_it_is_at_work(system: Paths) -> None:
    left = system.images / "ingest" / "blob-1"
    left.touch()
    finding = (await found(system))["leftover"]
    lock = try_lock(system.images / "lock")
    assert lock is not None
    with lock:
        assert (await audit(system, settle=0)).clean
        with pytest.raises(InvalidState, match="at work"):
            await repair(system, finding)
    assert await repair(system, finding) == "it was removed"


async def test_a_removal_that_was_begun_is_for_the_next_start(system: Paths) -> None:
    (system.containers / ID / "removing").touch()
    finding = (await found(system))["removal"]
    assert finding.subject == ID
    assert finding.action is Remedy.START


async def test_a_folder_of_somebody_else_is_left_to_a_person(system: Paths) -> None:
    (system.containers / "photos").mkdir()
    finding = (await found(system))["stranger"]
    assert await repair(system, finding) is None
    assert (system.containers / "photos").is_dir()


async def test_a_hold_without_its_container_is_released(system: Paths) -> None:
    shutil.rmtree(system.containers / ID)
    finding = (await found(system))["lease"]
    assert finding.action is Remedy.RELEASE
    assert await repair(system, finding) == "it was released"
    assert (await audit(system, settle=0)).clean


async def test_a_container_without_its_hold_is_found(system: Paths) -> None:
    (hold,) = (system.images / "holders").iterdir()
    hold.unlink()
    assert (await found(system))["lease"].action is Remedy.START


async def test_a_layer_that_is_not_there_is_found(system: Paths) -> None:
    (snapshot,) = (system.images / "snapshots").iterdir()
    shutil.rmtree(snapshot)
    assert (await found(system))["layer"].subject == ID


async def test_a_blob_that_changed_is_found_by_reading_it_and_set_aside(
    system: Paths, tmp_path: Path
) -> None:
    async with ImagesService(system.images) as images:
        (layer,) = (await images.get("demo")).layers
    blob = system.images / "blobs/sha256" / layer.digest.removeprefix("sha256:")
    data = blob.read_bytes()
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert (await audit(system, settle=0)).clean
    finding = (await found(system, deep=True))["blob"]
    assert finding.subject == layer.digest
    await repair(system, finding)
    kinds = await found(system, deep=True)
    assert kinds["set-aside"].action is Remedy.PERSON
    assert "incomplete" in kinds["blob"].what
    async with ImagesService(system.images) as images:
        await load(images, small_layout(tmp_path / "again"))
    shutil.rmtree(system.images / "blobs/broken")
    assert (await audit(system, settle=0, deep=True)).clean


async def test_a_blob_that_nothing_needs_is_found_after_a_day(system: Paths) -> None:
    async with ImagesService(system.images) as images:
        digest = images._store.blobs.add(b"half a pull")
        path = images._store.blobs.path(digest)
    assert (await audit(system, settle=0)).clean
    os.utime(path, (0, 0))
    finding = (await found(system))["unneeded"]
    assert finding.subject == digest
    assert finding.action is Remedy.SWEEP


async def test_broken_references_make_nothing_unneeded(system: Paths) -> None:
    for blob in (system.images / "blobs/sha256").iterdir():
        os.utime(blob, (0, 0))
    (system.images / "references.json").write_text("{")
    assert set(await found(system)) == {"broken"}


async def test_state_of_a_run_that_is_over_is_found(system: Paths) -> None:
    (system.containers / ID / "bundle/run/state" / ID).mkdir(parents=True)
    assert (await found(system))["run"].action is Remedy.START


async def test_a_socket_without_a_listener_is_removed(system: Paths) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(system.run / "launcher.sock"))
        listener.listen()
        assert (await audit(system, settle=0)).clean
    finding = (await found(system))["socket"]
    assert await repair(system, finding) == "it was removed"
    assert not (system.run / "launcher.sock").exists()


async def test_what_is_wrong_in_passing_is_no_finding(system: Paths) -> None:
    import trio

    left = system.containers / f".{ID}.new"
    left.mkdir()

    async def finish() -> None:
        await trio.sleep(0.1)
        left.rmdir()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(finish)
        report = await audit(system, settle=30)
    assert report.clean
