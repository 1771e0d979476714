"""Snapshots: layers unpacked, one folder for each stack, shared by all that use it.

`snapshots/<hex digits of the chain id>/` holds `fs`, a layer for overlayfs, and `snapshot.json`,
which names the one below. It is made in the ingest folder, synced, and renamed: what is there is
whole.

A holder (a container) is recorded as a symbolic link, `holders/<holder>.<16 digits of the
manifest>`, whose target is text: manifest digest and chain id. A link is made in one step and
needs one sync of its folder, where a file needs two: `prepare` of a warm image costs this record
and nothing else. All functions here block; the ones that run on the event loop are a few renames.

Source: OCI image-spec, "Layer ChainID"; symlink(7); syncfs(2).
"""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cattrs
from attrs import define, field, frozen

from container.images.limits import Limits
from container.images.unpack import unpack_layer
from container.ipc import DataLoss, InvalidArgument
from container.storage.blobs import Blobs, space_errors
from container.storage.documents import Documents, sync_folder

_HOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_documents = Documents(1, cattrs.Converter(forbid_extra_keys=True))


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


@define
class Snapshots:
    """The snapshots of one store, and who holds them."""

    folder: Path
    holders_folder: Path
    ingest: Path
    limits: Limits
    records: dict[str, SnapshotRecord] = field(factory=dict[str, SnapshotRecord])
    """By chain id: all that are here."""
    holds: dict[str, set[Hold]] = field(factory=dict[str, set[Hold]])
    """By holder; entered before the record is written, so that no deletion can come between."""

    def load(self) -> None:
        """Read what is on disk.

        Raises:
            DataLoss: a record can't be read.
        """
        for folder in (self.folder, self.holders_folder, self.ingest):
            folder.mkdir(parents=True, exist_ok=True)
        for entry in os.scandir(self.folder):
            record = _documents.read(Path(entry.path) / "snapshot.json", SnapshotRecord)
            self.records[record.chain_id] = record
        for entry in os.scandir(self.holders_folder):
            manifest, _, chain_id = os.readlink(entry.path).partition(" ")
            holder = entry.name.rpartition(".")[0]
            if not holder or not chain_id:
                raise DataLoss(f"{entry.path} can't be read", hint="move it away")
            self.holds.setdefault(holder, set()).add(Hold(holder, manifest, chain_id))

    def layer(self, chain_id: str) -> Path:
        """Return the folder that overlayfs takes as a layer."""
        return self._place(chain_id) / "fs"

    def make(
        self,
        blobs: Blobs,
        layer: str,
        diff_id: str,
        below: Sequence[str],
        chain_id: str,
        check: Callable[[], None],
    ) -> SnapshotRecord:
        """Unpack one layer on a finished stack; on any error nothing is left.

        Args:
            blobs: Where the layer's blob is.
            layer: Digest of the blob.
            diff_id: Digest of the uncompressed tar.
            below: Chain ids of the stack, topmost first.
            chain_id: What the result is called.
            check: Called often; raises to stop.
        """
        work = self.ingest / f"snapshot-{secrets.token_hex(8)}"
        try:
            with space_errors(self.folder):
                (work / "fs").mkdir(parents=True)
            with blobs.path(layer).open("rb") as blob:
                size = unpack_layer(
                    blob,
                    work / "fs",
                    [self.layer(chain) for chain in below],
                    diff_id=diff_id,
                    limits=self.limits,
                    check=check,
                )
            record = SnapshotRecord(chain_id, diff_id, below[0] if below else None, size)
            with space_errors(self.folder):
                _documents.write(work / "snapshot.json", record)
                check()
                sync_file_system(work)
                os.rename(work, self._place(chain_id))
                sync_folder(self.folder)
            return record
        except BaseException:
            remove_tree(work)
            raise

    def hold(self, hold: Hold) -> None:
        """Write a hold down; durable when this returns."""
        with space_errors(self.holders_folder):
            try:
                os.symlink(f"{hold.manifest} {hold.chain_id}", self._record(hold))
            except FileExistsError:
                return
            sync_folder(self.holders_folder)

    def release(self, holds: Iterable[Hold]) -> None:
        """Remove holds; durable when this returns."""
        for hold in holds:
            self._record(hold).unlink(missing_ok=True)
        sync_folder(self.holders_folder)

    def stack(self, chain_id: str) -> list[SnapshotRecord]:
        """Return a snapshot and all below it, topmost first."""
        found: list[SnapshotRecord] = []
        step: str | None = chain_id
        while step is not None and step in self.records:
            found.append(self.records[step])
            step = self.records[step].parent
        return found

    def set_aside(self, chain_id: str) -> Path:
        """Take a snapshot out of the store in one step; its files are the caller's to remove."""
        aside = self.ingest / f"removed-{secrets.token_hex(8)}"
        os.rename(self._place(chain_id), aside)
        del self.records[chain_id]
        return aside

    def _place(self, chain_id: str) -> Path:
        return self.folder / chain_id.partition(":")[2]

    def _record(self, hold: Hold) -> Path:
        digits = hold.manifest.partition(":")[2][:16]
        return self.holders_folder / f"{hold.holder}.{digits}"


def check_holder(holder: str) -> None:
    """Refuse a holder's name that is none.

    Raises:
        InvalidArgument: says the rule.
    """
    if not _HOLDER.fullmatch(holder):
        raise InvalidArgument(
            f'"{holder[:200]}" is no holder',
            hint="a holder has 1 to 128 letters, digits, _ . - and begins with a letter or digit",
        )


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it, links not followed; a folder that is not there is no error."""
    if os.geteuid() != 0 and path.is_dir():
        # Without root a folder's own mode may keep us from emptying it.
        os.chmod(path, 0o700)
        for parent, folders, _ in os.walk(path):
            for name in folders:
                inner = os.path.join(parent, name)
                if not stat.S_ISLNK(os.lstat(inner).st_mode):
                    os.chmod(inner, 0o700)
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        pass


def sync_file_system(folder: Path) -> None:
    """Make all of a file system durable: one call instead of one for each of thousands of files."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)
