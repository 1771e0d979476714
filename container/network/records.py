"""What the helper writes down before it does it: `state.json` in its folder.

| is there | says |
|---|---|
| a record | its key holds these addresses, and an interface may be there |
| no record | nobody holds them, and no interface of that key is wanted |

So a record is written before the interface is made, and taken out after it is gone. A write is
whole or not there (a rename); it is not synced, since what it tells of does not outlive the kernel.
After a power loss the file may be torn: then everything that it told of is gone, too.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec
from attrs import define, field, frozen

from container.contracts.network import AttachmentRequest, PublishedPort
from container.ipc import DataLoss, Unavailable
from container.network.leases import Memory

STATE = "state.json"

_log = logging.getLogger(__name__)


@frozen
class Record:
    """One attachment."""

    request: AttachmentRequest
    addresses: tuple[str, ...]
    """Without prefix length, in the subnets' order."""
    mac: str
    namespace: str
    """What its network namespace is told apart by, while it lives."""
    ports: tuple[PublishedPort, ...] | None = None
    """With the host ports that were chosen; None while they are not published yet."""


@define
class State:
    """All that is written down."""

    records: dict[str, Record] = field(factory=dict[str, Record])
    memory: Memory = field(factory=Memory)


class Records:
    """The state of one helper, in memory and on disk. Writing blocks, for a moment.

    Args:
        folder: The helper's.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / STATE
        self.state = State()

    def load(self) -> None:
        """Read what an earlier life has written; nothing, or something torn, is a fresh start."""
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise DataLoss(f"{self._path} can't be read: {error.strerror}") from error
        try:
            self.state = msgspec.json.decode(raw, type=State)
        except msgspec.DecodeError as error:
            aside = self._path.with_suffix(".torn")
            _log.error("%s is torn (%s) and was moved to %s", self._path, error, aside.name)
            os.replace(self._path, aside)

    def save(self) -> None:
        """Write the state down.

        Raises:
            Unavailable: the disk is full, or can't be written; what was there before stays.
        """
        temporary = self._path.with_suffix(".writing")
        try:
            with open(temporary, "wb", opener=_private, buffering=0) as file:
                data = msgspec.json.encode(self.state)
                if file.write(data) != len(data):
                    raise OSError(28, os.strerror(28))
            os.replace(temporary, self._path)
        except OSError as error:
            raise Unavailable(
                f"{self._path} can't be written: {error.strerror}",
                hint="is the disk full?",
            ) from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
