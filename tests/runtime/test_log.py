"""The log's writer: the kernel moves the bytes, and nothing that fails holds a process up."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
import trio

from container.contracts.logs import LogStream, decode_records, open_log
from container.runtime import log as log_module
from container.runtime.log import LogWriter, log_pipe


def records(folder: Path) -> list[tuple[int, int, LogStream]]:
    found = decode_records((folder / "index").read_bytes())
    return [(record.offset, record.length, record.stream) for record in found]


async def test_each_splice_has_one_record(tmp_path: Path) -> None:
    read_end, write_end = log_pipe()
    with LogWriter(tmp_path) as log:
        log.mark(LogStream.START)
        os.write(write_end, b"one")
        os.close(write_end)
        await log.copy(read_end, LogStream.STDERR)
        log.mark(LogStream.END)
    os.close(read_end)
    assert (tmp_path / "data").read_bytes() == b"one"
    assert records(tmp_path) == [
        (0, 0, LogStream.START),
        (0, 3, LogStream.STDERR),
        (3, 0, LogStream.END),
    ]


async def test_a_second_run_goes_on_where_the_first_ended(tmp_path: Path) -> None:
    for text in (b"first", b"second"):
        read_end, write_end = log_pipe()
        with LogWriter(tmp_path) as log:
            os.write(write_end, text)
            os.close(write_end)
            await log.copy(read_end, LogStream.STDOUT)
        os.close(read_end)
    assert (tmp_path / "data").read_bytes() == b"firstsecond"
    assert records(tmp_path)[1] == (5, 6, LogStream.STDOUT)


async def test_two_streams_at_once_lose_nothing(tmp_path: Path) -> None:
    pieces = {LogStream.STDOUT: b"o" * 1000, LogStream.STDERR: b"e" * 777}
    threads: list[threading.Thread] = []
    ends: list[tuple[int, LogStream]] = []

    def pour(write_end: int, piece: bytes) -> None:
        for _ in range(3000):
            os.write(write_end, piece)
        os.close(write_end)

    with LogWriter(tmp_path) as log:
        async with trio.open_nursery() as nursery:
            for stream, piece in pieces.items():
                read_end, write_end = log_pipe()
                ends.append((read_end, stream))
                nursery.start_soon(log.copy, read_end, stream)
                threads.append(threading.Thread(target=pour, args=(write_end, piece)))
                threads[-1].start()
        statistics = log.statistics()
    for thread in threads:
        thread.join()
    for read_end, _ in ends:
        os.close(read_end)
    data = (tmp_path / "data").read_bytes()
    assert statistics.written == len(data)
    assert data.count(b"o") == 3_000_000
    for offset, length, stream in records(tmp_path):
        assert set(data[offset : offset + length]) <= {pieces[stream][0]}


async def test_cancellation_keeps_what_was_taken(tmp_path: Path) -> None:
    read_end, write_end = log_pipe()
    with LogWriter(tmp_path) as log:
        with trio.move_on_after(0.05):
            os.write(write_end, b"kept")
            await log.copy(read_end, LogStream.STDOUT)
    os.close(read_end)
    os.close(write_end)
    assert (tmp_path / "data").read_bytes() == b"kept"
    assert records(tmp_path) == [(0, 4, LogStream.STDOUT)]


async def test_a_full_disk_drops_bytes_and_blocks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **rest: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    read_end, write_end = log_pipe()
    with LogWriter(tmp_path) as log:
        monkeypatch.setattr(log_module.os, "splice", full)
        os.write(write_end, b"x" * 100_000)
        os.close(write_end)
        with trio.fail_after(5):
            await log.copy(read_end, LogStream.STDOUT)
        monkeypatch.undo()
        assert log.statistics().dropped == 100_000
    os.close(read_end)
    assert (tmp_path / "data").read_bytes() == b""


async def test_a_log_that_was_never_written_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_log(tmp_path / "log")
