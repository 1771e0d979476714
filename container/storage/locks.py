"""Locks between processes: `flock` on a file that is never anything but a lock.

The kernel is the witness: a lock is held by an open descriptor and ends with its holder, however it
died. There is no pid in the file and nothing to clean up; the holder may remove the file while it
holds the lock, and who waited for the old file takes the new one.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

import trio


class FileLock:
    """An exclusive lock that is held. Make one with `try_lock` or `lock`."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    @property
    def held(self) -> bool:
        """False once it was released."""
        return self._fd >= 0

    def keep(self) -> None:
        """Hold it for the rest of this process's life, whatever becomes of this object."""
        self._fd = -1

    def release(self, *, remove: bool = False) -> None:
        """Give the lock up; releasing twice does nothing.

        Args:
            remove: Also remove the file, before it is unlocked.
        """
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            if remove:
                self.path.unlink(missing_ok=True)
        finally:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<FileLock {self.path} {'held' if self.held else 'released'}>"


def try_lock(path: Path) -> FileLock | None:
    """Take the lock at `path`, or return None if somebody holds it. Does not wait.

    Raises:
        OSError: the file can't be opened.
    """
    return _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)


async def lock(path: Path) -> FileLock:
    """Take the lock at `path`, waiting for as long as the caller's scope allows.

    Cancellation leaves nothing behind: a lock that comes after it is given up at once.

    Raises:
        OSError: the file can't be opened.
    """
    await trio.lowlevel.checkpoint()
    held = try_lock(path)
    if held is not None:
        return held
    abandoned = False

    def wait() -> FileLock | None:
        # A thread, since nothing can be polled for a lock. It is left alone when the caller is
        # cancelled, and gives up what it gets.
        late = _locked(path, fcntl.LOCK_EX)
        if abandoned and late is not None:
            late.release()
        return late

    try:
        held = await trio.to_thread.run_sync(
            wait, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1)
        )
    except trio.Cancelled:
        abandoned = True
        raise
    assert held is not None
    return held


def _locked(path: Path, operation: int) -> FileLock | None:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, operation)
            ours = os.fstat(fd)
            try:
                there = os.stat(path, follow_symlinks=False)
            except FileNotFoundError:
                there = None
            if there is not None and (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                return FileLock(path, fd)
        except BaseException as error:
            os.close(fd)
            if isinstance(error, OSError) and error.errno in (errno.EAGAIN, errno.EACCES):
                return None
            raise
        os.close(fd)  # removed by its last holder while we waited: lock the new file
