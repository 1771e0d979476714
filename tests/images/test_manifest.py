"""OCI documents and platforms: what is read, what is refused."""

from __future__ import annotations

import json

import pytest

from container.contracts.images import Platform
from container.images.malformed import Malformed
from container.images.manifest import (
    Index,
    Manifest,
    chain_ids,
    parse_archive,
    parse_configuration,
    parse_manifest,
)
from container.images.platforms import parse_platform, rank
from container.ipc import InvalidArgument, Unsupported

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
CONFIG = {"digest": A, "size": 3, "mediaType": "application/vnd.oci.image.config.v1+json"}


def raw(value: object) -> bytes:
    return json.dumps(value).encode()


def test_a_manifest_and_an_index_are_told_apart_without_media_types() -> None:
    manifest = parse_manifest(raw({"schemaVersion": 2, "config": CONFIG, "layers": None}))
    assert isinstance(manifest, Manifest)
    assert manifest.layers == ()
    index = parse_manifest(raw({"schemaVersion": 2, "manifests": [{"digest": B, "size": 1}]}))
    assert isinstance(index, Index)


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        {"config": {**CONFIG, "digest": "sha256:../../x"}},
        {"config": {**CONFIG, "digest": A + "\n"}},
        {"config": {**CONFIG, "size": -1}},
        {"config": {**CONFIG, "size": "3"}},
        {"config": CONFIG, "manifests": [{"digest": B, "size": 1}]},
        {"manifests": [{"size": 1}]},
    ],
)
def test_a_malformed_manifest_is_refused(value: object) -> None:
    with pytest.raises(Malformed):
        parse_manifest(raw(value))


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_bytes_that_are_no_document_are_refused(data: bytes) -> None:
    for parse in (parse_manifest, parse_configuration, parse_archive):
        with pytest.raises(Malformed):
            parse(data)


def test_schema_1_and_other_artifacts_are_unsupported() -> None:
    with pytest.raises(Unsupported, match="schema 1"):
        parse_manifest(raw({"schemaVersion": 1, "fsLayers": []}))
    layer = {"digest": B, "size": 1, "mediaType": "application/vnd.cncf.helm.chart"}
    with pytest.raises(Unsupported, match=r"helm\.chart"):
        parse_manifest(raw({"schemaVersion": 2, "config": CONFIG, "layers": [layer]}))


def test_a_configuration_may_leave_out_or_null_what_it_likes() -> None:
    bare = parse_configuration(raw({"os": "linux", "architecture": "amd64"}))
    assert bare.platform == Platform("linux", "amd64")
    assert bare.config.command == ()
    full = parse_configuration(
        raw(
            {
                "os": "linux",
                "architecture": "arm",
                "variant": "v7",
                "created": "2024-01-02T03:04:05.123456789Z",
                "config": {"Env": ["A=1"], "Cmd": None, "Labels": {"a": "b"}, "WorkingDir": "/w",
                           "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/v": {}},
                           "StopSignal": "SIGINT", "User": "x:y", "Entrypoint": ["/e"]},
                "rootfs": {"type": "layers", "diff_ids": [A]},
                "history": [{"created_by": "RUN x"}, {}],
            }
        )
    )  # fmt: skip
    assert str(full.platform) == "linux/arm/v7"
    assert full.created is not None
    assert full.created.year == 2024
    assert full.config.environment == ("A=1",)
    assert full.config.exposed_ports == ("80/tcp",)
    assert full.config.volumes == ("/v",)
    assert full.config.stop_signal == "SIGINT"
    assert full.diff_ids == (A,)
    assert full.history == ("RUN x", "")


def test_chain_ids_are_those_of_the_specification() -> None:
    assert chain_ids([]) == ()
    assert chain_ids([A])[0] == A
    one, two = chain_ids([A, B])
    assert (one, two) == (
        A,
        "sha256:" + __import__("hashlib").sha256(f"{A} {B}".encode()).hexdigest(),
    )


@pytest.mark.parametrize(
    ("offered", "wanted", "fit"),
    [
        ("linux/amd64", "linux/amd64", 0),
        ("linux/arm64/v8", "linux/arm64", 0),
        ("linux/arm64", "linux/amd64", None),
        ("linux/arm/v6", "linux/arm/v7", 1),
        ("linux/arm/v7", "linux/arm/v6", None),
        ("windows/amd64", "linux/amd64", None),
        ("linux/amd64/v3", "linux/amd64", 1),
    ],
)
def test_a_platform_fits_if_this_machine_runs_it(
    offered: str, wanted: str, fit: int | None
) -> None:
    assert rank(parse_platform(offered), parse_platform(wanted)) == fit


@pytest.mark.parametrize("text", ["", "linux", "linux/", "a/b/c/d"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="no platform"):
        parse_platform(text)
