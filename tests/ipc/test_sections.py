"""Exclusive sections: one at a time for a key, no delay for others, no wait without an end."""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import Any

import pytest
import trio
import trio.testing

from container.ipc import Actor, Contract, Overloaded, detached, in_memory
from container.ipc.actor import actor_statistics
from container.ipc.sections import Sections

Clock = trio.testing.MockClock


class Shelf(Contract, name="shelf"):
    @abstractmethod
    async def hold(self, key: str, seconds: float) -> None: ...

    @abstractmethod
    async def hold_later(self, key: str, seconds: float) -> None: ...

    @abstractmethod
    async def hold_detached(self, key: str, seconds: float) -> None: ...


class ShelfService(Actor, Shelf):
    def __init__(self) -> None:
        self.events: list[str] = []

    async def hold(self, key: str, seconds: float, **bounds: Any) -> None:
        async with self.exclusive(key, **bounds):
            self.events.append(f"{key} in")
            await trio.sleep(seconds)
            self.events.append(f"{key} out")

    async def hold_later(self, key: str, seconds: float) -> None:
        self.nursery.start_soon(self.hold, key, seconds, name="later")
        await trio.lowlevel.checkpoint()

    async def hold_detached(self, key: str, seconds: float) -> None:
        with detached(60):
            await self.hold(key, seconds)


async def test_sections_of_one_key_exclude_in_order_and_others_do_not_wait(
    autojump_clock: Clock,
) -> None:
    async with ShelfService() as shelf, trio.open_nursery() as nursery:
        for key, seconds in (("a", 2), ("a", 3), ("b", 1)):
            nursery.start_soon(shelf.hold, key, seconds, name=f"hold {key} {seconds}")
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(0.5)
        a, b = actor_statistics(shelf).sections
        assert (a.key, a.holder, a.held_seconds, a.waiting) == ("a", "hold a 2", 0.5, 1)
        assert (b.key, b.waiting) == ("b", 0)
        await trio.sleep(2)
        (a,) = actor_statistics(shelf).sections
        assert (a.holder, a.held_seconds, a.waiting) == ("hold a 3", 0.5, 0)
    assert trio.current_time() == pytest.approx(5)
    assert shelf.events == ["a in", "b in", "b out", "a out", "a in", "a out"]
    assert actor_statistics(shelf).sections == ()


async def test_a_wedged_section_never_delays_another_key(autojump_clock: Clock) -> None:
    async with ShelfService() as shelf:
        shelf.nursery.start_soon(shelf.hold, "wedged", float("inf"))
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(50):  # its own callers get their errors, others their turn
            shelf.nursery.start_soon(shelf.hold, "wedged", 0)
        await trio.sleep(1)
        async with in_memory(shelf, Shelf) as proxy:
            with trio.fail_after(1):
                await proxy.hold("other", 0.5)
            with pytest.raises(Overloaded, match="'wedged' is busy"), trio.fail_after(1):
                await proxy.hold("wedged", 0)
        assert shelf.events == ["wedged in", "other in", "other out"]


async def test_a_caller_is_told_before_its_deadline_who_holds_the_section_and_since_when(
    autojump_clock: Clock,
) -> None:
    async with in_memory(ShelfService(), Shelf) as shelf, trio.open_nursery() as nursery:
        nursery.start_soon(shelf.hold, "a", 60)
        await trio.sleep(10)
        with pytest.raises(Overloaded) as caught, trio.fail_after(5):
            await shelf.hold("a", 1)
        assert trio.current_time() == pytest.approx(14.9, abs=0.01)
        error = caught.value
        holder = f"call shelf/hold of process {os.getpid()}"
        assert error.message == (
            f"'a' is busy: held by {holder} for 14.9 s, and did not become free in time"
        )
        assert error.details["key"] == "a"
        assert error.details["holder"] == holder
        assert error.details["held_seconds"] == pytest.approx(14.9, abs=0.01)
        # Of a short deadline only a tenth is kept for the answer.
        with pytest.raises(Overloaded), trio.fail_after(0.1):
            await shelf.hold("a", 1)
        nursery.cancel_scope.cancel()


async def test_a_deadline_of_ones_own_cancels_and_is_no_error(autojump_clock: Clock) -> None:
    shelf = ShelfService()
    async with shelf, trio.open_nursery() as nursery:
        nursery.start_soon(shelf.hold, "a", 5)
        await trio.sleep(1)
        with trio.move_on_after(1) as scope:
            await shelf.hold("a", 1)
        assert scope.cancelled_caught
        (section,) = actor_statistics(shelf).sections
        assert section.waiting == 0
    assert actor_statistics(shelf).sections == ()
    async with shelf:
        await shelf.hold("a", 1)


async def test_between_two_holders_nobody_is_named(autojump_clock: Clock) -> None:
    sections = Sections()

    async def hold() -> None:
        async with sections.hold("a"):
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        async with sections.hold("a"):
            nursery.start_soon(hold)
            await trio.sleep(1)
        (section,) = sections.statistics()  # handed over, and not taken up yet
        assert (section.holder, section.held_seconds, section.waiting) == ("", 0, 1)
        with pytest.raises(Overloaded, match="held by whoever came next for"):
            async with sections.hold("a", waiters=1):
                pass


async def test_a_wait_may_have_a_bound_of_its_own(autojump_clock: Clock) -> None:
    async with ShelfService() as shelf, trio.open_nursery() as nursery:
        nursery.start_soon(shelf.hold, "a", 5)
        await trio.sleep(1)
        with pytest.raises(Overloaded, match=r"held by .*hold for 3\.0 s"):
            await shelf.hold("a", 1, within=2)
        assert trio.current_time() == 3
        with pytest.raises(Overloaded):
            await shelf.hold("a", 1, within=0)
        await shelf.hold("b", 1, within=0)  # a free section needs no time


async def test_one_too_many_is_refused_at_once(autojump_clock: Clock) -> None:
    async with ShelfService() as shelf, trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(shelf.hold, "a", 2)
        await trio.sleep(1)
        with pytest.raises(Overloaded, match="and 3 wait for it already") as caught:
            await shelf.hold("a", 1, waiters=3)
        assert caught.value.details["waiting"] == 3
        await shelf.hold("b", 0, waiters=0)
        (section,) = actor_statistics(shelf).sections
        assert section.waiting == 3


async def test_a_call_and_what_it_merely_started_have_deadlines_of_their_own(
    autojump_clock: Clock,
) -> None:
    service = ShelfService()
    async with in_memory(service, Shelf) as shelf:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shelf.hold, "a", 5)
            await trio.sleep(1)
            with trio.fail_after(1):
                await shelf.hold_later("a", 1)
            await trio.sleep(6)
        assert service.events == ["a in", "a out", "a in", "a out"]
        service.nursery.start_soon(service.hold, "a", 5)
        await trio.sleep(1)
        with trio.fail_after(2):
            await shelf.hold_later("a", 10)
        await trio.sleep(7)
        # The call is long over: it is not named as who holds this.
        assert [it.holder for it in actor_statistics(service).sections] == ["later"]


async def test_a_detached_block_does_not_give_up_at_its_callers_deadline(
    autojump_clock: Clock,
) -> None:
    service = ShelfService()
    async with in_memory(service, Shelf) as shelf:
        service.nursery.start_soon(service.hold, "a", 3)
        await trio.sleep(1)
        with trio.move_on_after(1):
            await shelf.hold_detached("a", 1)  # ended by its caller's cancel, without an error
        assert trio.current_time() >= 2


async def test_a_task_that_enters_twice_is_a_bug_and_not_a_deadlock() -> None:
    sections = Sections()
    async with sections.hold("a"):
        with pytest.raises(RuntimeError):
            async with sections.hold("a"):
                pass
        assert len(sections.statistics()) == 1
    assert sections.statistics() == ()


async def test_cancelling_at_any_checkpoint_leaves_the_section_free(
    autojump_clock: Clock,
) -> None:
    for steps in range(12):
        async with ShelfService() as shelf:
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(shelf.hold, "a", 0)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            assert actor_statistics(shelf).sections == ()
            with trio.fail_after(1):
                await shelf.hold("a", 0)
