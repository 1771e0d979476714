"""The writer of a container's log: the kernel moves the bytes, Python only notes what came.

A process's output is a pipe; its bytes are spliced into the data file, and each splice adds one
record to the index (`container.contracts.logs` has the format). Nobody who reads the log is known
here, so nobody can hold the container up. A log that can't be written (no space is left) doesn't
hold it up either: its bytes are then dropped, and counted.

The work is done in worker threads, for writing to a disk can block; one thread per pipe, and only
while there is something to move.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import select
import threading
import time
from pathlib import Path
from typing import Self

import trio
from attrs import frozen

from container.contracts.logs import DATA_NAME, INDEX_NAME, LogStream, Record

PIPE_SIZE = 1 << 20
"""Bytes of a pipe between a process and its log: large, so that a splice moves much."""
_SPLICE_NONBLOCK = 2
_LINGER_MILLISECONDS = 2
"""How long a thread waits for more before it hands the pipe back to the event loop."""
_PIPE_SIZE_COMMAND = 1031
_logger = logging.getLogger(__name__)


@frozen
class LogStatistics:
    """What a log's writer has done."""

    written: int
    """Bytes."""
    records: int
    dropped: int
    """Bytes that could not be stored."""


class LogWriter:
    """Writes one log. A synchronous context manager; methods named `blocking` may block on the
    disk.

    Args:
        folder: The container's `log` folder; made if need be. Earlier runs in it are kept.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        self._data = os.open(folder / DATA_NAME, flags, 0o600)
        try:
            self._index = os.open(folder / INDEX_NAME, flags | os.O_APPEND, 0o600)
        except BaseException:
            os.close(self._data)
            raise
        # splice(2) refuses a file opened for appending, so the end is kept here: we are its one
        # writer.
        self._end = os.fstat(self._data).st_size
        self._lock = threading.Lock()
        self._written = 0
        self._records = 0
        self._dropped = 0
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close both files; twice is no error."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._data)
                os.close(self._index)

    def statistics(self) -> LogStatistics:
        """Return a frozen look at it."""
        return LogStatistics(self._written, self._records, self._dropped)

    def mark(self, stream: LogStream) -> None:
        """Note the start or the end of a run."""
        with self._lock:
            self._note(0, stream)

    async def copy(self, source: int, stream: LogStream) -> None:
        """Move all that a pipe or terminal brings into the log, until its end.

        Cancellation: what was taken from the pipe is in the log.

        Args:
            source: A non-blocking descriptor; borrowed.
            stream: What it is.
        """
        while True:
            await trio.lowlevel.wait_readable(source)
            # A thread can't be cancelled anyway; left behind, it would use a closed descriptor.
            if await trio.to_thread.run_sync(self._drain, source, stream):
                return

    def _drain(self, source: int, stream: LogStream) -> bool:
        """Move what is there; return True at the end of the source. Blocks on the disk alone."""
        poller = select.poll()
        poller.register(source, select.POLLIN)
        deadline = time.monotonic() + 0.2  # a flood must not keep a cancellation waiting
        move = self._move_terminal if stream is LogStream.TERMINAL else self._move_pipe
        while True:
            try:
                if not move(source, stream):
                    return True
            except BlockingIOError:
                if not poller.poll(_LINGER_MILLISECONDS):
                    return False
            if time.monotonic() > deadline:
                return False

    def _move_pipe(self, source: int, stream: LogStream) -> int:
        with self._lock:
            try:
                moved = os.splice(
                    source, self._data, PIPE_SIZE, offset_dst=self._end, flags=_SPLICE_NONBLOCK
                )
            except BlockingIOError:
                raise
            except OSError as error:
                return self._drop(source, error)
            if moved:
                self._note(moved, stream)
            return moved

    def _move_terminal(self, source: int, stream: LogStream) -> int:
        try:
            piece = os.read(source, 65536)
        except BlockingIOError:
            raise
        except OSError:
            return 0  # EIO: nobody has the other side open any more
        with self._lock:
            if piece:
                self._store(piece, stream)
        return len(piece)

    def _store(self, piece: bytes, stream: LogStream) -> None:
        try:
            stored = os.pwrite(self._data, piece, self._end)
        except OSError as error:
            self._warn(error)
            self._dropped += len(piece)
            return
        self._dropped += len(piece) - stored
        self._note(stored, stream)

    def _note(self, length: int, stream: LogStream) -> None:
        record = Record(self._end, time.time_ns(), length, stream)
        self._end += length
        self._written += length
        self._records += 1
        try:
            os.write(self._index, record.encode())
        except OSError as error:
            self._warn(error)

    def _drop(self, source: int, error: OSError) -> int:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise error
        self._warn(error)
        dropped = len(os.read(source, PIPE_SIZE))
        self._dropped += dropped
        return dropped

    def _warn(self, error: OSError) -> None:
        if not self._dropped:
            _logger.warning("the container's log can't be written: %s", error.strerror)


def log_pipe() -> tuple[int, int]:
    """Return a pipe for a process's output: our end for reading, and the process's end.

    Ours does not block. The process's is open for reading too, though nobody reads from it: so the
    pipe has a reader as long as the process lives, and when this helper is killed, the process
    waits for the next one instead of dying of SIGPIPE.
    """
    read_end, plain_end = os.pipe2(os.O_CLOEXEC)
    try:
        write_end = os.open(f"/proc/self/fd/{plain_end}", os.O_RDWR | os.O_CLOEXEC)
    except BaseException:
        os.close(read_end)
        raise
    finally:
        os.close(plain_end)
    os.set_blocking(read_end, False)
    try:
        fcntl.fcntl(write_end, _PIPE_SIZE_COMMAND, PIPE_SIZE)
    except OSError:
        pass  # the user's share of pipe memory is used up: a small one works too
    return read_end, write_end
