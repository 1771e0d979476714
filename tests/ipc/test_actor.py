"""The owner of some state: its start and end, its tasks, and its exclusive sections."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from container.ipc import Actor


class Recorder(Actor):
    def __init__(self) -> None:
        self.events: list[str] = []

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        self.events.append("start")
        try:
            yield
        finally:
            self.events.append("end")

    async def tick(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.events.append("task ended")

    async def section(self, key: str, seconds: float) -> None:
        async with self.exclusive(key):
            self.events.append(f"{key} in")
            await trio.sleep(seconds)
            self.events.append(f"{key} out")


async def test_background_tasks_end_before_what_the_lifespan_holds() -> None:
    async with Recorder() as actor:
        actor.nursery.start_soon(actor.tick)
        await trio.testing.wait_all_tasks_blocked()
        assert actor.statistics().tasks == 1
    assert actor.events == ["start", "task ended", "end"]


async def test_a_lifespan_that_fails_leaves_the_actor_closed() -> None:
    class Failing(Actor):
        @asynccontextmanager
        async def lifespan(self) -> AsyncGenerator[None]:
            raise RuntimeError("no")
            yield

    actor = Failing()
    with pytest.raises(RuntimeError, match="no"):
        await actor.__aenter__()
    assert not actor.is_open


async def test_an_actor_that_is_not_open_has_no_nursery_and_may_be_opened_again() -> None:
    actor = Recorder()
    with pytest.raises(RuntimeError, match="is not open"):
        _ = actor.nursery
    for _ in range(2):
        async with actor:
            assert actor.is_open
        assert not actor.is_open
    assert actor.events == ["start", "end"] * 2


async def test_an_actor_may_end_its_own_tasks_and_its_block() -> None:
    async with Recorder() as actor:
        actor.nursery.cancel_scope.cancel()
        await trio.sleep_forever()
    assert actor.events == ["start", "end"]


async def test_sections_of_one_key_exclude_and_others_do_not_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with Recorder() as actor, trio.open_nursery() as nursery:
        nursery.start_soon(actor.section, "a", 2)
        nursery.start_soon(actor.section, "a", 2)
        nursery.start_soon(actor.section, "b", 1)
        await trio.sleep(0.5)
        assert actor.statistics().held_keys == ("a", "b")
    assert trio.current_time() == pytest.approx(4)
    a = [event for event in actor.events if event.startswith("a")]
    assert a == ["a in", "a out", "a in", "a out"]
    assert actor.statistics().held_keys == ()


async def test_waiting_for_a_section_may_be_cancelled_and_leaves_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with Recorder() as actor:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(actor.section, "a", 5)
            await trio.sleep(1)
            with trio.move_on_after(1):
                await actor.section("a", 1)
        assert actor.statistics().held_keys == ()
        await actor.section("a", 1)
