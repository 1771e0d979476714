"""The fast command line: what it takes over, how it ends, and when it does the work itself."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from container import __version__
from container.cli.front import door_path
from container.launcher import frontdoor
from container.storage.paths import Paths

HERE = Path(__file__).parent / "front"
FRONT = [sys.executable, "-m", "container.cli.front"]
OURSELVES = (2, 'no command "facts"')
"""Status and words of the real command line: the zygote of these tests knows `facts`."""


class Started(subprocess.Popen[str]):
    """A front whose test does not wait for its end when it has failed."""

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:  # noqa: PYI036
        if kind is not None:
            self.kill()
        super().__exit__(kind, *rest)


class Door:
    """A run directory with a zygote behind its door."""

    def __init__(self, folder: Path) -> None:
        self.run_directory = folder / "run"
        self.run_directory.mkdir(0o700)
        self.path = self.run_directory / "cli.sock"
        self.environment = {
            **os.environ,
            "CONTAINER_ROOT": str(folder / "root"),
            "CONTAINER_RUN": str(self.run_directory),
            "PYTHONPATH": str(HERE),
        }
        self.environment.pop("CONTAINER_NO_FRONT", None)
        self._ends: list[Callable[[], None]] = []
        self.zygote: subprocess.Popen[str] | None = None

    def open(self, *arguments: str) -> None:
        ours, theirs = socket.socketpair()
        self.zygote = subprocess.Popen(
            [sys.executable, str(HERE / "zygote.py"), str(self.path), *arguments],
            env=self.environment,
            stdin=theirs,
            stdout=subprocess.PIPE,
            text=True,
        )
        theirs.close()
        assert self.zygote.stdout is not None
        assert self.zygote.stdout.readline() == "ready\n"
        self._ends.append(ours.close)

    def close(self) -> None:
        for end in self._ends:
            end()
        if self.zygote is not None:
            with self.zygote:
                self.zygote.wait(10)

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        options.setdefault("env", self.environment)
        options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run(
            [*FRONT, *arguments], capture_output=True, text=True, timeout=60, **options
        )

    def start(self, *arguments: str, **options: Any) -> Started:
        options.setdefault("env", self.environment)
        return Started(
            [*FRONT, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
            **options,
        )


@pytest.fixture
def closed_door() -> Iterator[Door]:
    folder = Path(tempfile.mkdtemp(prefix="cf"))
    door = Door(folder)
    try:
        yield door
    finally:
        door.close()
        shutil.rmtree(folder)


@pytest.fixture
def door(closed_door: Door) -> Door:
    closed_door.open()
    return closed_door


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def state_of(pid: int) -> str:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "gone"


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_it_knows_the_doors_place_without_importing_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    for uid in (0, 1000):
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        for variables in (
            {},
            {"CONTAINER_RUN": "/short"},
            {"CONTAINER_RUN": "relative"},
            {"XDG_RUNTIME_DIR": "/run/user/1000"},
        ):
            with monkeypatch.context() as patch:
                for name in ("CONTAINER_RUN", "XDG_RUNTIME_DIR"):
                    patch.delenv(name, raising=False)
                for name, value in variables.items():
                    patch.setenv(name, value)
                assert door_path() == str(Paths.default().cli_socket)


def test_it_imports_nothing_that_costs(door: Door) -> None:
    program = (
        "import sys; import os, re; before = set(sys.modules)\n"
        "from container.cli import front; sys.argv = ['container', 'exit', '0']\n"
        "assert front.main() == 0\n"
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=door.environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    ours = {"container", "container.cli", "container.cli.front", "container.launcher"}
    modules_in_c = {"_socket", "_signal", "select"}
    allowed = ours | modules_in_c | {"container.launcher.frontdoor", "__future__"}
    assert set(eval(done.stdout)) <= allowed


@pytest.mark.parametrize("status", [0, 1, 7, 125, 255])
def test_its_exit_status_is_the_commands(door: Door, status: int) -> None:
    assert door.run("exit", str(status)).returncode == status


def test_a_bug_is_a_traceback_and_status_1(door: Door) -> None:
    done = door.run("raise")
    assert done.returncode == 1
    assert "RuntimeError: a bug" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGABRT])
def test_it_dies_by_the_signal_that_the_command_died_by(door: Door, number: int) -> None:
    assert door.run("die", str(int(number))).returncode == -number


def test_the_command_is_where_the_front_is(door: Door, tmp_path: Path) -> None:
    done = door.run(
        "facts",
        "",
        "two words",
        "\udcff",
        cwd=tmp_path,
        env={**door.environment, "MARK": "a\nb"},
        umask=0o027,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    facts = json.loads(done.stdout)
    assert facts["argv"] == ["facts", "", "two words", "\udcff"]
    assert facts["directory"] == str(tmp_path)
    assert (facts["mark"], facts["zygote"]) == ("a\nb", None)
    assert facts["umask"] == 0o027
    assert facts["ignored"]
    assert facts["terminals"] == [False, False, False]


def test_the_command_has_no_descriptor_of_another(door: Door) -> None:
    with door.start("wait") as other:
        line_of(other)
        facts = json.loads(door.run("facts").stdout)
        other.kill()
    descriptors = facts["descriptors"]
    assert descriptors[:3] == [0, 1, 2]
    assert len(descriptors) == 5  # and its connection, and the line that says the front is there


def test_the_command_has_the_fronts_limits(door: Door) -> None:
    done = subprocess.run(
        ["sh", "-c", 'ulimit -Sn 64; exec "$@"', "sh", *FRONT, "facts"],
        env=door.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert json.loads(done.stdout)["files"] == 64


def test_bytes_go_through_unchanged_however_many(door: Door) -> None:
    data = os.urandom(5 * 2**20)
    done = subprocess.run(
        [*FRONT, "cat"], env=door.environment, input=data, stdout=subprocess.PIPE, timeout=60
    )
    assert done.stdout == data
    assert len(door.run("big", "8192").stdout) == 8192 * 1024


def test_signals_are_passed_on(door: Door) -> None:
    with door.start("signals") as front:
        assert line_of(front) == "ready"
        for name in ("SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGTERM"):
            front.send_signal(getattr(signal, name))
            assert line_of(front) == name
        assert front.wait(20) == 0


def test_a_killed_front_is_a_hangup_to_the_command(door: Door, tmp_path: Path) -> None:
    word = tmp_path / "word"
    with door.start("hangup", str(word)) as front:
        pid = int(line_of(front))
        front.kill()
        until(lambda: state_of(pid) == "gone")
    assert word.read_text() == "hangup"


RAW_FRONT = """
import _signal, _socket, sys
from container.cli import front
from container.launcher import frontdoor
connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
connection.settimeout(20)
connection.connect(front.door_path())
sys.argv = ["container", "cat"]
assert front._hand_over(connection, _socket, _signal, frontdoor) is not None
line = front._begin(connection, _socket, frontdoor)
connection.send(b"?")
print("sent", flush=True)
print(connection.recv(2))
"""


def test_bytes_on_the_connection_are_no_hangup(door: Door) -> None:
    # The kernel may report the front's last bytes after the child has read them.
    with subprocess.Popen(
        [sys.executable, "-c", RAW_FRONT],
        env=door.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as front:
        assert line_of(front) == "sent"
        time.sleep(0.1)  # a hangup would come at once
        assert front.stdin is not None
        front.stdin.close()
        assert line_of(front) == str(frontdoor.EXITED + b"\0")


def test_a_killed_front_ends_a_command_that_ignores_hangups(door: Door) -> None:
    with door.start(
        "wait", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    ) as front:
        pid = int(line_of(front))
        front.kill()
        until(lambda: state_of(pid) == "gone")


def test_stopping_the_front_stops_the_command_and_continuing_continues_both(door: Door) -> None:
    with door.start("wait") as front:
        pid = int(line_of(front))
        for _ in range(2):
            front.send_signal(signal.SIGTSTP)
            until(lambda: state_of(front.pid) == state_of(pid) == "T")
            front.send_signal(signal.SIGCONT)
            until(lambda: state_of(front.pid) == state_of(pid) == "S")
        front.terminate()
        assert front.wait(20) == -signal.SIGTERM


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Master and slave of a terminal of 31 rows and 117 columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 31, 117, 0, 0))
    yield master, slave
    os.close(master)
    os.close(slave)


def test_a_terminal_is_passed_as_it_is(door: Door, terminal: tuple[int, int]) -> None:
    door.environment.pop("COLUMNS", None)
    with subprocess.Popen(
        ["setsid", "--ctty", *FRONT, "facts"],
        env=door.environment,
        stdin=terminal[1],
        stdout=terminal[1],
        stderr=subprocess.PIPE,
    ) as front:
        text = b""
        while not text.endswith(b"\n"):
            text += os.read(terminal[0], 65536)
        assert front.wait(20) == 0
    facts = json.loads(text)
    assert facts["terminals"] == [True, True, False]
    assert facts["columns"] == 117


def test_what_a_terminal_signals_arrives(door: Door, terminal: tuple[int, int]) -> None:
    master, slave = terminal
    with subprocess.Popen(
        ["setsid", "--ctty", *FRONT, "signals"],
        env=door.environment,
        stdin=slave,
        stdout=subprocess.PIPE,
        text=True,
    ) as front:
        assert line_of(front) == "ready"
        os.write(master, b"\x03")
        assert line_of(front) == "SIGINT"
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 90, 0, 0))
        assert line_of(front) == "SIGWINCH"
        front.terminate()
        assert front.wait(20) == 0


def test_the_command_outlives_the_zygote_and_its_status_arrives(door: Door) -> None:
    with door.start("signals") as front:
        assert line_of(front) == "ready"
        assert door.zygote is not None
        door.zygote.kill()
        door.zygote.wait(10)
        front.send_signal(signal.SIGTERM)
        assert line_of(front) == "SIGTERM"
        assert front.wait(20) == 0


def test_a_status_that_is_lost_with_the_zygote_is_said_to_be(door: Door) -> None:
    with door.start("wait", stderr=subprocess.PIPE) as front:
        pid = int(line_of(front))
        assert door.zygote is not None
        door.zygote.kill()
        door.zygote.wait(10)
        os.kill(pid, signal.SIGKILL)
        assert front.wait(20) == 125
        assert front.stderr is not None
        assert "its exit status was lost" in front.stderr.read()


# --- the front's own process ---


def alone(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether the real command line has run, in the front's process."""
    return done.returncode == OURSELVES[0] and OURSELVES[1] in done.stderr


def test_without_a_door_it_does_the_work_itself(closed_door: Door) -> None:
    assert alone(closed_door.run("facts"))
    closed_door.path.write_text("no socket")
    assert alone(closed_door.run("facts"))


def test_it_can_be_turned_off(door: Door) -> None:
    assert door.run("facts").returncode == 0
    assert alone(door.run("facts", env={**door.environment, "CONTAINER_NO_FRONT": "1"}))


def test_a_zygote_of_another_version_does_not_run_it(closed_door: Door) -> None:
    closed_door.open("another")
    assert alone(closed_door.run("facts"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make another's socket")
def test_the_socket_of_another_user_is_not_used(door: Door) -> None:
    os.chown(door.path, 65534, 65534)
    assert alone(door.run("facts"))


def test_a_mute_zygote_is_not_waited_for(closed_door: Door) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(closed_door.path))
        mute.listen()
        before = time.monotonic()
        assert alone(closed_door.run("facts"))
        assert time.monotonic() - before >= frontdoor.READY_BOUND


def test_a_request_beyond_the_bound_is_not_sent(door: Door) -> None:
    # 18 variables of 120 KiB: above our bound and below the kernel's own for a program.
    big = {f"BIG{number}": "x" * 120 * 1024 for number in range(18)}
    done = subprocess.run(
        ["sh", "-c", 'ulimit -s 65536; exec "$@"', "sh", sys.executable, "-c", _BIG, *FRONT],
        env={**door.environment, "BIG": str(len(big))},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert alone(done)


_BIG = """
import os, sys
for number in range(int(os.environ["BIG"])):
    os.environ[f"BIG{number}"] = "x" * 120 * 1024
os.execv(sys.argv[1], [*sys.argv[1:], "facts"])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to drop what it has")
@pytest.mark.parametrize(
    "prefix",
    [
        ["setpriv", "--bounding-set", "-net_raw"],
        ["setpriv", "--no-new-privs"],
        ["setpriv", "--groups", "65534"],
        ["unshare", "--mount"],
        ["unshare", "--net"],
    ],
)
def test_a_front_of_another_standing_does_the_work_itself(door: Door, prefix: list[str]) -> None:
    done = subprocess.run(
        [*prefix, *FRONT, "facts"],
        env=door.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert alone(done)


def test_closed_standard_streams_are_no_reason_to_fail(door: Door) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *FRONT, "facts"],
        env=door.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert alone(done)


def test_bytes_that_are_no_request_cost_the_zygote_nothing(door: Door) -> None:
    too_long = frontdoor.MAGIC + (frontdoor.BOUND + 1).to_bytes(4, "big")
    for data in (b"", b"x", b"GET / HTTP/1.1\r\n\r\n", too_long, frontdoor.MAGIC + b"\0\0\0\5abc"):
        with socket.socket(socket.AF_UNIX) as rogue:
            rogue.settimeout(10)
            rogue.connect(str(door.path))
            rogue.sendall(data)
            rogue.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert rogue.recv(1) in (b"", frontdoor.EXITED)
    assert door.run("exit", "3").returncode == 3


def test_version_and_help_answer_without_any_daemon(closed_door: Door) -> None:
    assert closed_door.run("--version").stdout == f"container {__version__}\n"
    assert "Usage: container" in closed_door.run("--help").stdout
    assert not list(closed_door.run_directory.iterdir())
