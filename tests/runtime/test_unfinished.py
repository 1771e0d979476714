"""What a killed helper left in the middle is found by the kernel's word, and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from container.runtime.cgroup import CgroupFolders
from container.runtime.unfinished import end_calls

from .conftest import real_runtime_missing

FORKING = "import subprocess, sys, time; subprocess.Popen(['sleep', '100']); time.sleep(100)"
"""A program that has forked another one."""


@contextmanager
def program(*words: str, own_session: bool = True) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", FORKING, *words]
    with subprocess.Popen(command, start_new_session=own_session) as process:
        try:
            children_of(process.pid)
            yield process
        finally:
            process.kill()


def children_of(pid: int) -> list[int]:
    """Return the children of a process, once it has one: from then on it runs what it was told."""
    file = Path(f"/proc/{pid}/task/{pid}/children")
    while not (found := file.read_text().split()):
        pass
    return list(map(int, found))


def test_a_call_is_ended_with_its_group_and_others_are_let_live(tmp_path: Path) -> None:
    state, other = tmp_path / "state", tmp_path / "state-of-another"
    with (
        program("--root", str(state)) as ours,
        program("--root", str(other)) as another,
    ):
        assert end_calls(state) == 1
        assert ours.wait(5) == -9
        with contextlib.suppress(ProcessLookupError):
            while True:  # its child ends with it, a moment later
                os.killpg(ours.pid, 0)
        assert another.poll() is None
        assert end_calls(state) == 0
        os.killpg(another.pid, 9)


def test_a_call_in_anothers_group_is_ended_alone(tmp_path: Path) -> None:
    with program("--root", str(tmp_path), own_session=False) as ours:
        (child,) = children_of(ours.pid)
        assert end_calls(tmp_path) == 1
        assert ours.wait(5) == -9
        os.kill(child, signal.SIGKILL)
    assert os.getpgid(0)  # we, of the same group, live


@pytest.mark.skipif(bool(real_runtime_missing("runc")), reason=real_runtime_missing("runc"))
def test_only_what_was_brought_in_and_is_not_known_is_a_stray() -> None:
    group = CgroupFolders(f"/strays-test-{os.getpid()}")
    folder = next(iter(CgroupFolders("/").folders())) / group.path.lstrip("/")
    folder.mkdir()
    first, stray = (subprocess.Popen(["sleep", "100"]) for _ in range(2))
    shell = subprocess.Popen(["sh", "-c", "sleep 100; true"])
    try:
        for process in (first, stray, shell):
            (folder / "cgroup.procs").write_text(str(process.pid))
        (inside,) = children_of(shell.pid)
        (folder / "cgroup.procs").write_text(str(inside))
        group.kill_strays([first.pid, shell.pid])
        assert stray.wait(5) == -9
        assert first.poll() is None
        assert shell.poll() is None
        assert os.path.exists(f"/proc/{inside}")
    finally:
        group.kill()
        for process in (first, stray, shell):
            process.kill()
            process.wait()
        assert group.remove()
