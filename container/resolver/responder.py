"""What is said to a query: known at once, or asked of others. No sockets here.

| asked for | answer |
|---|---|
| a name of ours, A, AAAA or ANY | its addresses of the family; none: NODATA (no error or record) |
| a name of ours, another type | NODATA |
| the name of an address in our range | PTR, or NXDOMAIN |
| `localhost` and names under it | loopback. Source: RFC 6761, section 6.3 |
| another name in `container.internal` | NXDOMAIN |
| a name of one label that is not ours | NXDOMAIN, unless the client has nameservers of its own |
| anything else, of a client that forwards | what the nameservers say; SERVFAIL if none does |
| anything else, of a client that does not | NXDOMAIN |

A name of one label is not forwarded: the name of a container that is down would be told to the
internet, and might get a stranger's address there. What a resolver asks about a top-level domain
(NS, SOA, DS, DNSKEY) goes on. Where nothing is forwarded, other names are said not to exist, not
refused: musl takes REFUSED for silence and waits for its time to pass, and the C library reports a
failure that is worth another try. No negative answer has an SOA, so that none is kept: the next
container may have that name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import trio
from attrs import define, frozen
from dns.flags import Flag
from dns.message import Message
from dns.rcode import Rcode
from dns.rdata import Rdata
from dns.rdatatype import RdataType

from container.ipc.errors import ContainerError
from container.resolver import question
from container.resolver.answers import Answers, Client
from container.resolver.question import Refused
from container.resolver.ready import Ready
from container.resolver.upstreams import NoAnswer, Upstreams

_log = logging.getLogger(__name__)

TTL = 5
STREAM = 65535
"""Bytes of an answer over TCP."""
_OURS = ".container.internal"
_LOOPBACK = ("127.0.0.1", "::1")
_OF_TOP_LEVEL = frozenset((RdataType.NS, RdataType.SOA, RdataType.DS, RdataType.DNSKEY))
_LOGGED_EVERY = 1.0


@define
class Counted:
    """How queries ended; see `Statistics`."""

    queries: int = 0
    answered: int = 0
    forwarded: int = 0
    refused: int = 0
    dropped: int = 0
    failures: int = 0


@frozen
class Later:
    """A query that somebody else has to be asked about."""

    query: Message
    client: Client


class Responder:
    """Answers queries, whatever they came by.

    Args:
        answers: Who knows the names.
        upstreams: Who is asked for others.
    """

    def __init__(self, answers: Answers, upstreams: Upstreams) -> None:
        self._answers = answers
        self._upstreams = upstreams
        self._ready = Ready()
        self._turn = 0
        self._logged = float("-inf")
        self.counted = Counted()

    def answer(self, packet: bytes, source: str, most: int) -> bytes | Later | None:
        """Return what is said to a packet at once; None is nothing. Never raises.

        Args:
            packet: Any bytes.
            source: The address of who sent them.
            most: Bytes that the answer may have, unless the packet says less.
        """
        self.counted.queries += 1
        query = None
        try:
            client = self._answers.client(source)
            if client is None:
                self.counted.dropped += 1
                return None
            # Who has several addresses to choose from should not always take the same.
            self._turn += 1
            asker = (client, self._search(client), most)
            found = self._ready.find(self._answers.generation, packet, asker, self._turn)
            if found is None:
                query = question.read(packet)
                made = self._at_once(query, client, most)
                if isinstance(made, Later):
                    return made
                found, ways = made
                # Names that nobody has are without number, and would take all the room.
                if ways:
                    self._ready.keep(packet, asker, self._turn, ways, found)
        except Refused as refused:
            if refused.reply is None:
                self.counted.dropped += 1
            else:
                self.counted.refused += 1
            return refused.reply
        except Exception:
            self._note_failure()
            return None if query is None else question.answer(query, Rcode.SERVFAIL)
        self.counted.answered += 1
        return found

    async def resolve(self, later: Later, source: str, most: int) -> bytes:
        """Return the answer that others have; SERVFAIL if they have none."""
        self.counted.forwarded += 1
        query, client = later.query, later.client
        try:
            if client.elsewhere:
                found = await self._elsewhere(query, source, client, most)
                found = found or self._without_asking(query, client)
                if found is not None:
                    return found
            return await self._upstreams.ask(
                query, client.nameservers, most=_room(query, most), stream=most == STREAM
            )
        except (NoAnswer, ContainerError):
            return question.answer(query, Rcode.SERVFAIL)
        except Exception:
            self._note_failure()
            return question.answer(query, Rcode.SERVFAIL)

    def _at_once(self, query: Message, client: Client, most: int) -> tuple[bytes, int] | Later:
        """Return an answer, and how many addresses could be the first of it; 0: not to be kept."""
        address = question.reversed_address(query)
        if address is not None:
            names = self._answers.names_of(address)
            if names is not None:
                return _pointers(query, names, most), 1
        else:
            for name in self._candidates(query, client):
                if name == "localhost" or name.endswith(".localhost"):
                    return self._records(query, _LOOPBACK, most)
                addresses = self._answers.addresses(name)
                if addresses is not None:
                    return self._records(query, addresses, most)
        if not client.elsewhere:
            found = self._without_asking(query, client)
            if found is not None:
                return found, 0
        return Later(query, client)

    def _without_asking(self, query: Message, client: Client) -> bytes | None:
        """Return the answer of a name that no network of ours has, if nobody need be asked."""
        (asked,) = query.question
        ours = question.plain_name(query).endswith(_OURS)
        # The root's label counts, too.
        alone = (
            len(asked.name) == 2 and asked.rdtype not in _OF_TOP_LEVEL and not client.nameservers
        )
        if client.forwards and not ours and not alone:
            return None
        return question.answer(query, Rcode.NXDOMAIN)

    async def _elsewhere(
        self, query: Message, source: str, client: Client, most: int
    ) -> bytes | None:
        """Return the answer of another network that the client is in, if one knows the name.

        Raises:
            ContainerError: one does not tell, and nobody else may be asked.
        """
        try:
            if (address := question.reversed_address(query)) is not None:
                names = await self._answers.names_elsewhere(source, address)
                return None if names is None else _pointers(query, names, most)
            for name in self._candidates(query, client):
                addresses = await self._answers.addresses_elsewhere(source, name)
                if addresses is not None:
                    return self._records(query, addresses, most)[0]
        except ContainerError:
            # That it does not exist can't be said; a name of the internet is asked for there, so
            # that a network that is wedged does not cut its containers off.
            if self._without_asking(query, client) is not None:
                raise
        return None

    def _search(self, client: Client) -> tuple[str, ...]:
        return client.search or self._upstreams.search()

    def _candidates(self, query: Message, client: Client) -> Iterator[str]:
        """Give a name as it was asked for, then without each search domain that it ends in."""
        name = question.plain_name(query)
        yield name
        for domain in self._search(client):
            bare = name.removesuffix("." + domain)
            if bare and bare != name:
                yield bare

    def _records(self, query: Message, addresses: Sequence[str], most: int) -> tuple[bytes, int]:
        rdtype = query.question[0].rdtype
        data = [question.address_data(address) for address in addresses]
        if rdtype != RdataType.ANY:
            data = [one for one in data if one.rdtype == rdtype]
        ways = max(1, len(data))
        first = self._turn % ways
        return _told(query, data[first:] + data[:first], most), ways

    def _note_failure(self) -> None:
        """Log what is being handled, once a second at most: a packet can be sent often."""
        self.counted.failures += 1
        now = trio.current_time()
        if now - self._logged >= _LOGGED_EVERY:
            self._logged = now
            _log.exception("could not answer a query")


def _pointers(query: Message, names: Sequence[str], most: int) -> bytes:
    if not names:
        return question.answer(query, Rcode.NXDOMAIN, flags=Flag.AA)
    if query.question[0].rdtype not in (RdataType.PTR, RdataType.ANY):
        return _told(query, (), most)
    # One alone, its own name: who compares it with what he expects reads the first.
    data = next((data for name in names if (data := question.pointer(name))), None)
    return _told(query, () if data is None else (data,), most)


def _told(query: Message, data: Sequence[Rdata], most: int) -> bytes:
    return question.answer(query, data=data, ttl=TTL, most=_room(query, most), flags=Flag.AA)


def _room(query: Message, most: int) -> int:
    if most == STREAM:
        return most
    return min(most, max(query.payload, question.SMALLEST))
