"""Power loss: record what an operation does to a folder, and rebuild what a crash could leave.

`PowerLoss` watches real code at work on real files. It stands between that code and the system
calls that make, rename and remove names and that sync, and after each it looks at the whole folder.
So it knows at every boundary which names and bytes are durable (synced), and which are only in
memory. `crashes` gives the states that a power failure at each boundary could leave:

- of the names that came, went or moved since their folder's sync: none, all, each beginning of them
  in order, all but one, and some at random;
- of a file's bytes since its sync: the old ones, the new ones, the first half, or zeros in place of
  them.

That is more than any one file system does. One promise is taken as given, since rename(2) makes
it: a rename happens whole or not at all. With `names_with_files`, syncing a file that was just made
also makes its name durable, as on ext4, xfs, btrfs and f2fs; without it only what fsync(2)
promises is counted on. With `journal`, names change in the order in which they were changed.

A file's bytes are looked at between the calls that are watched: bytes that are written and
overwritten between two of them are not seen, which only matters to code that writes in place.

Source: fsync(2), rename(2); Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014).
"""

from __future__ import annotations

import builtins
import io
import os
import random
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from attrs import define, field, frozen

_NAMES = ("rename", "replace", "link", "symlink", "unlink", "remove", "mkdir", "rmdir")
_WRITERS = ("truncate", "ftruncate", "write", "pwrite", "sendfile", "copy_file_range", "open")
_RANDOM = 4
"""Choices at random for each boundary."""


@frozen
class _Node:
    """What an inode is: bytes of a file, target of a link, None for a folder or anything else."""

    mode: int
    content: bytes | None


Entries = dict[int, dict[str, int]]
"""By folder's inode: names to inodes."""


@frozen
class _Change:
    """Names that changed in one step: by folder and name, what it was before and is now."""

    names: dict[tuple[int, str], tuple[int | None, int | None]]


@frozen
class _Boundary:
    after: str
    nodes: dict[int, _Node]
    durable: dict[int, bytes]
    entries: Entries
    """That are durable."""
    pending: tuple[_Change, ...]
    acknowledged: tuple[object, ...]


@frozen
class Crash:
    """What a power failure could leave."""

    after: str
    """The last call before it."""
    tree: dict[str, bytes | str | None]
    """By relative path: a file's bytes, `-> target` of a link, None for a folder."""
    acknowledged: tuple[object, ...]
    """What was acknowledged by then."""

    def build(self, folder: Path) -> None:
        """Make the tree in an empty or missing folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in sorted(self.tree.items()):
            path = folder / name
            if content is None:
                path.mkdir(mode=0o700)
            elif isinstance(content, str):
                path.symlink_to(content)
            else:
                path.write_bytes(content)
                path.chmod(0o600)


@define
class PowerLoss:
    """Record an operation: `with PowerLoss(folder) as loss: ...; loss.acknowledge("it")`.

    One at a time in a process, and nothing else may work on the folder meanwhile.

    Args:
        folder: What is on it when the block begins is durable.
        names_with_files: Whether syncing a new file makes its name durable too.
        journal: Whether names are durable in the order of their changes, as in a journal.
    """

    folder: Path
    names_with_files: bool = False
    journal: bool = False
    _boundaries: list[_Boundary] = field(factory=list[_Boundary])
    _nodes: dict[int, _Node] = field(factory=dict[int, _Node])
    _seen: Entries = field(factory=dict[int, dict[str, int]])
    _durable: dict[int, bytes] = field(factory=dict[int, bytes])
    _entries: Entries = field(factory=dict[int, dict[str, int]])
    _pending: list[_Change] = field(factory=list[_Change])
    _acknowledged: list[object] = field(factory=list[object])
    _held: dict[int, int] = field(factory=dict[int, int])
    _patched: list[tuple[Any, str, Any]] = field(factory=list[tuple[Any, str, Any]])
    _lock: threading.RLock = field(factory=threading.RLock)
    _root: int = 0

    # --- recording ---

    def __enter__(self) -> Self:
        self._root = os.stat(self.folder).st_ino
        self._seen = self._scan()
        self._entries = {folder: dict(names) for folder, names in self._seen.items()}
        self._durable = {
            inode: node.content for inode, node in self._nodes.items() if node.content is not None
        }
        self._mark("the beginning")
        for name in _NAMES + _WRITERS:
            self._patch(os, name, self._watched(name, getattr(os, name)))
        self._patch(os, "fsync", self._syncing("fsync", os.fsync))
        self._patch(os, "fdatasync", self._syncing("fdatasync", os.fdatasync))
        opened = self._watched("open", io.open)
        self._patch(io, "open", opened)
        self._patch(builtins, "open", opened)
        import container.images.snapshots as snapshots
        import container.storage.durable as durable

        whole = self._syncing_all(durable.sync_file_system)
        self._patch(durable, "sync_file_system", whole)
        self._patch(snapshots, "sync_file_system", whole)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for owner, name, original in reversed(self._patched):
            setattr(owner, name, original)
        self._patched.clear()
        self._observe("the end")
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()

    def acknowledge(self, what: object) -> None:
        """Note that the operation has just told somebody that `what` is done."""
        with self._lock:
            self._observe("the last call")
            self._acknowledged.append(what)
            self._mark(f"{what!r} was acknowledged")

    @property
    def boundaries(self) -> int:
        """How many there were."""
        return len(self._boundaries)

    def _patch(self, owner: Any, name: str, replacement: Any) -> None:
        self._patched.append((owner, name, getattr(owner, name)))
        setattr(owner, name, replacement)

    def _watched(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                result = original(*arguments, **options)
                self._observe(f"{name}{_shown(arguments)}")
                return result

        return call

    def _syncing(self, name: str, original: Callable[[Any], None]) -> Callable[[Any], None]:
        def call(target: Any) -> None:
            with self._lock:
                found = os.fstat(target)
                self._observe(f"before {name}")
                original(target)
                if found.st_ino in self._nodes:
                    self._sync(found.st_ino, stat.S_ISDIR(found.st_mode))
                    self._mark(f"{name} of {_path(target)}")

        return call

    def _syncing_all(self, original: Callable[[Path], None]) -> Callable[[Path], None]:
        def call(folder: Path) -> None:
            with self._lock:
                self._observe("before syncfs")
                original(folder)
                for inode, node in self._nodes.items():
                    if node.content is not None:
                        self._durable[inode] = node.content
                self._commit(lambda change: True)
                self._mark("syncfs")

        return call

    def _sync(self, inode: int, is_folder: bool) -> None:
        if is_folder:
            self._commit(lambda change: any(folder == inode for folder, _ in change.names))
            return
        content = self._nodes[inode].content
        if content is not None:
            self._durable[inode] = content
        if self.names_with_files:
            self._commit(
                lambda change: any(
                    before is None and after == inode for before, after in change.names.values()
                )
            )

    def _commit(self, wanted: Callable[[_Change], bool]) -> None:
        left: list[_Change] = []
        last = max((i for i, change in enumerate(self._pending) if wanted(change)), default=-1)
        for index, change in enumerate(self._pending):
            if wanted(change) or (self.journal and index < last):
                _apply(self._entries, change)
            else:
                left.append(change)
        self._pending = left

    def _observe(self, after: str) -> None:
        """Look at the folder, and note what has changed since the last look."""
        with self._lock:
            before_nodes = dict(self._nodes)
            now = self._scan()
            names: dict[tuple[int, str], tuple[int | None, int | None]] = {}
            for folder in {*self._seen, *now}:
                old, new = self._seen.get(folder, {}), now.get(folder, {})
                for name in {*old, *new}:
                    if old.get(name) != new.get(name):
                        names[folder, name] = old.get(name), new.get(name)
            self._seen = now
            if names:
                self._pending.append(_Change(names))
            if names or before_nodes != self._nodes:
                self._mark(after)

    def _mark(self, after: str) -> None:
        self._boundaries.append(
            _Boundary(
                after,
                dict(self._nodes),
                dict(self._durable),
                {folder: dict(names) for folder, names in self._entries.items()},
                tuple(self._pending),
                tuple(self._acknowledged),
            )
        )

    def _scan(self) -> Entries:
        found: Entries = {}
        stack: list[tuple[str, int]] = [(str(self.folder), self._root)]
        self._nodes.setdefault(self._root, _Node(stat.S_IFDIR, None))
        while stack:
            path, inode = stack.pop()
            names: dict[str, int] = {}
            try:
                listed = list(os.scandir(path))
            except FileNotFoundError:
                continue
            for entry in listed:
                status = entry.stat(follow_symlinks=False)
                names[entry.name] = status.st_ino
                self._note(entry.path, status)
                if stat.S_ISDIR(status.st_mode):
                    stack.append((entry.path, status.st_ino))
            found[inode] = names
        return found

    def _note(self, path: str, status: os.stat_result) -> None:
        content: bytes | None = None
        if stat.S_ISREG(status.st_mode):
            with _original_open(path, "rb") as file:
                content = file.read()
        elif stat.S_ISLNK(status.st_mode):
            content = os.fsencode(os.readlink(path))
        self._nodes[status.st_ino] = _Node(stat.S_IFMT(status.st_mode), content)
        if status.st_ino not in self._held:
            # An inode that is held open keeps its number, which would else be given away again.
            self._held[status.st_ino] = _original_os_open(
                path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
            )

    # --- rebuilding ---

    def crashes(self, seed: int = 0) -> Iterator[Crash]:
        """Yield each state that a power failure could leave, once."""
        chance = random.Random(seed)
        seen: set[int] = set()
        for boundary in self._boundaries:
            for kept in _choices(len(boundary.pending), chance, ordered=self.journal):
                for contents in _CONTENTS:
                    tree = self._tree(boundary, kept, contents, chance)
                    crash = Crash(boundary.after, tree, boundary.acknowledged)
                    key = hash((tuple(sorted(tree.items(), key=_first)), boundary.acknowledged))
                    if key not in seen:
                        seen.add(key)
                        yield crash

    def _tree(
        self, boundary: _Boundary, kept: Sequence[int], contents: str, chance: random.Random
    ) -> dict[str, bytes | str | None]:
        entries = {folder: dict(names) for folder, names in boundary.entries.items()}
        for index in kept:
            _apply(entries, boundary.pending[index])
        tree: dict[str, bytes | str | None] = {}
        stack = [("", self._root)]
        while stack:
            prefix, folder = stack.pop()
            for name, inode in entries.get(folder, {}).items():
                node, path = boundary.nodes[inode], f"{prefix}{name}"
                if node.mode == stat.S_IFDIR:
                    tree[path] = None
                    stack.append((f"{path}/", inode))
                elif node.mode == stat.S_IFLNK:
                    tree[path] = os.fsdecode(node.content or b"")
                elif node.content is not None:
                    old = boundary.durable.get(inode, b"")
                    choice = chance.choice(_CONTENTS[:-1]) if contents == "mixed" else contents
                    tree[path] = _content(old, node.content, choice)
        return tree


_CONTENTS = ("old", "new", "half", "zeros", "mixed")


def _content(old: bytes, new: bytes, choice: str) -> bytes:
    match choice:
        case "old":
            return old
        case "half" if old != new:
            return new[: len(new) // 2]
        case "zeros" if old != new:
            return bytes(len(new))
        case _:
            return new


def _choices(count: int, chance: random.Random, *, ordered: bool) -> list[tuple[int, ...]]:
    every = tuple(range(count))
    found = [every[:length] for length in range(count + 1)]
    if ordered:
        return found
    found += [tuple(i for i in every if i != dropped) for dropped in every]
    found += [(kept,) for kept in every]
    found += [tuple(i for i in every if chance.random() < 0.5) for _ in range(_RANDOM)]
    return list(dict.fromkeys(found))


def _apply(entries: Entries, change: _Change) -> None:
    for (folder, name), (_, inode) in change.names.items():
        names = entries.setdefault(folder, {})
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


def _first(item: tuple[str, object]) -> str:
    return item[0]


def _path(target: object) -> str:
    return os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else str(target)


def _shown(arguments: tuple[Any, ...]) -> str:
    return f"({', '.join(str(argument)[-60:] for argument in arguments[:2])})"


_original_open = io.open
_original_os_open = os.open
