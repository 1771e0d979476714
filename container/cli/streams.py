"""Copy bytes between the CLI's own descriptors and those of a container's process.

Used only where a terminal is at one end; everything else goes to the container as it is, or is
copied by the kernel. Nothing here blocks the event loop, and nothing makes a descriptor
non-blocking that others share: the shell that started us would find its terminal changed.
"""

from __future__ import annotations

import errno
import os
import stat

import trio

CHUNK = 65536


class Source:
    """Read from a descriptor as bytes come. The descriptor is borrowed.

    Args:
        fd: What to read.
        ours: Nobody else shares it, so it is made non-blocking; then `finish` works too.
    """

    def __init__(self, fd: int, *, ours: bool) -> None:
        self._fd = fd
        self._finished = False
        self._waiting: trio.CancelScope | None = None
        self._pollable = True
        if ours:
            os.set_blocking(fd, False)

    def finish(self) -> None:
        """Wait for nothing more: `receive` gives what is there, then the end.

        For a process that has ended: what it wrote is there, but a child of its may hold the
        other end for ever.
        """
        self._finished = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def receive(self) -> bytes:
        """Return the next bytes; empty at the end. Cancellation loses nothing."""
        await trio.lowlevel.checkpoint()
        while True:
            if self._pollable and not self._finished:
                await self._readable()
            try:
                return os.read(self._fd, CHUNK)
            except BlockingIOError:
                if self._finished:
                    return b""
            except OSError as error:
                if error.errno == errno.EIO:  # a terminal whose other side is closed
                    return b""
                raise

    async def _readable(self) -> None:
        with trio.CancelScope() as self._waiting:
            try:
                await trio.lowlevel.wait_readable(self._fd)
            except PermissionError:
                self._pollable = False  # a regular file: never has to be waited for
        self._waiting = None


class Sink:
    """Write to a descriptor, which is borrowed.

    Args:
        fd: Where to.
        ours: Nobody else shares it, so it is made non-blocking.
    """

    def __init__(self, fd: int, *, ours: bool) -> None:
        self._fd = fd
        self._reopened: int | None = None
        self._nonblocking = ours
        if ours:
            os.set_blocking(fd, False)
        else:
            self._reopen()

    def _reopen(self) -> None:
        # A second open file of the same terminal or pipe has flags of its own.
        mode = os.fstat(self._fd).st_mode
        if not (stat.S_ISFIFO(mode) or (stat.S_ISCHR(mode) and os.isatty(self._fd))):
            return
        try:
            self._reopened = os.open(
                f"/proc/self/fd/{self._fd}",
                os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC,
            )
        except OSError:
            return  # another user's terminal (su): written from a worker thread
        self._fd = self._reopened
        self._nonblocking = True

    def close(self) -> None:
        """Close what was opened here, not the descriptor itself."""
        if self._reopened is not None:
            trio.lowlevel.notify_closing(self._reopened)
            os.close(self._reopened)
            self._reopened = None

    async def send(self, data: bytes) -> None:
        """Write all of it.

        Raises:
            BrokenPipeError: nobody reads it any more.
        """
        left = memoryview(data)
        while left:
            try:
                if self._nonblocking:
                    await trio.lowlevel.checkpoint_if_cancelled()
                    written = os.write(self._fd, left)
                else:
                    written = await trio.to_thread.run_sync(
                        os.write, self._fd, left, abandon_on_cancel=True
                    )
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._fd)
                continue
            except OSError as error:
                if error.errno == errno.EIO:  # the terminal is gone
                    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from error
                raise
            left = left[written:]


async def copy(source: Source, sink: Sink) -> None:
    """Copy until the source's end.

    Raises:
        BrokenPipeError: the reader of the sink is gone.
    """
    while data := await source.receive():
        await sink.send(data)
