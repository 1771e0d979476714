"""The run directory: who may use it, and the sockets in it.

It belongs to one user, has mode 0700, and has one launcher at a time: the holder of
`launcher.lock`. Only that one makes and removes sockets here, and it removes none but its own
inode, so that a socket made by another is never taken away by a late clean-up.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from attrs import frozen

from container.ipc import Fd, InvalidArgument, PermissionDenied, Unavailable
from container.ipc.client import socket_path

BACKLOG = 1024
"""Connections that wait while a service starts; the kernel's own bound may be lower."""


def prepare_run_directory(run: Path) -> None:
    """Make the run directory if it is not there, and check that it is ours alone.

    Raises:
        PermissionDenied: it is another user's, open to others, or no directory; nothing was
            touched.
        Unavailable: it can't be made.
    """
    try:
        run.parent.mkdir(parents=True, exist_ok=True)
        try:
            run.mkdir(mode=0o700)
        except FileExistsError:
            pass
        found = run.lstat()
        parent = run.parent.stat()
    except PermissionError as error:
        raise PermissionDenied(
            f"the run directory {run} can't be used: {error.strerror}",
            hint="CONTAINER_RUN names another one",
        ) from error
    except OSError as error:
        raise Unavailable(f"the run directory {run} can't be made: {error.strerror}") from error
    us = os.geteuid()
    if not stat.S_ISDIR(found.st_mode):
        raise PermissionDenied(
            f"the run directory {run} is not a directory",
            hint="move it away, or name another one by CONTAINER_RUN",
        )
    if found.st_uid != us:
        raise PermissionDenied(
            f"the run directory {run} belongs to user {found.st_uid}, and we are {us}",
            hint="name a directory of your own by CONTAINER_RUN",
        )
    if found.st_mode & 0o077:
        raise PermissionDenied(
            f"the run directory {run} is open to others (mode {stat.S_IMODE(found.st_mode):04o})",
            hint=f"chmod 0700 {run}",
        )
    if parent.st_uid not in (us, 0) or (
        parent.st_mode & stat.S_IWOTH and not parent.st_mode & stat.S_ISVTX
    ):
        raise PermissionDenied(
            f"others can replace the run directory {run}: {run.parent} is theirs to change",
            hint="name a directory below one of your own by CONTAINER_RUN",
        )


def make_root(root: Path) -> None:
    """Make the folder of a system's state if it is not there.

    Raises:
        PermissionDenied: it can't be made.
    """
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionDenied(
            f"the root {root} can't be made: {error.strerror}",
            hint="CONTAINER_ROOT names another one",
        ) from error


@frozen
class Inode:
    """The identity of a socket in the file system."""

    device: int
    number: int

    @classmethod
    def of(cls, path: Path) -> Inode | None:
        """Return what is at `path` now, a link not followed; None for nothing."""
        try:
            found = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return cls(found.st_dev, found.st_ino)


def bind_listener(path: Path, *, listen: bool = True) -> tuple[socket.socket, Inode]:
    """Listen at `path` (mode 0600), taking the place of a stale socket.

    The caller holds the launcher's lock.

    Args:
        path: Of the socket.
        listen: False leaves it to the caller, with `BACKLOG`; until then connections are refused.

    `SO_PASSCRED` is set before anybody can connect: connections inherit it, so that even bytes sent
    before they are accepted carry their sender's credentials.

    Raises:
        InvalidArgument: the path is too long, or something else than a socket is there.
        Unavailable: the kernel refused.
    """
    socket_path(path)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise InvalidArgument(
                    f"{path} is there and is no socket", hint="move it away and try again"
                )
            path.unlink()
        except FileNotFoundError:
            pass
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            listener.bind(str(path))
            path.chmod(0o600)
            inode = Inode.of(path)
            assert inode is not None
            if listen:
                listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise Unavailable(f"can't listen at {path}: {error.strerror}") from error
    return listener, inode


def listening_at(given: Fd, path: Path) -> socket.socket:
    """Return a second descriptor of a socket that listens at `path`.

    Raises:
        InvalidArgument: what was given is another one.
    """
    try:
        if not stat.S_ISSOCK(os.fstat(given.fileno()).st_mode):
            raise InvalidArgument("what was given is no socket")
        listener = socket.socket(fileno=os.dup(given.fileno()))
    except OSError as error:
        raise InvalidArgument(f"what was given is no socket: {error.strerror}") from error
    if (
        listener.family != socket.AF_UNIX
        or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        or listener.getsockname() != str(path)
    ):
        listener.close()
        raise InvalidArgument(f"the socket that was given does not listen at {path}")
    return listener


def unlink_socket(path: Path, inode: Inode | None) -> None:
    """Remove a socket if what is at its path is still `inode`."""
    if inode is not None and Inode.of(path) == inode:
        path.unlink(missing_ok=True)


def somebody_listens(path: Path) -> bool:
    """Whether a process listens at `path` now. A queue that is full counts as yes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except OSError as error:
            return error.errno == errno.EAGAIN
    return True


def sweep_sockets(folder: Path) -> None:
    """Remove the sockets in a folder behind which nobody listens any more.

    A launcher that was killed leaves those of services that had not started; nobody else knows of
    them. The caller holds the launcher's lock.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    for path in [folder / name for name in names if name.endswith(".sock")]:
        inode = Inode.of(path)
        if inode is not None and path.is_socket() and not somebody_listens(path):
            unlink_socket(path, inode)
