"""What is restarted, when, how often, and what its owner gets when that is no use."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing

from container.ipc import Actor, Unavailable
from container.ipc.error_groups import single
from container.ipc.supervision import (
    Backoff,
    Intensity,
    RestartPolicy,
    Supervised,
    SupervisedState,
    SupervisionFailed,
    open_supervisor,
)

Clock = trio.testing.MockClock


class Job:
    """Work whose lives end as planned; what is not planned lives for ever."""

    def __init__(self, *plan: Exception | float | None) -> None:
        self.plan = list(plan)
        self.begun: list[float] = []
        self.ready_after = 0.0
        self.cancelled = 0

    async def run(self) -> str:
        self.begun.append(trio.current_time())
        if len(self.begun) > len(self.plan):
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                self.cancelled += 1
                raise
        await trio.lowlevel.checkpoint()
        end = self.plan[len(self.begun) - 1]
        if isinstance(end, float):
            await trio.sleep(end)
            raise ValueError("after a while")
        if end is not None:
            raise end
        return "done"

    async def ready(self, *, task_status: trio.TaskStatus[int]) -> None:
        if len(self.begun) >= len(self.plan):
            await trio.sleep(self.ready_after)
            task_status.started(len(self.begun))
        await self.run()

    @property
    def delays(self) -> list[float]:
        return [round(after - before, 6) for before, after in pairwise(self.begun)]


def bugs(count: int) -> list[Exception]:
    return [ValueError(f"bug {number}") for number in range(count)]


async def supervise(*works: Callable[[], Awaitable[object]], **rules: Any) -> None:
    """Have each supervised until one fails the supervisor; the last one by these rules."""
    async with open_supervisor() as supervisor:
        for work in works[:-1]:
            supervisor.start_soon(work)
        supervisor.start_soon(works[-1], **rules)
        await trio.sleep_forever()


# --- the rules ---


def test_a_delay_doubles_up_to_its_bound_however_long_the_row() -> None:
    backoff = Backoff(first=0.1, longest=1.0)
    assert [backoff.delay(row) for row in (1, 2, 3, 4, 5, 100_000)] == pytest.approx(
        [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    )
    assert Backoff(first=0.0).delay(100_000) == 0


def test_chance_only_shortens_a_delay_and_by_its_share_at_most() -> None:
    drawn = iter([0.0, 0.5, 0.999])
    backoff = Backoff(first=1.0, longest=8.0, jitter=0.5, draw=lambda: next(drawn))
    assert [backoff.delay(1), backoff.delay(2), backoff.delay(99)] == pytest.approx(
        [1.0, 1.5, 8 * 0.5005]
    )
    without = Backoff(first=1.0, draw=lambda: next(iter([])))  # chance is not asked at all
    assert without.delay(1) == 1.0


@pytest.mark.parametrize(
    "wrong", [{"first": -1}, {"longest": float("inf")}, {"factor": 0.5}, {"jitter": 1.5}]
)
def test_a_backoff_without_bounds_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="backoff"):
        Backoff(**wrong)


async def test_a_failure_is_restarted_after_longer_and_longer_delays(
    autojump_clock: Clock,
) -> None:
    job = Job(*bugs(4))
    async with open_supervisor() as supervisor:
        child = supervisor.start_soon(job.run)
        await trio.sleep(100)
        assert job.delays == [0.1, 0.2, 0.4, 0.8]
        assert child.statistics().restarts == 4
        assert child.statistics().state is SupervisedState.RUNNING
        assert child.statistics().last_failure == "ValueError('bug 3')"
    assert job.cancelled == 1


async def test_a_calm_life_makes_the_next_failure_the_first_one_again(
    autojump_clock: Clock,
) -> None:
    job = Job(*bugs(2), 9.0, 10.0, *bugs(1))
    backoff = Backoff(first=1.0, calm=10.0)
    async with open_supervisor() as supervisor:
        child = supervisor.start_soon(job.run, backoff=backoff, intensity=None)
        await trio.sleep(40)
        assert job.delays == [1.0, 2.0, 9 + 4.0, 10 + 1.0, 2.0]
        assert child.row == 0  # lives calmly
        assert supervisor.statistics().children == (child.statistics(),)


@pytest.mark.parametrize(
    ("policy", "end", "lives"),
    [
        (RestartPolicy.NEVER, None, 1),
        (RestartPolicy.ON_FAILURE, None, 1),
        (RestartPolicy.ON_FAILURE, ValueError(), 2),
        (RestartPolicy.ALWAYS, None, 2),
        (RestartPolicy.ALWAYS, ValueError(), 2),
    ],
)
async def test_the_policy_says_which_ends_lead_to_a_restart(
    autojump_clock: Clock, policy: RestartPolicy, end: Exception | None, lives: int
) -> None:
    job = Job(end)
    async with open_supervisor() as supervisor:
        child = supervisor.start_soon(job.run, restart=policy)
        await trio.sleep(1)
        assert len(job.begun) == lives
        assert child.over == (lives == 1)
        assert len(supervisor.statistics().children) == lives - 1


async def test_what_is_never_restarted_fails_as_in_a_nursery() -> None:
    failure = ValueError("once")
    with pytest.raises(ExceptionGroup) as caught:
        await supervise(Job(failure).run, restart=RestartPolicy.NEVER)
    assert caught.value.exceptions == (failure,)


# --- giving up ---


async def test_past_its_intensity_a_failure_is_raised_with_its_cause_and_ends_the_others(
    autojump_clock: Clock,
) -> None:
    bad, good = Job(*bugs(3)), Job()
    with pytest.raises(ExceptionGroup) as caught:
        await supervise(good.run, bad.run, name="bad", intensity=Intensity(2, 30))
    (failed,) = caught.value.exceptions
    assert isinstance(failed, SupervisionFailed)
    assert str(failed) == "bad ended 3 times within 30 s"
    assert failed.__cause__ is bad.plan[2]
    assert len(bad.begun) == 3
    assert good.cancelled == 1


async def test_a_group_stays_a_group_as_the_cause(autojump_clock: Clock) -> None:
    async def fail(error: Exception) -> None:
        raise error

    async def twice() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail, KeyError("a"))
            nursery.start_soon(fail, OSError("b"))

    child = Supervised[None](twice, name="twice", intensity=Intensity(1, 30))
    with pytest.raises(SupervisionFailed) as caught:
        await child.run()
    assert child.state is SupervisedState.FAILED
    cause = caught.value.__cause__
    assert isinstance(cause, ExceptionGroup)
    assert {type(error) for error in cause.exceptions} == {KeyError, OSError}


async def test_ends_further_apart_than_the_window_are_never_too_many(
    autojump_clock: Clock,
) -> None:
    job = Job(*[6.0] * 10)
    async with open_supervisor() as supervisor:
        supervisor.start_soon(job.run, backoff=Backoff(0.0), intensity=Intensity(2, 10))
        await trio.sleep(100)
        assert len(job.begun) == 11


async def test_what_returns_at_once_for_ever_is_given_up_too(autojump_clock: Clock) -> None:
    child = Supervised[None](
        Job(*[None] * 9).run,
        name="hasty",
        restart=RestartPolicy.ALWAYS,
        intensity=Intensity(3, 30),
    )
    with pytest.raises(SupervisionFailed, match="hasty ended 4 times") as caught:
        await child.run()
    assert caught.value.__cause__ is None


async def test_without_an_intensity_nothing_is_given_up_and_a_delay_of_nothing_lets_others_run(
    autojump_clock: Clock,
) -> None:
    async def fail() -> None:
        raise ValueError

    async with open_supervisor() as supervisor:
        child = supervisor.start_soon(fail, backoff=Backoff(0.0), intensity=None)
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        assert child.restarts > 10


async def test_what_the_block_raises_is_raised_bare_or_beside_a_failure(
    autojump_clock: Clock,
) -> None:
    async def block(work: Callable[[], Awaitable[object]], seconds: float) -> None:
        async with open_supervisor() as supervisor:
            supervisor.start_soon(work, restart=RestartPolicy.NEVER)
            try:
                await trio.sleep(seconds)
            finally:
                raise LookupError

    with pytest.raises(LookupError):
        await block(Job().run, 0)
    with pytest.raises(ExceptionGroup) as caught:
        await block(Job(ValueError()).run, 9)
    assert [type(error) for error in caught.value.exceptions] == [LookupError, ValueError]


# --- ready, stop, reset ---


async def test_start_returns_when_the_child_is_ready_and_its_next_life_can_be_awaited(
    autojump_clock: Clock,
) -> None:
    job = Job()
    job.ready_after = 3.0
    async with open_supervisor() as supervisor:
        child = await supervisor.start(job.ready)
        assert trio.current_time() == 3
        assert await child.wait_started() == 0
        await child.stop()
        with pytest.raises(Unavailable, match="has ended"):
            await child.wait_started()

    job = Job(5.0)

    async def ready(*, task_status: trio.TaskStatus[int]) -> None:
        await trio.sleep(1)
        task_status.started(len(job.begun))
        await job.run()

    async with open_supervisor() as supervisor:
        begin = trio.current_time()
        child = await supervisor.start(ready)
        await trio.sleep(5.05)
        assert child.state is SupervisedState.BACKOFF
        assert await child.wait_started() == 1
        assert trio.current_time() - begin == pytest.approx(1 + 5 + 0.1 + 1)


async def test_a_child_that_never_got_ready_is_not_restarted_and_its_starter_hears_of_it() -> None:
    async def broken(*, task_status: trio.TaskStatus[None]) -> None:
        raise LookupError("no such file")

    async with open_supervisor() as supervisor:
        with pytest.raises(LookupError, match="no such file"):
            await supervisor.start(broken)
        assert supervisor.statistics().children == ()


async def test_a_start_that_is_cancelled_cancels_the_child(autojump_clock: Clock) -> None:
    job = Job()
    job.ready_after = 10.0
    async with open_supervisor() as supervisor:
        with trio.move_on_after(1) as scope:
            await supervisor.start(job.ready)
        assert scope.cancelled_caught
        assert supervisor.statistics().children == ()
        assert trio.current_time() == 1


async def test_stop_ends_a_child_in_its_life_and_in_its_delay(autojump_clock: Clock) -> None:
    async with open_supervisor() as supervisor:
        for plan, state in (
            ((), SupervisedState.RUNNING),
            (bugs(1), SupervisedState.BACKOFF),
        ):
            child = supervisor.start_soon(Job(*plan).run, backoff=Backoff(5.0))
            await trio.sleep(1)
            assert child.state is state
            await child.stop()
            assert child.state is SupervisedState.ENDED


async def test_reset_ends_a_delay_and_forgets_the_ends(autojump_clock: Clock) -> None:
    job = Job(*bugs(4))
    async with open_supervisor() as supervisor:
        child = supervisor.start_soon(
            job.run, backoff=Backoff(4.0, longest=9.0), intensity=Intensity(2, 60)
        )
        await trio.sleep(5)  # two lives, now the delay of 8 s
        child.reset()
        await trio.sleep(20)  # two more, with fresh delays
        assert job.delays == [4.0, 1.0, 4.0, 8.0]
        assert child.statistics().row == 2


async def test_resume_ends_a_delay_and_a_calm_life_a_row_but_the_ends_count(
    autojump_clock: Clock,
) -> None:
    job = Job(*bugs(4))
    children: list[Supervised[None]] = []

    async def work() -> None:
        if len(job.delays) == 1:
            children[0].calm()
        await job.run()

    with pytest.raises(ExceptionGroup) as raised:
        async with open_supervisor() as supervisor:
            children.append(
                supervisor.start_soon(
                    work, backoff=Backoff(4.0, longest=9.0), intensity=Intensity(3, 60)
                )
            )
            await trio.sleep(1)
            children[0].resume()
            await trio.sleep_forever()
    assert job.delays == [1.0, 8.0, 4.0]
    assert isinstance(single(raised.value), SupervisionFailed)


async def test_cancellation_passes_in_every_state_and_restarts_nothing(
    autojump_clock: Clock,
) -> None:
    for plan in ((), bugs(1)):
        job = Job(*plan)
        with trio.move_on_after(1):
            async with open_supervisor() as supervisor:
                child = supervisor.start_soon(job.run, backoff=Backoff(5.0))
                await trio.sleep_forever()
        assert child.state is SupervisedState.ENDED
        assert len(job.begun) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_an_interrupt_is_no_failure(error: type[BaseException]) -> None:
    lives = 0

    async def interrupted() -> None:
        nonlocal lives
        lives += 1
        raise error

    child = Supervised[None](interrupted, name="x", restart=RestartPolicy.ALWAYS)
    with pytest.raises(error):
        await child.run()
    assert (lives, child.state) == (1, SupervisedState.ENDED)


async def test_a_run_alone_returns_what_the_work_returned(autojump_clock: Clock) -> None:
    child = Supervised[None](Job(*bugs(2), None).run, name="x")
    assert await child.run() == "done"
    assert trio.current_time() == pytest.approx(0.3)
    await child.wait()


# --- actors, and what is left to composition ---


class Counter(Actor):
    opened: list[Counter]
    gone: list[Counter]

    def __init__(self, opened: list[Counter], gone: list[Counter]) -> None:
        self.opened, self.gone = opened, gone

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        self.opened.append(self)
        try:
            yield
        finally:
            self.gone.append(self)

    async def break_down(self) -> None:
        raise ValueError("broken state")


async def test_an_actor_is_made_anew_when_one_of_its_tasks_fails(autojump_clock: Clock) -> None:
    opened: list[Counter] = []
    gone: list[Counter] = []
    async with open_supervisor() as supervisor:
        child = await supervisor.start_actor(partial(Counter, opened, gone))
        assert child.name == "Counter"
        first = await child.wait_started()
        first.nursery.start_soon(first.break_down)
        await trio.sleep(1)
        second = await child.wait_started()
        assert second is not first
        assert second.is_open
        assert gone == [first]
        assert isinstance(child.last_failure, ExceptionGroup)
    assert gone == opened == [first, second]


async def test_an_actor_that_ends_itself_is_not_restarted(autojump_clock: Clock) -> None:
    opened: list[Counter] = []
    async with open_supervisor() as supervisor:
        child = await supervisor.start_actor(partial(Counter, opened, []))
        (await child.wait_started()).nursery.cancel_scope.cancel()
        await child.wait()
        assert (child.state, len(opened)) == (SupervisedState.ENDED, 1)


async def test_children_that_fall_together_are_one_child_with_a_nursery(
    autojump_clock: Clock,
) -> None:
    first, second, apart = Job(), Job(3.0), Job()

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.run)
            nursery.start_soon(second.run)

    async with open_supervisor() as supervisor:
        supervisor.start_soon(both)
        supervisor.start_soon(apart.run)
        await trio.sleep(10)
        assert (len(first.begun), len(second.begun), len(apart.begun)) == (2, 2, 1)


async def test_what_needs_another_child_is_started_inside_it_and_falls_with_it(
    autojump_clock: Clock,
) -> None:
    base, above = Job(5.0), Job(2.0)

    async def stack() -> None:
        async with open_supervisor() as inner:
            inner.start_soon(above.run)
            await base.run()

    async with open_supervisor() as supervisor:
        supervisor.start_soon(stack)
        await trio.sleep(10)
        # The upper one failed alone at 2 s; the lower one at 5 s, and both began again.
        assert len(base.begun) == 2
        assert above.begun == pytest.approx([0.0, 2.1, 5.1])


async def test_every_checkpoint_of_a_supervised_life_can_be_cancelled(
    autojump_clock: Clock,
) -> None:
    work: Callable[[], Awaitable[object]] = Job(*bugs(3)).run
    for steps in range(30):
        async with trio.open_nursery() as nursery:
            child = Supervised[None](work, name="x", backoff=Backoff(0.0), intensity=None)
            nursery.start_soon(child.run)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert child.over
