"""A zygote for all tests of a session, and what they look at processes with."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from container.ipc import StopBounds, Zygote

BOUND = 20.0
"""Seconds for anything that must happen."""
QUICK = StopBounds(drain=0.3, cleanup=0.2, cancel=0.2, terminate=0.2)


@pytest.fixture(scope="session", autouse=True)
def zygote() -> Iterator[Zygote]:
    """One that has the tests' services loaded; started once, since it costs most of a test."""
    made = Zygote(["tests.ipc.spawn.services"])
    trio.run(made.start)
    yield made
    trio.run(made.close)


@pytest.fixture(params=["fresh", "forked"])
def start(request: pytest.FixtureRequest) -> Zygote | None:
    """What is given as `zygote`: a child by exec, and one by fork."""
    return None if request.param == "fresh" else request.getfixturevalue("zygote")


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds that nothing tells of: the end of processes of others."""
    with trio.fail_after(BOUND):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.005)


def named(name: str) -> list[int]:
    """Return the live processes of a name: of spawned children, their keepers not counted."""
    found: list[int] = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if Path(f"/proc/{pid}/comm").read_text().strip() == name[:15] and alive(int(pid)):
                found.append(int(pid))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def parent_of(pid: int) -> int:
    """Return a process's parent: of a spawned child, its keeper."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def leave_nothing(*pids: int) -> None:
    """Kill what a test made on purpose."""
    for pid in pids:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
