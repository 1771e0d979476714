"""What the launcher keeps of a helper: told in order, anew to each launcher, never waited for."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from container.contracts.launcher import Launcher, ServiceUnit
from container.contracts.runtime import SandboxGate
from container.ipc import Fd, in_memory
from container.runtime.keeping import FLUSH_SECONDS, LauncherKeeper
from container.storage.paths import Paths
from container.testing.launcher import Helper, InProcessLauncher

NAME = "runtime.a"


def no_helper() -> Helper:
    @asynccontextmanager
    async def helper(unit: ServiceUnit, end: object) -> AsyncGenerator[SandboxGate]:
        raise AssertionError
        yield

    return helper


@asynccontextmanager
async def launcher(tmp_path: Path) -> AsyncGenerator[InProcessLauncher]:
    async with InProcessLauncher(Paths(tmp_path / "root", tmp_path / "run"), no_helper()) as found:
        await found.register(ServiceUnit(NAME, ("helper",)))
        yield found


@pytest.fixture
def file(tmp_path: Path) -> int:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"kept")
    return fd


def same(kept: Fd, fd: int) -> bool:
    with kept:
        return os.path.sameopenfile(kept.fileno(), fd)


async def test_what_is_kept_arrives_and_what_is_dropped_goes(tmp_path: Path, file: int) -> None:
    keeper = LauncherKeeper(NAME)
    async with launcher(tmp_path) as found, in_memory(found, Launcher) as proxy:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.serve, proxy)
            keeper.keep("one", file)
            keeper.keep("two", file)
            keeper.drop("two")
            keeper.drop("never")
            await keeper.flush()
            kept = found.kept(NAME)
            assert list(kept) == ["one"]
            assert same(kept["one"], file)
            keeper.drop("one")
            await keeper.flush()
            assert found.kept(NAME) == {}
            nursery.cancel_scope.cancel()
    keeper.close()
    os.close(file)


async def test_what_was_said_before_there_is_a_launcher_is_said_to_it(
    tmp_path: Path, file: int
) -> None:
    keeper = LauncherKeeper(NAME)
    keeper.keep("one", file)
    os.close(file)  # its own duplicate is sent
    async with launcher(tmp_path) as found, in_memory(found, Launcher) as proxy:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.serve, proxy)
            await keeper.flush()
            kept = found.kept(NAME)
            with kept["one"] as one:
                assert os.pread(one.fileno(), 10, 0) == b"kept"
            nursery.cancel_scope.cancel()
    keeper.close()


async def test_each_launcher_is_told_all_anew(tmp_path: Path, file: int) -> None:
    keeper = LauncherKeeper(NAME)
    keeper.keep("one", file)
    for _ in range(2):
        async with launcher(tmp_path) as found, in_memory(found, Launcher) as proxy:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keeper.serve, proxy)
                await trio.testing.wait_all_tasks_blocked()  # a lost one is not waited for
                await keeper.flush()
                kept = found.kept(NAME)
                assert same(kept["one"], file)
                nursery.cancel_scope.cancel()
    keeper.close()
    os.close(file)


async def test_no_launcher_is_waited_for_a_second_and_a_lost_one_not_at_all(
    tmp_path: Path, file: int, autojump_clock: trio.testing.MockClock
) -> None:
    keeper = LauncherKeeper(NAME)
    keeper.keep("one", file)
    began = trio.current_time()
    await keeper.flush()
    assert await keeper.orphan(1) is None
    assert trio.current_time() - began == pytest.approx(2 * FLUSH_SECONDS)
    async with launcher(tmp_path) as found, in_memory(found, Launcher) as proxy:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.serve, proxy)
            await keeper.flush()
            nursery.cancel_scope.cancel()
    keeper.keep("two", file)
    began = trio.current_time()
    await keeper.flush()
    assert await keeper.orphan(1) is None
    assert trio.current_time() == began
    keeper.close()
    os.close(file)


async def test_a_launcher_that_refuses_holds_nothing_up(tmp_path: Path, file: int) -> None:
    keeper = LauncherKeeper("runtime.unknown")
    async with launcher(tmp_path) as found, in_memory(found, Launcher) as proxy:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.serve, proxy)
            keeper.keep("one", file)
            with trio.fail_after(1):
                await keeper.flush()
            nursery.cancel_scope.cancel()
    keeper.close()
    os.close(file)
