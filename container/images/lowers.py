"""The finished layers below a layer, seen as one tree. Blocking, and read only.

A layer's tar is written against the tree below it: its paths go through symbolic links of lower
layers, its hard links may name their files, and a folder that it leaves out is the one below.
This is overlayfs's own rule, in user space: the topmost entry wins, folders merge, a whiteout or
an opaque folder hides what is below. No path here goes through a symbolic link: each folder on
the way was seen to be one.

Source: the kernel's Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

Parts = tuple[str, ...]


def is_whiteout(found: os.stat_result) -> bool:
    """Say whether an entry of a layer stands for a removed one."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


class Lowers:
    """A stack of layers.

    Args:
        layers: Their folders, topmost first.
        opaque: Name of the attribute that marks an opaque folder.
    """

    def __init__(self, layers: Sequence[Path], opaque: str) -> None:
        self._opaque = opaque
        self._folders: dict[Parts, tuple[Path, ...]] = {(): tuple(layers)}

    def __bool__(self) -> bool:
        return bool(self._folders[()])

    def folders(self, parts: Parts) -> tuple[Path, ...]:
        """Return the folders that merge into one, topmost first; none if there is none."""
        found = self._folders.get(parts)
        if found is None:
            found = self._folders[parts] = tuple(self._merged(parts))
        return found

    def lookup(self, parts: Parts) -> tuple[Path, os.stat_result] | None:
        """Return the visible entry of this path, itself and not what it may link to."""
        if not parts:
            top = self.folders(())
            return (top[0], os.lstat(top[0])) if top else None
        for folder in self.folders(parts[:-1]):
            path = folder / parts[-1]
            try:
                found = os.lstat(path)
            except FileNotFoundError:
                continue
            return None if is_whiteout(found) else (path, found)
        return None

    def _merged(self, parts: Parts) -> list[Path]:
        merged: list[Path] = []
        for folder in self.folders(parts[:-1]):
            path = folder / parts[-1]
            try:
                found = os.lstat(path)
            except FileNotFoundError:
                continue
            if not stat.S_ISDIR(found.st_mode):
                break
            merged.append(path)
            if self._is_opaque(path):
                break
        return merged

    def _is_opaque(self, path: Path) -> bool:
        try:
            return os.getxattr(path, self._opaque, follow_symlinks=False) == b"y"
        except OSError:
            return False
