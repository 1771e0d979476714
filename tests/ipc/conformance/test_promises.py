"""Every promise over every way to connect: one behaviour."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from container.ipc import open_service
from container.ipc.client import dial
from container.ipc.testing import PROMISES, FaultyTransport, Pair, Promise, Reach, over_pair
from container.ipc.testing.subject import SubjectService
from container.ipc.transport import SocketTransport, Transport, memory_pair, socket_pair

Ends = tuple[Transport, Transport]


@asynccontextmanager
async def in_memory() -> AsyncGenerator[Ends]:
    yield memory_pair()


@asynccontextmanager
async def by_socket() -> AsyncGenerator[Ends]:
    one, two = socket_pair()
    yield SocketTransport(one), SocketTransport(two)


@asynccontextmanager
async def in_pieces() -> AsyncGenerator[Ends]:
    """Both ways in pieces of any size, so that no frame comes whole, nor one alone."""
    one, two = (FaultyTransport(end, seed=11) for end in memory_pair())
    for end in (one, two):
        end.faults.split(1, 4000)
    yield one, two


@pytest.mark.parametrize("promise", PROMISES, ids=str)
@pytest.mark.parametrize("pair", [in_memory, by_socket, in_pieces])
async def test_over_a_pair(promise: Promise, pair: Pair) -> None:
    await promise.check(over_pair(pair))


def at(path: Path) -> Reach:
    """Connect to a named socket."""

    @asynccontextmanager
    async def reach() -> AsyncGenerator[Transport]:
        yield SocketTransport(dial(path))

    return reach


@pytest.mark.parametrize("promise", PROMISES, ids=str)
async def test_over_a_named_socket(promise: Promise, tmp_path: Path) -> None:
    async with open_service(SubjectService(), at=tmp_path / "s"):
        await promise.check(at(tmp_path / "s"))


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A process that serves, and ends with its stdin."""
    path = tmp_path_factory.mktemp("child") / "s"
    command = [sys.executable, "-m", "container.ipc.testing.subject", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"serving\n"
            yield path
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(30) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("promise", PROMISES, ids=str)
async def test_over_a_socket_to_another_process(promise: Promise, child: Path) -> None:
    await promise.check(at(child))


def test_there_are_promises_of_everything() -> None:
    assert len({promise.name for promise in PROMISES}) == len(PROMISES) >= 50
