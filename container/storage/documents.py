"""Atomic JSON documents: what is on disk is complete or absent.

A write goes to a temporary file in the same folder, is synced, renamed over the old one, and the
folder is synced: what was acknowledged survives power loss. A document that can't be read is an
error
that names its path; it is never deleted.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import cattrs

from container.ipc import DataLoss

T = TypeVar("T")


def write_bytes(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace a file atomically and durably. Blocking; at failure the old content stays."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Documents:
    """Typed documents of one kind: attrs values as JSON with a schema number.

    Args:
        schema: Number of the format; a document with a higher one is refused, never guessed at.
        converter: The cattrs converter that knows the types.
    """

    def __init__(self, schema: int, converter: cattrs.Converter) -> None:
        self._schema = schema
        self._converter = converter

    def write(self, path: Path, value: Any) -> None:
        """Write a value, durable when this returns."""
        body = {"schema": self._schema, "value": self._converter.unstructure(value)}
        write_bytes(path, json.dumps(body, indent=1, sort_keys=True).encode() + b"\n")

    def read(self, path: Path, kind: type[T]) -> T:
        """Read a value.

        Raises:
            FileNotFoundError: there is none.
            DataLoss: it is torn, of a newer schema, or not of this type; names the path.
        """
        raw = path.read_bytes()
        try:
            body = json.loads(raw)
            schema = body["schema"]
            if schema > self._schema:
                raise DataLoss(
                    f"{path} was written by a newer version "
                    f"(schema {schema}, known {self._schema})",
                    hint="use the newer version of container, or move the file away",
                )
            return self._converter.structure(body["value"], kind)
        except DataLoss:
            raise
        except Exception as error:
            raise DataLoss(
                f"{path} can't be read: {error}", hint="restore it or move it away"
            ) from error
