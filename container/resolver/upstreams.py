"""Asking other DNS servers: the host's, or those that a container has been given.

Every question leaves from a port and with an id that nobody can guess, through a socket that is
connected: the kernel drops what others send. An answer counts only if id and question are those
that were asked. Nothing is kept, so nothing can be poisoned for later.

A question that is under way already is not asked again, whoever asks: retries cost nothing, and a
loop (a container is the host's DNS server and asks us) ends with the first question's time instead
of going round.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

import trio
from attrs import define, field
from dns.flags import Flag
from dns.message import Message
from dns.rcode import Rcode

from container.resolver.question import Malformed
from container.resolver.relaying import read, relayed, written
from container.resolver.resolv_conf import ResolvConf

_PATIENCES = (1.0, 1.5, 2.0)
"""Seconds that each try may take; together less than the five after which clients ask again."""
_ALL = 4.5
_REMEMBERED = 30.0
"""Seconds for which a server that did not answer is asked after the others."""
_LONGEST = 65535
_FAILURES = (OSError, ValueError, Malformed, trio.BrokenResourceError, trio.TooSlowError)
_FINAL = frozenset((Rcode.NOERROR, Rcode.NXDOMAIN))


class NoAnswer(Exception):
    """No server answered: SERVFAIL."""


@define
class _Asked:
    done: trio.Event = field(factory=trio.Event)
    answer: Message | None = None


class Upstreams:
    """The servers that are asked for names that are not ours.

    Args:
        own: Addresses that lead to us: never asked.
        resolv_conf: The host's; read anew when it has changed.
        port: Of the servers.
    """

    def __init__(
        self,
        own: Iterable[str] = (),
        *,
        resolv_conf: Path = Path("/etc/resolv.conf"),
        port: int = 53,
    ) -> None:
        self._own = frozenset(own)
        self._resolv_conf = ResolvConf(resolv_conf)
        self._port = port
        self._asked: dict[tuple[tuple[str, ...], bool, bytes], _Asked] = {}
        self._silent: dict[str, float] = {}
        # One question is written, or one answer read, each time that the event loop goes round:
        # else 64 answers that come together would hold up all who ask for names of ours.
        self._turn = trio.Lock()

    @property
    def in_flight(self) -> int:
        """Questions that are under way."""
        return len(self._asked)

    def search(self) -> tuple[str, ...]:
        """Return the host's search domains, which are those of who has none of his own."""
        return self._resolv_conf.host().search

    async def ask(
        self, query: Message, nameservers: Sequence[str] = (), *, most: int, stream: bool = False
    ) -> bytes:
        """Return the answer of the first server that has one, in at most 4.5 seconds.

        Args:
            query: What to ask; its flags and whether DNSSEC is wanted go along, options do not.
            nameservers: Whom to ask, instead of the host's.
            most: Bytes of the answer.
            stream: Ask by TCP for an answer that does not fit; else the client is told to.

        Raises:
            NoAnswer: there is no server, or none answers.
        """
        servers = tuple(
            s for s in nameservers or self._resolv_conf.host().nameservers if s not in self._own
        )
        if not servers:
            await trio.lowlevel.checkpoint()
            raise NoAnswer
        alike = written(query, most)
        alike.id = 0
        key = (servers, stream, alike.to_wire())
        asked = self._asked.get(key)
        if asked is not None:
            await asked.done.wait()
        else:
            asked = self._asked[key] = _Asked()
            try:
                with trio.move_on_after(_ALL):
                    asked.answer = await self._ask_each(query, servers, most, stream)
            finally:
                del self._asked[key]
                asked.done.set()
        if asked.answer is None:
            raise NoAnswer
        return relayed(asked.answer, query, most)

    async def _ask_each(
        self, query: Message, servers: Sequence[str], most: int, stream: bool
    ) -> Message | None:
        """Ask one server after the other until one answers; else return what was refused."""
        now = trio.current_time()
        left = sorted(servers, key=lambda server: self._silent.get(server, 0.0) > now)
        patiences = iter(_PATIENCES)
        patience = next(patiences)
        refusal = None
        while left:
            server = left.pop(0)
            try:
                found = await self._ask_one(query, server, patience, most, stream)
            except trio.TooSlowError:
                self._remember_silent(server)
                left.append(server)
                if (another := next(patiences, None)) is None:
                    break
                patience = another
                continue
            except _FAILURES:
                # Nobody listens there.
                self._remember_silent(server)
                continue
            self._silent.pop(server, None)
            if found.rcode() in _FINAL:
                return found
            refusal = refusal or found
        return refusal

    async def _ask_one(
        self, query: Message, server: str, patience: float, most: int, stream: bool
    ) -> Message:
        asked = written(query, most)
        found = await self._ask_udp(asked, server, patience)
        if asked.edns >= 0 and found.rcode() in (Rcode.FORMERR, Rcode.NOTIMP):
            # It may be one that knows no EDNS. Source: RFC 6891, section 7.
            asked = written(query, most, edns=False)
            found = await self._ask_udp(asked, server, patience)
        if stream and found.flags & Flag.TC:
            # Part of an answer is better than none, and it says that it is one.
            with contextlib.suppress(*_FAILURES), trio.fail_after(patience):
                return await self._ask_tcp(asked, server)
        return found

    async def _ask_udp(self, asked: Message, server: str, patience: float) -> Message:
        with socket.socket(_family(server), socket.SOCK_DGRAM) as sock, trio.fail_after(patience):
            sock.setblocking(False)
            async with self._turn:
                # Also tells at once that nobody listens.
                sock.connect((server, self._port))
                sock.send(asked.to_wire())
            while True:
                await trio.lowlevel.wait_readable(sock)
                async with self._turn:
                    with contextlib.suppress(BlockingIOError, Malformed):
                        return read(sock.recv(_LONGEST), asked)

    async def _ask_tcp(self, asked: Message, server: str) -> Message:
        with trio.socket.socket(_family(server), socket.SOCK_STREAM) as sock:
            await sock.connect((server, self._port))
            stream = trio.SocketStream(sock)
            await stream.send_all(asked.to_wire(prepend_length=True))
            length = int.from_bytes(await _exactly(stream, 2), "big")
            return read(await _exactly(stream, length), asked)

    def _remember_silent(self, server: str) -> None:
        now = trio.current_time()
        for other in [o for o, until in self._silent.items() if until <= now]:
            del self._silent[other]
        self._silent[server] = now + _REMEMBERED


def _family(server: str) -> socket.AddressFamily:
    return socket.AF_INET if ipaddress.ip_address(server).version == 4 else socket.AF_INET6


async def _exactly(stream: trio.SocketStream, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        more = await stream.receive_some(size - len(found))
        if not more:
            raise Malformed
        found += more
    return bytes(found)
