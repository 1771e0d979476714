"""Logs of services: last lines for people, and bounds that hold while they are written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from container.ipc import Unavailable
from container.launcher.logfiles import LINE_BOUND, LINES, Logs


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    """An empty folder."""
    return Logs(tmp_path / "logs")


def append(logs: Logs, name: str, *lines: str) -> None:
    fd = logs.open(name)
    os.write(fd, "".join(line + "\n" for line in lines).encode())
    os.close(fd)


def test_the_last_lines_of_a_start_are_those_behind_its_mark(logs: Logs) -> None:
    assert logs.last_lines("one", logs.mark("one"), None) == []
    append(logs, "one", "before")
    mark = logs.mark("one")
    append(logs, "one", *(f"line {number}" for number in range(9)), "x" * 1000)
    found = logs.last_lines("one", mark, None)
    assert found == ["line 5", "line 6", "line 7", "line 8", "x" * LINE_BOUND]
    assert len(found) == LINES


def test_records_are_shown_as_their_message_without_those_of_other_processes(logs: Logs) -> None:
    append(
        logs,
        "runtime.a",
        json.dumps({"pid": 5, "message": "mine", "error": "Traceback\n  File\nValueError: bad"}),
        json.dumps({"pid": 6, "message": "another's"}),
        "Traceback (most recent call last):",
        '{"no": "record"}',
    )
    assert logs.last_lines("runtime.b", 0, 5) == [
        "mine: ValueError: bad",
        "Traceback (most recent call last):",
        '{"no": "record"}',
    ]


def test_a_log_that_is_too_large_is_copied_aside_and_emptied_under_its_writer(logs: Logs) -> None:
    writer = logs.open("one")
    os.write(writer, b"x" * 5000)
    mark = logs.mark("one")
    assert not logs.bound("one", 5000)
    os.write(writer, b"y")
    assert logs.bound("one", 5000)
    os.write(writer, b"after\n")
    os.close(writer)
    assert logs.path("one").read_text() == "after\n"
    beside = logs.path("one").with_name("one.log.1")
    assert beside.read_bytes() == b"x" * 5000 + b"y"
    assert beside.stat().st_mode & 0o777 == 0o600
    assert logs.last_lines("one", mark, None) == ["after"]
    assert not logs.bound("none", 1)


def test_a_log_that_can_t_be_copied_is_emptied_all_the_same(logs: Logs) -> None:
    append(logs, "one", "x" * 5000)
    logs.path("one").with_name("one.log.1").mkdir()
    assert logs.bound("one", 100)
    assert logs.path("one").stat().st_size == 0


def test_a_note_is_a_record_in_the_service_s_own_log(logs: Logs) -> None:
    logs.note("runtime.a", "killed: it hung")
    (line,) = logs.path("runtime.a").read_text().splitlines()
    record = json.loads(line)
    assert (record["process"], record["message"]) == (
        "container-launcher",
        "runtime.a: killed: it hung",
    )


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="can't be opened"):
        Logs(tmp_path / "file").open("one")
    Logs(tmp_path / "file").note("one", "nowhere to say it")
