"""Attached processes on a real terminal: raw mode, sizes, keys, what is left behind."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container.cli.terminal import DETACH, DetachKeys

BOUND = 20.0


class Terminal:
    """A command line that has a terminal of its own, and the person before it."""

    def __init__(self, arguments: list[str], **descriptors: Any) -> None:
        self.master, slave = pty.openpty()
        self.slave = os.dup(slave)
        termios.tcsetwinsize(slave, (24, 80))
        self.before = termios.tcgetattr(slave)
        self.seen = b""
        streams = {"stdin": slave, "stdout": slave, "stderr": slave, **descriptors}
        self.process = subprocess.Popen(
            arguments, start_new_session=True, preexec_fn=_take_terminal, **streams
        )
        os.close(slave)

    def expect(self, pattern: str) -> re.Match[bytes]:
        """Read until something is there."""
        deadline = time.monotonic() + BOUND
        while not (match := re.search(pattern.encode(), self.seen)):
            assert time.monotonic() < deadline, self.seen
            if select.select([self.master], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    self.seen += os.read(self.master, 65536)
        return match

    def type(self, keys: str) -> None:
        self.seen = b""
        os.write(self.master, keys.encode())

    def ended(self) -> int:
        """Return the exit status; the terminal is as it was before."""
        self.expect(r"\[status \d+\]")
        status = self.process.wait(BOUND)
        assert termios.tcgetattr(self.slave) == self.before
        return status

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.slave)
        os.close(self.master)


def _take_terminal() -> None:
    import fcntl

    fcntl.ioctl(2, termios.TIOCSCTTY, 0)


@pytest.fixture
def at_terminal(fake_program: str) -> Iterator[Callable[..., Terminal]]:
    """Start command lines at terminals."""
    made: list[Terminal] = []

    def start(*arguments: str, **descriptors: Any) -> Terminal:
        made.append(Terminal([sys.executable, fake_program, *arguments], **descriptors))
        return made[-1]

    yield start
    for terminal in made:
        terminal.close()


@pytest.mark.parametrize("mode", [("--rm",), ()])
def test_a_terminal_of_its_own_is_connected_both_ways(
    at_terminal: Callable[..., Terminal], mode: tuple[str, ...]
) -> None:
    here = at_terminal("run", *mode, "-it", "demo", "sh", "-c", "tty; read x; echo got $x; exit 3")
    here.expect("/dev/pts/")
    assert here.is_raw()
    here.type("hello\r")
    here.expect("got hello\r\n")
    assert here.ended() == 3


def test_exec_gets_a_terminal(at_terminal: Callable[..., Terminal]) -> None:
    here = at_terminal("exec", "-it", "web", "sh", "-c", "read x; echo got $x")
    here.type("a\r")
    here.expect("got a\r\n")
    assert here.ended() == 0


def test_ctrl_c_goes_to_the_process_as_a_key(at_terminal: Callable[..., Terminal]) -> None:
    here = at_terminal(
        "run", "--rm", "-it", "demo", "sh", "-c",
        "trap 'echo trapped; exit 5' INT; echo ready; while :; do sleep 0.05; done",
    )  # fmt: skip
    here.expect("ready")
    here.type("\x03")
    here.expect("trapped")
    assert here.ended() == 5


def test_the_size_is_there_at_the_start_and_follows(at_terminal: Callable[..., Terminal]) -> None:
    here = at_terminal(
        "run", "--rm", "-it", "demo", "sh", "-c",
        "stty size; trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.05; done",
    )  # fmt: skip
    here.expect("24 80")
    here.expect("ready")
    termios.tcsetwinsize(here.slave, (30, 100))
    here.process.send_signal(signal.SIGWINCH)
    here.expect("30 100")
    assert here.ended() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT])
def test_a_signal_ends_us_with_the_terminal_as_it_was(
    at_terminal: Callable[..., Terminal], number: signal.Signals
) -> None:
    here = at_terminal("run", "--rm", "-it", "demo", "sh", "-c", "echo ready; sleep 60")
    here.expect("ready")
    assert here.is_raw()
    here.process.send_signal(number)
    assert here.ended() == 128 + number


def test_the_detach_keys_leave_a_logged_container_running(
    at_terminal: Callable[..., Terminal],
) -> None:
    here = at_terminal("run", "-it", "--name", "x", "demo", "sh", "-c", "echo ready; sleep 1")
    here.expect("ready")
    here.type("\x10\x11")
    here.expect('detached from "x", which goes on')
    assert here.ended() == 0


def test_without_a_log_the_detach_keys_are_keys(at_terminal: Callable[..., Terminal]) -> None:
    here = at_terminal(
        "run", "--rm", "-it", "demo", "sh", "-c", "stty raw; echo go; od -An -tx1 -N3"
    )
    here.expect("go")
    here.type("\x10\x11x")
    here.expect("10 11 78")
    assert here.ended() == 0


@pytest.mark.parametrize("mode", [("--rm",), ()])
def test_our_terminal_is_never_handed_on(
    at_terminal: Callable[..., Terminal], mode: tuple[str, ...]
) -> None:
    here = at_terminal(
        "run", *mode, "-i", "demo", "sh", "-c",
        "for n in 0 1 2; do test -t $n && echo $n is a terminal; done; read x; echo got $x >&2",
    )  # fmt: skip
    here.type("word\n")
    here.expect("got word")
    assert b"is a terminal" not in here.seen
    assert here.ended() == 0


def test_ctrl_d_ends_the_input(at_terminal: Callable[..., Terminal]) -> None:
    here = at_terminal("run", "--rm", "-i", "demo", "cat")
    here.type("a\n\x04")
    here.expect("a\r\na\r\n")
    assert here.ended() == 0


def test_stdout_and_stderr_of_one_terminal_keep_their_order(
    at_terminal: Callable[..., Terminal],
) -> None:
    script = "for n in 1 2 3 4 5 6 7 8; do printf $n; printf e >&2; done"
    here = at_terminal("run", "--rm", "demo", "sh", "-c", script)
    here.expect("1e2e3e4e5e6e7e8e")
    assert here.ended() == 0


def test_a_child_that_holds_the_pipe_does_not_hold_us(
    at_terminal: Callable[..., Terminal],
) -> None:
    here = at_terminal("exec", "web", "sh", "-c", "sleep 15 & echo child $! is there")
    child = int(here.expect(r"child (\d+) is there")[1])
    assert here.ended() == 0
    os.kill(child, signal.SIGKILL)  # it is still there


def test_all_output_arrives_however_slowly_it_is_read(
    at_terminal: Callable[..., Terminal],
) -> None:
    here = at_terminal("run", "--rm", "-t", "demo", "seq", "20000")
    time.sleep(0.5)
    here.expect("20000\r+\n")
    assert here.seen.count(b"\n") >= 20000
    assert here.ended() == 0


def test_t_with_input_that_is_no_terminal_warns_and_passes_it_on(
    at_terminal: Callable[..., Terminal],
) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"piped\n")
    os.close(writer)
    here = at_terminal("run", "--rm", "-it", "demo", "cat", stdin=reader)
    os.close(reader)
    here.expect("container: stdin is no terminal")
    here.expect("piped\r+\npiped\r+\n")
    assert here.ended() == 0


def test_t_without_i_shows_output_alone(at_terminal: Callable[..., Terminal]) -> None:
    here = at_terminal("run", "--rm", "-t", "demo", "sh", "-c", "test -t 1 && echo yes")
    here.expect("yes")
    assert not here.is_raw()
    assert here.ended() == 0


def test_ctrl_c_without_a_terminal_of_its_own_is_passed_on_as_a_signal(
    at_terminal: Callable[..., Terminal],
) -> None:
    here = at_terminal(
        "run", "--rm", "demo", "sh", "-c",
        "trap 'echo trapped; exit 5' INT; echo ready; while :; do sleep 0.05; done",
    )  # fmt: skip
    here.expect("ready")
    here.type("\x03")
    here.expect("trapped")
    assert here.ended() == 5


def test_a_failed_start_leaves_the_terminal_as_it_was(at_terminal: Callable[..., Terminal]) -> None:
    here = at_terminal("run", "--rm", "-it", "demo", "/no/such")
    here.expect("container: no command")
    assert here.ended() == 127


def test_a_list_at_a_terminal_is_a_table(at_terminal: Callable[..., Terminal]) -> None:
    here = at_terminal("list")
    here.expect("ID.*NAME.*\r\n.*web")
    assert here.ended() == 0


@given(st.lists(st.binary()))
def test_keys_are_kept_whole_until_the_detach_keys(typed: list[bytes]) -> None:
    keys = DetachKeys()
    kept, detached = b"", False
    for part in typed:
        if not detached:
            more, detached = keys.feed(part)
            kept += more
    whole = b"".join(typed)
    if detached:
        assert kept == whole.partition(DETACH)[0]
    else:
        assert DETACH not in whole
        assert kept + (DETACH[:1] if whole.endswith(DETACH[:1]) else b"") == whole
