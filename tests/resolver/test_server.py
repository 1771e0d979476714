"""The DNS server on real sockets: UDP, TCP, its limits, and what it does to who does not behave."""

from __future__ import annotations

import os
import socket
import struct

import dns.flags
import dns.message
import dns.rcode
import pytest
import trio
from trio.testing import MockClock

from container.resolver import DnsServer, Entry, Limits, Names, Upstreams, listen
from tests.resolver.loopback import (
    Served,
    addresses,
    nameserver,
    received,
    says,
    served,
    told,
)

A, B, STRANGER = "127.0.1.2", "127.0.1.3", "127.0.2.2"


@pytest.fixture
def mock_clock() -> MockClock:
    """Jump when nothing has happened for a while: packets on loopback take no time, but some."""
    return MockClock(autojump_threshold=0.05)


def names(*nameservers: str, internal: bool = False) -> Names:
    """Return the names of a network on loopback: `a` and `b`."""
    made = Names(["127.0.1.0/24"], ["127.0.0.1"], internal=internal)
    made.put(Entry("a", (A,), ("a",), nameservers=nameservers))
    made.put(Entry("b", (B,), ("b",), nameservers=nameservers))
    return made


def query(name: str, number: int = 7) -> bytes:
    """Return a query for an address."""
    return dns.message.make_query(name, "A", id=number).to_wire()


def framed(packet: bytes) -> bytes:
    """Return a message as TCP carries it."""
    return struct.pack("!H", len(packet)) + packet


async def test_names_are_answered_by_udp_and_by_tcp_and_others_are_forwarded() -> None:
    async with (
        nameserver(says("example.org. 60 IN A 192.0.2.7")) as upstream,
        served(names(upstream.address), Upstreams(port=upstream.port)) as ours,
    ):
        assert addresses(await ours.ask("b", source=A)) == [B]
        assert addresses(await ours.ask("example.org", source=A)) == ["192.0.2.7"]
        async with await ours.connect(A) as stream:
            for name, expected in (("B", B), ("example.org", "192.0.2.7"), ("a", A)):
                await stream.send_all(framed(query(name)))
                packet = await received(stream)
                assert packet is not None
                assert addresses(dns.message.from_wire(packet)) == [expected]
        found = ours.server.statistics()
        assert (found.queries, found.answered, found.forwarded) == (5, 3, 2)
        assert (found.refused, found.dropped, found.under_way, found.waiting) == (0, 0, 0, 0)


async def test_names_come_and_go_while_it_serves() -> None:
    known = names()
    async with served(known, Upstreams()) as ours:
        assert (await ours.ask("c", source=A)).rcode() == dns.rcode.NXDOMAIN
        known.put(Entry("c", ("127.0.1.4",), ("c",)))
        assert addresses(await ours.ask("c", source=A)) == ["127.0.1.4"]
        known.remove("c")
        assert (await ours.ask("c", source=A)).rcode() == dns.rcode.NXDOMAIN


async def test_a_stranger_is_told_nothing() -> None:
    async with served(names(), Upstreams()) as ours:
        async with ours.client(STRANGER) as stranger:
            await stranger.send(query("a"))
            await ours.ask("a", source=A)
            await trio.testing.wait_all_tasks_blocked(0.02)
            with trio.move_on_after(0):
                raise AssertionError(await stranger.recv(100))
        async with await ours.connect(STRANGER) as stream:
            await ends(stream)


async def ends(stream: trio.SocketStream) -> None:
    """Wait until the other side has closed a stream."""
    with trio.fail_after(60):
        try:
            assert await stream.receive_some(100) == b""
        except trio.BrokenResourceError:
            pass


# TCP


async def test_queries_that_arrive_together_are_answered_in_their_order() -> None:
    async with served(names(), Upstreams()) as ours, await ours.connect(A) as stream:
        many = b"".join(framed(query("a", number)) for number in range(50))
        # In pieces that end anywhere.
        for at in range(0, len(many), 101):
            await stream.send_all(many[at : at + 101])
        buffer = b""
        while len(buffer) < 50 * (2 + len(query("a")) + 16):
            buffer += await stream.receive_some(65536)
        numbers: list[int] = []
        while buffer:
            length = int.from_bytes(buffer[:2], "big")
            numbers.append(dns.message.from_wire(buffer[2 : 2 + length]).id)
            buffer = buffer[2 + length :]
        assert numbers == list(range(50))


@pytest.mark.parametrize(
    "sent", [framed(b"x" * 4097)[:100], framed(b"\0" * 5), framed(b""), framed(query("a")[:-1])]
)
async def test_what_is_no_query_ends_a_connection_or_is_refused(sent: bytes) -> None:
    async with served(names(), Upstreams()) as ours, await ours.connect(A) as stream:
        await stream.send_all(sent)
        with trio.fail_after(60):
            packet = await received(stream)
        assert packet is None or dns.message.from_wire(packet).rcode() == dns.rcode.FORMERR
        assert addresses(await ours.ask("a", source=A)) == [A]


@pytest.mark.parametrize("sent", [b"", b"\0", framed(query("a"))[:9]])
async def test_a_connection_that_has_nothing_to_ask_is_closed(
    sent: bytes, mock_clock: MockClock
) -> None:
    async with served(names(), Upstreams()) as ours, await ours.connect(A) as stream:
        if sent:
            await stream.send_all(sent)
        began = trio.current_time()
        with trio.fail_after(60):
            assert await received(stream) is None
        assert 10.0 <= trio.current_time() - began < 11.0
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert ours.server.statistics().connections == 0


async def test_one_that_takes_no_answers_is_closed(mock_clock: MockClock) -> None:
    many = names()
    for i in range(2, 250):
        many.put(Entry(str(i), (f"127.0.1.{i}",), ("many",)))
    async with served(many, Upstreams()) as ours, await ours.connect(A) as stream:
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(3600):
            await stream.send_all(framed(query("many")) * 200_000)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert ours.server.statistics().connections == 0


async def test_one_client_has_so_many_connections_and_all_have_so_many() -> None:
    limits = Limits(connections=5, connections_per_client=3)
    async with served(names(), Upstreams(), limits=limits) as ours:
        held = [await ours.connect(A) for _ in range(3)]
        async with await ours.connect(A) as fourth:
            await ends(fourth)
        held += [await ours.connect(B) for _ in range(2)]
        async with await ours.connect(B) as sixth:
            await ends(sixth)
        for stream in held:
            await stream.send_all(framed(query("a")))
            assert await received(stream) is not None
        await held.pop().aclose()
        await trio.testing.wait_all_tasks_blocked(0.05)
        async with await ours.connect(B) as again:
            await again.send_all(framed(query("a")))
            assert await received(again) is not None
        for stream in held:
            await stream.aclose()


async def test_running_out_of_descriptors_ends_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(names(), Upstreams()) as ours:
        with trio.socket.socket() as any_socket:
            kind = type(any_socket)
        accept = kind.accept
        refusals = iter([OSError(24, "Too many open files")] * 2)

        async def sometimes(self: trio.socket.SocketType):
            for refusal in refusals:
                raise refusal
            return await accept(self)

        monkeypatch.setattr(kind, "accept", sometimes)
        # The accept that is under way is still the kernel's own.
        for _ in range(2):
            async with await ours.connect(A) as stream:
                await stream.send_all(framed(query("a")))
                assert await received(stream) is not None


# Floods


async def test_one_that_has_much_forwarded_does_not_hold_up_another() -> None:
    def mute(query: dns.message.Message) -> list[bytes]:
        if b"slow" in query.question[0].name.to_wire():
            return []
        return [told(query, f"{query.question[0].name} 60 IN A 192.0.2.7").to_wire()]

    limits = Limits(forwarded=8, forwarded_per_client=4, waiting_per_client=10)
    async with (
        nameserver(mute) as upstream,
        served(names(upstream.address), Upstreams(port=upstream.port), limits=limits) as ours,
    ):
        async with ours.client(A) as flooder:
            for i in range(40):
                await flooder.send(query(f"slow{i}.example", i))
            with trio.fail_after(60):
                refused = [dns.message.from_wire(await flooder.recv(1000)) for _ in range(26)]
            assert {response.rcode() for response in refused} == {dns.rcode.SERVFAIL}
            assert {response.id for response in refused} == set(range(14, 40))
            found = ours.server.statistics()
            assert (found.under_way, found.waiting, found.refused) == (4, 10, 26)
            response = await ours.ask("quick.example", source=B)
            assert addresses(response) == ["192.0.2.7"]
            # Names of ours wait for nobody, whoever asks.
            assert addresses(await ours.ask("b", source=A)) == [B]


async def test_what_waited_longer_than_a_client_does_is_dropped(mock_clock: MockClock) -> None:
    limits = Limits(forwarded=1, forwarded_per_client=1)
    async with (
        nameserver(lambda query: []) as upstream,
        served(names(upstream.address), Upstreams(port=upstream.port), limits=limits) as ours,
    ):
        async with ours.client(A) as client:
            for i in range(10):
                await client.send(query(f"slow{i}.example", i))
            answered = [dns.message.from_wire(await client.recv(1000)).id for _ in range(2)]
            await trio.sleep(10)
        assert answered == [0, 1]
        found = ours.server.statistics()
        assert (found.under_way, found.waiting, found.dropped) == (0, 0, 8)


async def test_a_flood_of_one_leaves_the_answers_of_another_to_come() -> None:
    async with served(names(), Upstreams()) as ours:
        async with ours.client(A) as flooder:
            for _ in range(1500):
                try:
                    flooder_send(flooder, query("a"))
                except BlockingIOError:
                    break
            response = await ours.ask("b", source=B)
        assert addresses(response) == [B]
        # Not all of the flood was answered before.
        assert ours.server.statistics().answered < 1000


def flooder_send(sock: trio.socket.SocketType, packet: bytes) -> None:
    """Send without giving the server, which is in this thread, a turn."""
    os.write(sock.fileno(), packet)


# The end


async def test_it_ends_when_it_is_cancelled_whatever_is_under_way() -> None:
    async with nameserver(lambda query: []) as upstream:
        listener = listen("127.0.0.1")
        server = DnsServer(names(upstream.address), Upstreams(port=upstream.port))
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, [listener])
            ours = Served(server, listener)
            async with await ours.connect(A) as idle, ours.client(A) as client:
                await client.send(query("slow.example"))
                await idle.send_all(b"\0")
                await trio.testing.wait_all_tasks_blocked(0.02)
                assert server.statistics().under_way == 1
                nursery.cancel_scope.cancel()
        assert server.statistics().under_way == server.statistics().connections == 0
        listener.close()


async def test_it_can_serve_the_same_sockets_again() -> None:
    listener = listen("127.0.0.1")
    for _ in range(2):
        server = DnsServer(names(), Upstreams())
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, [listener])
            ours = Served(server, listener)
            assert addresses(await ours.ask("a", source=B)) == [A]
            async with await ours.connect(A) as stream:
                await stream.send_all(framed(query("b")))
                assert await received(stream) is not None
            nursery.cancel_scope.cancel()
    listener.close()


async def test_an_answer_over_udp_that_was_cut_is_whole_over_tcp() -> None:
    many = names()
    for i in range(10, 200):
        many.put(Entry(str(i), (f"127.0.1.{i}",), ("many",)))
    async with served(many, Upstreams()) as ours:
        cut = await ours.ask("many", source=A)
        assert cut.flags & dns.flags.TC
        async with await ours.connect(A) as stream:
            await stream.send_all(framed(query("many")))
            packet = await received(stream)
            assert packet is not None
            assert len(addresses(dns.message.from_wire(packet))) == 190
