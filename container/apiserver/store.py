"""The documents of all containers: one folder each, `<id>/container.json`.

What is on disk is complete or absent. A folder is written under a hidden name and renamed into
place, so a container either exists whole or not at all; a removal is first marked in the folder,
then made invisible by a rename, then swept. Nothing here knows a running container: `status` in a
document is what was intended last.

A document that can't be read is reported with its path and set aside in memory; it is never
deleted.

All methods block: the actor calls them in a worker thread.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from pathlib import Path
from typing import cast

from attrs import evolve, frozen

from container.contracts.apiserver import Container, ContainerStatus
from container.contracts.stored import (
    CONTAINER_ID,
    DOCUMENT,
    LAYERS,
    REMOVING,
    REMOVING_VOLUMES,
    STARTED,
    container_documents,
    read_container,
)
from container.ipc import DataLoss
from container.storage.durable import make_folder, sweep_temporary, sync_folder, write_new

_log = logging.getLogger(__name__)


@frozen
class Loaded:
    """What was found at start-up."""

    containers: tuple[Container, ...]
    removing: tuple[str, ...]
    """Ids whose removal was begun and not finished."""
    broken: dict[str, DataLoss]
    """By id: why a document can't be read."""


class ContainerStore:
    """Keep the documents of the containers of one root.

    Args:
        folder: Where the containers' folders are; made when first needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def folder(self, container_id: str) -> Path:
        """Return the folder of a container."""
        return self._folder / container_id

    def load(self) -> Loaded:
        """Read all documents, and sweep what was half made or half swept."""
        containers: list[Container] = []
        removing: list[str] = []
        broken: dict[str, DataLoss] = {}
        make_folder(self._folder)
        for entry in sorted(os.scandir(self._folder), key=lambda entry: entry.name):
            if entry.name.startswith("."):
                if not mounts_below(Path(entry.path)):
                    shutil.rmtree(entry.path, ignore_errors=True)
            elif not CONTAINER_ID.fullmatch(entry.name):
                _log.warning("%s is not a container's folder: ignored", entry.path)
            elif os.path.lexists(Path(entry.path, REMOVING)):
                removing.append(entry.name)
            else:
                try:
                    containers.append(self._read(entry.name))
                except DataLoss as error:
                    _log.error("container %s is set aside: %s", entry.name, error)
                    broken[entry.name] = error
        return Loaded(tuple(containers), tuple(removing), broken)

    def _read(self, container_id: str) -> Container:
        folder = self._folder / container_id
        sweep_temporary(folder)
        container = read_container(folder)
        if os.path.lexists(folder / STARTED):
            return evolve(container, status=ContainerStatus.RUNNING)
        return container

    def create(self, container: Container) -> None:
        """Make the folder with its document, durable when this returns; two syncs.

        Raises:
            OSError: there is no space; nothing is left.
        """
        hidden = self._folder / f".{container.id}.new"
        try:
            hidden.mkdir(mode=0o700)
        except FileNotFoundError:
            make_folder(self._folder)
            hidden.mkdir(mode=0o700)
        try:
            # The folder's own sync is spared: syncing a file that was just made also makes its name
            # durable on ext4, xfs, btrfs and f2fs, and the rename below is synced.
            write_new(hidden / DOCUMENT, container_documents.encode(container))
            hidden.rename(self._folder / container.id)
        except BaseException:
            shutil.rmtree(hidden, ignore_errors=True)
            raise
        sync_folder(self._folder)

    def update(self, container: Container) -> None:
        """Replace the document, durable when this returns."""
        container_documents.write(self._folder / container.id / DOCUMENT, container)

    def save_layers(self, container_id: str, layers: tuple[str, ...]) -> None:
        """Keep where the image's layers are: a later run needs no image name that still fits.

        Not synced: where it is missing or torn, the image is prepared again.
        """
        (self._folder / container_id / LAYERS).write_text(json.dumps(layers))

    def load_layers(self, container_id: str) -> tuple[str, ...] | None:
        """Return what `save_layers` kept, if it is whole and the layers are still there."""
        try:
            layers: object = json.loads((self._folder / container_id / LAYERS).read_bytes())
        except (OSError, ValueError):
            return None
        if not isinstance(layers, list) or not layers:
            return None
        paths = tuple(str(path) for path in cast("list[object]", layers))
        return paths if all(os.path.isdir(path) for path in paths) else None

    def begin_run(self, container: Container) -> None:
        """Write down that the container is about to run.

        For one that removes itself this is an unsynced mark: whatever a power loss leaves of it is
        removed by the next start, so that its first milliseconds need no sync.
        """
        if container.auto_remove:
            (self._folder / container.id / STARTED).touch(mode=0o600)
        else:
            self.update(container)

    def mark_removing(
        self, container_id: str, *, durable: bool = True, volumes: bool = False
    ) -> None:
        """Write down that the container is being removed; whoever crashes now, start-up goes on.

        Args:
            volumes: Its anonymous volumes go with it; those of one that removes itself do anyway.
            durable: Sync it, so that a power loss does not bring back a container whose image was
                released already. Not needed for one that removes itself.
        """
        folder = self._folder / container_id
        try:
            if volumes:
                (folder / REMOVING_VOLUMES).touch(mode=0o600)
                sync_folder(folder)  # of two names that are not synced either may get on disk
            (folder / REMOVING).touch(mode=0o600)
            if durable:
                sync_folder(folder)
        except FileNotFoundError:
            pass  # there is no folder any more: the removal is nearly done

    def load_removed(self, container_id: str) -> tuple[Container | None, bool]:
        """Return a container whose removal was begun, if its document can be read, and whether its
        anonymous volumes go with it."""
        folder = self._folder / container_id
        try:
            container = read_container(folder)
        except DataLoss:
            return None, False
        return container, container.auto_remove or os.path.lexists(folder / REMOVING_VOLUMES)

    def remove(self, container_id: str, *, durable: bool = True) -> None:
        """Remove the folder with all that is in it. A missing one is no error.

        Args:
            durable: Sync, so that a power loss can't bring it back. Not needed for a container that
                removes itself: start-up would remove it again.

        Raises:
            OSError: something is still mounted there (EBUSY), or the disk fails.
        """
        hidden = self._folder / f".{container_id}.gone"
        mounted = mounts_below(self._folder / container_id)
        if mounted:
            # Sweeping through a mount would delete what is behind it.
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), mounted[0])
        try:
            (self._folder / container_id).rename(hidden)
        except FileNotFoundError:
            return
        if durable:
            sync_folder(self._folder)
        shutil.rmtree(hidden, ignore_errors=True)
        if hidden.exists():
            _log.warning("%s could not be removed whole; the next start tries again", hidden)


def mounts_below(folder: Path) -> list[str]:
    """Return the mount points below a folder. Source: proc_pid_mountinfo(5)."""
    beginning = os.fsencode(f"{folder}/")
    found: list[str] = []
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            point = line.split(b" ", 5)[4]
            if b"\\" in point:
                point = point.decode("unicode_escape").encode("latin-1")
            if point.startswith(beginning):
                found.append(os.fsdecode(point))
    return found
