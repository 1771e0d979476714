"""What survives power loss: the order of writes, renames and syncs.

A file's bytes are durable when the file was synced, a name when its folder was. A file system may
keep what was not synced, drop it, or keep a rename and drop the bytes behind it; nothing here
counts on more. All of this blocks.

Source: fsync(2), rename(2), syncfs(2).
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from pathlib import Path

_TEMPORARY = ".writing"


def write_bytes(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace a file atomically and durably. At failure the old content stays."""
    descriptor, temporary = tempfile.mkstemp(_TEMPORARY, f".{path.name}.", path.parent)
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


def is_temporary(name: str) -> bool:
    """Say whether a file has the name of one that `write_bytes` was writing."""
    return name.startswith(".") and name.endswith(_TEMPORARY)


def sweep_temporary(folder: Path) -> None:
    """Remove what writers have left that were killed; nobody may write in the folder meanwhile."""
    for name in os.listdir(folder):
        if is_temporary(name):
            (folder / name).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make what came, went and was renamed in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, mode: int = 0o700) -> None:
    """Make a folder, and those above it that are not there, each with a durable name.

    One that is there is left as it is.
    """
    if folder.is_dir():
        return
    if folder.parent != folder:
        make_folder(folder.parent, mode)
    try:
        folder.mkdir(mode=mode)
    except FileExistsError:
        if not folder.is_dir():
            raise
    sync_folder(folder.parent)


def sync_file_system(folder: Path) -> None:
    """Make all of a file system durable: one call instead of one for each of thousands of files."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)


def write_new(path: Path, data: bytes) -> None:
    """Write a file that is not there yet, of mode 0600; its content is durable when this returns.

    Its name is once its folder is synced.

    Raises:
        OSError: it is there, or there is no space.
    """

    def private(name: str, flags: int) -> int:
        return os.open(name, flags, 0o600)

    with open(path, "xb", opener=private) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
