"""Each fault does what its name says, over the memory pair and over a socket."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from container.ipc import Limits, PeerGone
from container.ipc.client import connect_contract
from container.ipc.server import Server
from container.ipc.testing import FaultyTransport
from container.ipc.testing.promises import witness
from container.ipc.testing.subject import Subject, SubjectService, Task
from container.ipc.transport import Transport

MakePair = Callable[[], tuple[Transport, Transport]]


@asynccontextmanager
async def served(
    make_pair: MakePair, limits: Limits | None = None, pings: bool | None = None
) -> AsyncGenerator[tuple[Subject, FaultyTransport, FaultyTransport]]:
    """Hold a proxy, and the transports of both ends."""
    one, two = make_pair()
    ours = FaultyTransport(one, seed=3, pings=pings)
    theirs = FaultyTransport(two, seed=4)
    async with SubjectService() as service, trio.open_nursery() as nursery:
        nursery.start_soon(Server((service,)).serve, theirs)
        async with connect_contract(Subject, ours, limits=limits) as subject:
            yield subject, ours, theirs
        theirs.faults.thaw()
        nursery.cancel_scope.cancel()


async def test_nothing_goes_wrong_unless_asked_for(make_pair: MakePair) -> None:
    async with served(make_pair) as (subject, _, _):
        assert await subject.add(1, 2) == 3
        assert len(await subject.bytes_of(500_000)) == 500_000


@pytest.mark.parametrize("pieces", [(1,), (1, 64), (17,)])
async def test_split_cuts_whatever_is_moved(make_pair: MakePair, pieces: tuple[int, ...]) -> None:
    async with served(make_pair) as (subject, ours, theirs):
        for end in (ours, theirs):
            end.faults.split(*pieces)
        with witness() as seen:
            assert await subject.work(Task.RETURN, seen.fd) == 42
            await seen.gone()
        assert await subject.size(b"x" * 2000) == 2000


async def test_pieces_are_the_same_for_the_same_seed(make_pair: MakePair) -> None:
    def pieces(seed: int) -> list[int]:
        one, two = make_pair()
        end = FaultyTransport(one, seed=seed)
        end.faults.split(1, 1000)
        sent = [end.send(b"x" * 2000, ()) for _ in range(20)]
        for each in (one, two):
            each.close()
        return sent

    assert pieces(1) == pieces(1) != pieces(2)


@pytest.mark.parametrize("pieces", [(0,), (5, 4)])
async def test_pieces_of_no_size_are_refused(make_pair: MakePair, pieces: tuple[int, ...]) -> None:
    one, two = make_pair()
    with pytest.raises(ValueError, match="no piece"):
        FaultyTransport(one).faults.split(*pieces)
    one.close()
    two.close()


async def test_dropped_bytes_never_arrive_and_a_deadline_ends_the_wait(
    make_pair: MakePair, autojump_clock: trio.testing.MockClock
) -> None:
    async with served(make_pair, Limits(grace_seconds=1)) as (subject, ours, _):
        ours.faults.drop()
        with witness() as seen:
            with trio.move_on_after(2) as scope:
                await subject.work(Task.RETURN, seen.fd)
            assert scope.cancelled_caught
            assert trio.current_time() == pytest.approx(3, abs=0.01)
            assert seen.lines == []


async def test_a_delayed_end_reads_later(
    make_pair: MakePair, autojump_clock: trio.testing.MockClock
) -> None:
    async with served(make_pair) as (subject, ours, theirs):
        ours.faults.delay(2)
        start = trio.current_time()
        assert await subject.add(1, 2) == 3
        assert trio.current_time() - start == pytest.approx(2, abs=0.01)
        theirs.faults.delay(3)
        start = trio.current_time()
        assert await subject.add(1, 2) == 3
        assert trio.current_time() - start == pytest.approx(5, abs=0.01)
        ours.faults.delay(0)
        theirs.faults.delay(0)
        start = trio.current_time()
        assert await subject.add(1, 2) == 3


@pytest.mark.parametrize("after", [0, 1, 15, 16, 17, 40])
@pytest.mark.parametrize("side", [0, 1])
async def test_a_connection_cut_at_any_byte_ends_for_both(
    make_pair: MakePair, after: int, side: int
) -> None:
    async with served(make_pair) as (subject, *ends):
        ends[side].faults.close(after=after)
        with witness() as seen:
            with pytest.raises(PeerGone):
                for _ in range(5):
                    await subject.work(Task.WAIT if side == 0 else Task.RETURN, seen.fd)
            await seen.gone()
        assert ends[side].faults.closed


async def test_a_frozen_end_neither_reads_nor_writes_and_goes_on_when_thawed(
    make_pair: MakePair, autojump_clock: trio.testing.MockClock
) -> None:
    async with served(make_pair) as (subject, ours, theirs):
        for end in (ours, theirs):
            end.faults.freeze()
            with witness() as seen:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(subject.work, Task.RETURN, seen.fd)
                    await trio.sleep(20)
                    assert nursery.child_tasks
                    end.faults.thaw()
                    end.faults.thaw()


async def test_a_frozen_peer_is_found_by_pings_also_over_a_memory_pair(
    make_pair: MakePair, autojump_clock: trio.testing.MockClock
) -> None:
    limits = Limits(liveness_seconds=30)
    async with served(make_pair, limits, pings=True) as (subject, _, theirs):
        theirs.faults.freeze()
        with witness() as seen:
            with pytest.raises(PeerGone) as caught:
                await subject.work(Task.RETURN, seen.fd)
            assert caught.value.why == "unresponsive"
            assert trio.current_time() < 120
