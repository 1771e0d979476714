"""OCI and Docker documents: bytes in, typed values out. No I/O.

Both families are read with the same types, as they differ in media types only. What a document
claims is checked here once: digests are digests (they become file names), sizes are not negative,
and a document that is an index and a manifest at once is refused (two readers would see two
images).

Source: OCI image-spec v1.1 (manifest, index, configuration); Docker image manifest v2, schema 2;
CVE-2021-41190.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import msgspec
from attrs import frozen

from container.contracts.images import ImageConfig, Platform
from container.images.healthcheck import parse_health_check
from container.images.malformed import Malformed
from container.ipc import Unsupported

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
ACCEPTED = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)
"""What a registry is asked for."""

_LAYER_TYPES = (
    "application/vnd.oci.image.layer.",
    "application/vnd.docker.image.rootfs.",
)

T = TypeVar("T")
Digest = Annotated[str, msgspec.Meta(pattern=r"\A(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})\Z")]
Size = Annotated[int, msgspec.Meta(ge=0)]


class PlatformDocument(msgspec.Struct, frozen=True):
    """`platform` of an index's entry."""

    os: str = ""
    architecture: str = ""
    variant: str | None = None


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """A reference to a blob: type, digest, size."""

    digest: Digest
    size: Size
    media_type: str = ""
    platform: PlatformDocument | None = None
    annotations: dict[str, str] | None = None

    def offered(self) -> Platform | None:
        """Return the platform that it says it is for; None when it says nothing."""
        found = self.platform
        if found is None or not found.os or found.os == "unknown":
            return None
        return Platform(found.os, found.architecture, found.variant or None)

    def is_attestation(self) -> bool:
        """Say whether this is build metadata beside the images of an index."""
        return self.platform is not None and self.platform.os == "unknown"


class _Document(msgspec.Struct, frozen=True, rename="camel"):
    schema_version: int = 0
    media_type: str = ""
    config: Descriptor | None = None
    layers: list[Descriptor] | None = None
    manifests: list[Descriptor] | None = None
    fs_layers: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _RunDocument(msgspec.Struct, frozen=True, rename="pascal"):
    user: str | None = None
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    working_dir: str | None = None
    labels: dict[str, str] | None = None
    stop_signal: str | None = None
    exposed_ports: dict[str, Any] | None = None
    volumes: dict[str, Any] | None = None
    healthcheck: msgspec.Raw = msgspec.Raw(b"null")
    shell: list[str] | None = None


class _RootDocument(msgspec.Struct, frozen=True):
    diff_ids: list[Digest] | None = None


class _HistoryDocument(msgspec.Struct, frozen=True):
    created_by: str | None = None


class _ConfigDocument(msgspec.Struct, frozen=True):
    os: str = ""
    architecture: str = ""
    variant: str | None = None
    created: str | None = None
    config: _RunDocument | None = None
    rootfs: _RootDocument | None = None
    history: list[_HistoryDocument] | None = None


class _ArchiveDocument(msgspec.Struct, frozen=True, rename="pascal"):
    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


@frozen
class Manifest:
    """One image of one platform: configuration and layers, lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@frozen
class Index:
    """Manifests of several platforms, or indexes of them."""

    manifests: tuple[Descriptor, ...]


@frozen
class Configuration:
    """The configuration of one image."""

    platform: Platform
    config: ImageConfig
    created: datetime | None
    diff_ids: tuple[str, ...]
    """Of the uncompressed layers, lowest first."""
    history: tuple[str, ...]


@frozen
class ArchivedImage:
    """One image of a docker-archive: names of its members."""

    config: str
    layers: tuple[str, ...]
    references: tuple[str, ...]


def _decode(raw: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"the {what} is malformed: {error}") from error


def parse_manifest(raw: bytes) -> Manifest | Index:
    """Read a manifest or an index.

    Raises:
        Malformed: it is neither, or malformed.
        Unsupported: it is of a format that is not read any more, or no image to run.
    """
    document = _decode(raw, _Document, "manifest")
    if document.schema_version == 1 or document.fs_layers is not msgspec.UNSET:
        raise Unsupported(
            "this image has a manifest of schema 1, which was given up years ago",
            hint="push the image again with a current tool",
        )
    if document.manifests is not None:
        if document.config is not None or document.layers is not None:
            raise Malformed("the manifest is malformed: it is an index and an image at once")
        return Index(tuple(document.manifests))
    if document.config is None:
        raise Malformed("the manifest is malformed: it has neither a configuration nor manifests")
    layers = tuple(document.layers or ())
    for layer in layers:
        if layer.media_type and not layer.media_type.startswith(_LAYER_TYPES):
            raise Unsupported(
                f"this is no image to run: a layer is of type {layer.media_type}",
                hint="it may be another kind of artifact, or encrypted",
            )
    return Manifest(document.config, layers)


def parse_index(raw: bytes) -> Index:
    """Read the `index.json` of a layout.

    Raises:
        Malformed: it is none.
    """
    found = parse_manifest(raw)
    if isinstance(found, Manifest):
        raise Malformed("index.json is malformed: it is a manifest")
    return found


def parse_configuration(raw: bytes) -> Configuration:
    """Read an image's configuration.

    Raises:
        Malformed: it is malformed.
    """
    document = _decode(raw, _ConfigDocument, "image configuration")
    if not document.os or not document.architecture:
        raise Malformed("the image configuration is malformed: it names no platform")
    run = document.config or _RunDocument()
    return Configuration(
        platform=Platform(document.os, document.architecture, document.variant or None),
        config=ImageConfig(
            user=run.user or "",
            environment=tuple(run.env or ()),
            entrypoint=tuple(run.entrypoint or ()),
            command=tuple(run.cmd or ()),
            working_directory=run.working_dir or "",
            labels=dict(run.labels or {}),
            stop_signal=run.stop_signal or None,
            exposed_ports=tuple(sorted(run.exposed_ports or ())),
            volumes=tuple(sorted(run.volumes or ())),
            health=parse_health_check(memoryview(run.healthcheck), run.shell),
        ),
        created=_time(document.created),
        diff_ids=tuple((document.rootfs and document.rootfs.diff_ids) or ()),
        history=tuple(item.created_by or "" for item in document.history or ()),
    )


def parse_archive(raw: bytes) -> tuple[ArchivedImage, ...]:
    """Read the `manifest.json` of a docker-archive.

    Raises:
        Malformed: it is malformed.
    """
    return tuple(
        ArchivedImage(item.config, tuple(item.layers), tuple(item.repo_tags or ()))
        for item in _decode(raw, list[_ArchiveDocument], "manifest.json")
    )


def write_manifest(config: Descriptor, layers: Sequence[Descriptor]) -> bytes:
    """Return a Docker manifest, schema 2; the same bytes for the same image."""

    def described(descriptor: Descriptor) -> dict[str, object]:
        return {
            "mediaType": descriptor.media_type,
            "size": descriptor.size,
            "digest": descriptor.digest,
        }

    return msgspec.json.encode(
        {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": described(config),
            "layers": [described(layer) for layer in layers],
        }
    )


def chain_ids(diff_ids: Sequence[str]) -> tuple[str, ...]:
    """Return the identity of each stack of layers: the lowest alone, the lowest two, ..., all.

    Source: OCI image-spec, configuration, "Layer ChainID".
    """
    chains: list[str] = []
    for diff_id in diff_ids:
        if not chains:
            chains.append(diff_id)
            continue
        pair = f"{chains[-1]} {diff_id}".encode()
        chains.append("sha256:" + hashlib.sha256(pair).hexdigest())
    return tuple(chains)


def _time(text: str | None) -> datetime | None:
    try:
        found = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
