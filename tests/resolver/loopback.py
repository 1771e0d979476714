"""Servers and clients on loopback: what the tests of the resolver talk to and with."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import trio
from attrs import define, field

from container.resolver import Answers, DnsServer, Limits, Listener, Upstreams, listen

Reply = Callable[[dns.message.Message], list[bytes]]
"""What a server sends back for a query, over UDP."""


@define
class Nameserver:
    """A DNS server that says what a test wants it to."""

    address: str
    port: int
    reply: Reply
    by_tcp: Callable[[dns.message.Message], bytes] | None = None
    asked: list[dns.message.Message] = field(factory=list)
    """Over UDP, in their order."""
    asked_by_tcp: list[dns.message.Message] = field(factory=list)
    came_from: list[int] = field(factory=list)
    """Ports."""


def told(query: dns.message.Message, *records: str) -> dns.message.Message:
    """Return a response with records as `NAME TTL CLASS TYPE DATA`."""
    response = dns.message.make_response(query, recursion_available=True)
    response.request_payload = 65535
    for record in records:
        name, ttl, rdclass, rdtype, data = record.split(" ", 4)
        response.answer.append(dns.rrset.from_text(name, int(ttl), rdclass, rdtype, data))
    return response


def says(*records: str) -> Reply:
    """Return a reply that always tells these records."""
    return lambda query: [told(query, *records).to_wire()]


def fails(code: dns.rcode.Rcode) -> Reply:
    """Return a reply that is an error."""

    def reply(query: dns.message.Message) -> list[bytes]:
        response = told(query)
        response.set_rcode(code)
        return [response.to_wire()]

    return reply


@asynccontextmanager
async def nameserver(
    reply: Reply,
    *,
    by_tcp: Callable[[dns.message.Message], bytes] | None = None,
    address: str = "127.0.0.1",
    port: int = 0,
) -> AsyncGenerator[Nameserver]:
    """Hold a server; one that has nothing to say by TCP does not listen there."""
    with trio.socket.socket(type=socket.SOCK_DGRAM) as udp, trio.socket.socket() as tcp:
        await udp.bind((address, port))
        port = udp.getsockname()[1]
        made = Nameserver(address, port, reply, by_tcp)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve_udp, udp, made)
            if by_tcp is not None:
                tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                await tcp.bind((address, port))
                tcp.listen()
                nursery.start_soon(_serve_tcp, tcp, made)
            yield made
            nursery.cancel_scope.cancel()


async def _serve_udp(sock: trio.socket.SocketType, made: Nameserver) -> None:
    while True:
        packet, sender = await sock.recvfrom(65535)
        query = dns.message.from_wire(packet)
        made.asked.append(query)
        made.came_from.append(sender[1])
        for answer in made.reply(query):
            await sock.sendto(answer, sender)


async def _serve_tcp(sock: trio.socket.SocketType, made: Nameserver) -> None:
    while True:
        accepted, _ = await sock.accept()
        async with trio.SocketStream(accepted) as stream:
            packet = await received(stream)
            assert packet is not None
            query = dns.message.from_wire(packet)
            made.asked_by_tcp.append(query)
            assert made.by_tcp is not None
            answer = made.by_tcp(query)
            await stream.send_all(len(answer).to_bytes(2, "big") + answer)


async def received(stream: trio.abc.ReceiveStream) -> bytes | None:
    """Return the next message of a stream; None is its end."""
    buffer = b""
    while len(buffer) < 2 or len(buffer) < 2 + int.from_bytes(buffer[:2], "big"):
        more = await stream.receive_some(65537)
        if not more:
            return None
        buffer += more
    return buffer[2:]


@define
class Served:
    """A DNS server of ours that serves, and how to ask it."""

    server: DnsServer
    listener: Listener

    @asynccontextmanager
    async def client(self, source: str = "127.0.0.2") -> AsyncGenerator[trio.socket.SocketType]:
        """Hold a UDP socket of a client."""
        with trio.socket.socket(type=socket.SOCK_DGRAM) as sock:
            await sock.bind((source, 0))
            await sock.connect((self.listener.gateway, self.listener.udp_port))
            yield sock

    async def ask(
        self, name: str, rdtype: str = "A", *, source: str = "127.0.0.2"
    ) -> dns.message.Message:
        """Ask by UDP."""
        query = dns.message.make_query(name, rdtype)
        async with self.client(source) as sock:
            await sock.send(query.to_wire())
            with trio.fail_after(30):
                response = dns.message.from_wire(await sock.recv(65535))
        assert query.is_response(response)
        return response

    async def connect(self, source: str = "127.0.0.2") -> trio.SocketStream:
        """Connect by TCP."""
        sock = trio.socket.socket()
        await sock.bind((source, 0))
        await sock.connect((self.listener.gateway, self.listener.tcp_port))
        return trio.SocketStream(sock)


@asynccontextmanager
async def served(
    answers: Answers, upstreams: Upstreams, *, limits: Limits | None = None
) -> AsyncGenerator[Served]:
    """Hold a DNS server of ours at 127.0.0.1."""
    listener = listen("127.0.0.1", ways=8)
    try:
        async with trio.open_nursery() as nursery:
            server = DnsServer(answers, upstreams, limits=limits)
            await nursery.start(server.serve, [listener])
            yield Served(server, listener)
            assert server.statistics().failures == 0
            nursery.cancel_scope.cancel()
    finally:
        listener.close()


def addresses(response: dns.message.Message) -> list[str]:
    """Return the data of all records of an answer, sorted."""
    return sorted(item.to_text() for rrset in response.answer for item in rrset)
