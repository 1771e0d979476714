"""Images: references, blobs, snapshots and holds against each other and the containers.

Half a pull that was cut off is no finding for a day, as its next try goes on with it. All of this
blocks.

Source: OCI image-spec, image manifest, image index, "Layer ChainID".
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from attrs import define, field

from container.audit.containers import Containers, aside, broken
from container.audit.finding import Finding, Kind, Remedy
from container.audit.machine import Machine
from container.audit.services import Word
from container.contracts.stored import LAYERS
from container.ipc import ContainerError, DataLoss, InvalidArgument, NotFound
from container.storage.blobs import ALGORITHMS, BROKEN, Blobs
from container.storage.documents import is_aside
from container.storage.durable import is_temporary
from container.storage.paths import Paths
from container.storage.stored_images import (
    KEPT_SECONDS,
    Hold,
    SnapshotRecord,
    read_hold,
    read_references,
    read_snapshot,
)

_DOCUMENT_BOUND = 4 << 20
_NESTING = 4


@define
class Images:
    """One look at an images folder."""

    paths: Paths
    references: dict[str, str] = field(factory=dict[str, str])
    snapshots: dict[str, SnapshotRecord] = field(factory=dict[str, SnapshotRecord])
    """By chain id."""
    holds: dict[str, set[Hold]] = field(factory=dict[str, set[Hold]])
    """By holder."""
    needed: set[str] = field(factory=set[str])
    """Digests of the blobs that references lead to."""
    chains: set[str] = field(factory=set[str])
    """Chain ids that references lead to."""
    certain: bool = True
    """False when something that can't be read may need anything."""

    @property
    def folder(self) -> Path:
        """The images folder."""
        return self.paths.images

    @property
    def blobs(self) -> Blobs:
        """Its blobs."""
        return Blobs(self.folder / "blobs", self.folder / "ingest")

    def digests(self) -> list[str]:
        """Return the digests of all blobs."""
        if not all((self.folder / "blobs" / name).is_dir() for name in ALGORITHMS):
            return []
        return sorted(self.blobs.digests())


def check_images(
    paths: Paths, containers: Containers, machine: Machine, word: Word
) -> tuple[Images, list[Finding]]:
    """Look at the images folder; return what is there and what is wrong."""
    images = Images(paths)
    findings = [
        *_read(images),
        *_follow_references(images),
        *_check_temporary(images, machine),
        *_check_holds(images, containers, word),
    ]
    if images.certain:
        findings += _check_unneeded(images)
    return images, findings


def check_digests(images: Images, check: Callable[[], None] = lambda: None) -> Iterator[Finding]:
    """Read all blobs and compare them with their digests."""
    for digest in images.digests():
        try:
            if images.blobs.verify(digest, check):
                continue
            what = f"blob {digest} has changed on disk"
        except NotFound:
            continue  # removed meanwhile
        except OSError as error:
            what = f"blob {digest} can't be read: {error.strerror}"
        yield Finding(
            Kind.BLOB,
            digest,
            what,
            "set it aside, so that the next pull or load of its image fetches it again",
            Remedy.SET_ASIDE,
            digest,
        )


def _read(images: Images) -> Iterator[Finding]:
    folder = images.folder
    try:
        images.references = read_references(folder)
    except DataLoss as error:
        images.certain = False
        yield broken(error, folder)
    for name in _names(folder):
        if is_aside(name):
            images.certain = False
            yield aside(folder / name)
    for name in _names(folder / "snapshots"):
        path = folder / "snapshots" / name
        if is_aside(name):
            yield aside(path)
            continue
        try:
            record = read_snapshot(path)
            images.snapshots[record.chain_id] = record
        except DataLoss as error:
            yield broken(error, path)
    for name in _names(folder / "holders"):
        path = folder / "holders" / name
        if is_aside(name):
            yield aside(path)
            continue
        try:
            hold = read_hold(path)
            images.holds.setdefault(hold.holder, set()).add(hold)
        except DataLoss as error:
            if os.path.lexists(path):
                images.certain = False
                yield broken(error, path)
    for name in _names(folder / "blobs" / BROKEN):
        yield aside(folder / "blobs" / BROKEN / name)


def _follow_references(images: Images) -> Iterator[Finding]:
    for reference, digest in sorted(images.references.items()):
        try:
            _follow(images, digest, 0)
        except ContainerError as error:
            images.certain = False
            yield Finding(
                Kind.BLOB,
                reference,
                f"image {reference} is incomplete: {error.message}",
                "nothing: pull or load it again, or delete it",
            )


def _follow(images: Images, digest: str, depth: int) -> None:
    """Note what a manifest or index leads to.

    Raises:
        NotFound, DataLoss: something is missing, or not what its digest says.
    """
    document = _document(images, digest)
    images.needed.add(digest)
    manifests = document.get("manifests")
    if isinstance(manifests, list):
        for entry in cast("list[Any]", manifests):
            inner = str(entry.get("digest", "")) if isinstance(entry, dict) else ""  # pyright: ignore
            if depth >= _NESTING or not _has(images, inner):
                continue  # Only the platforms that were asked for are here.
            try:
                _follow(images, inner, depth + 1)
            except ContainerError:
                images.needed.add(inner)  # Half of another platform's pull.
        return
    try:
        config = str(document["config"]["digest"])
        layers = [str(layer["digest"]) for layer in document["layers"]]
        diff_ids = [str(digest) for digest in _document(images, config)["rootfs"]["diff_ids"]]
    except (KeyError, TypeError) as error:
        raise DataLoss(f"blob {digest} is no manifest of an image ({error!r})") from None
    images.needed.update((config, *layers))
    images.chains.update(_chain_ids(diff_ids))
    for layer in layers:
        if not _has(images, layer):
            raise NotFound(f"layer {layer} is not in the store")


def _document(images: Images, digest: str) -> dict[str, Any]:
    document = json.loads(images.blobs.read(digest, _DOCUMENT_BOUND))
    if not isinstance(document, dict):
        raise DataLoss(f"blob {digest} is no JSON object")
    return cast("dict[str, Any]", document)


def _has(images: Images, digest: str) -> bool:
    try:
        return images.blobs.has(digest)
    except InvalidArgument:
        return False


def _chain_ids(diff_ids: list[str]) -> list[str]:
    found: list[str] = []
    for diff_id in diff_ids:
        if found:
            text = f"{found[-1]} {diff_id}".encode()
            found.append("sha256:" + hashlib.sha256(text).hexdigest())
        else:
            found.append(diff_id)
    return found


def _check_temporary(images: Images, machine: Machine) -> Iterator[Finding]:
    if machine.images_lock:
        return  # Its owner is at work, and what it makes is its own.
    paths = [images.folder / "ingest" / name for name in _names(images.folder / "ingest")]
    paths += [images.folder / name for name in _names(images.folder) if is_temporary(name)]
    for path in paths:
        yield Finding(
            Kind.LEFTOVER,
            str(path),
            "half of something that was being made in the content store",
            "remove it, as the next start of the images helper does",
            Remedy.REMOVE,
        )


def _check_holds(images: Images, containers: Containers, word: Word) -> Iterator[Finding]:
    for holder in sorted(images.holds):
        if holder not in containers.ids:
            yield Finding(
                Kind.LEASE,
                holder,
                f"the image of container {holder} is held, and there is no such container",
                "release it",
                Remedy.RELEASE,
                holder,
            )
    for container_id in sorted(containers.documents):
        if container_id in images.holds:
            continue
        if word.containers is not None and container_id not in word.containers:
            continue  # in the making
        if not (images.paths.containers / container_id / LAYERS).exists():
            continue  # its next start prepares it
        yield Finding(
            Kind.LEASE,
            container_id,
            f"container {container_id} does not hold its image, whose layers may go",
            "prepare its image again" if word.containers else "nothing: start the system first",
            Remedy.HOLD if word.containers else Remedy.START,
            container_id,
        )


def _check_unneeded(images: Images) -> Iterator[Finding]:
    chains = set(images.chains)
    for holds in images.holds.values():
        for hold in holds:
            step: str | None = hold.chain_id
            while step is not None and step not in chains:
                chains.add(step)
                step = images.snapshots[step].parent if step in images.snapshots else None
    for chain in sorted(images.snapshots):
        if chain not in chains:
            yield _unneeded(chain, "snapshot")
    before = time.time() - KEPT_SECONDS
    for digest in images.digests():
        if digest in images.needed:
            continue
        try:
            if images.blobs.path(digest).stat().st_mtime > before:
                continue
        except FileNotFoundError:
            continue
        yield _unneeded(digest, "blob")


def _unneeded(digest: str, what: str) -> Finding:
    return Finding(
        Kind.UNNEEDED,
        digest,
        f"nothing needs {what} {digest}",
        "have the images helper remove it",
        Remedy.SWEEP,
    )


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
