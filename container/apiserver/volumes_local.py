"""The driver `local`: a folder of its own for each volume, or a file system in a file.

Without options the data is in the folder `_data`. With `size` there is a sparse file `image` with
an ext4 in it, which is mounted by a loop device while somebody uses the volume; the data is in a
folder inside, so that nobody sees its `lost+found`. What a volume of a size may hold is a little
less: the file system's own tables take some of it. Freed blocks go back to the disk.

Containers that run have the file system in their own mounts: this one is needed only while one is
made. So it is unmounted when this process ends, and the next one mounts it again for the
containers that it takes up: the same file system, since mount(8) finds the loop device that is
there. It would not do so for two mounts at once, so they take turns, also with one that a killed
process has left behind. What such a process has left mounted is found by /proc/self/mountinfo. The
loop device frees itself with its last mount.

Source: mount(8), mke2fs(8) (`-d`), loop(4) (LO_FLAGS_AUTOCLEAR), ext4(5) (`discard`), fstrim(8).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import subprocess
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import trio

from container.apiserver.store import mounts_below
from container.contracts.stored_volumes import DATA, IMAGE, MOUNT
from container.contracts.volumes import VolumeDriver
from container.ipc import InvalidArgument, Sections, Unavailable, Unsupported
from container.storage.disk_usage import disk_bytes
from container.storage.durable import sync_file_system, sync_folder

T = TypeVar("T")

SIZE_MIN = 4 << 20
SIZE_MAX = 16 << 40
"""Bytes: what ext4 takes with blocks of 4 KiB."""
COMMAND_SECONDS = 60.0
"""For mkfs.ext4, mount and umount."""

_SIZE = re.compile(r"([0-9]{1,18})([kmgt]?)i?b?", re.ASCII | re.IGNORECASE)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}

_log = logging.getLogger(__name__)


class LocalDriver(VolumeDriver):
    """Keep volumes in the folder of their documents.

    Args:
        place: From a volume's name to its folder.
    """

    def __init__(self, place: Callable[[str], Path]) -> None:
        self._place = place
        self._users: dict[str, set[str]] = {}
        self._sections = Sections()

    async def create(self, name: str, options: dict[str, str]) -> None:
        """Make the data's folder or file system; see the contract."""
        size = parse_options(options)
        folder = self._place(name)
        if size is None:
            await _in_thread(lambda: (folder / DATA).mkdir(0o755, exist_ok=True))
        else:
            await _in_thread(_make_image, folder, size)

    async def delete(self, name: str) -> None:
        """Let go of what keeps the folder from being removed; whoever has it removes it."""
        async with self._sections.hold(name):
            await _in_thread(unmount, self._place(name))

    @asynccontextmanager
    async def mount(self, name: str, key: str) -> AsyncGenerator[str]:
        """Have the data at a path; see the contract.

        A scope that is cancelled leaves a file system mounted, for who comes next.
        """
        users = self._users.setdefault(name, set())
        users.add(key)
        try:
            yield await self._mounted(name)
        finally:
            self._forget(name, key)
        await self.unmount_unless_used(name)

    async def unmount_unless_used(self, name: str) -> None:
        """Unmount a volume if nobody of this process uses it."""
        async with self._sections.hold(name):
            if not self._users.get(name):
                with trio.CancelScope(shield=True):
                    await _in_thread(_let_go, self._place(name))

    async def _mounted(self, name: str) -> str:
        async with self._sections.hold(name):
            # Not cut in half by a cancellation: threads are waited for.
            return str(await _in_thread(_mounted, self._place(name)))

    def _forget(self, name: str, key: str) -> None:
        users = self._users.get(name, set[str]())
        users.discard(key)
        if not users:
            self._users.pop(name, None)

    async def usage(self, name: str) -> int:
        """Return what the whole folder takes, its document included."""
        return await _in_thread(lambda: disk_bytes(self._place(name)))

    def mountpoint(self, name: str) -> str:
        """Return where the data is, or nothing if that must be mounted. Blocking."""
        folder = self._place(name)
        if not (folder / IMAGE).exists():
            return str(folder / DATA)
        return str(folder / MOUNT / DATA) if os.path.ismount(folder / MOUNT) else ""


def parse_options(options: dict[str, str]) -> int | None:
    """Return the size in bytes that options ask for, None for none.

    Raises:
        InvalidArgument: an option is unknown or wrong.
    """
    for option in options:
        if option != "size":
            raise InvalidArgument(
                f"the driver local has no option {option[:100]!r}", hint="it knows size, as in 1g"
            )
    if "size" not in options:
        return None
    text = options["size"]
    found = _SIZE.fullmatch(text)
    size = int(found[1]) * _UNITS[found[2].lower()] if found else 0
    if not found:
        raise InvalidArgument(f"{text[:100]!r} is no size", hint="use bytes or 512m, 1g, 1t")
    if not SIZE_MIN <= size <= SIZE_MAX:
        raise InvalidArgument(f"a size of {text} is out of range: 4m to 16t")
    return size


async def _in_thread(function: Callable[..., T], *arguments: object) -> T:
    try:
        return await trio.to_thread.run_sync(function, *arguments)
    except OSError as error:
        raise Unavailable(
            f"{error.filename or 'the volumes folder'} can't be used: {error.strerror}",
            hint="is there space on the disk, and may more files be opened?",
        ) from error


def unmount(folder: Path) -> None:
    """Unmount all that is mounted below a volume's folder. Blocking."""
    while points := mounts_below(folder):
        for point in reversed(points):
            # Lazily where it is busy: somebody looks into it from outside.
            if _run("umount", point) and (said := _run("umount", "--lazy", point)):
                raise Unavailable(f"{point} can't be unmounted: {said}")


def _let_go(folder: Path) -> None:
    point = folder / MOUNT
    if os.path.ismount(point):
        # What was freed a moment ago is given back by no commit that comes with the unmounting.
        sync_file_system(point)
        with contextlib.suppress(Unsupported):
            _run("fstrim", str(point))
    unmount(folder)


def _mounted(folder: Path) -> Path:
    if not (folder / IMAGE).exists():
        return folder / DATA
    point = folder / MOUNT
    point.mkdir(0o700, exist_ok=True)
    if os.geteuid() != 0:
        raise Unsupported("a volume with a size can't be mounted without being root")
    with open(folder / IMAGE, "rb") as image:
        # Shared with the program: if we are killed, our successor waits for its end.
        fcntl.flock(image, fcntl.LOCK_EX)
        if os.path.ismount(point):
            return point / DATA
        options = "loop,nodev,nosuid,discard"
        command = ("mount", "-t", "ext4", "-o", options, str(folder / IMAGE), str(point))
        if said := _run(*command, keep=(image.fileno(),)):
            raise Unavailable(
                f"the file system of volume {folder.name} can't be mounted: {said}",
                hint=f"`fsck.ext4 {folder / IMAGE}` looks into it",
            )
    return point / DATA


def _make_image(folder: Path, size: int) -> None:
    image = folder / IMAGE
    if image.exists():
        return
    new = folder / f"{IMAGE}.new"
    with tempfile.TemporaryDirectory(dir=folder) as top:
        (Path(top) / DATA).mkdir(0o755)
        os.chmod(top, 0o755)
        try:
            with open(new, "wb") as file:
                file.truncate(size)
            # In a file that has just been made all is zero already: a journal need not be written.
            lazy = "lazy_itable_init=1,lazy_journal_init=1"
            said = _run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", lazy, "-d", top, str(new))
            if said:
                raise Unavailable(f"no file system of {size} bytes can be made: {said}")
            with open(new, "rb") as file:
                os.fsync(file.fileno())
            new.rename(image)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
    sync_folder(folder)


def _run(*command: str, keep: tuple[int, ...] = ()) -> str:
    """Run a program; return what it said if it failed, else nothing. Blocking.

    Args:
        command: The whole argv.
        keep: Descriptors that it has open, too.
    """
    try:
        done = subprocess.run(
            command,
            pass_fds=keep,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_SECONDS,
            check=False,
            env={**os.environ, "LC_ALL": "C", "PATH": _path()},
        )
    except FileNotFoundError:
        raise Unsupported(
            f"{command[0]} is not installed", hint="install e2fsprogs and util-linux (mount)"
        ) from None
    except subprocess.TimeoutExpired:
        return f"{command[0]} took more than {COMMAND_SECONDS:.0f} s"
    if done.returncode == 0:
        return ""
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return said[-1] if said else f"{command[0]} ended with {done.returncode}"


def _path() -> str:
    # Where they are, whatever the PATH of who started the system.
    return os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/bin", "/bin"))
