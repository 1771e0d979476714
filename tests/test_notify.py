"""How a service says how it is: to whom, how often, and what it leaves in the environment."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from container.notify import Notifier


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A socket to say it to, with a short name."""
    with (
        tempfile.TemporaryDirectory(prefix="ct") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock,
    ):
        sock.bind(f"{folder}/n")
        yield sock


def test_the_variables_are_taken_out_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert Notifier.from_environment() == Notifier("/run/x", 3.0)
    assert Notifier.from_environment() == Notifier(None, math.inf)


@pytest.mark.parametrize(
    ("usec", "pid", "watchdog"),
    [("3000000", "1", math.inf), ("x", "", math.inf), ("0", "", math.inf), ("500000", "", 0.5)],
)
def test_a_watchdog_that_is_another_s_or_no_number_is_none(
    monkeypatch: pytest.MonkeyPatch, usec: str, pid: str, watchdog: float
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "@x")
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    assert Notifier.from_environment() == Notifier("@x", watchdog)


async def test_a_datagram_has_fields_and_descriptors(listener: socket.socket) -> None:
    out, into = os.pipe()
    os.write(into, b"x")
    notifier = Notifier(listener.getsockname())
    assert await notifier.say({"READY": "1", "STATUS": "two\nlines"}, [out])
    data, (fd,), _, _ = socket.recv_fds(listener, 100, 4)
    assert data == b"READY=1\nSTATUS=two lines"
    assert os.read(fd, 1) == b"x"
    for each in (out, into, fd):
        os.close(each)


async def test_nobody_to_say_it_to_is_no_error() -> None:
    assert not await Notifier().say({"READY": "1"})
    assert not await Notifier("/nowhere/at/all").say({"READY": "1"})


async def test_an_abstract_name_is_spoken_to() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.bind("\0container-test-notify")
        assert await Notifier("@container-test-notify").say({"A": "b"})
        assert sock.recv(10) == b"A=b"


async def test_a_full_queue_is_tried_again(
    listener: socket.socket, autojump_clock: trio.testing.MockClock
) -> None:
    notifier = Notifier(listener.getsockname())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as other:
        with contextlib.suppress(BlockingIOError):
            while True:
                other.sendto(b"noise", listener.getsockname())
    async with trio.open_nursery() as nursery:

        async def drain() -> None:
            await trio.sleep(0.5)
            listener.recv(100)

        nursery.start_soon(drain)
        assert await notifier.say({"READY": "1"})
    assert not await notifier.say({"READY": "1"})
    assert trio.current_time() == pytest.approx(2.5, abs=0.1)


async def test_signs_of_life_come_three_times_as_often_as_they_are_due(
    listener: socket.socket, autojump_clock: trio.testing.MockClock
) -> None:
    with trio.move_on_after(3.5):
        await Notifier(listener.getsockname(), 3.0).keep_alive()
    said = 0
    while True:
        try:
            assert listener.recv(100) == b"WATCHDOG=1"
        except BlockingIOError:
            break
        said += 1
    assert said == 4


def test_a_process_says_that_it_is_ready_lives_and_stops(
    listener: socket.socket, tmp_path: Path
) -> None:
    program = (
        "import os, trio\n"
        "from container.process import run_process\n"
        "async def serve(context):\n"
        "    await context.ready('serving')\n"
        "    await context.say('resting')\n"
        "    await trio.sleep(0.05)\n"
        "    assert not [name for name in os.environ if name.startswith(('NOTIFY', 'WATCHDOG'))]\n"
        "    assert context.idle == 2.5\n"
        "raise SystemExit(run_process('container-x', serve))\n"
    )
    environment = {
        **os.environ,
        "CONTAINER_ROOT": str(tmp_path),
        "CONTAINER_RUN": str(tmp_path / "run"),
        "CONTAINER_IDLE_SECONDS": "2.5",
        "NOTIFY_SOCKET": listener.getsockname(),
        "WATCHDOG_USEC": "60000000",
    }
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
    said: list[bytes] = []
    while True:
        try:
            said.append(listener.recv(100))
        except BlockingIOError:
            break
    assert sorted(said) == sorted(
        [b"WATCHDOG=1", b"READY=1\nSTATUS=serving", b"STATUS=resting", b"STOPPING=1"]
    )
