"""Deadlines and the grace: how they travel, and who fires first."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from container.ipc import (
    Actor,
    Contract,
    DeadlineExceeded,
    InvalidState,
    current_call,
    detached,
)
from container.ipc.client import connect_contract
from container.ipc.context import HOP_SHARE
from container.ipc.handling import SLACK
from container.ipc.wire.frames import EndedBy


class Stage(Contract, name="stage"):
    @abstractmethod
    async def look(self) -> tuple[float, float]: ...

    @abstractmethod
    async def wait(self) -> None: ...

    @abstractmethod
    async def commit(self, seconds: float, bound: float) -> None: ...


class Leaf(Actor, Stage):
    """The last hop: says what deadline and grace arrived."""

    def __init__(self) -> None:
        self.started = trio.Event()
        self.events: list[tuple[str, float]] = []

    async def look(self) -> tuple[float, float]:
        call = current_call()
        assert call.deadline == trio.current_effective_deadline()
        return call.deadline, call.grace

    async def wait(self) -> None:
        self.started.set()
        try:
            await trio.sleep_forever()
        finally:
            self.events.append(("ended", trio.current_time()))

    async def commit(self, seconds: float, bound: float) -> None:
        self.started.set()
        try:
            with detached(bound) as scope:
                await trio.sleep(seconds)
                self.events.append(("committed", trio.current_time()))
            if scope.cancelled_caught:
                self.events.append(("cut", trio.current_time()))
        finally:
            self.events.append(("ended", trio.current_time()))


class Relay(Actor, Stage):
    """A hop in the middle."""

    def __init__(self, inner: Stage) -> None:
        self.inner = inner

    async def look(self) -> tuple[float, float]:
        return await self.inner.look()

    async def wait(self) -> None:
        await self.inner.wait()

    async def commit(self, seconds: float, bound: float) -> None:
        await self.inner.commit(seconds, bound)


@asynccontextmanager
async def chain(link: Any, leaf: Stage, hops: int) -> AsyncGenerator[Any]:
    """Hold a proxy whose calls cross `hops` connections."""
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(link(leaf))
        for _ in range(hops - 1):
            proxy = await stack.enter_async_context(link(Relay(proxy)))
        yield proxy


async def test_the_remaining_time_travels_over_three_hops_a_millisecond_longer_at_each(
    link: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async with chain(link, Leaf(), 3) as stage:
        with trio.fail_after(7) as scope:
            seen, _ = await stage.look()
            assert seen == pytest.approx(scope.deadline + 3 * SLACK, abs=1e-6)
            assert seen > scope.deadline


async def test_a_call_without_a_deadline_has_none_anywhere(
    link: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async with chain(link, Leaf(), 3) as stage:
        seen, _ = await stage.look()
        assert seen == math.inf


async def test_each_hop_passes_on_less_grace_than_it_got(
    link: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async with chain(link, Leaf(), 3) as stage:
        _, grace = await stage.look()
        assert grace == pytest.approx(5 * HOP_SHARE**2)


async def test_the_callers_own_deadline_fires_first_and_waits_for_the_far_end(
    link: Any, autojump_clock: trio.testing.MockClock
) -> None:
    leaf = Leaf()
    async with chain(link, leaf, 3) as stage:
        with pytest.raises(trio.TooSlowError), trio.fail_after(3):
            await stage.wait()
        ((_, when),) = leaf.events
        assert when == pytest.approx(3, abs=0.01)


async def test_a_deadline_moved_earlier_reaches_the_callee_as_a_cancel(
    link: Any, autojump_clock: trio.testing.MockClock
) -> None:
    leaf = Leaf()
    async with link(leaf) as stage, trio.open_nursery() as nursery:
        with trio.move_on_after(60) as scope:

            async def move() -> None:
                await leaf.started.wait()
                scope.deadline = trio.current_time() + 1

            nursery.start_soon(move)
            await stage.wait()
        assert scope.cancelled_caught
        ((_, when),) = leaf.events
        assert when == pytest.approx(1, abs=0.01)


async def test_a_deadline_moved_later_does_not_reach_the_callee_which_says_deadline(
    link: Any, autojump_clock: trio.testing.MockClock
) -> None:
    leaf = Leaf()
    async with link(leaf) as stage, trio.open_nursery() as nursery:
        with trio.move_on_after(1) as scope:

            async def move() -> None:
                await leaf.started.wait()
                scope.deadline = trio.current_time() + 60

            nursery.start_soon(move)
            with pytest.raises(DeadlineExceeded):
                await stage.wait()
        assert not scope.cancelled_caught
        # The callee's word is held for the grace: the caller's own scope might still fire.
        assert trio.current_time() == pytest.approx(1 + SLACK + 5, abs=0.01)


async def test_a_deadline_terminal_is_held_until_the_callers_own_scope_fires(
    raw_peer: Callable[[], tuple[Any, Any]], autojump_clock: trio.testing.MockClock
) -> None:
    ours, raw = raw_peer()
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            await raw.greet_as_server(Stage)
            call = await raw.next()
            error = {"code": "deadline", "message": "too slow"}
            raw.send(raw.machine.error(call.id, EndedBy.DEADLINE, error))

        nursery.start_soon(serve)
        async with connect_contract(Stage, ours) as stage:
            with trio.move_on_after(2) as scope:
                await stage.wait()
            assert scope.cancelled_caught
            assert trio.current_time() == pytest.approx(2)
        await raw.wait_end()
    raw.transport.close()


async def test_a_handlers_own_error_at_its_deadline_is_not_hidden(
    link: Any, autojump_clock: trio.testing.MockClock
) -> None:
    class Failing(Leaf):
        async def wait(self) -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise InvalidState("it stays mounted")

    async with link(Failing()) as stage:
        with trio.move_on_after(1), pytest.raises(InvalidState):
            await stage.wait()


# --- detached -------------------------------------------------------------------------------------


async def test_a_detached_block_goes_on_after_its_callers_deadline(
    link: Any, autojump_clock: trio.testing.MockClock
) -> None:
    """The caller's deadline alone reaches the callee: here it moves its own later."""
    leaf = Leaf()
    async with link(leaf) as stage, trio.open_nursery() as nursery:
        with trio.move_on_after(1) as scope:

            async def move() -> None:
                await leaf.started.wait()
                scope.deadline = math.inf

            nursery.start_soon(move)
            await stage.commit(3, 10)
    assert [name for name, _ in leaf.events] == ["committed", "ended"]
    assert leaf.events[0][1] == pytest.approx(3)


async def test_a_detached_block_ends_at_its_own_deadline(
    link: Any, autojump_clock: trio.testing.MockClock
) -> None:
    leaf = Leaf()
    async with link(leaf) as stage:
        await stage.commit(60, 2)
    assert leaf.events == [("cut", pytest.approx(2)), ("ended", pytest.approx(2))]


async def test_an_explicit_cancel_ends_a_detached_block_at_once(
    link: Any, autojump_clock: trio.testing.MockClock
) -> None:
    leaf = Leaf()
    async with link(leaf) as stage:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stage.commit, 60, 100)
                await leaf.started.wait()
                await trio.sleep(1)
                scope.cancel()
        assert trio.current_time() == pytest.approx(1)
    assert [name for name, _ in leaf.events] == ["cut", "ended"]


@pytest.mark.parametrize("end", ["connection", "server"])
async def test_a_detached_block_ends_with_its_connection_and_with_its_server(
    link: Any, autojump_clock: trio.testing.MockClock, end: str
) -> None:
    leaf = Leaf()
    async with trio.open_nursery() as nursery, leaf:
        with trio.CancelScope() as scope:
            async with link(leaf) as stage:

                async def call() -> None:
                    with pytest.raises(trio.ClosedResourceError):
                        await stage.commit(60, 100)

                nursery.start_soon(call)
                await leaf.started.wait()
                if end == "server":
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
    assert trio.current_time() == pytest.approx(0, abs=0.01)
    assert [name for name, _ in leaf.events] == ["cut", "ended"]


async def test_a_block_detached_after_the_cancel_ends_at_once(
    link: Any, autojump_clock: trio.testing.MockClock
) -> None:
    class Late(Leaf):
        async def wait(self) -> None:
            try:
                await trio.sleep_forever()
            finally:
                with detached(60):
                    await trio.sleep(60)
                    self.events.append(("went on", trio.current_time()))

    leaf = Late()
    async with link(leaf) as stage:
        with trio.move_on_after(1) as scope:
            await stage.wait()
        assert scope.cancelled_caught
    assert leaf.events == []
    assert trio.current_time() == pytest.approx(1, abs=0.01)


async def test_detached_needs_a_bound() -> None:
    with pytest.raises(ValueError, match="finite"), detached(math.inf):
        pass


async def test_outside_of_a_call_detached_is_a_shield(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with pytest.raises(LookupError):
        current_call()
    with trio.move_on_after(1):
        with detached(2) as scope:
            await trio.sleep(60)
        assert scope.cancelled_caught
    assert trio.current_time() == pytest.approx(2)
