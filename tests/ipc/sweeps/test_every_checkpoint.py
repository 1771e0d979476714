"""Whatever is cancelled, wherever: nothing is lost, and the connection serves the next call."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
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
    in_memory,
    issue,
    open_channel,
    stream,
)
from container.ipc.testing import every_checkpoint, no_leaks
from tests.ipc.conftest import Link


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
    def lease_of(self, of: Endpoint[Swept], key: str) -> AbstractAsyncContextManager[Fd]: ...

    @abstractmethod
    async def itself(self) -> Endpoint[Swept]: ...

    @abstractmethod
    def channels(self) -> AbstractAsyncContextManager[ReceiveChannel[ReceiveChannel[int]]]: ...

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

    @asynccontextmanager
    async def lease_of(self, of: Endpoint[Swept], key: str) -> AsyncGenerator[Fd]:
        async with of.connect() as swept, swept.lease(key) as file:
            yield file

    async def itself(self) -> Endpoint[Swept]:
        endpoint, _ = issue(self.nursery, Swept, self)
        return endpoint

    @stream(capacity=2)
    async def channels(self) -> AsyncGenerator[ReceiveChannel[int]]:
        for _ in range(2):
            sending, receiving = open_channel(int)
            yield receiving
            with suppress(trio.BrokenResourceError):
                await sending.send(1)
                await sending.send(2)
            await sending.aclose()

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


async def hold_over_two_hops(swept: Swept) -> None:
    async with swept.lease_of(await swept.itself(), "a") as file:
        with file:
            await swept.echo("held")


async def limited_endpoint(swept: Swept) -> None:
    endpoint = await swept.open(("echo",))
    try:
        async with endpoint.connect() as echo, trio.open_nursery() as nursery:
            nursery.start_soon(echo.echo, "x")
            nursery.start_soon(echo.echo, "y")
    finally:
        endpoint.close()


async def several_at_once(swept: Swept) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call_that_waits, swept)
        nursery.start_soon(call_with_descriptors, swept)
        nursery.start_soon(hold, swept)


async def give_an_end_in_an_item(swept: Swept) -> None:
    async with swept.channels() as channels:
        async for inner in channels:
            assert [number async for number in inner] == [1, 2]


async def a_large_message(swept: Swept) -> None:
    assert len(await swept.echo("x" * 400_000)) == 400_000


@pytest.mark.parametrize(
    "operation",
    [
        call,
        call_that_waits,
        call_with_descriptors,
        open_endpoint,
        limited_endpoint,
        hold,
        hold_and_fail,
        hold_over_two_hops,
        read_stream,
        read_descriptors,
        write_channel,
        collect,
        give_an_end_in_an_item,
        several_at_once,
        a_large_message,
    ],
)
async def test_cancelled_at_every_checkpoint_nothing_is_lost(
    link: Link, operation: Operation, autojump_clock: trio.testing.MockClock
) -> None:
    service = SweptService()
    async with service, link(service) as swept:
        await operation(swept)
        await trio.testing.wait_all_tasks_blocked()
        before = connection_of(swept).statistics()
        for attempt in every_checkpoint():
            async with no_leaks():
                with attempt:
                    await operation(swept)
            assert service.leases == 0, attempt
            assert service.running == 0, attempt
            statistics = connection_of(swept).statistics()
            assert (statistics.pending, statistics.abandoned) == (0, 0), attempt
            received = statistics.descriptors_received - before.descriptors_received
            delivered = statistics.descriptors_delivered - before.descriptors_delivered
            assert received == delivered, attempt
            assert await swept.echo("next") == "next", attempt
        assert attempt.number > 3


async def test_connecting_cancelled_at_every_checkpoint_leaves_nothing(
    link: Link, autojump_clock: trio.testing.MockClock
) -> None:
    service: Any = SweptService()
    async with service:
        for attempt in every_checkpoint():
            async with no_leaks():
                with attempt:
                    async with link(service) as swept:
                        assert await swept.echo("x") == "x"
            assert service.running == 0, attempt
        assert attempt.number > 10


async def test_opening_an_actor_cancelled_at_every_checkpoint_leaves_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    for attempt in every_checkpoint():
        service: Any = SweptService()
        async with no_leaks():
            with attempt:
                async with in_memory(service, Swept) as swept:
                    async with swept.lease("a") as file:
                        file.close()
        assert (service.leases, service.running) == (0, 0), attempt
    assert attempt.number > 10


# --- the sweep itself -------------------------------------------------------------------------


async def test_each_attempt_is_cancelled_one_step_later_and_the_last_one_not() -> None:
    reached: list[int] = []
    for attempt in every_checkpoint():
        reached.append(0)
        with attempt:
            for _ in range(4):
                await trio.lowlevel.checkpoint()
                reached[-1] += 1
    assert reached[-1] == 4
    assert reached == sorted(reached)
    assert set(reached) == {0, 1, 2, 3, 4}
    assert not attempt.cancelled


async def test_an_operation_that_does_not_end_is_told() -> None:
    async def endless() -> None:
        while True:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            if trio.current_effective_deadline() == float("-inf"):
                return

    with pytest.raises(AssertionError, match="more than 20 steps"):
        for attempt in every_checkpoint(most=20):
            with attempt:
                await endless()
