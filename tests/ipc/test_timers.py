"""Timers are called once, in their order, by one task."""

from __future__ import annotations

import trio
import trio.testing

from container.ipc.timers import Timers


async def test_each_is_called_at_its_time_whatever_the_order_of_setting(
    autojump_clock: trio.testing.MockClock,
) -> None:
    called: list[tuple[str, float]] = []
    async with trio.open_nursery() as nursery:
        timers = Timers(lambda: nursery.start_soon(timers.run))
        began = trio.current_time()

        def note(name: str) -> None:
            called.append((name, round(trio.current_time() - began, 6)))

        timers.after(5, lambda: note("five"))
        timers.after(1, lambda: note("one"))
        await trio.sleep(2)
        timers.after(1, lambda: note("three"))
        timers.after(0, lambda: note("now"))
        timers.after(3, lambda: note("five, set later"))
        await trio.sleep(10)
        assert len(nursery.child_tasks) == 1
        assert len(timers) == 0
        timers.after(1, lambda: note("after a rest"))
        await trio.sleep(2)
        nursery.cancel_scope.cancel()
    assert called == [
        ("one", 1),
        ("now", 2),
        ("three", 3),
        ("five", 5),
        ("five, set later", 5),
        ("after a rest", 13),
    ]


async def test_a_timer_may_set_another(autojump_clock: trio.testing.MockClock) -> None:
    called: list[float] = []
    async with trio.open_nursery() as nursery:
        timers = Timers(lambda: nursery.start_soon(timers.run))

        def again() -> None:
            called.append(trio.current_time())
            if len(called) < 3:
                timers.after(1, again)

        timers.after(1, again)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert len(called) == 3


async def test_no_task_is_made_before_the_first_timer() -> None:
    started: list[bool] = []
    timers = Timers(lambda: started.append(True))
    assert started == []
    timers.after(1, lambda: None)
    timers.after(1, lambda: None)
    assert started == [True]


async def test_a_dropped_timer_is_not_called_and_many_of_them_are_cleared_away(
    autojump_clock: trio.testing.MockClock,
) -> None:
    called: list[int] = []
    async with trio.open_nursery() as nursery:
        timers = Timers(lambda: nursery.start_soon(timers.run))
        kept = timers.after(3, lambda: called.append(-1))
        for number in range(1000):
            timers.after(5, lambda number=number: called.append(number)).drop()
            assert len(timers) < 200
        first = timers.after(1, lambda: called.append(1))
        first.drop()
        first.drop()
        await trio.sleep(10)
        kept.drop()
        assert len(timers) == 0
        nursery.cancel_scope.cancel()
    assert called == [-1]
