"""The document of a container, as the API server writes it and an audit reads it.

| file in `containers/<id>/` | says |
|---|---|
| `container.json` | the container; its `status` is what was intended last |
| `layers.json` | folders of the image's layers, held for the container as long as it exists |
| `started` | empty: a container that removes itself was bootstrapped |
| `removing` | empty: its removal has begun, and start-up finishes it |

A change of `Container` that is more than a new field with a default is a new schema, and a
migration to it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from cattrs.preconf.json import make_converter

from container.contracts.apiserver import Container
from container.ipc import DataLoss
from container.storage.documents import Documents

DOCUMENT = "container.json"
LAYERS = "layers.json"
STARTED = "started"
REMOVING = "removing"
CONTAINER_ID = re.compile(r"[0-9a-f]{12}")

container_documents = Documents(1, make_converter())


def read_container(folder: Path) -> Container:
    """Read the document of a container's folder. Blocking.

    Raises:
        DataLoss: it is broken, missing, or another container's; names the path.
    """
    path = folder / DOCUMENT
    try:
        container = container_documents.read(path, Container)
    except FileNotFoundError:
        raise DataLoss(
            f"{path} is missing",
            hint="restore it or move the folder away",
            details={"path": str(path), "reason": "missing"},
        ) from None
    except OSError as error:
        raise DataLoss(
            f"{path} can't be read: {error.strerror}",
            hint="restore it or move it away",
            details={"path": str(path), "reason": "unreadable"},
        ) from error
    if container.id != os.path.basename(folder):
        raise DataLoss(
            f"{path} is of another container, {container.id[:100]}",
            hint="restore it or move it away",
            details={"path": str(path), "reason": "wrong"},
        )
    return container
