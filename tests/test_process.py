"""The shell of every service process: options, descriptors, signals, lifeline, exit status."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from container import __version__
from container.process import LOG_BOUND, open_log

SERVICE = """
import sys, trio
from container.process import run_process
from container.ipc import NotFound, Unavailable, PermissionDenied

async def serve(context):
    "Serve the test."
    print("arguments", context.arguments, "listener", context.listener is not None, flush=True)
    match context.arguments[:1]:
        case ["sleep"]:
            try:
                await trio.sleep_forever()
            finally:
                print("stopped by", context.stop_reason, flush=True)
        case ["hang"]:
            try:
                await trio.sleep_forever()
            finally:
                import time; time.sleep(60)
        case ["missing"]:
            raise NotFound('no image "x"', hint="pull it")
        case ["group"]:
            raise ExceptionGroup("two", [Unavailable("busy"), NotFound("none")])
        case ["bug"]:
            raise ZeroDivisionError("a bug")
        case ["status"]:
            return 9

sys.exit(run_process("container-test", serve))
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    program = tmp_path / "service.py"
    program.write_text(textwrap.dedent(SERVICE))
    return {
        **os.environ,
        "CONTAINER_ROOT": str(tmp_path / "root"),
        "CONTAINER_RUN": str(tmp_path / "run"),
        "SERVICE": str(program),
    }


def start(environment: dict[str, str], *arguments: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, environment["SERVICE"], *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[arg-type]
    )


def run(environment: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    with start(environment, *arguments) as process:
        out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def test_options_before_the_arguments_are_the_shells_and_the_rest_is_the_services(
    environment: dict[str, str],
) -> None:
    status, out, _ = run(environment, "--log", "-", "one", "--log", "two")
    assert (status, out) == (0, "arguments ['one', '--log', 'two'] listener False\n")


def test_help_and_version_answer_at_once(environment: dict[str, str]) -> None:
    status, out, _ = run(environment, "--help")
    assert status == 0
    assert out.startswith("Usage: container-test")
    assert "Serve the test." in out
    assert run(environment, "--version")[:2] == (0, f"container-test {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["missing"], 1, 'container-test: no image "x"\nhint: pull it\n'),
        (["group"], 75, "container-test: busy\ncontainer-test: none\n"),
        (["bug"], 70, "container-test: ended by a bug: ZeroDivisionError('a bug')\n"),
        (["status"], 9, ""),
        (["--log"], 2, "container-test: --log needs a file, or - for stderr\n"),
        (["--log", "/proc/no/such"], 75, "container-test: the log /proc/no/such"),
    ],
)
def test_each_end_has_its_status_and_one_sentence(
    environment: dict[str, str], arguments: list[str], status: int, sentence: str
) -> None:
    got, _, err = run(environment, *arguments)
    assert got == status
    assert err.startswith(sentence)
    assert "Traceback" not in err


def test_a_bug_leaves_its_traceback_in_the_log_as_json(environment: dict[str, str]) -> None:
    run(environment, "bug")
    log = Path(environment["CONTAINER_ROOT"]) / "logs/test.log"
    (line,) = [json.loads(line) for line in log.read_text().splitlines()]
    assert line["process"] == "container-test"
    assert "ZeroDivisionError" in line["error"]
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_cancels_the_service_and_the_status_is_0(
    environment: dict[str, str], number: signal.Signals
) -> None:
    with start(environment, "sleep") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "stopped by StopReason.SIGNAL\n", "")


@pytest.mark.parametrize(("argument", "status"), [("sleep", 0), ("hang", -signal.SIGALRM)])
def test_the_end_of_the_lifeline_ends_the_process_even_if_its_clean_up_hangs(
    environment: dict[str, str], argument: str, status: int
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = theirs.fileno()
        with start(
            environment | {"CONTAINER_LIFELINE_FD": str(fd)}, argument, pass_fds=(fd,)
        ) as process:
            theirs.close()
            assert process.stdout is not None
            process.stdout.readline()
            assert process.poll() is None
            ours.close()
            process.communicate(timeout=30)
    assert process.returncode == status


def test_a_log_beyond_its_bound_is_moved_aside_once(tmp_path: Path) -> None:
    log = tmp_path / "logs/x.log"
    os.close(open_log(log))
    with log.open("wb") as file:
        file.truncate(LOG_BOUND + 1)
    os.close(open_log(log))
    assert log.stat().st_size == 0
    assert (tmp_path / "logs/x.log.1").stat().st_size == LOG_BOUND + 1
