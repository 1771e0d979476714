"""The examples do what their pages say, run as a user would: each program a process of its own."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def folder() -> Generator[Path]:
    """A folder with a short name, which other users may enter."""
    with tempfile.TemporaryDirectory(prefix="ex-") as made:
        os.chmod(made, 0o755)
        yield Path(made)


@contextlib.contextmanager
def running(example: str, program: str, *args: str | Path) -> Generator[subprocess.Popen[str]]:
    """Run a program of an example for the block; it is killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, program, *map(str, args)],
        cwd=EXAMPLES / example,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    """Return the next line that a program prints."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def output(example: str, program: str, *args: str | Path) -> tuple[int, str]:
    """Run a program to its end; return its status and what it printed."""
    with running(example, program, *args) as process:
        printed, _ = process.communicate(timeout=60)
        return process.returncode, printed


def interrupted(process: subprocess.Popen[str]) -> str:
    """Press Ctrl-C; return what else the program prints until it has ended."""
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    return printed


def test_a_store_keeps_values_and_ends_leases_with_their_holders(folder: Path) -> None:
    at = folder / "s"
    with running("store", "service.py", at) as service:
        assert line(service) == "serving"
        assert output("store", "client.py", at, "put", "colour", "green") == (0, "")
        assert output("store", "client.py", at, "get", "colour") == (0, "green\n")
        assert output("store", "client.py", at, "get", "shape") == (
            1,
            "NotFound: no key 'shape'\n",
        )
        with running("store", "client.py", at, "watch", "worker/") as watcher:
            with running("store", "client.py", at, "hold", "worker/1", "ready") as holder:
                assert line(holder) == "holding worker/1"
                assert line(watcher) == "worker/1 = ready"
                taken = output("store", "client.py", at, "hold", "worker/1", "mine")
                assert taken == (1, "AlreadyExists: 'worker/1' is taken\n")
                leased = output("store", "client.py", at, "put", "worker/1", "mine")
                assert leased == (1, "InvalidState: 'worker/1' is leased\n")
                holder.send_signal(signal.SIGKILL)
                assert line(watcher) == "worker/1 is gone"
            with running("store", "client.py", at, "hold", "worker/1", "again") as holder:
                assert (line(holder), line(watcher)) == ("holding worker/1", "worker/1 = again")
                assert interrupted(holder) == ""
                assert line(watcher) == "worker/1 is gone"
            assert interrupted(watcher) == ""
        assert interrupted(service) == "interrupted\n"
    assert not at.exists()


def test_the_opener_hands_its_files_to_a_process_without_rights(folder: Path) -> None:
    files = folder / "files"
    files.mkdir(mode=0o700)
    (files / "poem").write_text("one\ntwo\nthree\n")
    (files / "link").symlink_to("/etc/passwd")
    os.mkfifo(files / "pipe")
    user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else os.geteuid()
    with running("opener", "service.py", files, folder / "s") as service:
        assert line(service) == f"serving user {user}"
        assert output("opener", "client.py", folder / "s") == (
            0,
            f"user {user} counts 3 lines in poem\n"
            "InvalidArgument: '../secret' is not the name of a file in this folder\n",
        )
        assert interrupted(service) == "interrupted\n"


def test_builders_build_at_once_tell_their_steps_and_name_what_is_broken(folder: Path) -> None:
    for name, modules in {"good": 3, "other": 2, "bad": 1}.items():
        (folder / name).mkdir()
        for number in range(modules):
            (folder / name / f"m{number}.py").write_text(f"x = {number}\n")
    (folder / "bad" / "m1.py").write_text("x = 1\ny = = 2\n")
    names = [folder / name for name in ("good", "other", "bad")]
    status, printed = output("builders", "client.py", folder / "out", *names)
    by_folder = {
        name: re.findall(rf"^{re.escape(str(folder / name))}: (.*)$", printed, re.MULTILINE)
        for name in ("good", "other", "bad")
    }
    assert by_folder == {
        "good": ["1/3 m0.py", "2/3 m1.py", "3/3 m2.py", "3 modules built"],
        "other": ["1/2 m0.py", "2/2 m1.py", "2 modules built"],
        "bad": ["1/2 m0.py", "InvalidArgument: m1.py, line 2: invalid syntax"],
    }, printed
    assert (status, len(printed.splitlines())) == (0, 9), printed
    built = {path.name for path in (folder / "out" / "good").iterdir()}
    assert built == {"m0.code", "m1.code", "m2.code"}
