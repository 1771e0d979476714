"""The first use of an empty volume: it gets what the image has at its place.

The volume's folder itself is never replaced: another container may have it mounted. So what is
copied goes to a folder beside it, is made durable, and then named ready; from there each name is
moved into the volume. Who is killed before the naming has changed nothing, and what is ready is
moved by whoever mounts the volume next: empty or whole, whatever happens. Owner, mode, times and
extended attributes of the image's folder are given to the volume's as well, also where the image's
is empty.

The image's folder is found with the container's root as `/`: no link leads out of it. What is in
it is copied as it is, links as links. Two containers at once take turns.

Source: cp(1) (`-a`), rename(2), flock(2), proc_pid_fdinfo(5) (`mnt_id`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import subprocess
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

import trio

from container.contracts.runtime import Mount, MountKind
from container.ipc import NotFound, Unavailable
from container.runtime.inside import InsideRoot
from container.storage.durable import sync_file_system, sync_folder

NEW = ".container-copying"
READY = ".container-copied"
_STAGING = frozenset((NEW, READY))
_LOOK_SECONDS = 0.05


async def populate_volumes(mounts: Iterable[Mount], root: Path, *, volatile: bool = False) -> None:
    """Give each volume that is empty and wants it the content of its place in a mounted root.

    Cancelled, a volume is empty or whole, or is made whole by its next use.

    Args:
        mounts: Of a container.
        root: Where its root is.
        volatile: Skip the sync for anonymous volumes: right for a container that does not outlive
            its run, nor do they.

    Raises:
        NotFound: the data of a volume is not there.
        Unavailable: no space is left, or a file can't be copied; the volume stays empty.
    """
    volumes = [mount for mount in mounts if mount.kind is MountKind.VOLUME]
    for mount in volumes:
        durable = not (volatile and mount.anonymous)
        await trio.to_thread.run_sync(_populate, mount, root, durable)


def _populate(mount: Mount, root: Path, durable: bool) -> None:
    volume = Path(mount.source)
    try:
        beside = _beside(volume)
    except FileNotFoundError:
        raise NotFound(f"the data of the volume {mount.source!r} does not exist") from None
    if not (beside / READY).exists() and (not mount.populate or not _is_empty(volume)):
        return
    with _alone(beside) as lock:
        try:
            if (beside / READY).is_dir():
                _move(beside / READY, volume)
            shutil.rmtree(beside / NEW, ignore_errors=True)
            wanted = mount.populate and _is_empty(volume)
            if wanted and _copy(mount.destination, root, volume, beside, lock):
                if durable:
                    sync_file_system(beside)
                os.rename(beside / NEW, beside / READY)
                sync_folder(beside)
                _move(beside / READY, volume)
        except (OSError, subprocess.CalledProcessError) as error:
            shutil.rmtree(beside / NEW, ignore_errors=True)
            raise Unavailable(
                f"the volume at {mount.destination} can't be given the image's content: "
                f"{_reason(error)}",
                hint="is there space on the disk? `nocopy` leaves the volume empty",
            ) from error


def _copy(destination: str, root: Path, volume: Path, beside: Path, lock: int) -> bool:
    """Copy what the image has at a place; return whether there was anything."""
    with InsideRoot.open(root) as inside:
        try:
            with inside.opened(destination, os.O_RDONLY | os.O_DIRECTORY) as source:
                with os.scandir(source) as entries:
                    empty = next(entries, None) is None
                if empty:
                    _take_attributes(f"/proc/self/fd/{source}", volume)
                    return False
                (beside / NEW).mkdir(mode=0o700)
                _run_copy(source, beside / NEW, lock)
        except (FileNotFoundError, NotADirectoryError):
            return False  # the image has no folder there
        except OSError as error:
            if error.errno == errno.ELOOP:
                return False
            raise
    return True


def _run_copy(source: int, target: Path, lock: int) -> None:
    """Copy what is in a folder and the folder's own attributes; killed when we are cancelled.

    If we are killed, it goes on alone: it shares our lock, so that our successor waits for its end.
    """
    arguments = ["cp", "-a", "-T", "--", f"/proc/self/fd/{source}/.", str(target)]
    with subprocess.Popen(
        arguments,
        pass_fds=(source, lock),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C"},
    ) as process:
        try:
            while True:
                try:
                    _, said = process.communicate(timeout=_LOOK_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    trio.from_thread.check_cancelled()
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, "cp", stderr=said)


def _move(ready: Path, volume: Path) -> None:
    """Move what is ready into the volume; done again, it goes on."""
    for name in os.listdir(ready):
        if not os.path.lexists(volume / name):
            os.rename(ready / name, volume / name)
    _take_attributes(str(ready), volume)
    sync_folder(volume)
    # What a container has made under a name of the image's in the meantime stays its own.
    shutil.rmtree(ready)
    sync_folder(ready.parent)


def _take_attributes(source: str, target: Path) -> None:
    found = os.stat(source)
    os.chown(target, found.st_uid, found.st_gid)
    for name in os.listxattr(source):
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EPERM, errno.ENODATA):
                raise
    os.chmod(target, stat.S_IMODE(found.st_mode))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


def _is_empty(volume: Path) -> bool:
    # A file system of its own brings `lost+found`, where a driver shows us its root.
    return not set(os.listdir(volume)) - _STAGING - {"lost+found"}


def _beside(volume: Path) -> Path:
    """Return the folder that can hold what is to be renamed into a volume.

    That is the one above it, unless the volume is a mount of its own: then it is itself.
    """
    return volume.parent if _mount_of(volume) == _mount_of(volume.parent) else volume


def _mount_of(path: Path) -> str:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        text = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    finally:
        os.close(descriptor)
    return next(line for line in text.splitlines() if line.startswith("mnt_id:"))


@contextmanager
def _alone(folder: Path) -> Generator[int]:
    """Be the only helper that works in a folder; waits as long as our caller does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # Nothing can be polled for a lock, and a thread that waits can't be cancelled.
                trio.from_thread.run(trio.sleep, _LOOK_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)


def _reason(error: OSError | subprocess.CalledProcessError) -> str:
    if isinstance(error, OSError):
        return str(error.strerror or error)
    said: bytes = error.stderr or b""
    return said.decode(errors="replace").strip().rpartition("\n")[2] or str(error)
