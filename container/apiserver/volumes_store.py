"""The folders of all volumes on disk, `<name>/volume.json` in each; see `stored_volumes`.

A volume is there exactly when its folder has its own name. It is made under a hidden name, which
the driver's work belongs to until all of it is done, and is renamed; to be removed it is first
renamed to another hidden name, so that from then on it is gone, whoever is killed. What is left
under a hidden name was never acknowledged, or has been given up: the driver deletes it (again),
then the folder goes.

All methods block: the actor calls them in a worker thread.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from attrs import frozen

from container.contracts.stored_volumes import (
    HIDDEN,
    VOLUME_DOCUMENT,
    VOLUME_NAME,
    encode_volume,
    hidden_names,
    read_volume,
)
from container.contracts.volumes import Volume
from container.ipc import DataLoss
from container.storage.durable import make_folder, sync_folder, write_new

_log = logging.getLogger(__name__)


@frozen
class LoadedVolumes:
    """What was found at start-up."""

    volumes: tuple[Volume, ...]
    unfinished: dict[str, str]
    """By name: the driver of a volume that was being made or removed."""
    broken: dict[str, DataLoss]
    """By name: why a document can't be read."""


class VolumeStore:
    """Keep the folders of the volumes of one root.

    Args:
        folder: Where they are; made when first needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def place(self, name: str) -> Path:
        """Return the folder of a volume, wherever it is in its life."""
        making, removing = (self._folder / hidden for hidden in hidden_names(name))
        own = self._folder / name
        for path in (own, making, removing):
            if os.path.lexists(path):
                return path
        return own

    def load(self) -> LoadedVolumes:
        """Read all documents."""
        volumes: list[Volume] = []
        unfinished: dict[str, str] = {}
        broken: dict[str, DataLoss] = {}
        make_folder(self._folder)
        for entry in sorted(os.scandir(self._folder), key=lambda entry: entry.name):
            hidden = HIDDEN.fullmatch(entry.name)
            if hidden is None and not VOLUME_NAME.fullmatch(entry.name):
                _log.warning("%s is not a volume's folder: ignored", entry.path)
                continue
            try:
                volume = read_volume(Path(entry.path))
            except DataLoss as error:
                if hidden is not None:
                    # Killed before its document was whole, and so before its driver was asked.
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    _log.error("volume %s is set aside: %s", entry.name, error)
                    broken[entry.name] = error
                continue
            if hidden is not None:
                unfinished[volume.name] = volume.driver
            else:
                volumes.append(volume)
        return LoadedVolumes(tuple(volumes), unfinished, broken)

    def begin(self, volume: Volume) -> None:
        """Make the hidden folder with its document, durable when this returns.

        Raises:
            OSError: there is no space; nothing is left.
        """
        hidden = self._folder / hidden_names(volume.name)[0]
        make_folder(self._folder)
        hidden.mkdir(mode=0o700)
        try:
            write_new(hidden / VOLUME_DOCUMENT, encode_volume(volume))
            sync_folder(hidden)
            sync_folder(self._folder)
        except BaseException:
            shutil.rmtree(hidden, ignore_errors=True)
            raise

    def commit(self, name: str) -> None:
        """Let a volume be there that its driver has made; durable when this returns.

        Raises:
            OSError: the disk fails; it is hidden as before.
        """
        hidden = self._folder / hidden_names(name)[0]
        sync_folder(hidden)
        self._rename(hidden, self._folder / name)

    def give_up(self, name: str) -> None:
        """Let a volume be gone before its driver has deleted it; durable when this returns.

        Raises:
            OSError: the disk fails; it is there as before.
        """
        own = self._folder / name
        if os.path.lexists(own):
            self._rename(own, self._folder / hidden_names(name)[1])

    def _rename(self, old: Path, new: Path) -> None:
        old.rename(new)
        try:
            sync_folder(self._folder)
        except BaseException:
            new.rename(old)  # what was not said to be done must not be found at the next start
            raise

    def sweep(self, name: str) -> None:
        """Remove what is hidden of a volume.

        Raises:
            OSError: the disk fails; what is left is swept later.
        """
        for hidden in hidden_names(name):
            try:
                shutil.rmtree(self._folder / hidden)
            except FileNotFoundError:
                continue
        sync_folder(self._folder)
