"""Channels: every item once and in order, as many as the reader has room for, and their ends."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing
from attrs import evolve, frozen
from trio.abc import ReceiveChannel, SendChannel

from container.ipc import (
    Actor,
    Contract,
    DataLoss,
    Fd,
    Incompatible,
    InvalidArgument,
    Limits,
    PeerGone,
    ReceivingEnd,
    collecting,
    connection_of,
    in_memory,
    issue,
    open_channel,
    relay,
    stream,
)
from tests.ipc.conftest import Link


@frozen
class Progress:
    done: int
    text: str = ""


@frozen
class Parcel:
    file: Fd | None = None
    words: ReceiveChannel[str] | None = None


class Works(Contract, name="works"):
    @abstractmethod
    async def work(self, items: int, progress: SendChannel[Progress]) -> int: ...

    @abstractmethod
    async def total(self, numbers: ReceiveChannel[int]) -> int: ...

    @abstractmethod
    def ticks(self, count: int) -> AbstractAsyncContextManager[ReceiveChannel[int]]: ...

    @abstractmethod
    def parcels(self) -> AbstractAsyncContextManager[ReceiveChannel[Parcel]]: ...

    @abstractmethod
    def echo(
        self, words: ReceiveChannel[str]
    ) -> AbstractAsyncContextManager[ReceiveChannel[str]]: ...

    @abstractmethod
    def blobs(self, size: int) -> AbstractAsyncContextManager[ReceiveChannel[bytes]]: ...


class WorksService(Actor, Works):
    def __init__(self) -> None:
        self.sent = 0
        self.ended = trio.Event()
        self.error: BaseException | None = None
        self.paths: list[str] = []

    async def work(self, items: int, progress: SendChannel[Progress]) -> int:
        try:
            for number in range(items):
                await progress.send(Progress(number, "x" * 10))
                self.sent = number + 1
        except BaseException as error:
            self.error = error
            raise
        if items == 13:
            raise DataLoss("unlucky")
        return items

    async def total(self, numbers: ReceiveChannel[int]) -> int:
        found = 0
        async for number in numbers:
            found += number
            if number < 0:
                await numbers.aclose()
                return found
        return found

    @stream(capacity=4)
    async def ticks(self, count: int) -> AsyncGenerator[int]:
        try:
            for number in range(count):
                yield number
                self.sent = number + 1
            if count == 13:
                raise DataLoss("unlucky")
        finally:
            self.ended.set()

    @stream
    async def parcels(self) -> AsyncGenerator[Parcel]:
        for path in self.paths:
            yield Parcel(file=Fd.give(os.open(path, os.O_RDONLY)))
        sending, receiving = open_channel(str)
        yield Parcel(words=receiving)
        with suppress(trio.BrokenResourceError):  # nobody received the parcel
            await sending.send("hello")
        await sending.aclose()

    @asynccontextmanager
    async def echo(self, words: ReceiveChannel[str]) -> AsyncGenerator[ReceiveChannel[str]]:
        sending, receiving = open_channel(str)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, words, sending)
            yield receiving
            nursery.cancel_scope.cancel()

    @stream(byte_capacity=1000)
    async def blobs(self, size: int) -> AsyncGenerator[bytes]:
        for number in range(100):
            yield bytes([number]) * size
            self.sent = number + 1


@pytest.fixture
def service() -> WorksService:
    return WorksService()


# --- items ------------------------------------------------------------------------------------


@pytest.mark.parametrize("items", [0, 1, 63, 64, 65, 1000])
async def test_a_handler_sends_while_its_caller_reads(
    link: Link, service: WorksService, items: int
) -> None:
    async with link(service) as works:
        sending, receiving = open_channel(Progress)
        async with collecting(receiving) as progress:
            assert await works.work(items, sending) == items
        assert progress == [Progress(number, "x" * 10) for number in range(items)]


async def test_a_caller_sends_while_the_handler_reads(link: Link, service: WorksService) -> None:
    async with link(service) as works, trio.open_nursery() as nursery:
        sending, receiving = open_channel(int, capacity=3)

        async def send() -> None:
            async with sending:
                for number in range(500):
                    await sending.send(number)

        nursery.start_soon(send)
        assert await works.total(receiving) == 499 * 250


@pytest.mark.parametrize("count", [0, 1, 100])
async def test_a_stream_gives_every_item_once_in_order_and_then_ends(
    link: Link, service: WorksService, count: int
) -> None:
    async with link(service) as works:
        async with works.ticks(count) as ticks:
            assert [tick async for tick in ticks] == list(range(count))
            with pytest.raises(trio.EndOfChannel):
                await ticks.receive()


async def test_a_stream_goes_both_ways_at_once(link: Link, service: WorksService) -> None:
    async with link(service) as works:
        sending, receiving = open_channel(str)
        async with works.echo(receiving) as echo:
            for number in range(20):
                await sending.send(f"word {number}")
                assert await echo.receive() == f"word {number}"
            await sending.aclose()
            with pytest.raises(trio.EndOfChannel):
                await echo.receive()


async def test_a_slow_reader_stops_its_writer_and_nothing_else(
    link: Link, service: WorksService, autojump_clock: trio.testing.MockClock
) -> None:
    async with link(service) as works:
        async with works.ticks(10**6) as ticks:
            await trio.sleep(1)
            assert service.sent <= 5
            async with works.ticks(50) as others:
                assert [tick async for tick in others] == list(range(50))
            assert await ticks.receive() == 0


async def test_credit_is_in_bytes_too_and_one_item_may_overdraw_it(
    link: Link, service: WorksService, autojump_clock: trio.testing.MockClock
) -> None:
    async with link(service) as works:
        async with works.blobs(400) as blobs:
            await trio.sleep(1)
            assert service.sent <= 3
            assert len([blob async for blob in blobs]) == 100
        async with works.blobs(100_000) as blobs:
            await trio.sleep(1)
            assert service.sent <= 2
            assert [blob[0] async for blob in blobs] == list(range(100))


async def test_items_may_carry_descriptors_and_channels(
    link: Link, service: WorksService, tmp_path: Path
) -> None:
    for number in range(5):
        path = tmp_path / str(number)
        path.write_text(f"file {number}")
        service.paths.append(str(path))
    before = len(os.listdir("/proc/self/fd"))
    async with link(service) as works:
        async with works.parcels() as parcels:
            for number in range(5):
                file = (await parcels.receive()).file
                assert file is not None
                with file:
                    assert os.read(file.fileno(), 100) == f"file {number}".encode()
            words = (await parcels.receive()).words
            assert words is not None
            assert [word async for word in words] == ["hello"]
    assert len(os.listdir("/proc/self/fd")) == before


async def test_descriptors_of_items_that_nobody_received_are_closed(
    link: Link, service: WorksService
) -> None:
    service.paths = ["/dev/null"] * 20
    before = len(os.listdir("/proc/self/fd"))
    async with link(service) as works:
        async with works.parcels() as parcels:
            file = (await parcels.receive()).file
            assert file is not None
            file.close()
            await trio.testing.wait_all_tasks_blocked()
        async with works.parcels() as parcels:
            await trio.testing.wait_all_tasks_blocked()
            await parcels.aclose()
    del parcels
    assert len(os.listdir("/proc/self/fd")) == before


async def test_an_item_of_another_type_is_the_writers_error_and_the_channel_lives(
    link: Link, service: WorksService
) -> None:
    async with link(service) as works, trio.open_nursery() as nursery:
        sending, receiving = open_channel(int)

        async def send() -> None:
            async with sending:
                await sending.send(1)
                with pytest.raises(InvalidArgument):
                    await sending.send(object())  # type: ignore[arg-type]
                await sending.send(2)

        nursery.start_soon(send)
        assert await works.total(receiving) == 3


async def test_an_item_that_is_too_large_is_the_writers_error(service: WorksService) -> None:
    limits = Limits(frame_bytes=100_000)
    async with in_memory(service, limits=limits) as works, trio.open_nursery() as nursery:
        sending, receiving = open_channel(str)
        async with works.echo(receiving) as echo:
            with pytest.raises(InvalidArgument, match="100000 are allowed"):
                await sending.send("x" * 100_000)
            await sending.send("y")
            assert await echo.receive() == "y"
        nursery.cancel_scope.cancel()


async def test_an_item_that_can_t_be_read_is_incompatible_and_the_next_one_comes(
    link: Link, service: WorksService
) -> None:
    async with link(service) as works, works.ticks(3) as ticks:
        end = cast("ReceivingEnd[int]", ticks)
        assert end.item is not None
        structure = end.item.structure

        def picky(value: object, annotation: object) -> object:
            return structure("text" if value == 1 else value, annotation)

        end.item = evolve(end.item, structure=picky)
        assert await ticks.receive() == 0
        with pytest.raises(Incompatible, match="expected int, found str"):
            await ticks.receive()
        assert await ticks.receive() == 2


# --- ends -------------------------------------------------------------------------------------


async def test_what_was_sent_before_the_reply_is_received_though_nobody_read_meanwhile(
    link: Link, service: WorksService
) -> None:
    async with link(service) as works:
        sending, receiving = open_channel(Progress, capacity=100)
        assert await works.work(50, sending) == 50
        assert [progress.done async for progress in receiving] == list(range(50))


async def test_what_was_sent_before_an_error_is_received_too(
    link: Link, service: WorksService
) -> None:
    async with link(service) as works:
        sending, receiving = open_channel(Progress, capacity=100)
        with pytest.raises(DataLoss):
            await works.work(13, sending)
        assert [progress.done async for progress in receiving] == list(range(13))


async def test_a_reader_that_leaves_breaks_its_writer(link: Link, service: WorksService) -> None:
    async with link(service) as works:
        sending, receiving = open_channel(Progress, capacity=2)
        async with trio.open_nursery() as nursery:

            async def read_two() -> None:
                await receiving.receive()
                await receiving.receive()
                await receiving.aclose()
                with pytest.raises(trio.ClosedResourceError):
                    await receiving.receive()

            nursery.start_soon(read_two)
            with pytest.raises(Exception, match="bug"):
                await works.work(1000, sending)
        assert isinstance(service.error, trio.BrokenResourceError)


async def test_a_handler_that_stops_reading_breaks_its_caller(
    link: Link, service: WorksService
) -> None:
    async with link(service) as works, trio.open_nursery() as nursery:
        sending, receiving = open_channel(int, capacity=2)
        broken = trio.Event()

        async def send() -> None:
            with pytest.raises(trio.BrokenResourceError):
                for number in (1, 2, -1, *range(1000)):
                    await sending.send(number)
            broken.set()

        nursery.start_soon(send)
        assert await works.total(receiving) == 2
        await broken.wait()


async def test_leaving_a_stream_early_is_no_error_and_ends_its_generator(
    link: Link, service: WorksService
) -> None:
    async with link(service) as works:
        async with works.ticks(10**6) as ticks:
            assert await ticks.receive() == 0
        await service.ended.wait()


async def test_closing_a_stream_early_ends_its_generator_and_not_the_scope(
    link: Link, service: WorksService
) -> None:
    async with link(service) as works:
        async with works.ticks(10**6) as ticks:
            assert await ticks.receive() == 0
            await ticks.aclose()
            await service.ended.wait()
            await trio.testing.wait_all_tasks_blocked()


async def test_an_exception_of_a_stream_comes_after_its_items(
    link: Link, service: WorksService
) -> None:
    async with link(service) as works:
        found: list[int] = []
        with pytest.raises(DataLoss, match="unlucky"):
            async with works.ticks(13) as ticks:
                async for tick in ticks:
                    found.append(tick)  # noqa: PERF401
                await trio.sleep_forever()
        assert found == list(range(13))


async def test_a_lost_connection_breaks_both_ends_and_says_why(service: WorksService) -> None:
    async with in_memory(service) as works:
        ticks = None
        with pytest.raises(PeerGone):
            async with works.ticks(10**6) as ticks:
                await ticks.receive()
                await trio.testing.wait_all_tasks_blocked()
                connection_of(works)._transport.close()  # pyright: ignore[reportPrivateUsage]
                await trio.sleep_forever()
        assert ticks is not None
        with pytest.raises(trio.BrokenResourceError) as caught:
            while True:
                await ticks.receive()
        assert isinstance(caught.value.__cause__, PeerGone)


async def test_a_cancelled_send_sent_nothing(
    link: Link, service: WorksService, autojump_clock: trio.testing.MockClock
) -> None:
    async with link(service) as works:
        sending, receiving = open_channel(str, capacity=2)
        async with works.echo(receiving) as echo:
            sent = 0
            with trio.move_on_after(1):
                while True:
                    await sending.send(f"{sent}")
                    sent += 1
            await sending.aclose()
            assert [word async for word in echo] == [f"{number}" for number in range(sent)]


@pytest.mark.parametrize("after", [1, 2, 3, 5, 8])
async def test_a_cancelled_receive_loses_no_item(
    link: Link, service: WorksService, after: int
) -> None:
    async def cancel(scope: trio.CancelScope) -> None:
        for _ in range(after):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    async with link(service) as works, works.ticks(200) as ticks, trio.open_nursery() as nursery:
        found: list[int] = []
        while len(found) < 200:
            with trio.CancelScope() as scope:
                nursery.start_soon(cancel, scope)
                async for tick in ticks:
                    found.append(tick)  # noqa: PERF401
        assert found == list(range(200))


# --- giving ends away -------------------------------------------------------------------------


async def test_an_end_is_given_once(link: Link, service: WorksService) -> None:
    async with link(service) as works:
        sending, receiving = open_channel(int)
        await sending.aclose()
        assert await works.total(receiving) == 0
        with pytest.raises(InvalidArgument, match="given away before"):
            await works.total(receiving)
        with pytest.raises(trio.ClosedResourceError, match="given away"):
            await receiving.receive()


async def test_the_other_end_is_refused_where_one_is_meant(
    link: Link, service: WorksService
) -> None:
    async with link(service) as works:
        sending, receiving = open_channel(Progress)
        with pytest.raises(InvalidArgument, match="expected the writing end"):
            await works.work(1, receiving)
        memory, _ = trio.open_memory_channel[Progress](1)
        with pytest.raises(InvalidArgument, match="made by open_channel"):
            await works.work(1, memory)
        async with collecting(receiving) as found:
            await works.work(1, sending)
        assert len(found) == 1


async def test_more_channels_than_a_call_may_have_are_the_callers_error(
    service: WorksService,
) -> None:
    async with in_memory(service, limits=Limits(channels=0)) as works:
        sending, _ = open_channel(Progress)
        with pytest.raises(Exception, match="no channels"):
            await works.work(1, sending)


async def test_both_ends_work_in_one_process_too() -> None:
    sending, receiving = open_channel(int, capacity=2)
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            async with sending:
                for number in range(10):
                    await sending.send(number)

        nursery.start_soon(send)
        assert [number async for number in receiving] == list(range(10))


async def test_a_service_may_be_used_without_a_connection(service: WorksService) -> None:
    async with service:
        async with service.ticks(10) as ticks:
            assert [tick async for tick in ticks] == list(range(10))


async def test_an_endpoint_s_connection_has_channels_of_its_own(service: WorksService) -> None:
    async with service, trio.open_nursery() as nursery:
        endpoint, _ = issue(nursery, Works, service)
        async with endpoint.connect() as works, works.ticks(30) as ticks:
            assert [tick async for tick in ticks] == list(range(30))
        nursery.cancel_scope.cancel()
