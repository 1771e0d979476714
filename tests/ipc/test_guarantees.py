"""Promises that no other file proves: each is a line of docs/reference/guarantees.md."""

from __future__ import annotations

import os
import socket
from abc import abstractmethod
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.abc import ReceiveChannel, SendChannel

from container.ipc import (
    Actor,
    Contract,
    Fd,
    Limits,
    Unavailable,
    cleanup,
    connection_of,
    open_channel,
    open_service,
    relay,
    stream,
)
from container.ipc.server import Server
from container.ipc.transport import SocketTransport
from container.ipc.wire.machine import Budget, Machine
from tests.ipc.conftest import Link


class Hall(Contract, name="hall"):
    @abstractmethod
    def slowly(self) -> AbstractAsyncContextManager[Fd]: ...

    @abstractmethod
    def crowd(self) -> AbstractAsyncContextManager[None]: ...

    @abstractmethod
    def numbers(self) -> AbstractAsyncContextManager[ReceiveChannel[int]]: ...

    @abstractmethod
    async def count(self, to: SendChannel[int]) -> None: ...


class HallService(Actor, Hall):
    def __init__(self) -> None:
        self.log: list[str] = []

    @asynccontextmanager
    async def slowly(self) -> AsyncGenerator[Fd]:
        with trio.CancelScope(shield=True):
            await trio.sleep(2)
        self.log.append("opened")
        try:
            yield Fd(os.open("/dev/null", os.O_RDONLY))
        finally:
            with cleanup():
                await trio.sleep(1)
            self.log.append("cleaned up")

    @asynccontextmanager
    async def crowd(self) -> AsyncGenerator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            yield
            nursery.cancel_scope.cancel()
        self.log.append("left")

    @stream
    async def numbers(self) -> AsyncGenerator[int]:
        number = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                while True:
                    with trio.move_on_after(60):
                        yield number
                        number += 1
                        await trio.sleep(1)
            finally:
                nursery.cancel_scope.cancel()
                self.log.append("ended")

    async def count(self, to: SendChannel[int]) -> None:
        for number in range(300):
            await to.send(number)


class Behind(HallService):
    """Passes the channel of its call on to another service."""

    def __init__(self, hall: Hall) -> None:
        super().__init__()
        self._hall = hall

    async def count(self, to: SendChannel[int]) -> None:
        sending, receiving = open_channel(int, capacity=4)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, receiving, to)
            await self._hall.count(sending)


async def test_what_is_opened_after_the_cancel_is_closed_again_and_its_value_too(
    link: Link, autojump_clock: trio.testing.MockClock
) -> None:
    service = HallService()
    async with link(service) as hall:
        before = len(os.listdir("/proc/self/fd"))
        with trio.move_on_after(1) as scope:
            async with hall.slowly():
                raise AssertionError("entered")
        assert scope.cancelled_caught
        assert service.log == ["opened", "cleaned up"]
        assert trio.current_time() == pytest.approx(3, abs=0.1)
        assert connection_of(hall).statistics().pending == 0
        assert len(os.listdir("/proc/self/fd")) == before


async def test_a_manager_with_a_nursery_outlives_the_deadline_of_its_opening(
    link: Link, autojump_clock: trio.testing.MockClock
) -> None:
    service = HallService()
    async with link(service) as hall:
        with trio.CancelScope(deadline=trio.current_time() + 1) as opening:
            async with hall.crowd():
                opening.deadline = float("inf")
                await trio.sleep(100)
        assert service.log == ["left"]


async def test_a_stream_may_hold_nurseries_and_cancel_scopes_across_its_yield(
    link: Link, autojump_clock: trio.testing.MockClock
) -> None:
    service = HallService()
    async with link(service) as hall:
        async with hall.numbers() as numbers:
            assert [await numbers.receive() for _ in range(10)] == list(range(10))
        assert service.log == ["ended"]


async def test_a_channel_is_passed_on_to_a_third_service_by_a_relay(link: Link) -> None:
    async with link(HallService()) as hall, link(Behind(hall)) as front:
        sending, receiving = open_channel(int, capacity=4)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(front.count, sending)
            assert [number async for number in receiving] == list(range(300))


async def test_a_held_scope_goes_on_while_its_server_drains_and_then_ends_as_unavailable(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    service = HallService()
    found: list[int] = []

    async def serve(task_status: trio.TaskStatus[Server]) -> None:
        async with open_service(service, at=tmp_path / "s") as server:
            task_status.started(server)
            await trio.sleep(5)
            await server.drain(10)

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        async with Hall.connect(tmp_path / "s") as hall:
            with pytest.raises(Unavailable):
                async with hall.numbers() as numbers:
                    async for number in numbers:
                        found.append(number)  # noqa: PERF401
                    await trio.sleep_forever()
    assert len(found) >= 14, "the stream went on to the end of the drain"
    assert service.log == ["ended"]


@pytest.mark.parametrize("named", [True, False])
async def test_a_hello_whose_sender_the_kernel_does_not_name_is_not_answered(named: bool) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    hello = Machine(Limits(), Budget(0)).hello({}, "stranger", "0")
    with theirs:
        if named:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        theirs.send(hello)  # before anybody asked for credentials, if not named
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Server((HallService(),)).serve, SocketTransport(ours))
            with trio.fail_after(10):
                await trio.lowlevel.wait_readable(theirs)
            assert (b"hall" in theirs.recv(65536)) is named
            nursery.cancel_scope.cancel()


class Relaying(HallService):
    """A stream that passes another one on, and holds what it reads across its `yield`."""

    def __init__(self, inner: Hall) -> None:
        super().__init__()
        self._inner = inner

    @stream
    async def numbers(self) -> AsyncGenerator[int]:
        try:
            with trio.CancelScope():
                async with self._inner.numbers() as numbers:
                    async for number in numbers:
                        yield number
        finally:
            self.log.append("left")


@pytest.mark.parametrize("items", [0, 3, 70])
async def test_a_stream_that_relays_another_one_ends_it_when_its_reader_leaves(
    link: Link, items: int, autojump_clock: trio.testing.MockClock
) -> None:
    far = HallService()
    async with link(far) as inner:
        near = Relaying(inner)
        async with link(near) as hall:
            async with hall.numbers() as numbers:
                for expected in range(items):
                    assert await numbers.receive() == expected
            assert (near.log, far.log) == (["left"], ["ended"])
            async with hall.numbers() as numbers:
                await numbers.receive()
                await numbers.aclose()
                await trio.sleep(5)
            assert (near.log, far.log) == (["left"] * 2, ["ended"] * 2)


class Patient(HallService):
    """A stream that does not wait for ever for its reader."""

    @stream(capacity=2)
    async def numbers(self) -> AsyncGenerator[int]:
        for number in range(6):
            with trio.move_on_after(10) as scope:
                yield number
            self.log.append("late" if scope.cancelled_caught else "sent")


async def test_a_scope_that_expires_while_a_stream_waits_at_its_yield_is_the_generators(
    link: Link, autojump_clock: trio.testing.MockClock
) -> None:
    service = Patient()
    async with link(service) as hall, hall.numbers() as numbers:
        first = await numbers.receive()
        await trio.sleep(25)
        rest = [number async for number in numbers]
    assert (first, service.log.count("late"), len(rest) + 1 + service.log.count("late")) == (
        0,
        2,
        6,
    )
