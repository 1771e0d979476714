"""The documents of all networks: one folder each, `<id>/network.json`.

As with containers, a folder is complete or absent: written under a hidden name and renamed into
place; a removal is first marked in it, then made invisible by a rename, then swept. What else is in
a folder is the network helper's.

All methods block: the actor calls them in a worker thread.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from attrs import frozen

from container.contracts.network import NetworkConfiguration
from container.contracts.stored import (
    HELPER_DOCUMENT,
    NETWORK_DOCUMENT,
    NETWORK_ID,
    REMOVING,
    helper_document,
    network_documents,
    read_network,
)
from container.ipc import DataLoss
from container.storage.durable import make_folder, sync_folder, write_new

_log = logging.getLogger(__name__)


@frozen
class LoadedNetworks:
    """What was found at start-up."""

    networks: tuple[NetworkConfiguration, ...]
    removing: tuple[str, ...]
    """Ids whose removal was begun and not finished."""
    broken: dict[str, DataLoss]
    """By id: why a document can't be read."""


class NetworkStore:
    """Keep the documents of the networks of one root.

    Args:
        folder: Where the networks' folders are; made when first needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def folder(self, network_id: str) -> Path:
        """Return the folder of a network."""
        return self._folder / network_id

    def load(self) -> LoadedNetworks:
        """Read all documents, and sweep what was half made or half swept."""
        networks: list[NetworkConfiguration] = []
        removing: list[str] = []
        broken: dict[str, DataLoss] = {}
        if not self._folder.is_dir():
            return LoadedNetworks((), (), {})
        for entry in sorted(os.scandir(self._folder), key=lambda entry: entry.name):
            if entry.name.startswith("."):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif not NETWORK_ID.fullmatch(entry.name):
                _log.warning("%s is not a network's folder: ignored", entry.path)
            elif os.path.lexists(Path(entry.path, REMOVING)):
                removing.append(entry.name)
            else:
                try:
                    networks.append(self._read(Path(entry.path)))
                except DataLoss as error:
                    _log.error("network %s is set aside: %s", entry.name, error)
                    broken[entry.name] = error
        return LoadedNetworks(tuple(networks), tuple(removing), broken)

    def _read(self, folder: Path) -> NetworkConfiguration:
        network = read_network(folder)
        # The helper's copy is made from ours: one that was lost or changed is written anew.
        wanted, path = helper_document(network), folder / HELPER_DOCUMENT
        try:
            present = path.read_bytes()
        except OSError:
            present = b""
        if present != wanted:
            temporary = path.with_suffix(".new")
            temporary.write_bytes(wanted)
            temporary.chmod(0o600)
            temporary.replace(path)
        return network

    def create(self, network: NetworkConfiguration) -> None:
        """Make the folder with its documents, durable when this returns.

        Raises:
            OSError: there is no space; nothing is left.
        """
        make_folder(self._folder)
        hidden = self._folder / f".{network.id}.new"
        hidden.mkdir(mode=0o700)
        try:
            for name, data in (
                (HELPER_DOCUMENT, helper_document(network)),
                (NETWORK_DOCUMENT, network_documents.encode(network)),
            ):
                write_new(hidden / name, data)
            hidden.rename(self._folder / network.id)
        except BaseException:
            shutil.rmtree(hidden, ignore_errors=True)
            raise
        sync_folder(self._folder)

    def mark_removing(self, network_id: str) -> None:
        """Write down, durably, that a network is being removed; start-up goes on with that."""
        folder = self._folder / network_id
        try:
            (folder / REMOVING).touch(mode=0o600)
            sync_folder(folder)
        except FileNotFoundError:
            pass  # there is no folder any more: the removal is nearly done

    def remove(self, network_id: str) -> None:
        """Remove the folder with all that is in it. A missing one is no error."""
        hidden = self._folder / f".{network_id}.gone"
        try:
            (self._folder / network_id).rename(hidden)
        except FileNotFoundError:
            return
        sync_folder(self._folder)
        shutil.rmtree(hidden, ignore_errors=True)
