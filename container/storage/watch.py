"""Wait for a file or folder to change: inotify, without polling.

The standard library has no inotify, so its three calls are made through ctypes. What this is
*not*: an event log. Events are read only to be thrown away; whoever waits looks at the file itself
afterwards, so a lost or merged event does no harm.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import trio
from attrs import frozen

_libc = ctypes.CDLL(None, use_errno=True)
_IN_NONBLOCK = os.O_NONBLOCK
_IN_CLOEXEC = os.O_CLOEXEC


class Change(enum.IntFlag):
    """What to wait for (inotify(7))."""

    MODIFIED = 0x2
    """Bytes were written, or the file was truncated."""
    ENTRIES = 0x100 | 0x80 | 0x40 | 0x200
    """Names in a folder came, went or were renamed."""
    GONE = 0x400 | 0x800
    """The watched thing itself was deleted or moved."""


@frozen
class Watch:
    """An open inotify instance."""

    fd: int

    def drain(self) -> bool:
        """Read and drop all queued events; return whether there were any. Does not block."""
        seen = False
        while True:
            try:
                os.read(self.fd, 65536)
            except BlockingIOError:
                return seen
            seen = True

    async def changed(self) -> None:
        """Return when something has changed since the last call or `drain`.

        Cancellation loses nothing: the event stays queued.
        """
        while True:
            await trio.lowlevel.wait_readable(self.fd)
            if self.drain():
                return


@contextmanager
def watch(*targets: Path | int, change: Change) -> Generator[Watch]:
    """Watch files and folders while the block lasts.

    Args:
        targets: Paths, or descriptors of open files: these are watched by their inode, so that the
            file may have been renamed or deleted meanwhile.
        change: What counts.

    Raises:
        OSError: a target is not there, or the user's inotify instances are used up (EMFILE).
    """
    fd = _libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
    if fd < 0:
        _fail("inotify_init1")
    try:
        for target in targets:
            path = f"/proc/self/fd/{target}" if isinstance(target, int) else str(target)
            if _libc.inotify_add_watch(fd, os.fsencode(path), ctypes.c_uint32(change)) < 0:
                _fail(path)
        yield Watch(fd)
    finally:
        # Trio must hear of it first: a descriptor that is closed while a task waits on it never
        # wakes.
        if trio.lowlevel.in_trio_run():
            trio.lowlevel.notify_closing(fd)
        os.close(fd)


def _fail(what: str) -> None:
    number = ctypes.get_errno() or errno.EIO
    raise OSError(number, os.strerror(number), what)
