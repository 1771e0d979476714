"""Channels: every item once and in order, as many as the reader has room for, and their ends."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
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
    Incompatible,
    InvalidArgument,
    Limits,
    ReceivingEnd,
    collecting,
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


class Works(Contract, name="works"):
    @abstractmethod
    async def work(self, items: int, progress: SendChannel[Progress]) -> int: ...

    @abstractmethod
    def ticks(self, count: int) -> AbstractAsyncContextManager[ReceiveChannel[int]]: ...

    @abstractmethod
    def echo(
        self, words: ReceiveChannel[str]
    ) -> AbstractAsyncContextManager[ReceiveChannel[str]]: ...


class WorksService(Actor, Works):
    async def work(self, items: int, progress: SendChannel[Progress]) -> int:
        for number in range(items):
            await progress.send(Progress(number, "x" * 10))
        return items

    @stream(capacity=4)
    async def ticks(self, count: int) -> AsyncGenerator[int]:
        for number in range(count):
            yield number

    @asynccontextmanager
    async def echo(self, words: ReceiveChannel[str]) -> AsyncGenerator[ReceiveChannel[str]]:
        sending, receiving = open_channel(str)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, words, sending)
            yield receiving
            nursery.cancel_scope.cancel()


@pytest.fixture
def service() -> WorksService:
    return WorksService()


# --- items ------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("item", [1, True, b"x", None])
async def test_a_scalar_of_another_type_is_the_writers_error_and_the_next_one_goes(
    link: Link, service: WorksService, item: object
) -> None:
    async with link(service) as works:
        sending, receiving = open_channel(str)
        async with works.echo(receiving) as echo:
            with pytest.raises(InvalidArgument, match="str"):
                await sending.send(cast("str", item))
            await sending.send("y")
            assert await echo.receive() == "y"


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


# --- giving ends away -------------------------------------------------------------------------


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


async def test_a_relay_whose_source_fails_passes_the_reason_on_after_all_items() -> None:
    upstream, source = open_channel(int)
    sink, downstream = open_channel(int)
    found: list[int] = []

    async def read() -> None:
        with pytest.raises(trio.BrokenResourceError) as caught:
            async for number in downstream:
                found.append(number)  # noqa: PERF401
        assert isinstance(caught.value.__cause__, DataLoss)

    async def pass_on() -> None:
        with pytest.raises(trio.BrokenResourceError):
            await relay(source, sink)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(pass_on)
        for number in range(3):
            await upstream.send(number)
        await upstream.fail(DataLoss("the disk"))
    assert found == [0, 1, 2]


async def test_a_relay_ends_without_an_error_when_its_sinks_reader_has_left() -> None:
    upstream, source = open_channel(int)
    sink, downstream = open_channel(int)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, source, sink)
        nursery.start_soon(upstream.send, 1)
        assert await downstream.receive() == 1
        await downstream.aclose()
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await upstream.send(2)
