"""Work of many clients: bounded, and fair between them."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from container.resolver.turns import Turns


class Work:
    """Pieces of work that end when they are told to."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self._ends: dict[str, trio.Event] = {}

    async def __call__(self, name: str) -> None:
        self.started.append(name)
        self._ends[name] = trio.Event()
        await self._ends[name].wait()

    async def end(self, name: str) -> None:
        """End one and let the next begin."""
        self._ends[name].set()
        await wait_all_tasks_blocked()


@asynccontextmanager
async def turns(most: int, each: int, waiting: int) -> AsyncGenerator[tuple[Turns, Work]]:
    """Hold turns, whose work is cancelled in the end."""
    async with trio.open_nursery() as nursery:
        yield Turns(nursery, most=most, most_each=each, most_waiting=waiting), Work()
        nursery.cancel_scope.cancel()


async def test_one_client_has_so_many_under_way_so_many_waiting_and_no_more() -> None:
    async with turns(10, 2, 3) as (turn, work):
        assert [turn.offer("a", partial(work, f"a{i}")) for i in range(6)] == [True] * 5 + [False]
        await wait_all_tasks_blocked()
        assert sorted(work.started) == ["a0", "a1"]
        assert (turn.active, turn.waiting) == (2, 3)
        await work.end("a0")
        assert work.started[2:] == ["a2"]
        assert turn.offer("a", partial(work, "a6"))


async def test_who_waits_for_himself_does_not_hold_up_another() -> None:
    async with turns(10, 2, 100) as (turn, work):
        for i in range(50):
            turn.offer("greedy", partial(work, f"g{i}"))
        turn.offer("modest", partial(work, "m"))
        await wait_all_tasks_blocked()
        assert "m" in work.started


async def test_when_all_are_busy_the_next_turn_is_that_of_who_has_the_least() -> None:
    async with turns(4, 4, 100) as (turn, work):
        for i in range(50):
            turn.offer("greedy", partial(work, f"g{i}"))
        await wait_all_tasks_blocked()
        for i in range(3):
            turn.offer("modest", partial(work, f"m{i}"))
            turn.offer("third", partial(work, f"t{i}"))
        await wait_all_tasks_blocked()
        assert sorted(work.started) == ["g0", "g1", "g2", "g3"]
        for i in range(3):
            await work.end(f"g{i}")
        assert work.started[4:] == ["m0", "t0", "g4"]


async def test_of_who_has_as_little_each_has_a_turn() -> None:
    async with turns(1, 1, 10) as (turn, work):
        for client in "abc":
            for i in range(2):
                turn.offer(client, partial(work, f"{client}{i}"))
        await wait_all_tasks_blocked()
        for _ in range(5):
            await work.end(work.started[-1])
        assert work.started == ["a0", "b0", "c0", "a1", "b1", "c1"]


async def test_work_that_fails_is_logged_and_ends_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail() -> None:
        raise ValueError("what a bug raises")

    async with turns(1, 1, 10) as (turn, work):
        with caplog.at_level(logging.ERROR):
            turn.offer("a", fail)
            turn.offer("a", partial(work, "next"))
            await wait_all_tasks_blocked()
        assert work.started == ["next"]
        assert "what a bug raises" in caplog.text


async def test_nothing_is_kept_of_a_client_that_has_nothing_under_way() -> None:
    async def nothing() -> None:
        await trio.lowlevel.checkpoint()

    async with turns(4, 1, 10) as (turn, _):
        for client in range(100):
            turn.offer(str(client), nothing)
            turn.offer(str(client), nothing)
        await wait_all_tasks_blocked()
        assert (turn.active, turn.waiting) == (0, 0)
        assert turn._lines == turn._hungry == {}
