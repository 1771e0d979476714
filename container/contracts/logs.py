"""The log of a container: its two files, how to read them, and how to follow them.

`data` holds the raw bytes that the container wrote, in the order in which they arrived; `index`
holds one 24-byte record per piece, which says whose it is and when it came. A record is appended
only after its bytes are in `data`, so a reader that trusts the index never sees a hole. Nothing is
escaped or cut into lines: a log is binary-safe. Readers hold read-only descriptors and follow by
inotify; the writer never knows of them, so a slow or stopped reader delays nobody.

What this is *not*: the writer, which lives in the runtime helper.
"""

from __future__ import annotations

import enum
import os
import select
import stat
import struct
import threading
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import trio
from attrs import evolve, frozen

from container.contracts.runtime import LogFiles
from container.ipc import Fd
from container.storage.watch import Change, watch

_RECORD = struct.Struct("<QQIB3x")
RECORD_SIZE = _RECORD.size
"""Bytes of one record in the index."""
LENGTH_MAX = 0xFFFFFFFF
"""Most bytes that one record can cover."""
_BATCH = 4096
"""Records read at once: 96 KiB, and at most some GiB of data."""
_SPLICE_NONBLOCK = 2

DATA_NAME = "data"
"""Name of the data file in a container's `log` folder."""
INDEX_NAME = "index"
"""Name of the index beside it."""


class LogStream(enum.IntEnum):
    """What a record is about."""

    STDOUT = 1
    STDERR = 2
    TERMINAL = 3
    """Output of a terminal, where stdout and stderr are one."""
    START = 254
    """A run of the container begins."""
    END = 255
    """The run has ended: none of its bytes come after this."""


@frozen
class Record:
    """One entry of the index."""

    offset: int
    """Of its first byte in the data file."""
    time: int
    """Nanoseconds since 1970."""
    length: int
    stream: LogStream

    def encode(self) -> bytes:
        """Return its 24 bytes."""
        return _RECORD.pack(self.offset, self.time, self.length, self.stream)


def decode_records(data: bytes) -> tuple[Record, ...]:
    """Decode whole records; a torn one at the end (a power loss, or a writer at work) is left out.

    Raises:
        ValueError: a record names a stream that is not known.
    """
    whole = len(data) - len(data) % RECORD_SIZE
    return tuple(
        Record(offset, time, length, LogStream(stream))
        for offset, time, length, stream in _RECORD.iter_unpack(memoryview(data)[:whole])
    )


def open_log(folder: Path) -> LogFiles:
    """Open the log in a container's `log` folder for reading; whoever gets it closes both.

    Raises:
        FileNotFoundError: the container has not been started yet, or keeps no log.
    """
    data = Fd(os.open(folder / DATA_NAME, os.O_RDONLY | os.O_CLOEXEC))
    try:
        return LogFiles(data, Fd(os.open(folder / INDEX_NAME, os.O_RDONLY | os.O_CLOEXEC)))
    except BaseException:
        data.close()
        raise


class LogReader:
    """Read the index of a log from a position on.

    Args:
        index: An open descriptor of the index; borrowed, and its file offset is not touched.
        position: Number of the first record to read.
    """

    def __init__(self, index: int, position: int = 0) -> None:
        self._index = index
        self.position = position
        """Number of the next record."""

    def read(self) -> tuple[Record, ...]:
        """Return the records that are there now, at most 4096; none at the end. Does not wait."""
        raw = os.pread(self._index, _BATCH * RECORD_SIZE, self.position * RECORD_SIZE)
        records = decode_records(raw)
        self.position += len(records)
        return records

    def seek_last_run(self) -> None:
        """Move to the newest `start` record, or to the beginning if there is none."""
        total = os.fstat(self._index).st_size // RECORD_SIZE
        high = total
        while high > 0:
            low = max(0, high - _BATCH)
            raw = os.pread(self._index, (high - low) * RECORD_SIZE, low * RECORD_SIZE)
            records = decode_records(raw)
            for back, record in enumerate(reversed(records)):
                if record.stream is LogStream.START:
                    self.position = low + len(records) - 1 - back
                    return
            high = low
        self.position = 0


@asynccontextmanager
async def follow(
    index: int, *, position: int = 0
) -> AsyncGenerator[trio.MemoryReceiveChannel[tuple[Record, ...]]]:
    """Read records as they come; the block holds a channel of batches.

    The channel ends after the batch that holds an `end` record with no `start` record behind it. It
    keeps one batch at most: a reader that does not take them makes nothing grow.

    Args:
        index: An open descriptor of the index; borrowed for the length of the block.
        position: Number of the first record to read.
    """
    sender, receiver = trio.open_memory_channel[tuple[Record, ...]](0)

    async def feed() -> None:
        reader = LogReader(index, position)
        with sender, watch(index, change=Change.MODIFIED) as changes:
            while True:
                records = reader.read()
                if records:
                    try:
                        await sender.send(records)
                    except trio.BrokenResourceError:
                        return
                    ended = records[-1].stream is LogStream.END
                    if ended and os.fstat(index).st_size < (reader.position + 1) * RECORD_SIZE:
                        return
                else:
                    await changes.changed()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        with receiver:
            yield receiver
        nursery.cancel_scope.cancel()


async def copy_log(
    data: int,
    index: int,
    stdout: int,
    stderr: int,
    *,
    following: bool = False,
    last_run: bool = False,
    tail: int | None = None,
) -> None:
    """Copy a log to two descriptors, the bytes by the kernel where it can.

    Args:
        data: Open data file; borrowed.
        index: Open index; borrowed.
        stdout: Gets stdout and terminal output: a pipe, terminal, socket or file, blocking or not.
        stderr: Gets stderr; may be the same descriptor.
        following: Go on until the end of the run is in the log; else stop at the end of the file.
        last_run: Begin with the newest run rather than with the log.
        tail: Begin with the last so many lines (of what is there now).

    Cancellation: ends at once, between two pieces; what was written stays written.

    Raises:
        BrokenPipeError: the reader of an output is gone.
    """
    reader = LogReader(index)
    if last_run:
        reader.seek_last_run()
    first_byte = 0
    if tail is not None:
        reader.position, first_byte = await trio.to_thread.run_sync(
            _tail_start, data, index, reader.position, tail
        )
    outputs = {LogStream.STDOUT: stdout, LogStream.TERMINAL: stdout, LogStream.STDERR: stderr}
    with _Copier(data, outputs) as copier:
        if following:
            async with follow(index, position=reader.position) as batches:
                async for records in batches:
                    await copier.copy(_from_byte(records, first_byte))
        else:
            while records := reader.read():
                await copier.copy(_from_byte(records, first_byte))


def _from_byte(records: Sequence[Record], first_byte: int) -> Iterable[Record]:
    for record in records:
        cut = min(max(0, first_byte - record.offset), record.length)
        if record.length > cut:
            yield evolve(record, offset=record.offset + cut, length=record.length - cut)


def _tail_start(data: int, index: int, position: int, lines: int) -> tuple[int, int]:
    """Return record number and byte offset at which the last `lines` lines begin."""
    total = os.fstat(index).st_size // RECORD_SIZE
    wanted = lines
    end_of_text = True
    number = total
    first_byte = os.fstat(data).st_size
    while number > position:
        low = max(position, number - _BATCH)
        raw = os.pread(index, (number - low) * RECORD_SIZE, low * RECORD_SIZE)
        for record in reversed(decode_records(raw)):
            number -= 1
            end = record.offset + record.length
            while end > record.offset:
                start = max(record.offset, end - (1 << 20))
                piece = os.pread(data, end - start, start)
                scan = len(piece)
                if end_of_text and wanted > 0 and piece.endswith(b"\n"):
                    scan -= 1  # the newline that ends the last line opens none
                end_of_text = False
                while wanted > 0 and (at := piece.rfind(b"\n", 0, scan)) >= 0:
                    wanted -= 1
                    scan = at
                    if wanted == 0:
                        return number, start + at + 1
                if wanted == 0:
                    return number, end
                end = start
            if record.length:
                first_byte = record.offset
    return position, first_byte


class _Copier:
    """Copies pieces of one file in a worker thread that can be stopped at any moment.

    A blocking write to a user's pipe or terminal can't be interrupted, and making the descriptor
    non-blocking would change it for everybody who shares it. So each step waits in poll(2) for
    room, with an eventfd beside it that ends the wait, and then writes no more than fits.
    """

    def __init__(self, data: int, outputs: dict[LogStream, int]) -> None:
        self._data = data
        self._outputs = outputs
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopped = threading.Event()
        self._failure: OSError | None = None
        self._kinds: dict[int, str] = {}
        for output in outputs.values():
            self._kinds[output] = _kind_of(output)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._stop)

    async def copy(self, records: Iterable[Record]) -> None:
        runs = list(_runs(records, self._outputs))
        if not runs:
            await trio.lowlevel.checkpoint()
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stop_when_cancelled)
            with trio.CancelScope(shield=True):
                self._failure = await trio.to_thread.run_sync(self._copy_runs, runs)
            nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure  # outside the nursery, which would wrap it in a group
        await trio.lowlevel.checkpoint_if_cancelled()

    async def _stop_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self._stopped.set()
            os.eventfd_write(self._stop, 1)

    def _copy_runs(self, runs: list[tuple[int, int, int]]) -> OSError | None:
        self._stopped.clear()
        try:
            os.eventfd_read(self._stop)
        except BlockingIOError:
            pass
        try:
            for output, offset, length in runs:
                self._copy_run(output, offset, length)
        except OSError as error:
            return error
        return None

    def _copy_run(self, output: int, offset: int, length: int) -> None:
        while length and self._wait_for_room(output):
            done = self._step(output, offset, length)
            if done is None:
                continue  # another writer took the room between poll and write
            if done == 0:
                return  # the data file is shorter than its index says: a crash cut it
            offset += done
            length -= done

    def _wait_for_room(self, output: int) -> bool:
        if self._kinds[output] != "file":
            poller = select.poll()
            poller.register(output, select.POLLOUT)
            poller.register(self._stop, select.POLLIN)
            poller.poll()
        return not self._stopped.is_set()

    def _step(self, output: int, offset: int, length: int) -> int | None:
        kind = self._kinds[output]
        try:
            match kind:
                case "pipe":
                    return os.splice(
                        self._data,
                        output,
                        min(length, 1 << 20),
                        offset_src=offset,
                        flags=_SPLICE_NONBLOCK,
                    )
                case "file":
                    return os.sendfile(output, self._data, offset, min(length, 1 << 24))
                case _:
                    # A terminal that polls as writable has room for a little; more could block.
                    piece = os.pread(self._data, min(length, 4096), offset)
                    return os.write(output, piece) if piece else 0
        except BlockingIOError:
            return None
        except OSError:
            if kind == "plain":
                raise
            # EINVAL: an output opened for appending, or a file system that can't splice. A broken
            # pipe fails the same way again in the plain write, and is raised there.
            self._kinds[output] = "plain"
            return self._step(output, offset, length)


def _kind_of(fd: int) -> str:
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode):
        return "pipe"
    if stat.S_ISREG(mode):
        return "file"
    return "plain"


def _runs(
    records: Iterable[Record], outputs: dict[LogStream, int]
) -> Iterable[tuple[int, int, int]]:
    """Join neighbouring records that go to the same output: (output, offset, length)."""
    current: tuple[int, int, int] | None = None
    for record in records:
        output = outputs.get(record.stream)
        if output is None or not record.length:
            continue
        if current and current[0] == output and current[1] + current[2] == record.offset:
            current = (output, current[1], current[2] + record.length)
        else:
            if current:
                yield current
            current = (output, record.offset, record.length)
    if current:
        yield current
