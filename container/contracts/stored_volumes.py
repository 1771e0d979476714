"""The volumes' folder, as the API server writes it and an audit reads it.

| path in `volumes/` | is |
|---|---|
| `<name>/volume.json` | the volume; its folder is there, so its driver has made it |
| `<name>/_data` | data of a `local` volume |
| `<name>/image` | of a `local` volume with a size: its file system |
| `<name>/_mount` | where that is mounted while it is used; the data is in `_mount/_data` |
| `.<name>.new`, `.<name>.gone` | a volume that is being made, or removed |

A change of `Volume` that is more than a new field with a default is a new schema, and a migration
to it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from attrs import evolve
from cattrs.preconf.json import make_converter

from container.contracts.volumes import Volume
from container.ipc import DataLoss
from container.storage.documents import Documents

VOLUME_DOCUMENT = "volume.json"
DATA = "_data"
IMAGE = "image"
MOUNT = "_mount"
VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}", re.ASCII)
VOLUME_NAME_RULE = (
    "a volume's name has 1 to 128 letters, digits, '_', '.' and '-', and begins with a letter or "
    "digit"
)
HIDDEN = re.compile(rf"\.({VOLUME_NAME.pattern})\.(new|gone)", re.ASCII)

volume_documents = Documents(1, make_converter())


def hidden_names(name: str) -> tuple[str, str]:
    """Return the names of a volume's folder while it is made, and while it is removed."""
    return f".{name}.new", f".{name}.gone"


def encode_volume(volume: Volume) -> bytes:
    """Return the document of a volume: what is looked up anew each time is left out."""
    return volume_documents.encode(evolve(volume, mountpoint="", used_by=(), size_bytes=None))


def read_volume(folder: Path) -> Volume:
    """Read the document of a volume's folder. Blocking.

    Raises:
        DataLoss: it is broken, missing, or another volume's; names the path.
    """
    path = folder / VOLUME_DOCUMENT
    try:
        volume = volume_documents.read(path, Volume)
    except FileNotFoundError:
        raise _loss(path, "is missing", "missing") from None
    except OSError as error:
        raise _loss(path, f"can't be read: {error.strerror}", "unreadable") from error
    hidden = HIDDEN.fullmatch(folder.name)
    if volume.name != (hidden[1] if hidden else os.path.basename(folder)):
        raise _loss(path, f"is of another volume, {volume.name[:100]}", "wrong")
    return volume


def _loss(path: Path, what: str, reason: str) -> DataLoss:
    return DataLoss(
        f"{path} {what}",
        hint="restore it or move the folder away",
        details={"path": str(path), "reason": reason},
    )
