"""Pulling: a real registry that skopeo filled, and one that misbehaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from attrs import evolve

from container.contracts.images import Platform, Scheme
from container.images.limits import Limits
from container.images.registry import is_loopback
from container.images.service import ImagesService
from container.ipc import (
    DataLoss,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unsupported,
)
from container.storage.settings import Settings
from container.testing.busybox import Entry, write_layout
from tests.images.conftest import content, small_layout
from tests.images.registries import FakeRegistry, docker_registry, free_port

needs_registry = pytest.mark.skipif(
    not (shutil.which("docker-registry") and shutil.which("skopeo")),
    reason="docker-registry and skopeo are not installed",
)
LAYERS = [[Entry("a", b"a")], [Entry("big", os.urandom(3_000_000))], [Entry("c", b"c")]]


def skopeo(*arguments: str | Path) -> str:
    done = subprocess.run(
        ["skopeo", *map(str, arguments)], check=True, capture_output=True, text=True
    )
    return done.stdout


def inspect(host: str, name: str, *options: str) -> str:
    command = ("inspect", *options, "--format", "{{.Digest}}", f"docker://{host}/{name}")
    return skopeo(*command).strip()


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pull") / "layout"
    write_layout(folder, base=False, layers=LAYERS)
    return folder


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, layout: Path) -> Iterator[str]:
    """A plain registry that skopeo has filled."""
    with docker_registry(tmp_path_factory.mktemp("registry")) as host:
        plain = "--dest-tls-verify=false"
        source = f"oci:{layout}:demo"
        skopeo("copy", plain, source, f"docker://{host}/demo:v1")
        skopeo("copy", plain, "--format", "v2s2", source, f"docker://{host}/a/b/docker:latest")
        skopeo(
            "copy", plain, "--dest-compress-format", "zstd", "--dest-compress", source,
            f"docker://{host}/zstd:latest",
        )  # fmt: skip
        yield host


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, layout: Path) -> Iterator[tuple[str, Path]]:
    """A registry behind TLS, and the certificate of its authority."""
    folder = tmp_path_factory.mktemp("secure")
    commands = (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout ca.key"
        " -out ca.crt -subj /CN=Test-CA -addext keyUsage=critical,keyCertSign,cRLSign",
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout r.key -out r.csr"
        " -subj /CN=registry",
        "x509 -req -in r.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out r.crt"
        " -extfile ext",
    )
    (folder / "ext").write_text(
        "subjectAltName=IP:127.0.0.1\nkeyUsage=critical,digitalSignature\n"
        "authorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
    )
    for command in commands:
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    with docker_registry(
        folder / "registry", certificate=folder / "r.crt", key=folder / "r.key"
    ) as host:
        options = ("--dest-tls-verify=false", f"oci:{layout}:demo", f"docker://{host}/demo:v1")
        skopeo("copy", *options)
        yield host, folder / "ca.crt"


# A real registry.


@needs_registry
@pytest.mark.parametrize("name", ["demo:v1", "a/b/docker:latest", "zstd:latest"])
async def test_a_pulled_image_has_the_digest_that_skopeo_sees(
    service: ImagesService, registry: str, name: str
) -> None:
    summary = await service.pull(f"{registry}/{name}")
    assert summary.digest == inspect(registry, name, "--tls-verify=false")
    assert summary.reference == f"{registry}/{name}"
    snapshot = await service.prepare(f"{registry}/{name}", "c1")
    assert [sorted(os.listdir(layer)) for layer in snapshot.layers] == [["c"], ["big"], ["a"]]
    manifest = json.loads(
        skopeo("inspect", "--tls-verify=false", "--raw", f"docker://{registry}/{name}")
    )
    assert [layer.digest for layer in snapshot.image.layers] == [
        layer["digest"] for layer in manifest["layers"]
    ]


@needs_registry
async def test_the_default_registry_is_the_one_of_the_settings(
    store_folder: Path, registry: str
) -> None:
    async with ImagesService(store_folder, Settings(default_registry=registry)) as service:
        summary = await service.pull("demo:v1")
        assert summary.reference == f"{registry}/demo:v1"
        assert summary.name == "demo"
        assert (await service.get("demo:v1")).summary == summary


@needs_registry
async def test_an_image_is_pulled_by_its_digest(service: ImagesService, registry: str) -> None:
    digest = inspect(registry, "demo:v1", "--tls-verify=false")
    summary = await service.pull(f"{registry}/demo@{digest}")
    assert summary.digest == digest
    assert (await service.get(f"{registry}/demo@{digest}")).manifest_digest == digest
    assert (await service.get(digest.removeprefix("sha256:")[:12])).manifest_digest == digest


@needs_registry
async def test_tls_is_checked_against_the_certificate_that_the_environment_names(
    service: ImagesService,
    store_folder: Path,
    secure: tuple[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host, authority = secure
    before = content(store_folder)
    with pytest.raises(Unavailable, match=r"certificate of the registry .* not trusted") as caught:
        await service.pull(f"{host}/demo:v1")
    assert "SSL_CERT_FILE" in (caught.value.hint or "")
    assert content(store_folder) == before
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    summary = await service.pull(f"{host}/demo:v1", None, Scheme.HTTPS)
    assert summary.digest == inspect(host, "demo:v1", "--tls-verify=false")


@needs_registry
async def test_https_is_not_given_up_when_it_was_asked_for(
    service: ImagesService, registry: str
) -> None:
    with pytest.raises(Unavailable, match="does not speak TLS"):
        await service.pull(f"{registry}/demo:v1", None, Scheme.HTTPS)


@needs_registry
async def test_a_name_that_the_registry_lacks_is_not_found(
    service: ImagesService, store_folder: Path, registry: str
) -> None:
    before = content(store_folder)
    with pytest.raises(NotFound, match=f'registry {registry} has no image "{registry}/nothing:x"'):
        await service.pull(f"{registry}/nothing:x")
    assert content(store_folder) == before


@needs_registry
@pytest.mark.skipif(shutil.which("htpasswd") is None, reason="htpasswd is not installed")
async def test_a_registry_that_wants_a_password_is_named(
    service: ImagesService, store_folder: Path, tmp_path: Path
) -> None:
    before = content(store_folder)
    await trio.run_process(
        ["htpasswd", "-Bbc", tmp_path / "passwords", "u", "p"], capture_stderr=True
    )
    with docker_registry(tmp_path / "registry", htpasswd=tmp_path / "passwords") as host:
        with pytest.raises(PermissionDenied, match=f"{host} wants credentials") as caught:
            await service.pull(f"{host}/demo")
    assert caught.value.hint
    assert content(store_folder) == before


@needs_registry
async def test_many_pulls_of_one_image_at_once_fetch_it_once(
    service: ImagesService, layout: Path
) -> None:
    fake = FakeRegistry(layout)
    with fake.serve() as host:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(service.pull, f"{host}/demo")
    blobs = [path for path, _ in fake.requests if "/blobs/" in path]
    assert len(blobs) == len(set(blobs)) == 4


# A registry that misbehaves.


async def test_a_token_is_fetched_for_who_has_no_credentials(
    service: ImagesService, layout: Path
) -> None:
    fake = FakeRegistry(layout, token="secret")
    with fake.serve() as host:
        await service.pull(f"{host}/demo")
    tokens = [path for path, _ in fake.requests if path.startswith("/token")]
    assert tokens[0].startswith("/token?")
    assert "service=s" in tokens[0]
    assert "scope=repository%3Ax%3Apull" in tokens[0]


async def test_a_blob_may_be_elsewhere_and_the_token_does_not_go_there(
    service: ImagesService, layout: Path
) -> None:
    other = FakeRegistry(layout)
    with other.serve() as elsewhere:
        port = elsewhere.rpartition(":")[2]
        fake = FakeRegistry(layout, token="secret", elsewhere=f"http://localhost:{port}")
        with fake.serve() as host:
            await service.pull(f"{host}/demo")
    assert len(other.requests) == 4
    assert {authorization for _, authorization in other.requests} == {None}


async def test_redirects_in_circles_end(service: ImagesService, layout: Path) -> None:
    fake = FakeRegistry(layout)
    with fake.serve() as host:
        fake.elsewhere = f"http://{host}"
        with pytest.raises(Unavailable, match="circles"):
            await service.pull(f"{host}/demo")


async def test_a_registry_that_wants_basic_credentials_is_named(
    service: ImagesService, layout: Path
) -> None:
    with FakeRegistry(layout, basic=True).serve() as host:
        with pytest.raises(PermissionDenied, match="wants credentials"):
            await service.pull(f"{host}/demo")


@pytest.mark.parametrize(("status", "words"), [(500, "status 500"), (429, "too many requests")])
async def test_a_registry_in_trouble_is_unavailable(
    service: ImagesService, layout: Path, status: int, words: str
) -> None:
    with FakeRegistry(layout, status=status).serve() as host:
        with pytest.raises(Unavailable, match=words):
            await service.pull(f"{host}/demo")


def layer_digests(layout: Path) -> list[str]:
    index = json.loads((layout / "index.json").read_text())
    digest = index["manifests"][0]["digest"].removeprefix("sha256:")
    manifest = json.loads((layout / "blobs/sha256" / digest).read_text())
    return [layer["digest"] for layer in manifest["layers"]]


@pytest.mark.parametrize("how", ["flipped", "short", "long", "manifest", "config"])
async def test_what_is_not_what_was_announced_is_data_loss_and_leaves_nothing(
    service: ImagesService, store_folder: Path, layout: Path, how: str
) -> None:
    index = json.loads((layout / "index.json").read_text())
    digest = index["manifests"][0]["digest"]
    manifest = json.loads((layout / "blobs/sha256" / digest.removeprefix("sha256:")).read_text())
    wanted = {
        "manifest": digest,
        "config": manifest["config"]["digest"],
    }.get(how, layer_digests(layout)[1])
    data = bytearray((layout / "blobs/sha256" / wanted.removeprefix("sha256:")).read_bytes())
    if how == "short":
        del data[-1:]
    elif how == "long":
        data += b"x"
    elif how == "manifest":
        data += b" "
    else:
        data[len(data) // 2] ^= 1
    before = content(store_folder)
    with FakeRegistry(layout, blobs={wanted: bytes(data)}).serve() as host:
        name = f"demo@{digest}" if how == "manifest" else "demo"
        with pytest.raises(DataLoss, match=host) as caught:
            await service.pull(f"{host}/{name}")
    assert caught.value.hint
    assert content(store_folder) == before


async def test_an_image_of_another_architecture_is_refused_before_its_layers(
    service: ImagesService, store_folder: Path, tmp_path: Path
) -> None:
    small_layout(tmp_path / "layout", platform=Platform("linux", "s390x"))
    before = content(store_folder)
    fake = FakeRegistry(tmp_path / "layout")
    with fake.serve() as host:
        with pytest.raises(Unsupported, match="is for linux/s390x only"):
            await service.pull(f"{host}/demo")
        assert len([path for path, _ in fake.requests if "/blobs/" in path]) == 1
        assert content(store_folder) == before
        await service.pull(f"{host}/demo", Platform("linux", "s390x"))
        image = await service.get(f"{host}/demo", Platform("linux", "s390x"))
        assert image.platform.architecture == "s390x"


async def test_a_registry_that_is_not_there_is_named_with_what_to_do(
    service: ImagesService, store_folder: Path
) -> None:
    before = content(store_folder)
    host = f"127.0.0.1:{free_port()}"
    with pytest.raises(Unavailable, match=f"registry {host} can't be reached: .*refused") as caught:
        await service.pull(f"{host}/demo")
    assert caught.value.hint
    assert content(store_folder) == before


async def test_a_registry_that_accepts_and_says_nothing_is_given_up(store_folder: Path) -> None:
    limits = evolve(Limits(), stall_timeout=0.2, connect_timeout=0.2)
    async with ImagesService(store_folder, limits=limits) as service:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener:
            port = listener.socket.getsockname()[1]
            with pytest.raises(Unavailable, match="does not answer in time"):
                await service.pull(f"127.0.0.1:{port}/demo", None, Scheme.HTTP)


async def test_an_image_of_this_machine_alone_is_not_looked_for_elsewhere(
    service: ImagesService,
) -> None:
    with pytest.raises(NotFound, match="this machine alone"):
        await service.pull("localhost/demo")
    with pytest.raises(InvalidArgument):
        await service.pull("DEMO")


async def test_a_pull_that_is_cancelled_keeps_verified_blobs_and_shows_no_image(
    service: ImagesService, store_folder: Path, layout: Path
) -> None:
    fake = FakeRegistry(layout, stall=threading.Event())
    with fake.serve() as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.pull, f"{host}/demo")
            assert await trio.to_thread.run_sync(fake.stalled.wait, 20)
            nursery.cancel_scope.cancel()
        assert await service.list() == ()
        assert list((store_folder / "ingest").iterdir()) == []
        kept = len(list((store_folder / "blobs/sha256").iterdir()))
        assert kept >= 1
        assert fake.stall is not None
        fake.stall.set()
        fake.stall = None
        fake.requests.clear()
        await service.pull(f"{host}/demo")
    blobs = [path for path, _ in fake.requests if "/blobs/" in path]
    assert len(blobs) == 4 - kept


@pytest.mark.parametrize(
    ("authority", "here"),
    [
        ("localhost", True), ("localhost:5000", True), ("127.0.0.1:1", True), ("127.9.9.9", True),
        ("[::1]:5000", True), ("docker.io", False), ("10.0.0.1:5000", False),
        ("127.0.0.1.example:1", False), ("localhost.example", False), ("[2001:db8::1]:1", False),
    ],
)  # fmt: skip
def test_only_this_machine_is_loopback(authority: str, here: bool) -> None:
    assert is_loopback(authority) is here
