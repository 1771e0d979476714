"""Snapshots: layers unpacked, one folder for each stack, shared by all that use it.

A snapshot is made in the ingest folder, synced, and renamed: what is there is whole. A holder (a
container) has a record of its own. The forms of both are in `container.storage.stored_images`. All
functions here block; the ones that run on the event loop are a few renames.

Source: OCI image-spec, "Layer ChainID"; syncfs(2).
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from attrs import define, field

from container.images.limits import Limits
from container.images.unpack import unpack_layer
from container.ipc import DataLoss, InvalidArgument
from container.storage.blobs import Blobs, space_errors
from container.storage.documents import is_aside, set_aside
from container.storage.durable import make_folder, sync_file_system, sync_folder
from container.storage.stored_images import (
    HOLDER,
    SNAPSHOT,
    Hold,
    SnapshotRecord,
    read_hold,
    read_snapshot,
    snapshot_documents,
)

_log = logging.getLogger(__name__)


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
    broken: dict[Path, DataLoss] = field(factory=dict[Path, DataLoss])
    """What can't be read: left where it is, and as good as not there. A broken hold may be a claim
    on anything: while there is one, nothing is garbage."""

    @property
    def certain(self) -> bool:
        """False while there is a hold of which nobody knows what it holds."""
        return not any(path.parent == self.holders_folder for path in self.broken)

    def load(self) -> None:
        """Read what is on disk; what can't be read is remembered in `broken` and stops nothing."""
        for folder in (self.folder, self.holders_folder, self.ingest):
            make_folder(folder)
        for entry in os.scandir(self.folder):
            if is_aside(entry.name):
                continue
            try:
                record = read_snapshot(Path(entry.path))
                self.records[record.chain_id] = record
            except DataLoss as error:
                self._remember(Path(entry.path), error)
        for entry in os.scandir(self.holders_folder):
            if is_aside(entry.name):
                continue
            try:
                hold = read_hold(Path(entry.path))
                self.holds.setdefault(hold.holder, set()).add(hold)
            except DataLoss as error:
                self._remember(Path(entry.path), error)
        # Whoever made them may have been killed before its sync, and we answer for them from now.
        sync_folder(self.folder)
        sync_folder(self.holders_folder)

    def _remember(self, path: Path, error: DataLoss) -> None:
        _log.error("%s is set aside: %s", path, error.message)
        self.broken[path] = error

    def layer(self, chain_id: str) -> Path:
        """Return the folder that overlayfs takes as a layer."""
        return self._place(chain_id) / "fs"

    def record_of(self, hold: Hold) -> Path:
        """Return the record of a hold."""
        return self._record(hold)

    def folder_of(self, chain_id: str) -> Path:
        """Return the folder of a snapshot: its layer and its record."""
        return self._place(chain_id)

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
            with space_errors(self.folder), blobs.path(layer).open("rb") as blob:
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
                snapshot_documents.write(work / SNAPSHOT, record)
                check()
                sync_file_system(work)
                self._put(work, self._place(chain_id))
                sync_folder(self.folder)
            return record
        except BaseException:
            remove_tree(work)
            raise

    def _put(self, work: Path, place: Path) -> None:
        try:
            os.rename(work, place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            # A snapshot that can't be read: containers may run on it, so it is kept.
            set_aside(place)
            self.broken.pop(place, None)
            os.rename(work, place)

    def hold(self, hold: Hold) -> None:
        """Write a hold down; durable when this returns."""
        record = self._record(hold)
        with space_errors(self.holders_folder):
            target = f"{hold.manifest} {hold.chain_id}"
            try:
                os.symlink(target, record)
            except FileExistsError:
                if record in self.broken:
                    set_aside(record)
                    record.unlink(missing_ok=True)
                    os.symlink(target, record)
            try:
                sync_folder(self.holders_folder)
            except BaseException:
                record.unlink(missing_ok=True)  # who was told of no hold never releases one
                raise

    def release(self, holds: Iterable[Hold]) -> None:
        """Remove holds; durable when this returns."""
        with space_errors(self.holders_folder):
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
    if not HOLDER.fullmatch(holder):
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
