"""The writer of a container's log: the kernel moves the bytes, Python only notes what came.

A process's output is a pipe; its bytes are spliced into the data file, and each splice adds one
record to the index (`container.contracts.logs` has the format). Nobody who reads the log is known
here, so nobody can hold the container up. A log that can't be written (no space is left) doesn't
hold it up either: its bytes are then dropped, and counted.

The work is done in worker threads, for writing to a disk can block; one thread per pipe, and only
while there is something to move.

A writer that is killed loses nothing. A move takes bytes out of the pipe and puts them into the
data file in one system call; what the index does not say yet lies in the data file behind all that
it says, and the next writer notes it. Whose it is, is in a file of one byte, written before the
stream of the next move is another one. A terminal can't be spliced into a file, so a pipe is
between them, whose content lives as long as anybody holds it.
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

from container.contracts.logs import (
    DATA_NAME,
    INDEX_NAME,
    LENGTH_MAX,
    RECORD_SIZE,
    LogStream,
    Record,
    decode_records,
)

STREAM_NAME = "stream"
"""Name of the file beside the index that says whose bytes are moved next."""
PIPE_SIZE = 1 << 20
"""Bytes of a pipe between a process and its log: large, so that a splice moves much."""
_SPLICE_NONBLOCK = 2
_PIECE = 65536
"""Bytes of a terminal that are moved at once: what an unprivileged pipe holds."""
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
        self._files: list[int] = []
        self._lock = threading.Lock()
        self._written = 0
        self._records = 0
        self._dropped = 0
        self._closed = False
        self._ended = True
        try:
            self._data = self._open(folder / DATA_NAME)
            self._index = self._open(folder / INDEX_NAME, os.O_APPEND)
            self._stream = self._open(folder / STREAM_NAME)
            self._moving = os.pread(self._stream, 1, 0)
            # splice(2) refuses a file opened for appending, so the end is kept here: we are its one
            # writer.
            self._end = self._recover()
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path, flags: int = 0) -> int:
        self._files.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | flags, 0o600))
        return self._files[-1]

    def _recover(self) -> int:
        """Note what a writer before us moved and could not note; return where the data ends."""
        size, whole = os.fstat(self._data).st_size, os.fstat(self._index).st_size
        whole -= whole % RECORD_SIZE
        os.ftruncate(self._index, whole)  # half a record: its bytes are behind all that is noted
        end = 0
        if whole:
            (last,) = decode_records(os.pread(self._index, RECORD_SIZE, whole - RECORD_SIZE))
            end = last.offset + last.length
            self._ended = last.stream is LogStream.END
        if size > end and self._moving and not self._ended:
            stream = LogStream(self._moving[0])
            for offset in range(end, size, LENGTH_MAX):
                record = Record(offset, time.time_ns(), min(LENGTH_MAX, size - offset), stream)
                os.write(self._index, record.encode())
        return max(size, end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close both files; twice is no error."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for file in self._files:
                    os.close(file)

    def statistics(self) -> LogStatistics:
        """Return a frozen look at it."""
        return LogStatistics(self._written, self._records, self._dropped)

    def mark(self, stream: LogStream) -> None:
        """Note the start or the end of a run; an end that is noted already is not noted again."""
        with self._lock:
            if stream is LogStream.END and self._ended:
                return
            self._ended = stream is LogStream.END
            self._note(0, stream)

    async def copy(
        self, source: int, stream: LogStream, spool: tuple[int, int] | None = None
    ) -> None:
        """Move all that a pipe or terminal brings into the log, until its end.

        Cancellation: what was taken from the pipe is in the log.

        Args:
            source: A non-blocking descriptor; borrowed.
            stream: What it is.
            spool: For a terminal: both ends of the pipe through which its bytes go; borrowed. What
                a writer before us left in it comes first.
        """
        if spool is not None:
            await trio.to_thread.run_sync(self._empty, spool[0])
        while True:
            await trio.lowlevel.wait_readable(source)
            # A thread can't be cancelled anyway; left behind, it would use a closed descriptor.
            if await trio.to_thread.run_sync(self._drain, source, stream, spool):
                return

    def _empty(self, outlet: int) -> None:
        try:
            while True:
                self._move_pipe(outlet, LogStream.TERMINAL)
        except BlockingIOError:
            pass

    def _drain(self, source: int, stream: LogStream, spool: tuple[int, int] | None) -> bool:
        """Move what is there; return True at the end of the source. Blocks on the disk alone."""
        poller = select.poll()
        poller.register(source, select.POLLIN)
        deadline = time.monotonic() + 0.2  # a flood must not keep a cancellation waiting
        while True:
            try:
                if spool is not None:
                    moved = self._move_terminal(source, spool)
                else:
                    moved = self._move_pipe(source, stream)
                if not moved:
                    return True
            except BlockingIOError:
                if not poller.poll(_LINGER_MILLISECONDS):
                    return False
            if time.monotonic() > deadline:
                return False

    def _move_pipe(self, source: int, stream: LogStream) -> int:
        with self._lock:
            try:
                self._announce(stream)
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

    def _announce(self, stream: LogStream) -> None:
        word = bytes([stream])
        if word != self._moving:
            os.pwrite(self._stream, word, 0)
            self._moving = word

    def _move_terminal(self, source: int, spool: tuple[int, int]) -> int:
        outlet, inlet = spool
        try:
            waiting = os.splice(source, inlet, _PIECE, flags=_SPLICE_NONBLOCK)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno == errno.EINVAL:
                return self._move_unspliced(source)
            return 0  # EIO: nobody has the other side open any more
        total = waiting
        while waiting > 0:
            waiting -= self._move_pipe(outlet, LogStream.TERMINAL)
        return total

    def _move_unspliced(self, source: int) -> int:
        """Move by hand, for a kernel that can't splice from a terminal (before 6.5)."""
        try:
            piece = os.read(source, _PIECE)
        except BlockingIOError:
            raise
        except OSError:
            return 0
        with self._lock:
            if piece:
                self._store(piece, LogStream.TERMINAL)
        return len(piece)

    def _store(self, piece: bytes, stream: LogStream) -> None:
        try:
            self._announce(stream)
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
