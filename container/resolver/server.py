"""The DNS server: its sockets and connections, and who may have how much of them.

What is said is the responder's. A packet whose answer is known is answered where it is received;
one that others have to be asked about becomes a task, in its client's turn.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from functools import partial

import trio
from attrs import frozen
from dns.rcode import Rcode

from container.resolver import question
from container.resolver.answers import Answers
from container.resolver.limits import Limits
from container.resolver.listening import Listener
from container.resolver.responder import STREAM, Later, Responder
from container.resolver.turns import Turns
from container.resolver.upstreams import Upstreams

_SLICE = 0.0005
"""Seconds for which one socket's packets are answered before others have their turn."""
_TROUBLE_PAUSE = 0.1


@frozen
class Statistics:
    """What a server has done and does."""

    queries: int
    """That came, well formed or not."""
    answered: int
    """At once, without asking anybody."""
    forwarded: int
    """Or asked of another network."""
    refused: int
    """Not answered as asked: malformed, not done, or too many of one client's."""
    dropped: int
    """Without any answer: no query at all, or of who is not in the network."""
    failures: int
    """Of our own; each should be none."""
    under_way: int
    waiting: int
    connections: int


class DnsServer:
    """A DNS server over UDP and TCP.

    Args:
        answers: Who knows the names.
        upstreams: Who is asked for others.
        limits: How much is taken on at once.
    """

    def __init__(
        self, answers: Answers, upstreams: Upstreams, *, limits: Limits | None = None
    ) -> None:
        self._answers = answers
        self._upstreams = upstreams
        self._limits = limits or Limits()
        self._responder = Responder(answers, upstreams)
        self._counted = self._responder.counted
        self._turns: Turns | None = None
        self._connections: dict[str, int] = {}

    async def serve(
        self,
        listeners: Sequence[Listener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; the sockets stay the caller's to close. No packet ends it."""
        limits = self._limits
        async with trio.open_nursery() as nursery:
            self._turns = Turns(
                nursery,
                most=limits.forwarded,
                most_each=limits.forwarded_per_client,
                most_waiting=limits.waiting_per_client,
            )
            for listener in listeners:
                for sock in listener.udp:
                    nursery.start_soon(self._serve_udp, sock, self._turns)
                nursery.start_soon(self._serve_tcp, listener.tcp, nursery)
            task_status.started()

    def statistics(self) -> Statistics:
        """Return what it has done and does."""
        turns = self._turns
        return Statistics(
            queries=self._counted.queries,
            answered=self._counted.answered,
            forwarded=self._counted.forwarded,
            refused=self._counted.refused,
            dropped=self._counted.dropped,
            failures=self._counted.failures,
            under_way=turns.active if turns else 0,
            waiting=turns.waiting if turns else 0,
            connections=sum(self._connections.values()),
        )

    # Packets

    async def _serve_udp(self, sock: socket.socket, turns: Turns) -> None:
        while True:
            await trio.lowlevel.wait_readable(sock)
            # Of the real clock, whatever the time of a test is.
            until = time.perf_counter() + _SLICE
            while time.perf_counter() < until:
                try:
                    packet, address = sock.recvfrom(self._limits.query_bytes)
                except OSError:
                    # Nothing there any more, or an error that belongs to a packet that was sent.
                    break
                self._take(sock, packet, address, turns)

    def _take(
        self, sock: socket.socket, packet: bytes, address: tuple[str, int], turns: Turns
    ) -> None:
        """Answer a packet, or see to it that it is answered later."""
        source = address[0]
        found = self._responder.answer(packet, source, self._limits.udp_bytes)
        if isinstance(found, Later):
            began = trio.current_time()
            work = partial(self._answer_later, sock, address, found, began)
            if turns.offer(source, work):
                return
            self._counted.refused += 1
            found = question.answer(found.query, Rcode.SERVFAIL)
        if found is not None:
            _send(sock, found, address)

    async def _answer_later(
        self, sock: socket.socket, address: tuple[str, int], later: Later, began: float
    ) -> None:
        if trio.current_time() - began > self._limits.patience:
            self._counted.dropped += 1
            return
        _send(
            sock, await self._responder.resolve(later, address[0], self._limits.udp_bytes), address
        )

    # Connections

    async def _serve_tcp(self, sock: socket.socket, nursery: trio.Nursery) -> None:
        listener = trio.socket.from_stdlib_socket(sock)
        while True:
            try:
                accepted, address = await listener.accept()
            except OSError:
                # Descriptors have run out, or the one who knocked has gone: there is nothing to
                # wait for that would tell when it is over.
                await trio.sleep(_TROUBLE_PAUSE)
                continue
            source: str = address[0]
            held = self._connections.get(source, 0)
            if (
                held >= self._limits.connections_per_client
                or sum(self._connections.values()) >= self._limits.connections
                or self._answers.client(source) is None
            ):
                self._counted.dropped += 1
                accepted.close()
                continue
            self._connections[source] = held + 1
            nursery.start_soon(self._serve_connection, trio.SocketStream(accepted), source)

    async def _serve_connection(self, stream: trio.SocketStream, source: str) -> None:
        try:
            with stream.socket:
                await self._converse(stream, source)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            # It went away: with it the interest in what is still to be said.
            pass
        finally:
            self._connections[source] -= 1
            if not self._connections[source]:
                del self._connections[source]

    async def _converse(self, stream: trio.SocketStream, source: str) -> None:
        """Answer query after query, in their order, until the client has had enough."""
        buffer = bytearray()
        while True:
            packet = None
            with trio.move_on_after(self._limits.idle):
                packet = await _receive(stream, buffer, self._limits.query_bytes)
            if packet is None:
                return
            found = self._responder.answer(packet, source, STREAM)
            if isinstance(found, Later):
                found = await self._responder.resolve(found, source, STREAM)
            if found is None:
                return
            with trio.move_on_after(self._limits.idle) as waited:
                await stream.send_all(len(found).to_bytes(2, "big") + found)
            if waited.cancelled_caught:
                return


async def _receive(stream: trio.SocketStream, buffer: bytearray, most: int) -> bytes | None:
    """Return the next query; None: the stream ended, or the query is too long to be one."""
    while True:
        if len(buffer) >= 2:
            length = int.from_bytes(buffer[:2], "big")
            if length > most:
                return None
            if len(buffer) >= 2 + length:
                packet = bytes(buffer[2 : 2 + length])
                del buffer[: 2 + length]
                # What has come already is taken without waiting: others have their turn, too.
                await trio.lowlevel.checkpoint()
                return packet
        received = await stream.receive_some(most)
        if not received:
            return None
        buffer += received


def _send(sock: socket.socket, packet: bytes, address: tuple[str, int]) -> None:
    try:
        sock.sendto(packet, address)
    except OSError:
        # The client is gone, or the buffer is full: it asks again.
        pass
