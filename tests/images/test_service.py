"""Names, holds, deletion, many at once, no space, restarts."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

import container.images.snapshots as snapshots_module
from container.images.service import ImagesService
from container.ipc import (
    DataLoss,
    Fd,
    InvalidArgument,
    InvalidState,
    NotFound,
    Unavailable,
    in_memory,
)
from container.testing.busybox import Entry
from tests.images.conftest import content, load, opened, small_layout

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
TWO = [[Entry("d", kind=b"5"), Entry("d/one", b"1")], [Entry("d/two", b"2")]]


@pytest.fixture
async def loaded(service: ImagesService, tmp_path: Path) -> ImagesService:
    """A store with the image `demo` of two layers."""
    await load(service, small_layout(tmp_path / "layout", layers=TWO))
    return service


def folders(store_folder: Path) -> int:
    return len(list((store_folder / "snapshots").iterdir()))


def all_there(layers: tuple[str, ...]) -> bool:
    return all(Path(layer).is_dir() for layer in layers)


# Names.


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("dem", "demo"), ("demoo:latest", "demo:latest"), ("localhost/deno", "demo")],
)
async def test_an_unknown_image_suggests_a_close_name(
    loaded: ImagesService, wrong: str, right: str
) -> None:
    words = f'no image "{wrong}": did you mean ".*{right}.*"'
    for call in (loaded.get, loaded.delete):
        with pytest.raises(NotFound, match=words) as caught:
            await call(wrong)
        assert right in (caught.value.hint or "")
    with pytest.raises(NotFound, match=words):
        await loaded.prepare(wrong, "c1")
    with pytest.raises(NotFound, match=words):
        await loaded.tag(wrong, "x")


async def test_a_name_like_no_other_gets_no_suggestion(loaded: ImagesService) -> None:
    with pytest.raises(NotFound, match=re.escape('no image "postgres"') + "$"):
        await loaded.get("postgres")


async def test_an_image_is_found_by_the_beginning_of_its_digests(loaded: ImagesService) -> None:
    image = await loaded.get("demo")
    for digest in (image.manifest_digest, image.config_digest):
        digits = digest.removeprefix("sha256:")
        for text in (digest, digits, digits[:7]):
            assert (await loaded.get(text)).manifest_digest == image.manifest_digest
    assert (await loaded.get(f"demo@{image.manifest_digest}")).summary.reference
    with pytest.raises(NotFound):
        await loaded.get(digits[:6])


async def test_a_tag_is_a_further_name_and_may_be_taken_from_another(
    loaded: ImagesService, tmp_path: Path
) -> None:
    demo = await loaded.get("demo")
    summary = await loaded.tag("demo", "other:v1")
    assert summary.reference == "localhost/other:v1"
    assert (await loaded.get("other:v1")).manifest_digest == demo.manifest_digest
    await load(loaded, small_layout(tmp_path / "second", "second"))
    await loaded.tag("second", "other:v1")
    assert (await loaded.get("other:v1")).manifest_digest != demo.manifest_digest
    with pytest.raises(InvalidArgument, match="no image name"):
        await loaded.tag("demo", "BAD")
    with pytest.raises(InvalidArgument, match="has a digest"):
        await loaded.tag("demo", f"x@{demo.manifest_digest}")


async def test_names_are_shown_as_short_as_they_find_the_image(loaded: ImagesService) -> None:
    await loaded.tag("demo", "docker.io/library/alpine:3")
    await loaded.tag("demo", "docker.io/library/demo:latest")
    await loaded.tag("demo", "quay.io/a/b")
    rows = await loaded.list()
    assert [(row.name, row.tag) for row in rows] == [
        ("alpine", "3"),
        ("docker.io/library/demo", "latest"),
        ("demo", "latest"),
        ("quay.io/a/b", "latest"),
    ]
    for row in rows:
        found = await loaded.get(f"{row.name}:{row.tag}")
        assert found.summary.reference == row.reference


# Holding.


async def test_a_prepared_image_is_a_stack_of_folders_topmost_first(loaded: ImagesService) -> None:
    snapshot = await loaded.prepare("demo", "c1")
    top, bottom = map(Path, snapshot.layers)
    assert (top / "d/two").read_text() == "2"
    assert (bottom / "d/one").read_text() == "1"
    assert snapshot.image.summary.reference == "localhost/demo:latest"
    assert await loaded.prepare("demo", "c1") == snapshot


async def test_the_holder_is_on_disk_before_the_reply_and_survives_the_process(
    store_folder: Path, tmp_path: Path
) -> None:
    async with ImagesService(store_folder) as service:
        await load(service, small_layout(tmp_path / "layout", layers=TWO))
        before = await service.prepare("demo", "c1")
        assert [name.split(".")[0] for name in os.listdir(store_folder / "holders")] == ["c1"]
    async with ImagesService(store_folder) as service:
        with pytest.raises(InvalidState, match='"demo" is used by container c1'):
            await service.delete("demo")
        assert (await service.prepare("demo", "c2")).layers == before.layers
        await service.release("c1")
        await service.release("c2")
        await service.release("nobody")
        assert os.listdir(store_folder / "holders") == []
        deleted = await service.delete("demo")
        assert deleted.reference == "localhost/demo:latest"
        assert deleted.freed > 0
        assert content(store_folder)[:-1] == []


async def test_many_preparations_at_once_unpack_once(
    loaded: ImagesService, store_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked: list[str] = []
    real = snapshots_module.unpack_layer

    def counting(*args: object, **options: object) -> int:
        unpacked.append(str(options["diff_id"]))
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(snapshots_module, "unpack_layer", counting)
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(loaded.prepare, "demo", f"c{number}")
    assert len(unpacked) == 2
    assert len(os.listdir(store_folder / "holders")) == 20
    assert folders(store_folder) == 2


async def test_images_share_the_layers_that_they_have_in_common(
    loaded: ImagesService, store_folder: Path, tmp_path: Path
) -> None:
    more = [*TWO, [Entry("three", b"3")]]
    await load(loaded, small_layout(tmp_path / "more", "more", layers=more))
    demo = await loaded.prepare("demo", "c1")
    other = await loaded.prepare("more", "c2")
    assert other.layers[1:] == demo.layers
    assert folders(store_folder) == 3
    await loaded.release("c2")
    await loaded.delete("more")
    assert folders(store_folder) == 2
    assert all_there(demo.layers)


async def test_a_forced_deletion_leaves_the_snapshot_to_its_holders(
    loaded: ImagesService, store_folder: Path
) -> None:
    snapshot = await loaded.prepare("demo", "c1")
    await loaded.prepare("demo", "c2")
    with pytest.raises(InvalidState, match="container c1, c2") as caught:
        await loaded.delete("demo")
    assert caught.value.details["holders"] == ["c1", "c2"]
    await loaded.delete("demo", force=True)
    with pytest.raises(NotFound):
        await loaded.get("demo")
    await loaded.release("c1")
    assert all_there(snapshot.layers)
    assert list((store_folder / "blobs/sha256").iterdir()) == []
    await loaded.release("c2")
    assert content(store_folder)[:-1] == []


async def test_a_further_name_can_be_deleted_while_the_image_is_held(
    loaded: ImagesService,
) -> None:
    await loaded.tag("demo", "again")
    await loaded.prepare("demo", "c1")
    await loaded.delete("again")
    with pytest.raises(InvalidState):
        await loaded.delete("demo")


@pytest.mark.parametrize("holder", ["", "../x", "a/b", ".hidden", "x" * 129, "a\n"])
async def test_a_holder_never_becomes_a_path(loaded: ImagesService, holder: str) -> None:
    with pytest.raises(InvalidArgument, match="is no holder"):
        await loaded.prepare("demo", holder)


async def test_a_cancelled_preparation_leaves_nothing(
    service: ImagesService, store_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [[Entry(f"f{number}", bytes(1 << 20)) for number in range(64)]]
    await load(service, small_layout(tmp_path / "layout", layers=layers))
    before = content(store_folder)
    begun = trio.Event()
    token = trio.lowlevel.current_trio_token()
    real = snapshots_module.unpack_layer

    def telling(*args: object, **options: object) -> int:
        token.run_sync_soon(begun.set)
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(snapshots_module, "unpack_layer", telling)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.prepare, "demo", "c1")
        await begun.wait()
        nursery.cancel_scope.cancel()
    assert content(store_folder) == before
    await service.delete("demo")


async def test_an_image_that_is_deleted_while_it_is_prepared_stays_whole(
    loaded: ImagesService,
) -> None:
    async with trio.open_nursery() as nursery:
        result: list[tuple[str, ...]] = []

        async def prepare() -> None:
            result.append((await loaded.prepare("demo", "c1")).layers)

        nursery.start_soon(prepare)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(loaded.delete, "demo", True)
    assert all_there(result[0])
    await loaded.release("c1")
    assert await loaded.list() == ()


async def test_a_warm_image_costs_well_below_a_millisecond_of_processor(
    loaded: ImagesService,
) -> None:
    await loaded.prepare("demo", "warm")
    rounds = 200
    begin = time.process_time()
    for _ in range(rounds):
        await loaded.get("demo")
        await loaded.prepare("demo", "warm")
    assert (time.process_time() - begin) / rounds < 0.001


# What is wrong.


async def test_a_layer_that_is_refused_names_the_image_and_leaves_nothing(
    service: ImagesService, store_folder: Path, tmp_path: Path
) -> None:
    layers = [[Entry("a", b"a")], [Entry("../evil", b"x")]]
    await load(service, small_layout(tmp_path / "layout", layers=layers))
    with pytest.raises(InvalidArgument, match=r'image "demo": the layer is refused: "../evil"'):
        await service.prepare("demo", "c1")
    assert os.listdir(store_folder / "ingest") == []
    assert os.listdir(store_folder / "holders") == []
    assert folders(store_folder) == 1
    await service.delete("demo")
    assert content(store_folder)[:-1] == []


async def test_a_layer_that_changed_or_went_is_data_loss(
    loaded: ImagesService, store_folder: Path
) -> None:
    image = await loaded.get("demo")
    path = store_folder / "blobs/sha256" / image.layers[0].digest.removeprefix("sha256:")
    other = store_folder / "blobs/sha256" / image.layers[1].digest.removeprefix("sha256:")
    shutil.copy(other, path)
    with pytest.raises(DataLoss, match='of image "demo" has changed on disk; it was set aside'):
        await loaded.prepare("demo", "c1")
    with pytest.raises(DataLoss, match='a layer of image "demo" is missing'):
        await loaded.prepare("demo", "c1")
    assert os.listdir(store_folder / "ingest") == []


async def test_a_broken_image_is_still_listed_and_can_be_deleted(
    loaded: ImagesService, store_folder: Path, tmp_path: Path
) -> None:
    image = await loaded.get("demo")
    await load(loaded, small_layout(tmp_path / "good", "good"))
    path = store_folder / "blobs/sha256" / image.manifest_digest.removeprefix("sha256:")
    path.write_bytes(b"{}")
    loaded._store.forget(image.manifest_digest)
    assert [row.reference for row in await loaded.list()] == [
        "localhost/demo:latest",
        "localhost/good:latest",
    ]
    with pytest.raises(DataLoss, match="changed on disk"):
        await loaded.get("demo")
    await loaded.delete("demo")
    assert (await loaded.get("good")).layers


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@needs_root
async def test_no_space_while_loading_says_where_and_leaves_nothing(
    small_disk: Path, tmp_path: Path
) -> None:
    layers = [[Entry("big", os.urandom(4 << 20))]]
    layout = small_layout(tmp_path / "layout", layers=layers)
    async with ImagesService(small_disk / "images") as service:
        before = content(small_disk / "images")
        with opened(layout) as fd:
            with pytest.raises(Unavailable, match=f"no space is left in {small_disk}") as caught:
                await service.load(fd, None, "big")
        assert caught.value.hint
        assert content(small_disk / "images") == before
        assert await load(service, small_layout(tmp_path / "little", "little"))


@needs_root
async def test_no_space_while_unpacking_says_where_and_leaves_nothing(
    small_disk: Path, tmp_path: Path
) -> None:
    layers = [[Entry("zeros", bytes(8 << 20))]]
    layout = small_layout(tmp_path / "layout", layers=layers)
    async with ImagesService(small_disk / "images") as service:
        await load(service, layout)
        before = content(small_disk / "images")
        with pytest.raises(Unavailable, match=f"no space is left in {small_disk}"):
            await service.prepare("demo", "c1")
        assert content(small_disk / "images") == before


@needs_root
async def test_no_space_while_pulling_says_where_and_leaves_nothing(
    small_disk: Path, tmp_path: Path
) -> None:
    from tests.images.registries import FakeRegistry

    layers = [[Entry("a", b"a")], [Entry("big", os.urandom(4 << 20))]]
    layout = small_layout(tmp_path / "layout", layers=layers)
    async with ImagesService(small_disk / "images") as service:
        before = content(small_disk / "images")
        with FakeRegistry(layout).serve() as host:
            with pytest.raises(Unavailable, match=f"no space is left in {small_disk}"):
                await service.pull(f"{host}/demo")
        assert content(small_disk / "images") == before


# The store itself.


async def test_a_store_has_one_owner(service: ImagesService, store_folder: Path) -> None:
    with pytest.raises(Unavailable, match="in use by another process"):
        async with ImagesService(store_folder):
            pass


async def test_a_store_is_closed_to_others_and_swept_at_start(
    store_folder: Path, tmp_path: Path
) -> None:
    left = store_folder / "ingest/snapshot-1/fs/d"
    left.mkdir(parents=True, mode=0o500)
    (store_folder / "ingest/blob-1").write_bytes(b"half")
    async with ImagesService(store_folder):
        assert os.listdir(store_folder / "ingest") == []
        assert os.stat(store_folder).st_mode & 0o777 == 0o700


async def test_broken_references_are_named_and_stop_nothing_else(
    store_folder: Path, tmp_path: Path
) -> None:
    async with ImagesService(store_folder) as first:
        await load(first, small_layout(tmp_path / "layout"))
        await first.prepare("demo", "c1")
    path = store_folder / "references.json"
    path.write_text("{")
    blobs = content(store_folder)[:-1]
    async with ImagesService(store_folder) as service:
        for question in (service.list, lambda: service.get("demo")):
            with pytest.raises(DataLoss, match=r"references\.json is torn"):
                await question()
        await service.release("c1")
        assert await service.sweep() == 0
        assert [name for name in blobs if not name.startswith("holders")] == list(
            content(store_folder)[:-1]
        )
        await load(service, small_layout(tmp_path / "other", "other"))
        assert [row.name for row in await service.list()] == ["other"]
        aside = store_folder / "references.json.broken-1"
        assert aside.read_text() == "{"
        await service.delete("other")
        assert set(blobs) - set(content(store_folder)) <= {
            name for name in blobs if name.startswith("holders")
        }
        aside.unlink()
        assert await service.sweep() > 0
        assert [name for name in content(store_folder) if name.startswith("blobs")] == []


async def test_a_broken_snapshot_is_kept_and_made_anew(store_folder: Path, tmp_path: Path) -> None:
    async with ImagesService(store_folder) as first:
        await load(first, small_layout(tmp_path / "layout"))
        snapshot = await first.prepare("demo", "c1")
    folder = Path(snapshot.layers[0]).parent
    (folder / "snapshot.json").write_text("")
    async with ImagesService(store_folder) as service:
        assert (await service.prepare("demo", "c1")).layers == snapshot.layers
        assert (folder / "snapshot.json").stat().st_size
        assert (folder.parent / f"{folder.name}.broken-1/fs/etc/name").exists()
    async with ImagesService(store_folder) as again:
        assert (await again.prepare("demo", "c2")).layers == snapshot.layers


async def test_while_a_hold_is_broken_nothing_is_garbage(
    store_folder: Path, tmp_path: Path
) -> None:
    async with ImagesService(store_folder) as first:
        await load(first, small_layout(tmp_path / "layout"))
        await first.prepare("demo", "c1")
        await first.delete("demo", force=True)
    (hold,) = (store_folder / "holders").iterdir()
    text = os.readlink(hold)
    hold.unlink()
    hold.symlink_to("what")
    async with ImagesService(store_folder) as service:
        assert await service.sweep() == 0
        assert len(os.listdir(store_folder / "snapshots")) == 1
    hold.unlink()
    hold.symlink_to(text)
    async with ImagesService(store_folder) as service:
        await service.release("c1")
        await service.sweep()
        assert os.listdir(store_folder / "snapshots") == []


async def test_what_a_pull_left_is_kept_for_a_day(store_folder: Path) -> None:
    async with ImagesService(store_folder) as service:
        digest = service._store.blobs.add(b"half a pull")
        path = service._store.blobs.path(digest)
    async with ImagesService(store_folder):
        await trio.testing.wait_all_tasks_blocked()
        assert path.exists()
        os.utime(path, (0, 0))
    async with ImagesService(store_folder) as service:
        with trio.fail_after(5):
            while path.exists():  # noqa: ASYNC110  # removed by a thread of the service's own
                await trio.sleep(0.01)


async def test_a_layer_that_changed_on_disk_is_set_aside_so_that_it_can_be_loaded_again(
    store_folder: Path, tmp_path: Path
) -> None:
    layout = small_layout(tmp_path / "layout")
    async with ImagesService(store_folder) as service:
        await load(service, layout)
        (layer,) = (await service.get("demo")).layers
        path = store_folder / "blobs/sha256" / layer.digest.removeprefix("sha256:")
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(DataLoss, match="changed on disk; it was set aside"):
            await service.prepare("demo", "c1")
        (aside,) = (store_folder / "blobs/broken").iterdir()
        assert aside.read_bytes() == data
        with pytest.raises(DataLoss, match="is missing"):
            await service.prepare("demo", "c1")
        await load(service, layout)
        assert (await service.prepare("demo", "c1")).layers


async def test_the_service_is_the_same_over_a_connection(
    store_folder: Path, tmp_path: Path
) -> None:
    layout = small_layout(tmp_path / "layout", layers=TWO)
    async with in_memory(ImagesService(store_folder)) as images:
        with Fd(os.open(layout, os.O_RDONLY)) as fd:
            (row,) = await images.load(fd, None, str(layout))
        assert (await images.list()) == (row,)
        snapshot = await images.prepare("demo", "c1")
        assert len(snapshot.layers) == 2
        with pytest.raises(NotFound, match="did you mean"):
            await images.get("dem")
        await images.release("c1")
        assert (await images.delete("demo")).freed > 0


async def test_a_hold_that_can_not_be_synced_is_taken_back(
    loaded: ImagesService, store_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await loaded.prepare("demo", "c1")

    def refuse(folder: Path) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as broken:
        broken.setattr(snapshots_module, "sync_folder", refuse)
        with pytest.raises(Unavailable, match="too many files are open"):
            await loaded.prepare("demo", "c2")
    assert [name.partition(".")[0] for name in os.listdir(store_folder / "holders")] == ["c1"]
    await loaded.prepare("demo", "c2")
    await loaded.release("c2")
