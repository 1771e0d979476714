"""What the images folder holds, as its owner writes it and an audit reads it.

| path | holds |
|---|---|
| `references.json` | every reference and the digest it names: one atomic document |
| `blobs/<algorithm>/<digits>` | manifests, configurations, layers |
| `snapshots/<digits of the chain id>/` | `fs`, a layer for overlayfs, and `snapshot.json` |
| `holders/<holder>.<16 digits of the manifest>` | a link, its text: manifest digest and chain id |
| `ingest/` | what is being made; swept at start |
| `lock` | locked by the process that owns the folder |

A hold is a link, since that is made in one step and needs one sync of its folder, where a file
needs two: `prepare` of a warm image costs this record and nothing else.

Source: OCI image-spec, "Layer ChainID"; symlink(7).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import cattrs
from attrs import frozen

from container.ipc import DataLoss
from container.storage.documents import Documents

REFERENCES = "references.json"
SNAPSHOT = "snapshot.json"
KEPT_SECONDS = 24 * 3600.0
"""That blobs which nothing needs are left for the next try of a pull that was cut off."""

HOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_HOLD = re.compile(r"(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}) (sha(?:256|512):[0-9a-f]+)")

reference_documents = Documents(1, cattrs.Converter(forbid_extra_keys=True))
snapshot_documents = Documents(1, cattrs.Converter(forbid_extra_keys=True))


@frozen
class StoredReference:
    """A row of `references.json`."""

    reference: str
    digest: str
    """Of a manifest or an index."""


@frozen
class SnapshotRecord:
    """`snapshot.json`: what a snapshot is."""

    chain_id: str
    diff_id: str
    parent: str | None
    """Chain id of the snapshot below."""
    size: int
    """Bytes of its files."""


@frozen
class Hold:
    """One holder's claim on one image."""

    holder: str
    manifest: str
    """Digest."""
    chain_id: str


def read_references(folder: Path) -> dict[str, str]:
    """Read the digest of each reference of an images folder; none at all is an empty store.

    Raises:
        DataLoss: the document is broken; names its path.
    """
    try:
        rows = reference_documents.read(folder / REFERENCES, tuple[StoredReference, ...])
    except FileNotFoundError:
        return {}
    return {row.reference: row.digest for row in rows}


def read_snapshot(folder: Path) -> SnapshotRecord:
    """Read what a snapshot's folder says of itself.

    Raises:
        DataLoss: it is broken; names the path.
    """
    path = folder / SNAPSHOT
    hint = "move the folder away: it is unpacked again when it is needed"
    try:
        record = snapshot_documents.read(path, SnapshotRecord)
    except FileNotFoundError:
        raise DataLoss(f"{path} is missing", hint=hint, details={"path": str(path)}) from None
    if record.chain_id.partition(":")[2] != folder.name:
        raise DataLoss(
            f"{path} is of another snapshot, {record.chain_id[:100]}",
            hint=hint,
            details={"path": str(path)},
        )
    if not (folder / "fs").is_dir():
        raise DataLoss(f"{folder} has no files", hint=hint, details={"path": str(folder)})
    return record


def read_hold(link: Path) -> Hold:
    """Read the record of a hold.

    Raises:
        DataLoss: it is broken; names the path.
    """
    holder = link.name.rpartition(".")[0]
    try:
        found = _HOLD.fullmatch(os.readlink(link))
    except OSError:
        found = None
    if not HOLDER.fullmatch(holder) or found is None:
        raise DataLoss(
            f"{link} is no hold of a container", hint="move it away", details={"path": str(link)}
        )
    return Hold(holder, found[1], found[2])
