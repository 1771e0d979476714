"""Loading: layouts and docker-archives, files and pipes, whole and corrupt."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from attrs import evolve

from container.contracts.images import Platform
from container.images.limits import Limits
from container.images.service import ImagesService
from container.ipc import (
    DataLoss,
    Fd,
    InvalidArgument,
    NotFound,
    Overloaded,
    Unsupported,
)
from container.testing.busybox import Entry, compress, write_layout
from tests.images.conftest import content, load, opened, small_layout

needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")


def tar_of(folder: Path, target: Path) -> Path:
    with tarfile.open(target, "w") as tar:
        for name in ("oci-layout", "index.json", "blobs"):
            tar.add(folder / name, name)
    return target


def skopeo(*arguments: str | Path) -> str:
    done = subprocess.run(
        ["skopeo", *map(str, arguments)], check=True, capture_output=True, text=True
    )
    return done.stdout


async def test_a_layout_folder_is_loaded_under_its_own_name(
    service: ImagesService, tmp_path: Path
) -> None:
    digest = write_layout(
        tmp_path / "layout",
        base=False,
        layers=[[Entry("a", b"a")], [Entry("b", b"b")]],
        config={"Env": ["A=1"], "User": "x", "StopSignal": "SIGINT"},
    )
    assert await load(service, tmp_path / "layout") == "localhost/demo:latest"
    image = await service.get("demo")
    assert image.manifest_digest == digest
    assert image.summary.name == "demo"
    assert image.summary.tag == "latest"
    assert image.summary.digest == digest
    assert image.summary.created is not None
    assert image.config.command == ("/bin/sh",)
    assert image.config.environment == ("A=1",)
    assert image.config.stop_signal == "SIGINT"
    assert len(image.layers) == 2
    assert image.history == ("layer 0", "layer 1")
    blobs = tmp_path / "layout/blobs/sha256"
    assert image.summary.size == sum(path.stat().st_size for path in blobs.iterdir())


@pytest.mark.parametrize("form", ["plain", "gzip", "zstd"])
@pytest.mark.parametrize("through", ["file", "pipe"])
async def test_a_tar_of_a_layout_is_loaded_compressed_or_not_from_a_file_or_a_pipe(
    service: ImagesService, store_folder: Path, tmp_path: Path, form: str, through: str
) -> None:
    layers = [[Entry("big", os.urandom(3_000_000))]]
    layout = small_layout(tmp_path / "layout", layers=layers)
    tar = tar_of(layout, tmp_path / "a.tar")
    if form != "plain":
        tar.write_bytes(compress(tar.read_bytes(), form))  # type: ignore[arg-type]
    if through == "file":
        reference = await load(service, tar)
    else:
        reader, writer = os.pipe()

        async def feed() -> None:
            async with await trio.open_file(tar, "rb") as source:
                stream = trio.lowlevel.FdStream(writer)
                async with stream:
                    await stream.send_all(await source.read())

        with Fd(reader) as fd:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(feed)
                (summary,) = await service.load(fd, None, "standard input")
                reference = summary.reference
    assert reference == "localhost/demo:latest"
    assert list((store_folder / "ingest").iterdir()) == []
    snapshot = await service.prepare("demo", "c1")
    assert (Path(snapshot.layers[0]) / "big").stat().st_size == 3_000_000


@needs_skopeo
async def test_a_docker_archive_is_loaded_with_its_name_and_layers(
    service: ImagesService, busybox_layout: Path, tmp_path: Path
) -> None:
    skopeo("copy", f"oci:{busybox_layout}:demo", f"docker-archive:{tmp_path}/d.tar:quay.io/x/bb:7")
    assert await load(service, tmp_path / "d.tar") == "quay.io/x/bb:7"
    image = await service.get("quay.io/x/bb:7")
    assert image.config.command == ("/bin/sh",)
    await load(service, busybox_layout)
    other = await service.get("demo")
    assert [layer.diff_id for layer in image.layers] == [layer.diff_id for layer in other.layers]
    one = await service.prepare("demo", "c1")
    two = await service.prepare("quay.io/x/bb:7", "c2")
    assert one.layers == two.layers
    assert (Path(one.layers[0]) / "bin/busybox").stat().st_size > 100_000


@needs_skopeo
async def test_an_oci_archive_of_skopeo_keeps_its_digest(
    service: ImagesService, busybox_layout: Path, tmp_path: Path
) -> None:
    skopeo("copy", f"oci:{busybox_layout}:demo", f"oci-archive:{tmp_path}/o.tar:demo:v1")
    assert await load(service, tmp_path / "o.tar") == "localhost/demo:v1"
    found = skopeo("inspect", "--format", "{{.Digest}}", f"oci-archive:{tmp_path}/o.tar:demo:v1")
    assert (await service.get("demo:v1")).summary.digest == found.strip()


async def test_a_name_may_be_given(service: ImagesService, tmp_path: Path) -> None:
    layout = small_layout(tmp_path / "layout")
    assert await load(service, layout, "mine:v2") == "localhost/mine:v2"
    assert await load(service, layout, "quay.io/me/it") == "quay.io/me/it:latest"
    with pytest.raises(NotFound):
        await service.get("demo")


async def test_an_archive_of_several_images_gives_them_all_their_names(
    service: ImagesService, tmp_path: Path
) -> None:
    small_layout(tmp_path / "layout", "one")
    small_layout(tmp_path / "layout", "two:v2", layers=[[Entry("f", b"2")]])
    with opened(tmp_path / "layout") as fd:
        summaries = await service.load(fd)
    assert [row.reference for row in summaries] == ["localhost/one:latest", "localhost/two:v2"]
    with opened(tmp_path / "layout") as fd, pytest.raises(InvalidArgument, match="2 images"):
        await service.load(fd, "name")


async def test_an_index_is_loaded_with_the_platforms_that_are_there(
    service: ImagesService, tmp_path: Path
) -> None:
    layout = tmp_path / "layout"
    for machine in ("amd64", "arm64"):
        write_layout(
            layout,
            name=machine,
            base=False,
            layers=[[Entry("f", machine.encode())]],
            platform=Platform("linux", machine),
        )
    index = json.loads((layout / "index.json").read_text())
    entries = [{**entry, "annotations": {}} for entry in index["manifests"]]
    entries.append({**entries[0], "digest": "sha256:" + "0" * 64,
                    "platform": {"os": "linux", "architecture": "s390x"}})  # fmt: skip
    entries.append({**entries[0], "platform": {"os": "unknown", "architecture": "unknown"}})
    inner = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    digest = __import__("hashlib").sha256(inner).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(inner)
    (layout / "index.json").write_text(
        json.dumps(
            {
                "schemaVersion": 2,
                "manifests": [
                    {
                        "mediaType": "application/vnd.oci.image.index.v1+json",
                        "digest": f"sha256:{digest}",
                        "size": len(inner),
                        "annotations": {"org.opencontainers.image.ref.name": "multi"},
                    }
                ],
            }
        )
    )
    await load(service, layout)
    for machine in ("amd64", "arm64"):
        image = await service.get("multi", Platform("linux", machine))
        assert image.platform.architecture == machine
        assert image.summary.digest == f"sha256:{digest}"
    assert {str(found) for found in (await service.list())[0].platforms} == {
        "linux/amd64",
        "linux/arm64",
    }
    with pytest.raises(Unsupported, match=r"linux/amd64, linux/arm64 only.*not linux/s390x"):
        await service.get("multi", Platform("linux", "s390x"))


async def test_an_image_of_another_architecture_says_which(
    service: ImagesService, tmp_path: Path
) -> None:
    small_layout(tmp_path / "layout", platform=Platform("linux", "mips64"))
    await load(service, tmp_path / "layout")
    with pytest.raises(Unsupported, match="linux/mips64 only; this machine is linux/") as caught:
        await service.get("demo")
    assert caught.value.hint
    with pytest.raises(Unsupported):
        await service.prepare("demo", "c1")


# What is broken: an error that names the source, and a store as it was.


def cut(layout: Path) -> Path:
    tar = tar_of(layout, layout.parent / "bad.tar")
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    return tar


def cut_gzip(layout: Path) -> Path:
    tar = tar_of(layout, layout.parent / "bad.tar.gz")
    tar.write_bytes(gzip.compress(tar.read_bytes())[:-200])
    return tar


def garbage(layout: Path) -> Path:
    path = layout.parent / "bad.tar"
    path.write_bytes(os.urandom(5000))
    return path


def empty(layout: Path) -> Path:
    path = layout.parent / "bad.tar"
    path.write_bytes(b"")
    return path


def other_tar(layout: Path) -> Path:
    path = layout.parent / "bad.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(layout / "index.json", "other.json")
    return path


def no_layout(layout: Path) -> Path:
    (layout / "index.json").unlink()
    return layout


def bad_index(layout: Path) -> Path:
    (layout / "index.json").write_text("{")
    return layout


def no_blob(layout: Path) -> Path:
    largest = max((layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    largest.unlink()
    return layout


def linked_blob(layout: Path) -> Path:
    for path in list((layout / "blobs/sha256").iterdir()):
        path.rename(layout.parent / path.name)
        path.symlink_to(layout.parent / path.name)
    return layout


def no_name(layout: Path) -> Path:
    index = json.loads((layout / "index.json").read_text())
    del index["manifests"][0]["annotations"]
    (layout / "index.json").write_text(json.dumps(index))
    return layout


def no_image(layout: Path) -> Path:
    (layout / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
    return layout


def bad_name(layout: Path) -> Path:
    index = json.loads((layout / "index.json").read_text())
    index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"] = "../UP"
    (layout / "index.json").write_text(json.dumps(index))
    return layout


@pytest.mark.parametrize(
    "spoil",
    [cut, cut_gzip, garbage, empty, other_tar, no_layout, bad_index, no_blob, linked_blob,
     no_name, no_image, bad_name],
)  # fmt: skip
async def test_a_corrupt_archive_is_named_and_leaves_the_store_as_it_was(
    service: ImagesService, store_folder: Path, tmp_path: Path, spoil: Callable[[Path], Path]
) -> None:
    small_layout(tmp_path / "good", "good", layers=[[Entry("g", b"g")]])
    await load(service, tmp_path / "good")
    before = content(store_folder)
    path = spoil(small_layout(tmp_path / "bad", layers=[[Entry("f", os.urandom(20_000))]]))
    with opened(path) as fd, pytest.raises(InvalidArgument, match="my archive") as caught:
        await service.load(fd, None, "my archive")
    assert caught.value.hint
    assert content(store_folder) == before


async def test_a_digest_that_does_not_match_is_data_loss_and_leaves_nothing(
    service: ImagesService, store_folder: Path, tmp_path: Path
) -> None:
    before = content(store_folder)
    layout = small_layout(tmp_path / "bad")
    for path in (layout / "blobs/sha256").iterdir():
        data = bytearray(path.read_bytes())
        if data[:2] == b"\x1f\x8b":
            data[-1] ^= 1
            path.write_bytes(data)
    with opened(layout) as fd, pytest.raises(DataLoss, match="my archive: the digest"):
        await service.load(fd, None, "my archive")
    assert content(store_folder) == before


async def test_a_terminal_or_device_is_no_archive(service: ImagesService) -> None:
    with opened(Path("/dev/zero")) as fd, pytest.raises(InvalidArgument, match="no folder, file"):
        await service.load(fd)


async def test_a_bad_name_is_refused_before_anything_is_read(service: ImagesService) -> None:
    with opened(Path("/dev/zero")) as fd, pytest.raises(InvalidArgument, match="no image name"):
        await service.load(fd, "UP")


async def test_an_archive_over_the_bound_is_refused(store_folder: Path, tmp_path: Path) -> None:
    tar = tar_of(small_layout(tmp_path / "layout"), tmp_path / "a.tar")
    bomb = tmp_path / "bomb.tar.gz"
    bomb.write_bytes(gzip.compress(tar.read_bytes() + bytes(4 << 20)))
    limits = evolve(Limits(), archive=1 << 20)
    async with ImagesService(store_folder, limits=limits) as service:
        with opened(bomb) as fd, pytest.raises(Overloaded, match=r"bomb: it has more than"):
            await service.load(fd, None, "bomb")
        assert list((store_folder / "ingest").iterdir()) == []


async def test_a_load_that_is_cancelled_leaves_nothing(
    service: ImagesService, store_folder: Path, tmp_path: Path
) -> None:
    before = content(store_folder)
    reader, writer = os.pipe()
    tar = tar_of(small_layout(tmp_path / "layout"), tmp_path / "a.tar")
    try:
        os.write(writer, tar.read_bytes()[:4096])
        with Fd(reader) as fd, trio.move_on_after(0.1) as scope:
            await service.load(fd)
    finally:
        os.close(writer)
    assert scope.cancelled_caught
    assert content(store_folder) == before


async def test_the_archive_stays_the_callers(service: ImagesService, tmp_path: Path) -> None:
    tar = tar_of(small_layout(tmp_path / "layout"), tmp_path / "a.tar")
    with opened(tar) as fd:
        os.lseek(fd.fileno(), 100, os.SEEK_SET)
        await service.load(fd)
        assert os.lseek(fd.fileno(), 0, os.SEEK_CUR) == 100
