"""Idle exit: the wait ends once nothing was in flight for the whole time, and not before."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from container.ipc import (
    Actor,
    Contract,
    PeerGone,
    bind,
    connection_of,
    in_memory,
    open_service,
)
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


class Plain(Contract, name="plain"):
    @abstractmethod
    async def sleep(self, seconds: float) -> None: ...

    @abstractmethod
    def lease(self) -> AbstractAsyncContextManager[int]: ...


class PlainService(Actor, Plain):
    closed = False

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    @asynccontextmanager
    async def lease(self) -> AsyncGenerator[int]:
        yield 1

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        yield
        await trio.sleep(0.01)  # its clean-up is not cancelled
        self.closed = True


async def test_an_idle_service_ends_its_block_after_its_last_call_and_scope(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    service = PlainService()
    ended: list[float] = []
    left: list[str] = []

    async def serve() -> None:
        async with open_service(service, at=tmp_path / "s", idle=10):
            try:
                await trio.sleep_forever()
            finally:
                left.append("the block")
        ended.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await trio.testing.wait_all_tasks_blocked()
        async with Plain.connect(tmp_path / "s") as plain:
            await plain.sleep(30)
            await trio.sleep(5)
            async with plain.lease():
                await trio.sleep(30)
            assert ended == []
            await connection_of(plain).wait_lost()
            with pytest.raises(PeerGone):
                await plain.sleep(1)
    assert left == ["the block"]
    assert ended == [pytest.approx(75, abs=0.1)]
    assert service.closed
    assert not service.is_open
    assert not (tmp_path / "s").exists()


async def test_what_fails_in_the_block_of_a_service_that_may_be_idle_comes_out(
    tmp_path: Path,
) -> None:
    with pytest.raises(LookupError):
        async with open_service(PlainService(), at=tmp_path / "s", idle=10):
            raise LookupError


async def test_an_idle_service_on_a_handed_over_listener_loses_no_call(tmp_path: Path) -> None:
    """As with a socket that a launcher holds: who calls starts the next instance."""
    path = tmp_path / "s"
    instances = 0
    with bind(path) as listener:

        async def keep_serving() -> None:
            nonlocal instances
            while True:
                await trio.lowlevel.wait_readable(listener)
                instances += 1
                async with open_service(PlainService(), at=listener, idle=0.01):
                    await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_serving)
            async with Plain.connect_named(path) as plain:
                with trio.fail_after(30):
                    for turn in range(30):
                        await plain.sleep(0)
                        await trio.sleep(0.002 * (turn % 10))
            nursery.cancel_scope.cancel()
    assert instances > 1


async def test_a_timer_tells_a_service_what_else_is_work(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    timer = IdleTimer(10)
    async with trio.open_nursery() as nursery:

        async def work() -> None:
            with timer.busy():
                await trio.sleep(100)

        nursery.start_soon(work)
        async with open_service(PlainService(), at=tmp_path / "s", idle=timer):
            await trio.sleep_forever()
    assert trio.current_time() == pytest.approx(110, abs=0.1)
