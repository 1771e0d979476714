"""Each row of the table of a call: what its caller sees, whatever happens to it."""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from container.ipc import (
    Actor,
    Contract,
    Fate,
    Fd,
    Incompatible,
    Limits,
    NotFound,
    PeerGone,
    connection_of,
    set_process_name,
)
from container.ipc.client import connect_contract
from container.ipc.server import Server
from container.ipc.wire.frames import EndedBy
from container.ipc.wire.machine import CallReceived, CancelReceived, ErrorReceived

RawPeers = Callable[[], tuple[Any, Any]]


class Worker(Contract, name="worker"):
    @abstractmethod
    async def add(self, one: int, two: int) -> int: ...

    @abstractmethod
    async def fill(self, data: bytes) -> int: ...

    @abstractmethod
    async def work(self, how: str) -> int: ...

    @abstractmethod
    async def open(self, how: str) -> Fd: ...


class WorkerService(Actor, Worker):
    """Does what it is told, and remembers what became of it."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.started = trio.Event()

    async def add(self, one: int, two: int) -> int:
        return one + two

    async def fill(self, data: bytes) -> int:
        return len(data)

    async def work(self, how: str) -> int:
        self.events.append("started")
        self.started.set()
        match how:
            case "not found":
                raise NotFound("no image 'alpin'", hint="did you mean 'alpine'?", details={"n": 1})
            case "overstays":
                with trio.CancelScope(shield=True):
                    await trio.sleep(10)
                self.events.append("ended")
            case _:
                await trio.sleep_forever()
        return 0

    async def open(self, how: str) -> Fd:
        with trio.CancelScope(shield=True):
            await trio.sleep(10)
        self.events.append("ended")
        return Fd(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))


@asynccontextmanager
async def raw_worker(
    raw_peer: RawPeers, limits: Limits | None = None
) -> AsyncGenerator[tuple[Any, Any]]:
    """Hold a proxy whose server is played by the test."""
    ours, raw = raw_peer()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(raw.greet_as_server, Worker)
            async with connect_contract(Worker, ours, limits=limits) as worker:
                yield worker, raw
    finally:
        raw.transport.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def outcome_of(call: Callable[[], Any], seen: list[Any]) -> None:
    try:
        seen.append(await call())
    except trio.Cancelled:
        seen.append("cancelled")
        raise
    except Exception as error:
        seen.append(error)


# --- not begun, waiting to write ------------------------------------------------------------------


async def test_a_call_in_a_cancelled_scope_sends_nothing_and_takes_no_id(
    raw_peer: RawPeers,
) -> None:
    async with raw_worker(raw_peer) as (worker, raw):
        with trio.CancelScope() as scope:
            scope.cancel()
            await worker.add(1, 2)
        assert scope.cancelled_caught
        assert raw.pending_events() == []
        async with trio.open_nursery() as nursery:
            seen: list[Any] = []
            nursery.start_soon(outcome_of, lambda: worker.add(1, 2), seen)
            event = await raw.next()
            assert isinstance(event, CallReceived)
            assert event.id == 1
            raw.send(raw.machine.reply(1, msgspec.msgpack.encode((3,))))
        assert seen == [3]


async def test_a_call_that_waits_to_be_written_is_withdrawn_by_cancellation(
    raw_peer: RawPeers,
) -> None:
    async with raw_worker(raw_peer) as (worker, raw):
        async with trio.open_nursery() as nursery:
            seen: list[Any] = []
            nursery.start_soon(outcome_of, lambda: worker.fill(b"x" * 4_000_000), seen)
            await trio.testing.wait_all_tasks_blocked()
            scope = trio.CancelScope()

            async def second() -> None:
                with scope:
                    await worker.add(1, 2)

            nursery.start_soon(second)
            await trio.testing.wait_all_tasks_blocked()
            assert connection_of(worker).statistics().pending == 2
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert scope.cancelled_caught
            assert connection_of(worker).statistics().pending == 1
            first = await raw.next()
            raw.send(raw.machine.reply(first.id, msgspec.msgpack.encode((7,))))
        assert seen == [7]
        assert raw.pending_events() == []


async def test_a_call_begun_by_a_byte_is_finished_and_then_cancelled(
    raw_peer: RawPeers, autojump_clock: trio.testing.MockClock
) -> None:
    async with raw_worker(raw_peer) as (worker, raw):
        async with trio.open_nursery() as nursery:
            seen: list[Any] = []

            async def call() -> None:
                with trio.move_on_after(1):
                    await outcome_of(lambda: worker.fill(b"x" * 4_000_000), seen)

            nursery.start_soon(call)
            await trio.sleep(2)
            assert seen == []
            first = await raw.next()
            assert isinstance(first, CallReceived)
            cancel = await raw.next()
            assert isinstance(cancel, CancelReceived)
            error = {"code": "cancelled", "message": "it was"}
            raw.send(raw.machine.error(first.id, EndedBy.CANCEL, error))
        assert seen == ["cancelled"]


async def test_a_call_that_waits_to_be_written_was_not_sent_when_the_connection_is_lost(
    raw_peer: RawPeers,
) -> None:
    async with raw_worker(raw_peer) as (worker, raw):
        seen: list[Any] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome_of, lambda: worker.fill(b"x" * 4_000_000), seen)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(outcome_of, lambda: worker.add(1, 2), seen)
            await trio.testing.wait_all_tasks_blocked()
            raw.transport.close()
        assert [type(error) for error in seen] == [PeerGone, PeerGone]
        assert {error.fate for error in seen} == {Fate.NOT_SENT}


async def test_a_call_on_a_lost_connection_was_not_sent(raw_peer: RawPeers) -> None:
    async with raw_worker(raw_peer) as (worker, raw):
        raw.transport.close()
        await connection_of(worker).wait_lost()
        with pytest.raises(PeerGone) as caught:
            await worker.add(1, 2)
        assert caught.value.fate is Fate.NOT_SENT


# --- sent -----------------------------------------------------------------------------------------


async def test_an_error_arrives_typed_with_the_processes_that_it_crossed(link: Any) -> None:
    set_process_name("container-test")
    async with link(WorkerService()) as worker:
        with pytest.raises(NotFound) as caught:
            await worker.work("not found")
    error = caught.value
    assert (error.message, error.hint) == ("no image 'alpin'", "did you mean 'alpine'?")
    assert error.details["n"] == 1
    (hop,) = error.provenance
    assert (hop.process, hop.pid, hop.route) == ("container-test", os.getpid(), "worker/work")


async def test_a_reply_that_cannot_be_decoded_is_incompatible_and_the_connection_lives(
    raw_peer: RawPeers,
) -> None:
    async with raw_worker(raw_peer) as (worker, raw):
        before = descriptors()
        for body in (msgspec.msgpack.encode(("no number",)), b"\xc1", b""):
            seen: list[Any] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(outcome_of, lambda: worker.add(1, 2), seen)
                event = await raw.next()
                read, write = os.pipe()
                raw.send(raw.machine.reply(event.id, body, 1), [read])
                os.close(read)
                os.close(write)
            assert [type(error) for error in seen] == [Incompatible]
        assert descriptors() == before
        assert not connection_of(worker).lost


async def test_closing_a_proxy_tells_the_callee_of_each_call_that_waits(raw_peer: RawPeers) -> None:
    seen: list[Any] = []
    async with trio.open_nursery() as nursery:
        async with raw_worker(raw_peer) as (worker, raw):
            nursery.start_soon(outcome_of, lambda: worker.work("for ever"), seen)
            call = await raw.next()
            ours = raw
            del raw
            # Leave the block while the other task waits; the raw end is read before it closes.
            connection = connection_of(worker)
            nursery.start_soon(connection._close)
            cancel = await ours.next()
            assert isinstance(cancel, CancelReceived)
            assert cancel.id == call.id
    assert [type(error) for error in seen] == [trio.ClosedResourceError]


async def test_a_lost_connection_leaves_the_fate_of_a_sent_call_unknown(
    raw_peer: RawPeers,
) -> None:
    async with raw_worker(raw_peer) as (worker, raw):
        seen: list[Any] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome_of, lambda: worker.add(1, 2), seen)
            await raw.next()
            raw.transport.close()
        (error,) = seen
        assert isinstance(error, PeerGone)
        assert error.fate is Fate.UNKNOWN
        assert "raw-server is gone" in error.message


async def test_after_goodbye_new_calls_are_not_sent_and_started_ones_finish(
    raw_peer: RawPeers,
) -> None:
    async with raw_worker(raw_peer) as (worker, raw):
        seen: list[Any] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome_of, lambda: worker.add(1, 2), seen)
            call = await raw.next()
            raw.send(raw.machine.goodbye(0))
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(PeerGone) as caught:
                await worker.add(3, 4)
            assert caught.value.fate is Fate.NOT_SENT
            raw.send(raw.machine.reply(call.id, msgspec.msgpack.encode((3,))))
        assert seen == [3]


# --- cancelling -----------------------------------------------------------------------------------


async def test_a_handler_that_overstays_the_grace_is_abandoned_and_its_late_answer_dropped(
    link: Any, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    service = WorkerService()
    async with link(service, limits=Limits(grace_seconds=0.5)) as worker:
        connection = connection_of(worker)
        before = descriptors()
        start = trio.current_time()
        with caplog.at_level(logging.WARNING), trio.move_on_after(1) as scope:
            await worker.open("overstays")
        assert scope.cancelled_caught
        assert trio.current_time() - start == pytest.approx(1.5, abs=0.01)
        assert connection.statistics().abandoned == 1
        assert "worker/open overstayed the grace" in caplog.text
        assert "worker/open overstays its caller's grace" in caplog.text
        assert await worker.add(1, 2) == 3  # an id of its own
        await trio.sleep(20)
        assert service.events == ["ended"]
        assert descriptors() == before
        statistics = connection.statistics()
        assert statistics.descriptors_received == statistics.descriptors_delivered == 1
        assert not connection.lost


async def test_an_abandoned_call_keeps_its_id_until_its_answer_has_come(
    raw_peer: RawPeers, autojump_clock: trio.testing.MockClock
) -> None:
    async with raw_worker(raw_peer, Limits(grace_seconds=0.5)) as (worker, raw):
        with trio.move_on_after(1):
            await worker.work("for ever")
        call, cancel = await raw.next(), await raw.next()
        assert isinstance(cancel, CancelReceived)
        assert cancel.grace == 500_000_000
        async with trio.open_nursery() as nursery:
            seen: list[Any] = []
            nursery.start_soon(outcome_of, lambda: worker.add(1, 2), seen)
            second = await raw.next()
            assert second.id == call.id + 1
            raw.send(raw.machine.reply(call.id, msgspec.msgpack.encode((99,))))
            await trio.testing.wait_all_tasks_blocked()
            assert seen == []
            raw.send(raw.machine.reply(second.id, msgspec.msgpack.encode((3,))))
        assert seen == [3]


async def test_a_connection_lost_while_cancelling_is_a_cancellation_and_is_logged(
    raw_peer: RawPeers,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with raw_worker(raw_peer) as (worker, raw):
        async with trio.open_nursery() as nursery:

            async def close() -> None:
                await trio.sleep(2)
                raw.transport.close()

            nursery.start_soon(close)
            with caplog.at_level(logging.INFO), trio.move_on_after(1) as scope:
                await worker.work("for ever")
        assert scope.cancelled_caught
        assert trio.current_time() == pytest.approx(2, abs=0.01)
        assert "its fate is unknown" in caplog.text


# --- the callee's side ----------------------------------------------------------------------------


@asynccontextmanager
async def raw_client(
    raw_peer: RawPeers, service: Contract, limits: Limits | None = None
) -> AsyncGenerator[Any]:
    """Serve a client that is played by the test."""
    ours, raw = raw_peer()
    try:
        async with trio.open_nursery() as nursery:
            server = Server((service,), limits=limits or Limits())
            nursery.start_soon(server.serve, ours)
            await raw.greet_as_client()
            yield raw
            nursery.cancel_scope.cancel()
    finally:
        raw.transport.close()


def call_bytes(raw: Any, route: str, timeout: int | None = None, **arguments: Any) -> bytes:
    body = msgspec.msgpack.encode((route, timeout, 10**9, None, arguments))
    _, data = raw.machine.call(body)
    return data


async def test_a_call_cancelled_before_its_first_step_is_not_started(raw_peer: RawPeers) -> None:
    service = WorkerService()
    async with raw_client(raw_peer, service) as raw:
        data = call_bytes(raw, "worker/work", how="for ever")
        raw.send(data + raw.machine.cancel(1, 10**9))
        error = await raw.next()
        assert isinstance(error, ErrorReceived)
        assert error.ended_by is EndedBy.CANCEL
        assert service.events == []


async def test_a_cancel_after_the_terminal_is_ignored(raw_peer: RawPeers) -> None:
    async with raw_client(raw_peer, WorkerService()) as raw:
        raw.send(call_bytes(raw, "worker/add", one=1, two=2))
        await trio.testing.wait_all_tasks_blocked()
        raw.send(raw.machine.cancel(1, 10**9))
        assert (await raw.next()).id == 1
        raw.send(call_bytes(raw, "worker/add", one=1, two=2))
        assert (await raw.next()).id == 2


async def test_a_negative_time_left_is_a_deadline_and_not_the_beginning_of_time(
    raw_peer: RawPeers, autojump_clock: trio.testing.MockClock
) -> None:
    async with raw_client(raw_peer, WorkerService()) as raw:
        raw.send(call_bytes(raw, "worker/work", timeout=-(2**62), how="for ever"))
        error = await raw.next()
        assert error.ended_by is EndedBy.DEADLINE
