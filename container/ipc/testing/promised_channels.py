"""Promises of channels: every item once and in order, no more than there is room for, and ends."""

from __future__ import annotations

import os

import trio

from container.ipc.channel import collecting, open_channel
from container.ipc.client import connection_of
from container.ipc.errors import DataLoss, InvalidArgument, PeerGone
from container.ipc.testing.promises import (
    Link,
    Witness,
    expecting,
    pipe_with,
    promise,
    witness,
)
from container.ipc.testing.subject import WHILE


@promise
async def a_handler_sends_while_its_caller_reads(link: Link) -> None:
    async with link.connect() as subject:
        for items in (0, 1, 63, 64, 65, 500):
            sending, receiving = open_channel(int)
            with witness() as seen:
                async with collecting(receiving) as found:
                    assert await subject.count(items, sending, seen.fd) == items
            assert found == list(range(items))


@promise
async def a_caller_sends_while_the_handler_reads(link: Link) -> None:
    async with link.connect() as subject, trio.open_nursery() as nursery:
        sending, receiving = open_channel(int, capacity=3)

        async def send() -> None:
            async with sending:
                for number in range(300):
                    await sending.send(number)

        nursery.start_soon(send)
        assert await subject.total(receiving) == 299 * 150


@promise
async def a_stream_gives_every_item_once_in_order_and_then_ends(link: Link) -> None:
    async with link.connect() as subject:
        for count in (0, 1, 100):
            with witness() as seen:
                async with subject.ticks(count, seen.fd) as ticks:
                    assert [tick async for tick in ticks] == list(range(count))
                    with expecting(trio.EndOfChannel):
                        await ticks.receive()
                await seen.gone()


@promise
async def items_go_both_ways_at_once(link: Link) -> None:
    async with link.connect() as subject:
        sending, receiving = open_channel(str)
        async with subject.words(receiving) as words:
            for number in range(20):
                await sending.send(f"word {number}")
                assert await words.receive() == f"word {number}"
            await sending.aclose()
            with expecting(trio.EndOfChannel):
                await words.receive()


async def _at_rest(seen: Witness) -> list[str]:
    """Return what was heard once nothing more comes."""
    heard = -1
    while heard != len(seen.lines):
        heard = len(seen.lines)
        await trio.sleep(WHILE)
    return seen.lines


@promise
async def a_slow_reader_stops_its_writer_and_nothing_else(link: Link) -> None:
    async with link.connect() as subject:
        with witness() as slow, witness() as quick:
            async with subject.ticks(10**6, slow.fd) as ticks:
                assert len(await _at_rest(slow)) <= 6
                async with subject.ticks(50, quick.fd) as others:
                    assert [tick async for tick in others] == list(range(50))
                assert await ticks.receive() == 0


@promise
async def credit_is_in_bytes_too_and_one_item_may_overdraw_it(link: Link) -> None:
    async with link.connect() as subject:
        for size, most in ((400, 4), (100_000, 3)):
            with witness() as seen:
                async with subject.blobs(size, 30, seen.fd) as blobs:
                    assert len(await _at_rest(seen)) <= most
                    assert [blob[0] async for blob in blobs] == list(range(30))


@promise
async def items_may_carry_descriptors_and_channels(link: Link) -> None:
    async with link.connect() as subject:
        with pipe_with(b"abcde") as pipe:
            async with subject.parcels(pipe, 5) as parcels:
                for letter in b"abcde":
                    file = (await parcels.receive()).file
                    assert file is not None
                    with file:
                        assert os.read(file.fileno(), 1) == bytes([letter])
                words = (await parcels.receive()).words
                assert words is not None
                assert [word async for word in words] == ["hello"]


@promise
async def descriptors_of_items_that_nobody_received_are_closed(link: Link) -> None:
    async with link.connect() as subject:
        with witness() as seen:
            async with subject.parcels(seen.fd, 20) as parcels:
                file = (await parcels.receive()).file
                assert file is not None
                file.close()
                await trio.sleep(WHILE)
            async with subject.parcels(seen.fd, 20) as parcels:
                await trio.sleep(WHILE)
                await parcels.aclose()
            await seen.gone()


@promise
async def an_item_that_can_not_be_sent_is_the_writers_error_and_the_channel_lives(
    link: Link,
) -> None:
    async with link.connect() as subject, trio.open_nursery() as nursery:
        sending, receiving = open_channel(int)

        async def send() -> None:
            async with sending:
                await sending.send(1)
                with expecting(InvalidArgument):
                    await sending.send(object())  # pyright: ignore[reportArgumentType]
                await sending.send(2)

        nursery.start_soon(send)
        assert await subject.total(receiving) == 3


# --- ends -------------------------------------------------------------------------------------


@promise
async def what_was_sent_before_a_reply_or_an_error_is_received_though_nobody_read(
    link: Link,
) -> None:
    async with link.connect() as subject:
        with witness() as seen:
            sending, receiving = open_channel(int, capacity=100)
            assert await subject.count(50, sending, seen.fd) == 50
            assert [item async for item in receiving] == list(range(50))
            sending, receiving = open_channel(int, capacity=100)
            with expecting(DataLoss):
                await subject.count(13, sending, seen.fd)
            assert [item async for item in receiving] == list(range(13))


@promise
async def a_reader_that_leaves_breaks_its_writer(link: Link) -> None:
    async with link.connect() as subject:
        sending, receiving = open_channel(int, capacity=2)
        with witness() as seen:
            async with trio.open_nursery() as nursery:

                async def read_two() -> None:
                    assert await receiving.receive() == 0
                    assert await receiving.receive() == 1
                    await receiving.aclose()
                    with expecting(trio.ClosedResourceError):
                        await receiving.receive()

                nursery.start_soon(read_two)
                assert await subject.count(1000, sending, seen.fd) == -1
            assert "broken" in seen.lines


@promise
async def a_handler_that_stops_reading_breaks_its_caller(link: Link) -> None:
    async with link.connect() as subject, trio.open_nursery() as nursery:
        sending, receiving = open_channel(int, capacity=2)
        broken = trio.Event()

        async def send() -> None:
            with expecting(trio.BrokenResourceError):
                for number in (1, 2, -1, *range(1000)):
                    await sending.send(number)
            broken.set()

        nursery.start_soon(send)
        assert await subject.total(receiving) == 3
        await broken.wait()


@promise
async def leaving_a_stream_early_is_no_error_and_ends_its_generator(link: Link) -> None:
    async with link.connect() as subject:
        for closes in (False, True):
            with witness() as seen:
                async with subject.ticks(10**6, seen.fd) as ticks:
                    assert await ticks.receive() == 0
                    if closes:
                        await ticks.aclose()
                        await seen.hears("ended")
                await seen.gone()
                assert "ended" in seen.lines


@promise
async def an_exception_of_a_stream_ends_the_block_and_loses_no_item(link: Link) -> None:
    async with link.connect() as subject:
        found: list[int] = []
        ticks = None
        with witness() as seen, expecting(DataLoss):
            async with subject.ticks(13, seen.fd, fails=True) as ticks:
                async for tick in ticks:
                    found.append(tick)  # noqa: PERF401
                raise AssertionError("a stream that failed looked like one that ended")
        assert ticks is not None
        # The block may have been cancelled before it had read all.
        with expecting(trio.BrokenResourceError) as caught:
            async for tick in ticks:
                found.append(tick)  # noqa: PERF401
        assert isinstance(caught.exception.__cause__, DataLoss)
        assert found == list(range(13))


@promise
async def a_lost_connection_breaks_a_channel_and_says_why(link: Link) -> None:
    with witness() as seen:
        async with link.faulty() as (subject, transport):
            ticks = None
            with expecting(PeerGone):
                async with subject.ticks(10**6, seen.fd) as ticks:
                    await ticks.receive()
                    transport.faults.close()
                    await trio.sleep_forever()
            assert ticks is not None
            with expecting(trio.BrokenResourceError) as caught:
                while True:
                    await ticks.receive()
            assert isinstance(caught.exception.__cause__, PeerGone)
        await seen.gone()
        assert "ended" in seen.lines


@promise
async def a_cancelled_send_sent_nothing(link: Link) -> None:
    async with link.connect() as subject:
        sending, receiving = open_channel(str, capacity=2)
        async with subject.words(receiving) as words:
            sent = 0
            with trio.move_on_after(WHILE * 2):
                while True:
                    await sending.send(f"{sent}")
                    sent += 1
            await sending.aclose()
            assert [word async for word in words] == [f"{n}" for n in range(sent)]


@promise
async def a_cancelled_receive_loses_no_item(link: Link) -> None:
    async def cancel(scope: trio.CancelScope, after: int) -> None:
        for _ in range(after):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    async with link.connect() as subject:
        for after in (1, 3, 8):
            with witness() as seen:
                found: list[int] = []
                async with subject.ticks(60, seen.fd) as ticks, trio.open_nursery() as nursery:
                    while len(found) < 60:
                        with trio.CancelScope() as scope:
                            nursery.start_soon(cancel, scope, after)
                            async for tick in ticks:
                                found.append(tick)  # noqa: PERF401
                assert found == list(range(60))


@promise
async def an_end_is_given_away_once(link: Link) -> None:
    async with link.connect() as subject:
        sending, receiving = open_channel(int)
        await sending.aclose()
        assert await subject.total(receiving) == 0
        with expecting(InvalidArgument):
            await subject.total(receiving)
        with expecting(trio.ClosedResourceError):
            await receiving.receive()


@promise
async def channels_end_with_their_call_and_nothing_of_them_is_left(link: Link) -> None:
    async with link.connect() as subject:
        for _ in range(20):
            sending, receiving = open_channel(int, capacity=100)
            with witness() as seen:
                await subject.count(3, sending, seen.fd)
            await receiving.aclose()
        statistics = connection_of(subject).statistics()
        assert (statistics.pending, statistics.queued_frames) == (0, 0)
