"""What a connection survives, and how it ends when it can't: cleanly, and alone."""

from __future__ import annotations

import logging
import os
import socket
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from container.ipc import (
    Actor,
    Contract,
    Incompatible,
    InternalError,
    InvalidArgument,
    Limits,
    PeerGone,
    UnknownRoute,
    connection_of,
    open_service,
    same_user_or_root,
)
from container.ipc.client import connect, connect_contract, connection_proxy
from container.ipc.connection import Connection
from container.ipc.server import Server
from container.ipc.transport import Transport
from container.ipc.wire.frames import HEADER, MAGIC, HelloPayload, Kind, pack
from container.ipc.wire.machine import ErrorReceived, ReplyReceived
from container.ipc.wire_errors import from_wire

from .conftest import RawPeer

RawPeers = Callable[[], tuple[Any, Any]]


class Sums(Contract, name="sums"):
    @abstractmethod
    async def add(self, one: int, two: int = 0) -> int: ...

    @abstractmethod
    async def crash(self) -> None: ...

    @abstractmethod
    async def hold(self) -> None: ...


class SumsService(Actor, Sums):
    def __init__(self) -> None:
        self.started = trio.Event()
        self.ended = trio.Event()

    async def add(self, one: int, two: int = 0) -> int:
        return one + two

    async def crash(self) -> None:
        raise ZeroDivisionError("a bug, with a secret in its text")

    async def hold(self) -> None:
        self.started.set()
        try:
            await trio.sleep_forever()
        finally:
            self.ended.set()


class Newer(Contract, name="sums", version=2):
    @abstractmethod
    async def add(self, one: int, two: int = 0) -> int: ...


class Stranger(Contract, name="stranger"):
    @abstractmethod
    async def add(self, one: int, two: int = 0) -> int: ...


@asynccontextmanager
async def raw_client(
    raw_peer: RawPeers, service: Contract, limits: Limits | None = None
) -> AsyncGenerator[Any]:
    ours, raw = raw_peer()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Server((service,), limits=limits or Limits()).serve, ours)
            await raw.greet_as_client()
            yield raw
            nursery.cancel_scope.cancel()
    finally:
        raw.transport.close()


def body(route: Any, arguments: Any) -> bytes:
    return msgspec.msgpack.encode((route, None, 10**9, None, arguments))


async def answer(raw: Any, payload: bytes, count: int = 0) -> Any:
    """Send a call, with descriptors, and return what comes back: an error, or the value."""
    number, data = raw.machine.call(payload, count)
    pipe = os.pipe()
    raw.send(data, [pipe[0]] * count)
    for end in pipe:
        os.close(end)
    event = await raw.next()
    assert event.id == number
    if isinstance(event, ErrorReceived):
        return from_wire(event.error)
    assert isinstance(event, ReplyReceived)
    return msgspec.msgpack.decode(event.value)


BAD_CALLS: dict[str, tuple[bytes, type[Exception], str]] = {
    "no MessagePack": (b"\xc1\xc1\xc1", InvalidArgument, "no message"),
    "empty": (b"", InvalidArgument, "no message"),
    "no array": (msgspec.msgpack.encode({"route": "sums/add"}), InvalidArgument, "no message"),
    "route is a number": (body(7, {"one": 1}), InvalidArgument, "no message"),
    "unknown route": (body("sums/divide", {}), UnknownRoute, "served: sums"),
    "private method": (body("sums/__init__", {}), UnknownRoute, "no route"),
    "no arguments": (body("sums/add", None), InvalidArgument, "dict of arguments"),
    "argument missing": (body("sums/add", {}), InvalidArgument, "'one' is missing"),
    "argument unknown": (body("sums/add", {"one": 1, "x": 1}), InvalidArgument, "'x'"),
    "argument of wrong type": (
        body("sums/add", {"one": "1"}),
        InvalidArgument,
        "one: expected int",
    ),
    "truth for a number": (body("sums/add", {"one": True}), InvalidArgument, "one: expected int"),
}


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("name", BAD_CALLS)
async def test_a_bad_call_gets_an_error_of_its_own_and_the_connection_lives(
    raw_peer: RawPeers, name: str, count: int
) -> None:
    payload, kind, words = BAD_CALLS[name]
    async with raw_client(raw_peer, SumsService()) as raw:
        before = len(os.listdir("/proc/self/fd"))
        error = await answer(raw, payload, count)
        assert type(error) is kind
        assert words in str(error)
        assert len(os.listdir("/proc/self/fd")) == before
        assert await answer(raw, body("sums/add", {"one": 1, "two": 2})) == 3


async def test_a_bug_in_a_handler_travels_as_an_id_that_finds_it_in_the_callees_log(
    link: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with link(SumsService()) as sums:
        with caplog.at_level(logging.ERROR), pytest.raises(InternalError) as caught:
            await sums.crash()
        assert "secret" not in str(caught.value)
        number = caught.value.details["id"]
        assert isinstance(number, str)
        assert number in caplog.text
        assert "ZeroDivisionError" in caplog.text
        assert await sums.add(1, 2) == 3


async def test_a_result_that_cannot_be_encoded_is_a_bug_of_the_handler(link: Any) -> None:
    class Wrong(SumsService):
        async def add(self, one: int, two: int = 0) -> int:
            return object()  # type: ignore[return-value]

    async with link(Wrong()) as sums:
        with pytest.raises(InternalError):
            await sums.add(1)
        assert not connection_of(sums).lost


async def test_arguments_that_cannot_be_sent_never_leave(link: Any) -> None:
    async with link(SumsService()) as sums:
        with pytest.raises(TypeError):
            await sums.add(1, 2, 3)
        with pytest.raises(InvalidArgument, match="are allowed"):
            await sums.add("x" * (16 * 1024 * 1024))
        assert await sums.add(1, 2) == 3


BROKEN: dict[str, bytes] = {
    "unknown kind": HEADER.pack(0, 99, 0, 0, 1),
    "frame too long": HEADER.pack(2**31, Kind.CALL, 0, 0, 1),
    "too many descriptors": HEADER.pack(0, Kind.CALL, 0, 999, 1),
    "descriptor that did not come": HEADER.pack(0, Kind.CALL, 0, 1, 1),
    "reply to nothing": pack(Kind.REPLY, 5, msgspec.msgpack.encode((1,))),
    "second hello": pack(
        Kind.HELLO, MAGIC, msgspec.msgpack.encode(HelloPayload(1, 1, {}, {}, "x", "0"))
    ),
    "frame of a scope": HEADER.pack(0, Kind.OPENED, 0, 0, 1),
    "text": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("name", BROKEN)
async def test_broken_bytes_end_a_connection_and_its_handlers_and_no_other(
    make_pair: Callable[[], tuple[Any, Any]], raw_peer: RawPeers, name: str
) -> None:
    service = SumsService()
    server = Server((service,))
    good, other = make_pair()
    ours, raw = raw_peer()
    async with service, trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, good)
        nursery.start_soon(server.serve, ours)
        async with connect_contract(Sums, other) as sums:
            await raw.greet_as_client()
            raw.send(raw.machine.call(body("sums/hold", {}))[1])
            await service.started.wait()
            raw.send(BROKEN[name])
            await raw.wait_end()
            await service.ended.wait()
            assert await sums.add(1, 2) == 3
    raw.transport.close()


@pytest.mark.parametrize("name", BROKEN)
async def test_broken_bytes_of_a_server_end_the_calls_that_wait_for_it(
    raw_peer: RawPeers, name: str
) -> None:
    ours, raw = raw_peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raw.greet_as_server, Sums)
        async with connect_contract(Sums, ours) as sums:

            async def play() -> None:
                await raw.next()
                raw.send(BROKEN[name])

            nursery.start_soon(play)
            with pytest.raises(PeerGone) as caught:
                await sums.add(1)
            assert caught.value.why.startswith("protocol")
    raw.transport.close()


@pytest.mark.parametrize(
    "first",
    [b"\0" * 64, b"GET / HTTP/1.1\r\n\r\n", pack(Kind.PING, 1, b""), HEADER.pack(9, 1, 0, 0, 1)],
)
async def test_what_does_not_begin_with_a_hello_is_cut_off(
    raw_peer: RawPeers, first: bytes
) -> None:
    ours, raw = raw_peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Server((SumsService(),)).serve, ours)
        raw.send(first)
        await raw.wait_end()
    raw.transport.close()


async def test_who_says_nothing_is_cut_off_after_the_hello_time(
    raw_peer: RawPeers, autojump_clock: trio.testing.MockClock
) -> None:
    ours, raw = raw_peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Server((SumsService(),), limits=Limits(hello_seconds=3)).serve, ours)
        await raw.wait_end()
    assert trio.current_time() == pytest.approx(3)
    raw.transport.close()


async def test_a_server_that_says_nothing_is_given_up_after_the_launch_time(
    raw_peer: RawPeers, autojump_clock: trio.testing.MockClock
) -> None:
    ours, raw = raw_peer()
    with pytest.raises(PeerGone) as caught:
        async with connect_contract(Sums, ours, limits=Limits(launch_seconds=7)):
            raise AssertionError("nobody answered")
    assert caught.value.why == "unresponsive"
    assert trio.current_time() == pytest.approx(7)
    raw.transport.close()


async def test_another_version_of_the_protocol_is_refused_with_both_named(
    raw_peer: RawPeers,
) -> None:
    ours, raw = raw_peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Server((SumsService(),)).serve, ours)
        hello = HelloPayload(7, 9, {"in_flight": 1}, {}, "from-the-future", "9")
        raw.send(pack(Kind.HELLO, MAGIC, msgspec.msgpack.encode(hello)))
        error = await raw.next()
        assert isinstance(error, ErrorReceived)
        assert error.id == 0
        refused = from_wire(error.error)
        assert isinstance(refused, Incompatible)
        assert "from-the-future speaks 7 to 9" in str(refused)
        await raw.wait_end()
    raw.transport.close()


async def test_another_version_of_a_contract_is_refused_by_the_client(tmp_path: Path) -> None:
    async with open_service(SumsService(), at=tmp_path / "s"):
        with pytest.raises(Incompatible, match=r"speaks sums 1, you asked for 2"):
            async with Newer.connect(tmp_path / "s"):
                raise AssertionError("it does not speak that")
        with pytest.raises(Incompatible, match=r"does not speak stranger; it speaks sums"):
            async with Stranger.connect(tmp_path / "s"):
                raise AssertionError("it does not speak that")
        async with connect(tmp_path / "s", Sums) as connection:
            assert await connection_proxy(connection, Sums).add(1, 2) == 3


async def test_the_first_connection_broken_the_next_are_served(tmp_path: Path) -> None:
    async with open_service(SumsService(), at=tmp_path / "s"):
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as rude:
                rude.connect(str(tmp_path / "s"))
                rude.send(b"rude")
        async with Sums.connect(tmp_path / "s") as sums:
            assert await sums.add(1, 2) == 3


async def test_a_connection_that_ends_before_its_hello_says_no_goodbye(
    raw_peer: Callable[[], tuple[Transport, RawPeer]],
) -> None:
    ours, raw = raw_peer()
    connection = Connection(ours, accepts=True, policy=same_user_or_root, limits=Limits())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.serve, lambda: True)
        await trio.testing.wait_all_tasks_blocked()
        await connection.drain(0.1)
        nursery.cancel_scope.cancel()
    said = b""
    with suppress(BlockingIOError):
        while data := raw.transport.receive().data:
            said += data
    raw.transport.close()
    assert said == b""
