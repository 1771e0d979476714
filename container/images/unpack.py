"""Unpack a layer's tar into a folder of its own, for overlayfs. Blocking.

The tar comes from strangers, and nothing in it may be led outside of the folder. The rules:

- A path is resolved as in a chroot, component by component, and each folder is opened relative to
  its parent with O_NOFOLLOW: the kernel never follows a link for us. A link inside the tree is
  followed by us, inside the tree. `..` in a member's name is refused.
- A file is made with O_EXCL under a name that was removed before; a hard link never leaves the
  tree.
- Modes and times of folders are set at the end, deepest first.
- Attributes of overlayfs itself never come from a tar: they could name other folders.

A removed file (`.wh.NAME`) becomes a character device 0:0, an opaque folder (`.wh..wh..opq`) gets
an attribute: as root `trusted.overlay.opaque`, else `user.overlay.opaque`. Without root owners
stay ours, and devices are left out.

Source: OCI image-spec, layer (whiteouts, hard links); overlayfs.rst; CVE-2018-15664,
CVE-2021-30465.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Self

from attrs import field, frozen

from container.images.compression import decompressed
from container.images.limits import Limits
from container.images.lowers import Lowers, Parts, is_whiteout
from container.images.tarstream import TarStream
from container.ipc import DataLoss, InvalidArgument, Overloaded, Unavailable
from container.storage.blobs import space_errors

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
_AUFS = ".wh..wh."
_XATTR = "SCHILY.xattr."
_OVERLAY = ("trusted.overlay.", "user.overlay.")
_LARGEST_ID = (1 << 32) - 2
_LARGEST_TIME = 1 << 33
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER_NAMES = 256 << 20
_IMPOSSIBLE = (
    errno.ENAMETOOLONG,
    errno.EINVAL,
    errno.ELOOP,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EMLINK,
    errno.EFBIG,
    errno.EOVERFLOW,
)


def unpack_layer(
    blob: IO[bytes],
    target: Path,
    lowers: Sequence[Path],
    *,
    diff_id: str,
    limits: Limits,
    check: Callable[[], None],
    privileged: bool | None = None,
) -> int:
    """Unpack one layer into `target`, an empty folder, and return how many bytes its files have.

    Args:
        blob: The layer, compressed or not, open for reading.
        target: Where; on an error its content is to be thrown away.
        lowers: The folders of the layers below, topmost first.
        diff_id: Digest that the uncompressed tar must have.
        limits: What is refused.
        check: Called often; raises to stop.
        privileged: Whether owners, devices and trusted attributes can be set; None asks who we are.

    Raises:
        DataLoss: the tar is broken, or not the one announced.
        InvalidArgument: a member leads outside or is impossible; names it.
        Overloaded: a bound is reached.
        Unavailable: no space is left.
    """
    as_root = os.geteuid() == 0 if privileged is None else privileged
    with decompressed(blob) as source, LayerWriter(target, lowers, limits, as_root) as writer:
        stream = TarStream(source, limits, check)
        for member in stream:
            writer.add(member, stream)
        found = stream.digest()
        if found != diff_id:
            raise DataLoss(
                f"the digest of the unpacked layer does not match: {diff_id} was announced, "
                f"{found} came",
                details={"digest": diff_id, "found": found},
            )
        writer.finish()
        return writer.size


@frozen
class _Attributes:
    mode: int
    uid: int
    gid: int
    modified: int
    """Nanoseconds since 1970."""
    xattrs: Mapping[str, bytes] = field(factory=dict[str, bytes])


class LayerWriter:
    """The folder of one layer while it is filled."""

    def __init__(
        self, target: Path, lowers: Sequence[Path], limits: Limits, privileged: bool
    ) -> None:
        self._target = target
        self._limits = limits
        self._privileged = privileged
        self._opaque_name = opaque_attribute(privileged)
        self._lowers = Lowers(lowers, self._opaque_name)
        self._opaque: set[Parts] = set()
        self._resolved: dict[Parts, Parts] = {}
        self._folders: dict[Parts, _Attributes] = {}
        self._folder_names = 0
        # The folder that is open now, as the descriptors from the root to it.
        self._root = os.open(target, _FOLDER)
        self._here: list[tuple[str, int]] = []
        self.size = 0
        """Bytes of the files written so far."""

    def __enter__(self) -> Self:
        below = self._lowers.lookup(())
        self._remember((), _attributes_of(*below) if below else _Attributes(0o755, 0, 0, 0))
        return self

    def __exit__(self, *_: object) -> None:
        self._leave(0)
        os.close(self._root)

    def add(self, member: tarfile.TarInfo, stream: TarStream) -> None:
        """Apply one member.

        Raises:
            DataLoss, InvalidArgument, Overloaded, Unavailable: as `unpack_layer` does.
        """
        try:
            with space_errors(self._target.parent):
                self._add(member, stream)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            if error.errno in _IMPOSSIBLE:
                raise self._refused(member.name, reason) from error
            raise Unavailable(f'"{member.name[:200]}" can\'t be unpacked: {reason}') from error

    def finish(self) -> None:
        """Give the folders their owners, modes and times. Nothing can be added after this."""
        with space_errors(self._target.parent):
            for parts in sorted(self._folders, key=len, reverse=True):
                try:
                    folder = self._enter(parts, make=False)
                except (FileNotFoundError, NotADirectoryError):
                    continue  # Something else took its place.
                self._set(folder, self._folders[parts])

    def _add(self, member: tarfile.TarInfo, stream: TarStream) -> None:
        parts = self._parts(member.name, member.name)
        attributes = self._attributes(member)
        if not parts:
            if not member.isdir():
                raise self._refused(member.name, "the root is a folder")
            self._remember((), attributes)
            return
        parent = self._resolve(parts[:-1], member.name)
        name = parts[-1]
        if name.startswith(WHITEOUT):
            self._hide(parent, name, member.name)
        elif member.isdir():
            self._make_folder(parent, name, attributes)
        elif member.islnk():
            self._link(parent, name, member)
        elif member.isreg() or member.type not in tarfile.SUPPORTED_TYPES:
            self._make_file(parent, name, attributes, stream, member)
        else:
            self._make_special(parent, name, attributes, member)

    def _make_file(
        self,
        parent: Parts,
        name: str,
        attributes: _Attributes,
        stream: TarStream,
        member: tarfile.TarInfo,
    ) -> None:
        folder = self._clear(parent, name)
        file = os.open(name, _FILE, 0o600, dir_fd=folder)
        try:
            end = 0
            for offset, data in stream.content(member):
                end = offset + len(data)
                self.size += len(data)
                view = memoryview(data)
                while view:
                    written = os.pwrite(file, view, offset)
                    view, offset = view[written:], offset + written
            if end != member.size:
                os.ftruncate(file, member.size)
            self._set(file, attributes)
        finally:
            os.close(file)

    def _make_folder(self, parent: Parts, name: str, attributes: _Attributes) -> None:
        path = (*parent, name)
        folder = self._enter(parent)
        found = _lstat(name, folder)
        if found is None or not stat.S_ISDIR(found.st_mode):
            below = self._below(path)
            if below is not None and stat.S_ISLNK(below[1].st_mode):
                self._resolved.clear()
            self._new_folder(folder, path, found)
        self._remember(path, attributes)

    def _make_special(
        self, parent: Parts, name: str, attributes: _Attributes, member: tarfile.TarInfo
    ) -> None:
        folder = self._clear(parent, name)
        if member.issym():
            os.symlink(member.linkname, name, dir_fd=folder)
            self._resolved.clear()
        elif member.isfifo():
            os.mkfifo(name, 0o600, dir_fd=folder)
        else:
            if not self._privileged:
                return
            kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
            device = os.makedev(member.devmajor, member.devminor)
            os.mknod(name, kind | 0o600, device, dir_fd=folder)
        if self._privileged:
            os.chown(name, attributes.uid, attributes.gid, dir_fd=folder, follow_symlinks=False)
        if not member.issym():
            os.chmod(name, attributes.mode, dir_fd=folder)
        self._set_xattrs(f"/proc/self/fd/{folder}/{name}", attributes.xattrs)
        times = (attributes.modified, attributes.modified)
        os.utime(name, ns=times, dir_fd=folder, follow_symlinks=False)

    def _link(self, parent: Parts, name: str, member: tarfile.TarInfo) -> None:
        target = self._parts(member.linkname, member.name)
        if not target:
            raise self._refused(member.name, "a hard link to the root")
        target = (*self._resolve(target[:-1], member.name), target[-1])
        if target == (*parent, name):
            return
        source = os.dup(self._enter(target[:-1]))
        try:
            found = _lstat(target[-1], source)
            if found is not None and not is_whiteout(found):
                if stat.S_ISDIR(found.st_mode):
                    raise self._refused(member.name, "a hard link to a folder")
                folder = self._clear(parent, name)
                os.link(
                    target[-1], name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False
                )
                return
        finally:
            os.close(source)
        below = self._below(target)
        if below is None or not stat.S_ISREG(below[1].st_mode):
            raise self._refused(
                member.name, f'a hard link to "{member.linkname}", which is no file'
            )
        # Its file is in a layer below, where nothing may be changed: the name gets a copy.
        folder = self._clear(parent, name)
        file = os.open(name, _FILE, 0o600, dir_fd=folder)
        with open(file, "wb") as copy, below[0].open("rb") as original:
            shutil.copyfileobj(original, copy)
            copy.flush()
            self.size += below[1].st_size
            self._set(file, _attributes_of(*below))

    def _hide(self, parent: Parts, name: str, shown: str) -> None:
        if name == OPAQUE:
            if self._lowers.folders(parent) and parent not in self._opaque:
                self._make_opaque(self._enter(parent), parent)
            return
        if name.startswith(_AUFS):
            return  # Metadata of a file system that nobody uses any more.
        hidden = name.removeprefix(WHITEOUT)
        if hidden in ("", ".", ".."):
            raise self._refused(shown, "it removes no name")
        path = (*parent, hidden)
        if self._below(path) is None:
            return
        folder = self._enter(parent)
        found = _lstat(hidden, folder)
        self._resolved.clear()
        if found is None:
            os.mknod(hidden, stat.S_IFCHR, os.makedev(0, 0), dir_fd=folder)
        elif stat.S_ISDIR(found.st_mode):
            # This layer has a new folder of this name: only the one below is gone.
            self._make_opaque(self._enter(path), path)

    def _make_opaque(self, folder: int, path: Parts) -> None:
        os.setxattr(folder, self._opaque_name, b"y")
        self._opaque.add(path)
        self._resolved.clear()

    def _clear(self, parent: Parts, name: str) -> int:
        """Remove what this layer has under a name; return the descriptor of the folder."""
        folder = self._enter(parent)
        found = _lstat(name, folder)
        if found is not None:
            if stat.S_ISDIR(found.st_mode):
                shutil.rmtree(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)
            self._resolved.clear()
        elif self._lowers:
            self._resolved.pop((*parent, name), None)
        return folder

    # Paths.

    def _parts(self, path: str, shown: str) -> Parts:
        parts = tuple(part for part in path.split("/") if part not in ("", "."))
        if ".." in parts:
            raise self._refused(shown, '".." leads outside')
        if "\0" in path:
            raise self._refused(shown, "a name can't have a zero byte")
        if len(os.fsencode(path)) > self._limits.path or len(parts) > self._limits.depth:
            raise Overloaded(f'the path "{shown[:100]}…" is too long')
        return parts

    def _resolve(self, parts: Parts, shown: str) -> Parts:
        """Return the folder that a path leads to inside the tree, links followed.

        What is missing on the way is made."""
        known = self._resolved.get(parts)
        if known is not None:
            return known
        done: list[str] = []
        todo = list(reversed(parts))
        links = 0
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                del done[-1:]
                continue
            link = self._link_at(tuple(done), part)
            if link is None:
                done.append(part)
                if len(done) > self._limits.depth:
                    raise Overloaded(f'the path "{shown[:100]}…" is too deep')
                continue
            links += 1
            if links > self._limits.symlinks:
                raise self._refused(shown, "its path goes through too many symbolic links")
            if link.startswith("/"):
                done.clear()
            todo.extend(reversed(link.split("/")))
        found = tuple(done)
        self._enter(found)
        self._resolved[parts] = found
        return found

    def _link_at(self, parent: Parts, name: str) -> str | None:
        folder = self._enter(parent)
        found = _lstat(name, folder)
        if found is not None:
            return os.readlink(name, dir_fd=folder) if stat.S_ISLNK(found.st_mode) else None
        below = self._below((*parent, name))
        if below is not None and stat.S_ISLNK(below[1].st_mode):
            return os.readlink(below[0])
        return None

    def _below(self, path: Parts) -> tuple[Path, os.stat_result] | None:
        """Return what the layers below show at a path, unless this layer has hidden it."""
        if not self._lowers:
            return None
        if any(path[:length] in self._opaque for length in range(len(path))):
            return None
        return self._lowers.lookup(path)

    def _enter(self, path: Parts, *, make: bool = True) -> int:
        """Return the descriptor of a folder, made if it is missing; `path` has no links."""
        common = 0
        for (name, _), part in zip(self._here, path, strict=False):
            if name != part:
                break
            common += 1
        self._leave(common)
        folder = self._here[-1][1] if self._here else self._root
        for length in range(common, len(path)):
            name = path[length]
            try:
                inner = os.open(name, _FOLDER, dir_fd=folder)
            except (FileNotFoundError, NotADirectoryError):
                found = _lstat(name, folder)
                if not make or (found is not None and not is_whiteout(found)):
                    raise
                whole = path[: length + 1]
                below = self._below(whole)
                if below is not None and not stat.S_ISDIR(below[1].st_mode):
                    raise NotADirectoryError(errno.ENOTDIR, "a file is below", name) from None
                self._new_folder(folder, whole, found)
                # A folder that a layer does not list is the one below, or made as mkdir -p does.
                if below is None or found is not None:
                    self._remember(whole, _Attributes(0o755, 0, 0, 0))
                else:
                    self._remember(whole, _attributes_of(*below))
                inner = os.open(name, _FOLDER, dir_fd=folder)
            self._here.append((name, inner))
            folder = inner
        return folder

    def _leave(self, depth: int) -> None:
        while len(self._here) > depth:
            os.close(self._here.pop()[1])

    def _new_folder(self, parent: int, path: Parts, found: os.stat_result | None) -> None:
        name = path[-1]
        if found is not None:
            os.unlink(name, dir_fd=parent)
            self._resolved.clear()
        os.mkdir(name, 0o700, dir_fd=parent)
        if found is not None and is_whiteout(found):
            # The old folder below stays hidden under the new one.
            inner = os.open(name, _FOLDER, dir_fd=parent)
            try:
                self._make_opaque(inner, path)
            finally:
                os.close(inner)

    # Attributes.

    def _remember(self, path: Parts, attributes: _Attributes) -> None:
        if path not in self._folders:
            self._folder_names += sum(map(len, path))
            if self._folder_names > _FOLDER_NAMES:
                raise Overloaded("the layer has too many folders with long names")
        self._folders[path] = attributes

    def _attributes(self, member: tarfile.TarInfo) -> _Attributes:
        if not (0 <= member.uid <= _LARGEST_ID and 0 <= member.gid <= _LARGEST_ID):
            raise self._refused(member.name, "its owner is out of range")
        modified = float(member.mtime)
        if not -_LARGEST_TIME < modified < _LARGEST_TIME:
            modified = 0.0
        return _Attributes(
            mode=member.mode & 0o7777,
            uid=member.uid,
            gid=member.gid,
            modified=int(modified * 1_000_000_000),
            xattrs={
                key.removeprefix(_XATTR): value.encode("utf-8", "surrogateescape")
                for key, value in member.pax_headers.items()
                if key.startswith(_XATTR)
            },
        )

    def _set(self, file: int, attributes: _Attributes) -> None:
        if self._privileged:
            os.fchown(file, attributes.uid, attributes.gid)
        # After the owner: a change of owner drops the set-user-id bit and file capabilities.
        os.fchmod(file, attributes.mode)
        self._set_xattrs(file, attributes.xattrs)
        os.utime(file, ns=(attributes.modified, attributes.modified))

    def _set_xattrs(self, file: int | str, xattrs: Mapping[str, bytes]) -> None:
        for name, value in xattrs.items():
            if name.startswith(_OVERLAY) or not (self._privileged or name.startswith("user.")):
                continue
            try:
                if isinstance(file, int):
                    os.setxattr(file, name, value)
                else:
                    os.setxattr(file, name, value, follow_symlinks=False)
            except OSError as error:
                # Not every file system has every name space, nor every kind of file.
                if error.errno not in (errno.ENOTSUP, errno.EPERM):
                    raise

    def _refused(self, name: str, reason: str) -> InvalidArgument:
        return InvalidArgument(
            f'the layer is refused: "{name[:200]}": {reason}',
            hint="the image is broken or was made to do harm",
        )


def opaque_attribute(privileged: bool) -> str:
    """Return the attribute that marks an opaque folder."""
    return "trusted.overlay.opaque" if privileged else "user.overlay.opaque"


def _lstat(name: str, folder: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _attributes_of(path: Path, found: os.stat_result) -> _Attributes:
    xattrs: dict[str, bytes] = {}
    for name in os.listxattr(path, follow_symlinks=False):
        if not name.startswith(_OVERLAY):
            xattrs[name] = os.getxattr(path, name, follow_symlinks=False)
    return _Attributes(
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        modified=found.st_mtime_ns,
        xattrs=xattrs,
    )
