"""The documents of containers and networks, as the API server writes them and an audit reads them.

| file in `containers/<id>/` | says |
|---|---|
| `container.json` | the container; its `status` is what was intended last |
| `layers.json` | folders of the image's layers, held for the container as long as it exists |
| `started` | empty: a container that removes itself was bootstrapped |
| `removing` | empty: its removal has begun, and start-up finishes it |
| `removing-volumes` | empty: its anonymous volumes go with it |

| file in `networks/<id>/` | says |
|---|---|
| `network.json` | the network, as it was created; it never changes |
| `configuration.json` | the same without a schema number, for the network's helper |
| `removing` | as above |
| anything else | the helper's own |

A change of `Container` or `NetworkConfiguration` that is more than a new field with a default is a
new schema, and a migration to it.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TypeVar

from cattrs.preconf.json import make_converter

from container.contracts.apiserver import Container
from container.contracts.network import NetworkConfiguration
from container.ipc import DataLoss
from container.storage.documents import Documents

T = TypeVar("T")

DOCUMENT = "container.json"
LAYERS = "layers.json"
STARTED = "started"
REMOVING = "removing"
REMOVING_VOLUMES = "removing-volumes"
CONTAINER_ID = re.compile(r"[0-9a-f]{12}")
NETWORK_DOCUMENT = "network.json"
HELPER_DOCUMENT = "configuration.json"
NETWORK_ID = re.compile(r"[0-9a-f]{12}")

_converter = make_converter()
container_documents = Documents(1, _converter)
network_documents = Documents(1, _converter)


def read_container(folder: Path) -> Container:
    """Read the document of a container's folder. Blocking.

    Raises:
        DataLoss: it is broken, missing, or another container's; names the path.
    """
    container = _read(container_documents, folder / DOCUMENT, Container)
    if container.id != os.path.basename(folder):
        raise _wrong(folder / DOCUMENT, f"container, {container.id[:100]}")
    return container


def read_network(folder: Path) -> NetworkConfiguration:
    """Read the document of a network's folder. Blocking.

    Raises:
        DataLoss: it is broken, missing, or another network's; names the path.
    """
    network = _read(network_documents, folder / NETWORK_DOCUMENT, NetworkConfiguration)
    if network.id != os.path.basename(folder):
        raise _wrong(folder / NETWORK_DOCUMENT, f"network, {network.id[:100]}")
    return network


def helper_document(network: NetworkConfiguration) -> bytes:
    """Return `configuration.json`: the fields as JSON, the time as ISO 8601."""
    return json.dumps(_converter.unstructure(network), indent=1, sort_keys=True).encode() + b"\n"


def _read(documents: Documents, path: Path, kind: type[T]) -> T:
    try:
        return documents.read(path, kind)
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


def _wrong(path: Path, whose: str) -> DataLoss:
    return DataLoss(
        f"{path} is of another {whose}",
        hint="restore it or move it away",
        details={"path": str(path), "reason": "wrong"},
    )
