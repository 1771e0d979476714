"""Relays of what no rule can lead into a container: whole, and bounded."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from container.contracts.network import Protocol
from container.network import proxy
from container.network.proxy import Target, relay_datagrams, relay_streams, room_for_all
from container.network.reserving import reserve

Handler = Callable[[trio.SocketStream], Awaitable[None]]
LOOPBACKS = ("127.0.0.1", "::1")


def reset(stream: trio.SocketStream) -> None:
    """End a connection by a reset."""
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def is_reset(stream: trio.SocketStream) -> bool:
    """Say whether the other side has reset a connection, and not ended it."""
    with trio.fail_after(5), pytest.raises(trio.BrokenResourceError) as caught:
        await stream.receive_some(1)
    cause = caught.value.__cause__
    return isinstance(cause, OSError) and cause.errno == errno.ECONNRESET


@asynccontextmanager
async def relayed(
    handler: Handler, *, only: str = "127.0.0.1", everyone: trio.CapacityLimiter | None = None
) -> AsyncIterator[int]:
    """Relay a port of ::1 and 127.0.0.1 to a service of the "container"; yield the port."""
    family = socket.AF_INET6 if ":" in only else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind((only, 0))
        listener.listen()
        listener.setblocking(False)
        target = Target(LOOPBACKS, listener.getsockname()[1])
        (port,) = reserve(Protocol.TCP, "", 0, 1)
        try:
            async with trio.open_nursery() as nursery:
                for each in port.sockets:
                    nursery.start_soon(relay_streams, each, target, everyone or room_for_all())
                accepts = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
                nursery.start_soon(trio.serve_listeners, handler, [accepts])
                yield port.port
                nursery.cancel_scope.cancel()
        finally:
            port.close()


async def echo(stream: trio.SocketStream) -> None:
    """Send back what comes, to its end."""
    async with stream:
        async for data in stream:
            await stream.send_all(data)


@pytest.mark.parametrize("address", LOOPBACKS)
@pytest.mark.parametrize("only", LOOPBACKS)
async def test_bytes_go_both_ways_and_none_is_lost(address: str, only: str) -> None:
    sent = os.urandom(4 * 2**20)
    async with relayed(echo, only=only) as port:
        stream = await trio.open_tcp_stream(address, port)
        received = bytearray()

        async def send() -> None:
            await stream.send_all(sent)
            await stream.send_eof()

        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(send)
            async for data in stream:
                received += data
        assert received == sent


async def test_each_direction_ends_for_itself() -> None:
    heard, hears = trio.open_memory_channel[bytes](10)
    more = trio.Event()

    async def ends_first(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"hello")
            await stream.send_eof()
            async for data in stream:
                await heard.send(data)
            more.set()

    async with relayed(ends_first) as port:
        async with await trio.open_tcp_stream("::1", port) as stream:
            assert await stream.receive_some(100) == b"hello"
            assert await stream.receive_some(100) == b""
            # The other direction is open still.
            for part in (b"one", b"two"):
                await stream.send_all(part)
                with trio.fail_after(5):
                    assert await hears.receive() == part
            await stream.send_eof()
            with trio.fail_after(5):
                await more.wait()


async def test_an_answer_comes_after_the_question_has_ended() -> None:
    async def sums(stream: trio.SocketStream) -> None:
        async with stream:
            length = 0
            async for data in stream:
                length += len(data)
            await stream.send_all(b"%d" % length)

    async with relayed(sums) as port:
        async with await trio.open_tcp_stream("::1", port) as stream:
            await stream.send_all(bytes(100_000))
            await stream.send_eof()
            assert await stream.receive_some(100) == b"100000"
            assert await stream.receive_some(100) == b""


async def test_a_reset_of_the_container_is_one_for_the_client() -> None:
    async def resets(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        reset(stream)

    async with relayed(resets) as port:
        async with await trio.open_tcp_stream("::1", port) as stream:
            await stream.send_all(b"x")
            assert await is_reset(stream)


async def test_a_reset_of_the_client_is_one_for_the_container() -> None:
    seen = trio.Event()

    async def waits(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(1)
            if await is_reset(stream):
                seen.set()

    async with relayed(waits) as port:
        stream = await trio.open_tcp_stream("::1", port)
        await stream.send_all(b"x")
        reset(stream)
        with trio.fail_after(5):
            await seen.wait()


async def test_a_port_at_which_nobody_listens_resets_its_client() -> None:
    (free,) = reserve(Protocol.TCP, "127.0.0.1", 0, 1)
    free.close()
    (port,) = reserve(Protocol.TCP, "::1", 0, 1)
    try:
        async with trio.open_nursery() as nursery:
            target = Target(LOOPBACKS, free.port)
            nursery.start_soon(relay_streams, port.sockets[0], target, room_for_all())
            async with await trio.open_tcp_stream("::1", port.port) as stream:
                assert await is_reset(stream)
            nursery.cancel_scope.cancel()
    finally:
        port.close()


async def test_a_container_that_takes_no_connection_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proxy, "CONNECT_DEADLINE", 0.1)
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        first.connect(full.getsockname())
        second.setblocking(False)
        second.connect_ex(full.getsockname())
        (port,) = reserve(Protocol.TCP, "::1", 0, 1)
        try:
            async with trio.open_nursery() as nursery:
                target = Target(("127.0.0.1",), full.getsockname()[1])
                nursery.start_soon(relay_streams, port.sockets[0], target, room_for_all())
                async with await trio.open_tcp_stream("::1", port.port) as stream:
                    assert await is_reset(stream)
                nursery.cancel_scope.cancel()
        finally:
            port.close()


async def test_a_slow_reader_stops_its_own_sender_and_nobody_else() -> None:
    sent = 0
    stalled = trio.Event()

    async def floods(stream: trio.SocketStream) -> None:
        nonlocal sent
        async with stream:
            if await stream.receive_some(1) == b"e":
                await stream.send_all(b"e")
                return
            while not stalled.is_set():
                with trio.move_on_after(0.3) as waiting:
                    sent += await stream.socket.send(bytes(65_536))
                if waiting.cancelled_caught:
                    stalled.set()

    async with relayed(floods) as port:
        async with await trio.open_tcp_stream("::1", port) as slow:
            await slow.send_all(b"f")
            with trio.fail_after(20):
                await stalled.wait()
            # Socket buffers of both legs and a pipe; far from all that would be sent.
            assert 65_536 < sent < 64 * 2**20
            async with await trio.open_tcp_stream("::1", port) as other:
                await other.send_all(b"e")
                with trio.fail_after(5):
                    assert await other.receive_some(1) == b"e"


@pytest.mark.parametrize("shared", [False, True])
async def test_connections_beyond_the_limit_wait_for_one_to_end(
    monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    monkeypatch.setattr(proxy, "CONNECTIONS", 100 if shared else 2)
    everyone = trio.CapacityLimiter(2 if shared else 100)
    async with relayed(echo, everyone=everyone) as port:
        streams = [await trio.open_tcp_stream("::1", port) for _ in range(4)]
        for each in streams:
            await each.send_all(b"x")
        for each in streams[:2]:
            assert await each.receive_some(1) == b"x"
        assert everyone.borrowed_tokens == 2
        with trio.move_on_after(0.05) as waiting:
            await streams[2].receive_some(1)
        assert waiting.cancelled_caught
        for each in streams[:2]:
            await each.aclose()
        for each in streams[2:]:
            with trio.fail_after(5):
                assert await each.receive_some(1) == b"x"
            await each.aclose()


async def test_when_a_relay_ends_its_connections_are_reset() -> None:
    (port,) = reserve(Protocol.TCP, "::1", 0, 1)
    (service,) = reserve(Protocol.TCP, "127.0.0.1", 0, 1)
    everyone = room_for_all()
    try:
        async with trio.open_nursery() as nursery:
            target = Target(("127.0.0.1",), service.port)
            nursery.start_soon(relay_streams, port.sockets[0], target, everyone)
            async with await trio.open_tcp_stream("::1", port.port) as stream:
                accepted, _ = await trio.socket.from_stdlib_socket(service.sockets[0]).accept()
                await accepted.send(b"x")
                assert await stream.receive_some(1) == b"x"
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    async with trio.SocketStream(accepted) as inside:
                        assert await is_reset(inside)
                    assert await is_reset(stream)
        assert everyone.borrowed_tokens == 0
    finally:
        port.close()
        service.close()


async def test_without_descriptors_clients_wait_and_are_served_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failures = iter([errno.EMFILE, errno.ECONNABORTED])
    with trio.socket.socket() as any_one:
        kind = type(any_one)
    accept = kind.accept

    async def fails(self: trio.socket.SocketType) -> object:
        number = next(failures, None)
        if number is not None:
            raise OSError(number, os.strerror(number))
        return await accept(self)

    monkeypatch.setattr(kind, "accept", fails)
    async with relayed(echo) as port:
        async with await trio.open_tcp_stream("::1", port) as stream:
            await stream.send_all(b"x")
            with trio.fail_after(5):
                assert await stream.receive_some(1) == b"x"


# --- datagrams ---


def socket_of(address: str) -> trio.socket.SocketType:
    """Return a bound UDP socket."""
    plain = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    plain.setblocking(False)
    plain.bind((address, 0))
    return trio.socket.from_stdlib_socket(plain)


@asynccontextmanager
async def datagrams(
    *targets: str, port: int | None = None, everyone: trio.CapacityLimiter | None = None
) -> AsyncIterator[tuple[int, trio.socket.SocketType]]:
    """Relay a UDP port of every address; yield it and the service's socket."""
    with socket_of(targets[-1]) as service:
        target = Target(targets, port or service.getsockname()[1])
        (published,) = reserve(Protocol.UDP, "", 0, 1)
        try:
            async with trio.open_nursery() as nursery:
                for each in published.sockets:
                    nursery.start_soon(relay_datagrams, each, target, everyone or room_for_all())
                with trio.fail_after(10):
                    yield published.port, service
                nursery.cancel_scope.cancel()
        finally:
            published.close()


@pytest.mark.parametrize("asked", ["127.0.0.1", "127.0.0.2", "::1"])
async def test_datagrams_are_answered_from_the_address_that_was_asked(asked: str) -> None:
    async with datagrams("127.0.0.1") as (port, service):
        with socket_of("::" if ":" in asked else "0.0.0.0") as client:
            for data in (b"x", b"", bytes(60_000)):
                await client.sendto(data, (asked, port))
                received, flow = await service.recvfrom(65_535)
                assert received == data
                await service.sendto(data[::-1], flow)
                received, source = await client.recvfrom(65_535)
                assert received == data
                assert source[:2] == (asked, port)


async def test_each_client_has_a_flow_of_its_own() -> None:
    everyone = room_for_all()
    async with datagrams("127.0.0.1", everyone=everyone) as (port, service):
        with socket_of("::1") as one, socket_of("::1") as other:
            flows: list[object] = []
            for client, data in ((one, b"1"), (other, b"2"), (one, b"3")):
                await client.sendto(data, ("::1", port))
                received, flow = await service.recvfrom(10)
                assert received == data
                flows.append(flow)
            assert flows[0] == flows[2] != flows[1]
            # In any order, and more than one answer.
            for flow, data in ((flows[1], b"b"), (flows[0], b"a"), (flows[0], b"c")):
                await service.sendto(data, flow)
            assert await other.recv(10) == b"b"
            assert [await one.recv(10), await one.recv(10)] == [b"a", b"c"]
            assert everyone.borrowed_tokens == 2
    assert everyone.borrowed_tokens == 0


async def test_a_flow_that_is_silent_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "FLOW_IDLE", 0.1)
    everyone = trio.CapacityLimiter(1)
    async with datagrams("127.0.0.1", everyone=everyone) as (port, service):
        with socket_of("::1") as client:
            await client.sendto(b"1", ("::1", port))
            _, first = await service.recvfrom(10)
            assert everyone.borrowed_tokens == 1
            # Its place is free once it has ended.
            await everyone.acquire_on_behalf_of("the test")
            everyone.release_on_behalf_of("the test")
            await client.sendto(b"2", ("::1", port))
            _, second = await service.recvfrom(10)
            assert second != first


async def test_the_flow_that_was_silent_longest_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proxy, "FLOWS", 2)
    async with datagrams("127.0.0.1") as (port, service):
        clients = [socket_of("::1") for _ in range(3)]
        try:
            flows: list[object] = []
            # The first speaks again before the third comes.
            for which in (0, 1, 0, 2, 0, 1):
                await clients[which].sendto(b"x", ("::1", port))
                flows.append((await service.recvfrom(10))[1])
            assert flows[0] == flows[2] == flows[4]
            assert flows[5] != flows[1]
        finally:
            for each in clients:
                each.close()


async def test_without_room_for_a_flow_its_datagrams_are_dropped() -> None:
    everyone = trio.CapacityLimiter(1)
    async with datagrams("127.0.0.1", everyone=everyone) as (port, service):
        with socket_of("::1") as one, socket_of("::1") as other:
            await one.sendto(b"1", ("::1", port))
            assert await service.recv(10) == b"1"
            await other.sendto(b"2", ("::1", port))
            await one.sendto(b"3", ("::1", port))
            assert await service.recv(10) == b"3"


async def test_datagrams_go_to_the_address_at_which_somebody_listens() -> None:
    # A client of ::1 is led to the container's IPv6 first, and its service knows only IPv4.
    async with datagrams("::1", "127.0.0.1") as (port, service):
        with socket_of("::1") as client:
            received = b""
            while not received:
                await client.sendto(b"again", ("::1", port))
                with trio.move_on_after(0.05):
                    received, flow = await service.recvfrom(10)
                    await service.sendto(b"yes", flow)
            while await client.recv(10) != b"yes":
                pass
