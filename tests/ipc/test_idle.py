"""Idle exit: the wait ends once nothing was in flight for the whole time, and not before."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from container.ipc import Actor, Contract, in_memory, open_service
from container.ipc.idle import IdleTimer

Clock = trio.testing.MockClock


async def test_it_waits_from_the_end_of_the_last_of_several(autojump_clock: Clock) -> None:
    idle = IdleTimer(10)

    async def work(begin: float, seconds: float) -> None:
        await trio.sleep(begin)
        with idle.busy():
            await trio.sleep(seconds)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work, 3, 30)
        nursery.start_soon(work, 9, 2)
        nursery.start_soon(work, 42.5, 0)
        await idle.wait()
    assert trio.current_time() == pytest.approx(52.5)


async def test_what_begins_at_the_very_end_of_the_time_is_not_cut_off(
    autojump_clock: Clock,
) -> None:
    idle = IdleTimer(10)

    async def work() -> None:
        await trio.sleep(10)
        with idle.busy():
            await trio.sleep(5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        await idle.wait()
        assert idle.statistics().in_flight == 0
        assert trio.current_time() in (10, 25)


async def test_a_wait_can_be_cancelled_and_repeated(autojump_clock: Clock) -> None:
    idle = IdleTimer(10)
    with trio.move_on_after(4):
        await idle.wait()
    with idle.busy(), idle.busy(), trio.move_on_after(20) as scope:
        await idle.wait()
    assert scope.cancelled_caught
    await trio.sleep(3)
    assert idle.statistics().idle_seconds == pytest.approx(3)
    await idle.wait()
    assert trio.current_time() == pytest.approx(34)
    await idle.wait()


async def test_a_failed_block_is_not_in_flight_any_more() -> None:
    idle = IdleTimer(0)

    def fail() -> None:
        with idle.busy():
            assert idle.statistics().in_flight == 1
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    await idle.wait()
    with pytest.raises(ValueError, match="negative"):
        IdleTimer(-1)


async def test_a_counted_method_is_in_flight_as_long_as_its_call_or_its_scope(
    autojump_clock: Clock,
) -> None:
    idle = IdleTimer(10)

    async def call(seconds: float) -> str:
        await trio.sleep(seconds)
        return "done"

    @asynccontextmanager
    async def lease(key: str) -> AsyncGenerator[str]:
        yield f"lease of {key}"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(idle.wait)
        assert await idle.counted(call)(seconds=30) == "done"
        async with idle.counted(lease)("a") as held:
            assert (held, idle.statistics().in_flight) == ("lease of a", 1)
            await trio.sleep(30)
        assert idle.statistics().in_flight == 0
    assert trio.current_time() == pytest.approx(70)


class Sleeper(Contract, name="sleeper"):
    @abstractmethod
    async def sleep(self, seconds: float) -> None: ...


class SleeperService(Actor, Sleeper):
    def __init__(self, idle: IdleTimer) -> None:
        self.idle = idle

    async def sleep(self, seconds: float) -> None:
        with self.idle.busy():
            await trio.sleep(seconds)


async def test_a_service_ends_its_scope_when_its_calls_have_ended(tmp_path: Path) -> None:
    idle = IdleTimer(0.2)
    path = str(tmp_path / "s")

    async def serve() -> None:
        async with open_service(SleeperService(idle), at=path):
            await idle.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await trio.testing.wait_all_tasks_blocked(0.02)
        async with Sleeper.connect(path) as sleeper:
            await sleeper.sleep(0.5)
    assert not await trio.Path(path).exists()


async def test_a_call_in_flight_keeps_an_actor_open(autojump_clock: Clock) -> None:
    idle = IdleTimer(10)
    async with in_memory(SleeperService(idle), Sleeper) as sleeper, trio.open_nursery() as nursery:
        nursery.start_soon(sleeper.sleep, 30)
        await idle.wait()
        assert trio.current_time() == pytest.approx(40)
