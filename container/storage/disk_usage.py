"""How much of the disk something takes: allocated blocks, each file once. Blocking.

Source: stat(2) (`st_blocks`, in units of 512 bytes).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

BLOCK = 512


def disk_bytes(*paths: Path, seen: set[tuple[int, int]] | None = None) -> int:
    """Return what files and folders with all that is in them take on disk.

    What is mounted below them is not theirs, and what is removed meanwhile takes nothing.

    Args:
        paths: What is not there takes nothing.
        seen: Inodes that are counted already; those that are counted now are added.
    """
    seen = set() if seen is None else seen
    return sum(_count(found, seen) for path in paths for found in _below(path))


def _count(found: os.stat_result, seen: set[tuple[int, int]]) -> int:
    inode = found.st_dev, found.st_ino
    if inode in seen:
        return 0
    seen.add(inode)
    return found.st_blocks * BLOCK


def _below(path: Path) -> Iterator[os.stat_result]:
    try:
        top = os.lstat(path)
    except FileNotFoundError:
        return
    yield top
    pending = [os.fspath(path)] if _is_folder(top) else []
    while pending:
        for entry in _entries(pending.pop()):
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if found.st_dev != top.st_dev:
                continue
            yield found
            if _is_folder(found):
                pending.append(entry.path)


def _is_folder(found: os.stat_result) -> bool:
    return found.st_mode & 0o170000 == 0o040000


def _entries(folder: str) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return ()
