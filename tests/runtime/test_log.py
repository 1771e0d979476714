"""The log's writer: the kernel moves the bytes, and nothing that fails holds a process up."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
import tty
from pathlib import Path
from typing import Any

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


# --- a writer that was killed ---


def test_bytes_behind_all_that_is_noted_are_noted_by_the_next_writer(tmp_path: Path) -> None:
    with LogWriter(tmp_path) as log:
        log.mark(LogStream.START)
    # What a writer leaves that is killed between a move and its note.
    (tmp_path / "stream").write_bytes(bytes([LogStream.STDERR]))
    with open(tmp_path / "data", "ab") as data:
        data.write(b"unnoted")
    with LogWriter(tmp_path) as log:
        log.mark(LogStream.END)
    assert records(tmp_path) == [
        (0, 0, LogStream.START),
        (0, 7, LogStream.STDERR),
        (7, 0, LogStream.END),
    ]


def test_half_a_record_is_taken_away_and_its_bytes_are_noted(tmp_path: Path) -> None:
    with LogWriter(tmp_path) as log:
        log.mark(LogStream.START)
    (tmp_path / "stream").write_bytes(bytes([LogStream.STDOUT]))
    (tmp_path / "data").write_bytes(b"some")
    with open(tmp_path / "index", "ab") as index:
        index.write(b"\0" * 23)
    with LogWriter(tmp_path):
        pass
    assert records(tmp_path) == [(0, 0, LogStream.START), (0, 4, LogStream.STDOUT)]
    assert (tmp_path / "index").stat().st_size == 48


def test_data_that_is_shorter_than_the_index_says_is_not_given_to_others(tmp_path: Path) -> None:
    read_end, write_end = log_pipe()
    with LogWriter(tmp_path) as log:
        log.mark(LogStream.START)
        os.write(write_end, b"lost by the disk")
        log._move_pipe(read_end, LogStream.STDOUT)  # pyright: ignore[reportPrivateUsage]
    os.truncate(tmp_path / "data", 3)
    with LogWriter(tmp_path) as log:
        os.write(write_end, b"next")
        log._move_pipe(read_end, LogStream.STDOUT)  # pyright: ignore[reportPrivateUsage]
    os.close(read_end)
    os.close(write_end)
    assert records(tmp_path)[-1] == (16, 4, LogStream.STDOUT)


def test_an_end_is_noted_once(tmp_path: Path) -> None:
    with LogWriter(tmp_path) as log:
        log.mark(LogStream.END)
        log.mark(LogStream.START)
        log.mark(LogStream.END)
        log.mark(LogStream.END)
    with LogWriter(tmp_path) as log:
        log.mark(LogStream.END)
    assert [stream for _, _, stream in records(tmp_path)] == [LogStream.START, LogStream.END]


KILLED = """
import os, sys, trio
from pathlib import Path
from container.contracts.logs import LogStream
from container.runtime.log import LogWriter

async def main():
    with LogWriter(Path(sys.argv[1])) as log:
        log.mark(LogStream.START)
        print(flush=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.copy, int(sys.argv[2]), LogStream.STDOUT)
            nursery.start_soon(log.copy, int(sys.argv[3]), LogStream.STDERR)

trio.run(main)
"""


def test_a_writer_killed_at_any_moment_loses_and_doubles_nothing(tmp_path: Path) -> None:
    for number, milliseconds in enumerate((0.2, 2, 8)):
        folder = tmp_path / str(number)
        pipes = [log_pipe(), log_pipe()]
        words = [str(folder), *(str(read_end) for read_end, _ in pipes)]
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, *words],
            pass_fds=[read_end for read_end, _ in pipes],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        stop = threading.Event()
        written = [b"", b""]

        def pour(
            which: int,
            pipes: list[tuple[int, int]] = pipes,
            stop: threading.Event = stop,
            written: list[bytes] = written,
        ) -> None:
            while not stop.is_set() and len(written[which]) < 1 << 19:
                piece = b"%d:%d\n" % (which, len(written[which]))
                written[which] += piece
                os.write(pipes[which][1], piece)

        with process, process.stdout:
            process.stdout.readline()
            threads = [threading.Thread(target=pour, args=(which,)) for which in (0, 1)]
            for thread in threads:
                thread.start()
            time.sleep(milliseconds / 1000)
            process.kill()
        stop.set()
        for thread in threads:
            thread.join()
        for _, write_end in pipes:
            os.close(write_end)

        async def drain(folder: Path = folder, pipes: list[tuple[int, int]] = pipes) -> None:
            with LogWriter(folder) as log:
                for (read_end, _), stream in zip(pipes, (1, 2), strict=True):
                    await log.copy(read_end, LogStream(stream))

        trio.run(drain)
        data = (folder / "data").read_bytes()
        found = {1: b"", 2: b""}
        for offset, length, stream in records(folder):
            if stream in found:
                found[stream] += data[offset : offset + length]
        assert found == {1: written[0], 2: written[1]}
        for read_end, _ in pipes:
            os.close(read_end)


async def test_a_terminals_bytes_go_through_its_spool_and_what_was_in_it_comes_first(
    tmp_path: Path,
) -> None:
    master, slave = os.openpty()
    tty.setraw(slave)
    spool = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(master, False)
    os.write(spool[1], b"left, ")
    os.write(slave, b"then said")
    os.close(slave)
    with LogWriter(tmp_path) as log:
        await log.copy(master, LogStream.TERMINAL, spool)
    for fd in (master, *spool):
        os.close(fd)
    assert (tmp_path / "data").read_bytes() == b"left, then said"


async def test_a_terminal_that_cannot_be_spliced_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    master, slave = os.openpty()
    tty.setraw(slave)
    spool = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(master, False)
    os.write(slave, b"said")
    os.close(slave)
    splice = os.splice

    def refuse(source: int, *rest: Any, **named: Any) -> int:
        if source == master:
            raise OSError(errno.EINVAL, "Invalid argument")
        return splice(source, *rest, **named)

    monkeypatch.setattr(os, "splice", refuse)
    with LogWriter(tmp_path) as log:
        await log.copy(master, LogStream.TERMINAL, spool)
    for fd in (master, *spool):
        os.close(fd)
    assert (tmp_path / "data").read_bytes() == b"said"
    assert records(tmp_path) == [(0, 4, LogStream.TERMINAL)]
