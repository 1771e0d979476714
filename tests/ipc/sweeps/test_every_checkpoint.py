"""Whatever is cancelled, wherever: nothing is lost, and the connection serves the next call."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from trio.abc import ReceiveChannel, SendChannel

from container.ipc import (
    Actor,
    Contract,
    Endpoint,
    Fd,
    Gate,
    cleanup,
    collecting,
    connection_of,
    open_channel,
    stream,
)
from tests.ipc.conftest import Link
from tests.ipc.sweeps.checkpoints import at_every_checkpoint


class Echo(Contract, name="echo"):
    @abstractmethod
    async def echo(self, text: str) -> str: ...


class EchoService(Actor, Echo):
    async def echo(self, text: str) -> str:
        return text


class Swept(Contract, name="swept"):
    @abstractmethod
    async def echo(self, text: str) -> str: ...

    @abstractmethod
    async def pause(self) -> str: ...

    @abstractmethod
    async def copy(self, file: Fd) -> Fd: ...

    @abstractmethod
    async def open(self, routes: tuple[str, ...] | None = None) -> Endpoint[Echo]: ...

    @abstractmethod
    def lease(self, key: str) -> AbstractAsyncContextManager[Fd]: ...

    @abstractmethod
    def ticks(self, count: int) -> AbstractAsyncContextManager[ReceiveChannel[int]]: ...

    @abstractmethod
    def files(self, count: int) -> AbstractAsyncContextManager[ReceiveChannel[Fd]]: ...

    @abstractmethod
    async def total(self, numbers: ReceiveChannel[int]) -> int: ...

    @abstractmethod
    async def count(self, to: SendChannel[int]) -> None: ...


class SweptService(Gate[Echo], Swept):
    def __init__(self) -> None:
        super().__init__(Echo, EchoService())
        self.leases = 0
        self.running = 0

    async def echo(self, text: str) -> str:
        return text

    async def pause(self) -> str:
        self.running += 1
        try:
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            return "paused"
        finally:
            self.running -= 1

    async def copy(self, file: Fd) -> Fd:
        await trio.lowlevel.checkpoint()
        return Fd(os.dup(file.fileno()))

    @asynccontextmanager
    async def lease(self, key: str) -> AsyncGenerator[Fd]:
        await trio.lowlevel.checkpoint()
        self.leases += 1
        try:
            yield Fd(os.open("/dev/null", os.O_RDONLY))
            await trio.lowlevel.checkpoint()
        finally:
            with cleanup():
                await trio.lowlevel.checkpoint()
            self.leases -= 1

    @stream(capacity=2)
    async def ticks(self, count: int) -> AsyncGenerator[int]:
        for number in range(count):
            yield number

    @stream(capacity=2)
    async def files(self, count: int) -> AsyncGenerator[Fd]:
        for _ in range(count):
            yield Fd.give(os.open("/dev/null", os.O_RDONLY))

    async def total(self, numbers: ReceiveChannel[int]) -> int:
        return sum([number async for number in numbers])

    async def count(self, to: SendChannel[int]) -> None:
        for number in range(5):
            await to.send(number)


Operation = Callable[[Swept], Awaitable[object]]


async def call(swept: Swept) -> None:
    assert await swept.echo("text") == "text"


async def call_that_waits(swept: Swept) -> None:
    assert await swept.pause() == "paused"


async def call_with_descriptors(swept: Swept) -> None:
    with await swept.copy(Fd.give(os.open("/dev/null", os.O_RDONLY))) as copy:
        os.fstat(copy.fileno())


async def open_endpoint(swept: Swept) -> None:
    endpoint = await swept.open()
    try:
        async with endpoint.connect() as echo:
            assert await echo.echo("x") == "x"
    finally:
        endpoint.close()


async def hold(swept: Swept) -> None:
    async with swept.lease("a") as file:
        with file:
            await trio.lowlevel.checkpoint()
            await swept.echo("held")


async def hold_and_fail(swept: Swept) -> None:
    with pytest.raises((KeyError, BaseExceptionGroup)):
        async with swept.lease("a") as file:
            with file:
                await trio.lowlevel.checkpoint()
                raise KeyError


async def read_stream(swept: Swept) -> None:
    async with swept.ticks(6) as ticks:
        assert [tick async for tick in ticks] == list(range(6))


async def read_descriptors(swept: Swept) -> None:
    async with swept.files(5) as files:
        async for file in files:
            file.close()


async def write_channel(swept: Swept) -> None:
    sending, receiving = open_channel(int, capacity=2)

    async def send() -> None:
        async with sending:
            for number in range(5):
                await sending.send(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        assert await swept.total(receiving) == 10


async def collect(swept: Swept) -> None:
    sending, receiving = open_channel(int, capacity=2)
    async with collecting(receiving) as found:
        await swept.count(sending)
    assert found == list(range(5))


@pytest.mark.parametrize(
    "operation",
    [
        call,
        call_that_waits,
        call_with_descriptors,
        open_endpoint,
        hold,
        hold_and_fail,
        read_stream,
        read_descriptors,
        write_channel,
        collect,
    ],
)
async def test_cancelled_at_every_checkpoint_nothing_is_lost(
    link: Link, operation: Operation, autojump_clock: trio.testing.MockClock
) -> None:
    service = SweptService()
    async with service, link(service) as swept:
        await operation(swept)
        await trio.testing.wait_all_tasks_blocked()
        before = open_descriptors()

        async def check(number: int) -> None:
            where = f"{operation.__name__}, cancelled at checkpoint {number}"
            await trio.testing.wait_all_tasks_blocked()
            assert service.leases == 0, where
            assert service.running == 0, where
            statistics = connection_of(swept).statistics()
            assert (statistics.pending, statistics.abandoned) == (0, 0), where
            assert open_descriptors() == before, where
            assert await swept.echo("next") == "next", where

        assert await at_every_checkpoint(lambda: operation(swept), check) >= 2


async def test_connecting_cancelled_at_every_checkpoint_leaves_nothing(
    link: Link, autojump_clock: trio.testing.MockClock
) -> None:
    service: Any = SweptService()
    async with service:

        async def connect() -> None:
            async with link(service) as swept:
                assert await swept.echo("x") == "x"

        await connect()
        before = open_descriptors()

        async def check(number: int) -> None:
            await trio.testing.wait_all_tasks_blocked()
            assert open_descriptors() == before, f"cancelled at checkpoint {number}"

        assert await at_every_checkpoint(connect, check) >= 4


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
