"""A pool serves each call in a process of its own; what dies there fails one call alone."""

from __future__ import annotations

import math
import os
import signal

import pytest
import trio

from container.ipc import (
    Limits,
    NotFound,
    PeerGone,
    Unavailable,
    Zygote,
    pool_of,
    process_of,
    spawn_pool,
)
from tests.ipc.spawn import services
from tests.ipc.spawn.conftest import QUICK, alive, until
from tests.ipc.spawn.services import Bench, BenchService, Ticker, TickerService


async def test_calls_at_once_have_a_worker_each_up_to_the_bound(zygote: Zygote) -> None:
    pids: list[int] = []
    most = 0

    async def call(bench: Bench) -> None:
        nonlocal most
        await bench.sleep(0.05)
        most = max(most, pool_of(bench).statistics().workers)
        pids.append((await bench.facts()).pid)

    async with spawn_pool(Bench, BenchService, workers=3, zygote=zygote) as bench:
        async with trio.open_nursery() as nursery:
            for _ in range(9):
                nursery.start_soon(call, bench)
        statistics = pool_of(bench).statistics()
    assert most == statistics.workers == statistics.idle == statistics.started == 3
    assert len(set(pids)) <= 3
    assert len(pids) == 9
    assert not any(map(alive, pids))


async def test_an_idle_worker_is_used_again(zygote: Zygote) -> None:
    async with spawn_pool(Bench, BenchService, "x", workers=3, zygote=zygote) as bench:
        assert (await bench.facts()).pid == (await bench.facts()).pid
        assert await bench.word() == "x"
        assert pool_of(bench).statistics().started == 1


async def test_a_worker_that_dies_fails_its_call_alone_and_is_replaced(zygote: Zygote) -> None:
    async with spawn_pool(Bench, BenchService, workers=2, zygote=zygote) as bench:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.sleep, 0.1)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(PeerGone, match="died with signal SIGKILL"):
                await bench.kill(signal.SIGKILL)
        assert await bench.add(1, 1) == 2
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.sleep, 0.1)
            nursery.start_soon(bench.sleep, 0.1)
        assert pool_of(bench).statistics().started == 3
        assert pool_of(bench).statistics().failed == 1


async def test_a_worker_that_died_while_idle_is_not_used(zygote: Zygote) -> None:
    async with spawn_pool(Bench, BenchService, workers=1, zygote=zygote) as bench:
        pid = (await bench.facts()).pid
        os.kill(pid, signal.SIGKILL)
        await until(lambda: pool_of(bench).statistics().workers == 0)
        assert (await bench.facts()).pid != pid


async def test_a_worker_is_replaced_after_so_many_calls(zygote: Zygote) -> None:
    async with spawn_pool(
        Bench, BenchService, workers=1, uses_per_worker=2, zygote=zygote
    ) as bench:
        pids = [(await bench.facts()).pid for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


async def test_an_idle_worker_ends_after_a_while(zygote: Zygote) -> None:
    async with spawn_pool(
        Bench, BenchService, workers=2, idle_seconds=0.05, zygote=zygote
    ) as bench:
        pid = (await bench.facts()).pid
        await until(lambda: not alive(pid))
        assert pool_of(bench).statistics().idle == 0
        assert await bench.add(1, 1) == 2


async def test_a_worker_whose_handler_overstays_is_ended_with_it(zygote: Zygote) -> None:
    limits = Limits(grace_seconds=0.05, liveness_seconds=math.inf)
    async with spawn_pool(
        Bench, BenchService, workers=1, zygote=zygote, bounds=QUICK, limits=limits
    ) as bench:
        pid = (await bench.facts()).pid
        with trio.move_on_after(0.3) as scope:
            await bench.overstay(60.0)
        assert scope.cancelled_caught
        assert (await bench.facts()).pid != pid


async def test_a_held_worker_is_one_process(zygote: Zygote) -> None:
    async with spawn_pool(Bench, BenchService, workers=1, zygote=zygote) as bench:
        async with pool_of(bench).worker() as one:
            assert process_of(one).pid == (await one.facts()).pid == (await one.facts()).pid
            with trio.move_on_after(0.05) as scope:
                await bench.word()  # it is held
            assert scope.cancelled_caught
        await bench.word()


async def test_a_held_scope_has_its_worker_to_itself(zygote: Zygote) -> None:
    async with spawn_pool(Ticker, TickerService, workers=2, zygote=zygote) as ticker:
        async with ticker.lease("a") as lease:
            assert lease != f"a of {await ticker.process()}"
            assert await ticker.held() == ()  # it is another's
            async with ticker.ticks(3) as ticks:
                assert [tick async for tick in ticks] == [0, 1, 2]
        assert pool_of(ticker).statistics().idle == 2


async def test_a_limiter_may_be_shared(zygote: Zygote) -> None:
    limiter = trio.CapacityLimiter(1)
    async with spawn_pool(Bench, BenchService, workers=limiter, zygote=zygote) as one:
        async with spawn_pool(Bench, BenchService, workers=limiter, zygote=zygote) as two:
            await one.word()
            await two.word()
            async with pool_of(one).worker():
                assert limiter.available_tokens == 0
            assert limiter.available_tokens == 1


async def test_what_making_a_worker_raises_is_the_calls(zygote: Zygote) -> None:
    async with spawn_pool(Bench, services.Missing, workers=1, zygote=zygote) as bench:
        for _ in range(2):
            with pytest.raises(NotFound, match="no such bench"):
                await bench.word()
        assert pool_of(bench).statistics().workers == 0


async def test_a_cancelled_pool_ends_its_workers(zygote: Zygote) -> None:
    pid = 0
    with trio.move_on_after(5) as scope:
        async with spawn_pool(Bench, BenchService, workers=1, zygote=zygote) as bench:
            pid = (await bench.facts()).pid
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert pid
    assert not alive(pid)


async def test_a_pool_that_is_closed_serves_no_more(zygote: Zygote) -> None:
    async with spawn_pool(Bench, BenchService, workers=1, zygote=zygote) as bench:
        pass
    with pytest.raises(Unavailable, match="closed"):
        await bench.word()


async def test_a_pool_has_a_zygote_of_its_own() -> None:
    async with spawn_pool(Bench, BenchService, "own", workers=1) as bench:
        assert await bench.word() == "own"


async def test_a_proxy_of_something_else_has_no_pool(zygote: Zygote) -> None:
    with pytest.raises(TypeError, match="no proxy of a pool"):
        pool_of(BenchService())
    with pytest.raises(TypeError, match="no proxy of a spawned service"):
        process_of(BenchService())
