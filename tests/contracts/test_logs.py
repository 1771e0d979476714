"""The log's format: decoding, following by inotify, copying out, and the last lines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from container.contracts.logs import (
    LogReader,
    LogStream,
    Record,
    copy_log,
    decode_records,
    follow,
)


class Log:
    """A log written by hand."""

    def __init__(self, folder: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self.data = os.open(folder / "data", flags)
        self.index = os.open(folder / "index", flags)
        self.size = 0

    def write(self, stream: LogStream, data: bytes = b"") -> None:
        os.write(self.data, data)
        os.write(self.index, Record(self.size, 1, len(data), stream).encode())
        self.size += len(data)

    def run(self, *pieces: tuple[LogStream, bytes]) -> None:
        self.write(LogStream.START)
        for stream, data in pieces:
            self.write(stream, data)
        self.write(LogStream.END)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log(tmp_path)
    yield log
    os.close(log.data)
    os.close(log.index)


async def copied(log: Log, tmp_path: Path, **options: object) -> tuple[bytes, bytes]:
    out = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    err = os.open(tmp_path / "err", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        with trio.fail_after(5):
            await copy_log(log.data, log.index, out, err, **options)  # type: ignore[arg-type]
    finally:
        os.close(out)
        os.close(err)
    return (tmp_path / "out").read_bytes(), (tmp_path / "err").read_bytes()


def test_a_record_is_24_little_endian_bytes() -> None:
    record = Record(offset=1, time=2, length=3, stream=LogStream.STDERR)
    assert record.encode() == bytes([1, *[0] * 7, 2, *[0] * 7, 3, 0, 0, 0, 2, 0, 0, 0])
    assert decode_records(record.encode() + b"torn") == (record,)


async def test_streams_are_told_apart_and_bytes_are_kept(log: Log, tmp_path: Path) -> None:
    log.run((LogStream.STDOUT, b"\xff\x00one\n"), (LogStream.STDERR, b"two"))
    log.run((LogStream.TERMINAL, b"three"))
    assert await copied(log, tmp_path) == (b"\xff\x00one\nthree", b"two")
    assert await copied(log, tmp_path, last_run=True) == (b"three", b"")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [(0, b""), (1, b"c\n"), (2, b"b\nc\n"), (3, b"a\nb\nc\n"), (9, b"a\nb\nc\n")],
)
async def test_the_last_lines_are_counted_over_pieces(
    log: Log, tmp_path: Path, lines: int, expected: bytes
) -> None:
    log.run(*[(LogStream.STDOUT, piece) for piece in (b"a", b"\nb", b"\nc", b"\n")])
    assert (await copied(log, tmp_path, tail=lines))[0] == expected


async def test_a_last_line_without_newline_counts(log: Log, tmp_path: Path) -> None:
    log.run((LogStream.STDOUT, b"a\nb\nc"))
    assert (await copied(log, tmp_path, tail=1))[0] == b"c"
    assert (await copied(log, tmp_path, tail=2))[0] == b"b\nc"


async def test_following_ends_with_the_run(log: Log, tmp_path: Path) -> None:
    log.write(LogStream.START)

    async def write_slowly() -> None:
        for number in range(20):
            log.write(LogStream.STDOUT, b"%d\n" % number)
            await trio.sleep(0.002)
        log.write(LogStream.END)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_slowly)
        out, _ = await copied(log, tmp_path, following=True)
    assert out == b"".join(b"%d\n" % n for n in range(20))


async def test_following_keeps_one_batch_and_leaves_nothing_when_left(log: Log) -> None:
    log.write(LogStream.START)
    async with follow(log.index) as batches:
        assert (await batches.receive())[0].stream is LogStream.START


async def test_a_full_pipe_is_given_up_on_cancellation(log: Log) -> None:
    log.run((LogStream.STDOUT, bytes(1 << 20)))
    read_end, write_end = os.pipe()
    try:
        with trio.move_on_after(0.1) as scope:
            await copy_log(log.data, log.index, write_end, write_end)
        assert scope.cancelled_caught
        assert os.get_blocking(write_end)
    finally:
        os.close(read_end)
        os.close(write_end)


async def test_a_reader_that_went_away_is_a_broken_pipe(log: Log) -> None:
    log.run((LogStream.STDOUT, bytes(1 << 20)))
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        with pytest.raises(BrokenPipeError):
            await copy_log(log.data, log.index, write_end, write_end)
    finally:
        os.close(write_end)


async def test_an_output_opened_for_appending_works(log: Log, tmp_path: Path) -> None:
    log.run((LogStream.STDOUT, b"x" * 100_000))
    out = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        await copy_log(log.data, log.index, out, out)
    finally:
        os.close(out)
    assert (tmp_path / "out").read_bytes() == b"x" * 100_000


def test_the_newest_run_is_found_behind_many_records(log: Log) -> None:
    log.run()
    log.write(LogStream.START)
    for _ in range(5000):
        log.write(LogStream.STDOUT, b".")
    reader = LogReader(log.index)
    reader.seek_last_run()
    assert reader.position == 2
    assert reader.read()[0].stream is LogStream.START
