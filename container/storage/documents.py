"""Documents: typed JSON on disk, complete or absent, and honest about what can't be read.

| a document | is |
|---|---|
| whole, of our schema | read |
| of an older schema | read, through the chain of migrations from n to n + 1 |
| of a newer schema | broken: never guessed at |
| empty, cut off, no JSON, of another type | broken |
| another user's, or open for others to write, or no plain file | broken: never parsed |

A broken document is an error that names its path and the reason. Nobody deletes or overwrites it:
it is left where it is, and when its owner writes there anew it is first set aside under a name of
its own, in the same folder.

A migrated document is written back by the next write, not by the read. So reading changes nothing:
an audit may do it, a full or read-only disk does not keep a system from starting, and who goes back
to the older version loses only what was changed since.

A write goes to a temporary file in the same folder, is synced, renamed over the old one, and the
folder is synced: what was acknowledged survives power loss.
"""

from __future__ import annotations

import enum
import errno
import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import cattrs

from container.ipc import DataLoss
from container.storage.durable import sync_folder as sync_folder
from container.storage.durable import write_bytes as write_bytes

T = TypeVar("T")

SIZE_BOUND = 64 << 20
"""Bytes of a document that are read into memory."""
_ASIDE = ".broken-"

Migration = Callable[[Any], Any]
"""From the plain JSON value of schema n to that of n + 1. It may change its argument."""


class Reason(enum.Enum):
    """Why a document is broken: `details["reason"]` of the error."""

    UNREADABLE = "unreadable"
    """The disk or its permissions do not let us."""
    NOT_OURS = "not-ours"
    """Another user's, or one that others may write."""
    TORN = "torn"
    """Empty, cut off, or no JSON."""
    NEWER = "newer"
    """Of a newer version of this program."""
    OLDER = "older"
    """Of a version from which no migration leads here."""
    WRONG = "wrong"
    """Of another type."""


class Documents:
    """Typed documents of one kind: attrs values as JSON with a schema number.

    Args:
        schema: Number of the format that is written.
        converter: The cattrs converter that knows the types.
        migrations: By n, what makes schema n + 1 of schema n: an unbroken chain that ends at
            `schema`. Without one, older documents are read as they are: what was added has
            defaults.

    Raises:
        ValueError: the chain is broken.
    """

    def __init__(
        self,
        schema: int,
        converter: cattrs.Converter,
        migrations: Mapping[int, Migration] | None = None,
    ) -> None:
        self.schema = schema
        self._converter = converter
        self._migrations = dict(migrations or {})
        first = min(self._migrations, default=schema)
        if sorted(self._migrations) != list(range(first, schema)):
            raise ValueError(f"migrations lead from {sorted(self._migrations)}, not to {schema}")
        self._oldest = first if self._migrations else 1
        self._broken: set[Path] = set()

    def encode(self, value: Any) -> bytes:
        """Return a value as it is written."""
        body = {"schema": self.schema, "value": self._converter.unstructure(value)}
        return json.dumps(body, indent=1, sort_keys=True).encode() + b"\n"

    def write(self, path: Path, value: Any) -> None:
        """Write a value, durable when this returns; at failure the old content stays.

        What could not be read there before is set aside first.
        """
        if path in self._broken:
            set_aside(path)
            self._broken.discard(path)
        write_bytes(path, self.encode(value))

    def read(self, path: Path, kind: type[T]) -> T:
        """Read a value. Changes nothing.

        Raises:
            FileNotFoundError: there is none.
            DataLoss: it is broken; names the path, and `details` has `path` and `reason`.
        """
        try:
            value = self._migrated(path, _parsed(path, read_private(path)))
            try:
                return self._converter.structure(value, kind)
            except Exception as error:
                _broken(path, Reason.WRONG, f"is no {_name(kind)}: {_said(error)}", error)
        except DataLoss:
            self._broken.add(path)
            raise

    def _migrated(self, path: Path, body: Any) -> Any:
        if not isinstance(body, dict) or "value" not in body:
            _broken(path, Reason.WRONG, "has no value")
        document = cast("dict[str, Any]", body)
        schema, value = document.get("schema"), document["value"]
        if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
            _broken(path, Reason.WRONG, "has no schema number")
        if schema > self.schema:
            _broken(
                path,
                Reason.NEWER,
                f"was written by a newer version (schema {schema}, known {self.schema})",
            )
        if schema < self._oldest:
            _broken(
                path,
                Reason.OLDER,
                f"was written by a version that is too old (schema {schema}, "
                f"read from {self._oldest})",
            )
        for step in range(schema, self.schema if self._migrations else schema):
            try:
                value = self._migrations[step](value)
            except Exception as error:
                sentence = f"can't be migrated from schema {step}: {_said(error)}"
                _broken(path, Reason.WRONG, sentence, error)
        return value


def read_private(path: Path) -> bytes:
    """Read a file that must be ours alone to write. Blocking; links are not followed.

    Raises:
        FileNotFoundError: there is none.
        DataLoss: it can't be read, is no plain file, is another user's, or others may write it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            _broken(path, Reason.NOT_OURS, "is a symbolic link")
        _broken(path, Reason.UNREADABLE, f"can't be read: {error.strerror}", error)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            _broken(path, Reason.NOT_OURS, "is no plain file")
        if found.st_uid not in (os.geteuid(), 0):
            _broken(path, Reason.NOT_OURS, f"belongs to user {found.st_uid}")
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            mode = stat.S_IMODE(found.st_mode)
            _broken(path, Reason.NOT_OURS, f"can be written by others (mode {mode:04o})")
        if found.st_size > SIZE_BOUND:
            _broken(path, Reason.WRONG, f"has more than {SIZE_BOUND} bytes")
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            return file.readall()
    except OSError as error:
        _broken(path, Reason.UNREADABLE, f"can't be read: {error.strerror}", error)
    finally:
        os.close(descriptor)


def set_aside(path: Path) -> Path | None:
    """Give what is at `path` a further name beside it that nothing else takes; durable.

    Returns:
        The new name, or None when nothing was there.
    """
    number = 1
    while True:
        aside = path.with_name(f"{path.name}{_ASIDE}{number}")
        try:
            # A second name, not a rename: at no instant is there nothing at `path`.
            os.link(path, aside, follow_symlinks=False)
        except FileExistsError:
            number += 1
            continue
        except FileNotFoundError:
            return None
        except OSError:
            # A folder, or a file system without links.
            if os.path.lexists(aside):
                number += 1
                continue
            os.rename(path, aside)
        sync_folder(path.parent)
        return aside


def is_aside(name: str) -> bool:
    """Say whether `set_aside` gave this name."""
    _, separator, number = name.rpartition(_ASIDE)
    return bool(separator) and number.isdecimal()


def _parsed(path: Path, raw: bytes) -> Any:
    if not raw.strip():
        _broken(path, Reason.TORN, "is empty")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        _broken(path, Reason.TORN, f"is torn: {error}", error)


_HINTS = {
    Reason.NEWER: "use the newer version of container, or move the file away",
    Reason.OLDER: "use a version of container in between first, or move the file away",
    Reason.NOT_OURS: "see who made it; give it back to its owner, with mode 0600, or move it away",
}


def _broken(
    path: Path, reason: Reason, sentence: str, cause: BaseException | None = None
) -> NoReturn:
    raise DataLoss(
        f"{path} {sentence}",
        hint=_HINTS.get(reason, "restore it or move it away"),
        details={"path": str(path), "reason": reason.value},
    ) from cause


def _said(error: Exception) -> str:
    """Return an error in one short line: those of cattrs are groups."""
    while isinstance(error, ExceptionGroup):
        error = cast("ExceptionGroup[Exception]", error).exceptions[0]
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", None) or str(kind)
