"""Asking other DNS servers: the host's, or those that a container has been given.

Every question leaves from a port and with an id that nobody can guess, through a socket that is
connected: the kernel drops what others send. An answer counts only if id and question are those
that were asked; it is read and written anew, so that what reaches the client is well formed and
carries no option of the server's. Nothing is kept, so nothing can be poisoned for later.

A question that is under way already is not asked again, whoever asks: retries cost nothing, and a
loop (a container is the host's DNS server and asks us) ends with the first question's time instead
of going round.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import dns.asyncbackend
import dns.asyncquery
import dns.exception
import dns.flags
import dns.inet
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import trio
from attrs import define, field, frozen

from container.resolver.question import Query
from container.resolver.resolv_conf import ResolvConf

_PATIENCES = (1.0, 1.5, 2.0)
"""Seconds that each try may take; together less than the five after which clients ask again."""
_ALL = 4.5
_REMEMBERED = 30.0
"""Seconds for which a server that did not answer is asked after the others."""
_PAYLOAD = 1232
_FAILURES = (OSError, EOFError, ValueError, dns.exception.DNSException, trio.TooSlowError)
_FINAL = frozenset((dns.rcode.NOERROR, dns.rcode.NXDOMAIN))


class NoAnswer(Exception):
    """No server answered: SERVFAIL."""


@frozen
class _Key:
    servers: tuple[str, ...]
    question: bytes
    flags: tuple[bool, bool, bool, bool]


@define
class _Asked:
    done: trio.Event = field(factory=trio.Event)
    answer: dns.message.Message | None = None


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
        self._asked: dict[_Key, _Asked] = {}
        self._silent: dict[str, float] = {}

    @property
    def in_flight(self) -> int:
        """Questions that are under way."""
        return len(self._asked)

    def search(self) -> tuple[str, ...]:
        """Return the host's search domains, which are those of who has none of his own."""
        return self._resolv_conf.host().search

    async def ask(self, query: Query, nameservers: Sequence[str] = ()) -> dns.message.Message:
        """Return the answer of the first server that has one, in at most 4.5 seconds.

        The message is also that of others who asked the same: copy before changing it.

        Args:
            query: What to ask; its flags and whether DNSSEC is wanted go along, options do not.
            nameservers: Whom to ask, instead of the host's.

        Raises:
            NoAnswer: there is no server, or none answers.
        """
        servers = tuple(
            s for s in nameservers or self._resolv_conf.host().nameservers if s not in self._own
        )
        if not servers:
            await trio.lowlevel.checkpoint()
            raise NoAnswer
        key = _Key(
            servers,
            query.question,
            (
                query.recursion_desired,
                query.wants_authentic,
                query.checking_disabled,
                query.wants_dnssec,
            ),
        )
        asked = self._asked.get(key)
        if asked is not None:
            await asked.done.wait()
        else:
            asked = self._asked[key] = _Asked()
            try:
                with trio.move_on_after(_ALL):
                    asked.answer = await self._ask_each(query, servers)
            finally:
                del self._asked[key]
                asked.done.set()
        if asked.answer is None:
            raise NoAnswer
        return asked.answer

    async def _ask_each(self, query: Query, servers: Sequence[str]) -> dns.message.Message | None:
        """Ask one server after the other until one answers; else return what was refused."""
        now = trio.current_time()
        left = sorted(servers, key=lambda server: self._silent.get(server, 0.0) > now)
        patiences = iter(_PATIENCES)
        patience = next(patiences)
        refusal = None
        while left:
            server = left.pop(0)
            try:
                found = await self._ask_one(query, server, patience)
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

    async def _ask_one(self, query: Query, server: str, patience: float) -> dns.message.Message:
        question = _question(query, edns=True)
        found = await self._ask_udp(question, server, patience)
        if found.rcode() in (dns.rcode.FORMERR, dns.rcode.NOTIMP):
            # It may be one that knows no EDNS. Source: RFC 6891, section 7.
            question = _question(query, edns=False)
            found = await self._ask_udp(question, server, patience)
        if found.flags & dns.flags.TC:
            # Part of an answer is better than none, and it says that it is one.
            with contextlib.suppress(*_FAILURES), trio.fail_after(patience):
                return await self._ask_tcp(question, server)
        return found

    async def _ask_udp(
        self, question: dns.message.Message, server: str, patience: float
    ) -> dns.message.Message:
        backend = dns.asyncbackend.get_backend("trio")
        family = dns.inet.af_for_address(server)
        # Connected: what is not of this server is dropped, and that nobody listens is told at once.
        connected: Any = backend.make_socket  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        sock = await connected(family, socket.SOCK_DGRAM, destination=(server, self._port))
        async with sock:
            with trio.fail_after(patience):
                return await dns.asyncquery.udp(
                    question,
                    server,
                    port=self._port,
                    sock=sock,
                    ignore_unexpected=True,
                    ignore_errors=True,
                    one_rr_per_rrset=True,
                )

    async def _ask_tcp(self, question: dns.message.Message, server: str) -> dns.message.Message:
        return await dns.asyncquery.tcp(
            question,
            server,
            port=self._port,
            backend=dns.asyncbackend.get_backend("trio"),
            one_rr_per_rrset=True,
        )

    def _remember_silent(self, server: str) -> None:
        now = trio.current_time()
        for other in [o for o, until in self._silent.items() if until <= now]:
            del self._silent[other]
        self._silent[server] = now + _REMEMBERED


def _question(query: Query, *, edns: bool) -> dns.message.Message:
    flags = 0
    flags |= dns.flags.RD if query.recursion_desired else 0
    flags |= dns.flags.AD if query.wants_authentic else 0
    flags |= dns.flags.CD if query.checking_disabled else 0
    return dns.message.make_query(
        dns.name.Name((*query.labels, b"")),
        dns.rdatatype.RdataType.make(query.rdtype),
        dns.rdataclass.RdataClass.make(query.rdclass),
        use_edns=0 if edns else False,
        want_dnssec=edns and query.wants_dnssec,
        payload=_PAYLOAD,
        id=secrets.randbits(16),
        flags=flags,
    )


def relayed(found: dns.message.Message, query: Query, *, most: int, payload: int) -> bytes:
    """Write a server's answer for the client that asked.

    What is longer than `most` bytes loses records from its end, and says so (TC). Options of EDNS
    stay behind: they are between the server and us.
    """
    told = dns.message.QueryMessage(query.id)
    told.flags = dns.flags.QR | dns.flags.RA | found.flags & dns.flags.TC
    told.flags |= dns.flags.RD if query.recursion_desired else 0
    told.flags |= dns.flags.CD if query.checking_disabled else 0
    if query.wants_authentic or query.wants_dnssec:
        told.flags |= found.flags & dns.flags.AD
    # The client's own letters, not those that came back.
    name = dns.name.Name((*query.labels, b""))
    told.find_rrset(
        told.question,
        name,
        dns.rdataclass.RdataClass.make(query.rdclass),
        dns.rdatatype.RdataType.make(query.rdtype),
        create=True,
    )
    told.answer, told.authority, told.additional = found.answer, found.authority, found.additional
    if query.edns:
        told.use_edns(0, dns.flags.DO if query.wants_dnssec else 0, payload)
    code = found.rcode()
    told.set_rcode(code if query.edns or code < 16 else dns.rcode.SERVFAIL)
    return told.to_wire(max_size=most, prefer_truncation=True)
