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

from container.ipc.errors import ContainerError
from container.resolver import question
from container.resolver.answers import Answers, Client
from container.resolver.question import Code, Query, Refused
from container.resolver.relaying import relayed
from container.resolver.upstreams import NoAnswer, Upstreams

_log = logging.getLogger(__name__)

TTL = 5
STREAM = 65535
"""Bytes of an answer over TCP."""
_OURS = ".container.internal"
_LOOPBACK = ("127.0.0.1", "::1")
_OF_TOP_LEVEL = frozenset((question.NS, question.SOA, question.DS, question.DNSKEY))
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

    query: Query
    client: Client


class Responder:
    """Answers queries, whatever they came by.

    Args:
        answers: Who knows the names.
        upstreams: Who is asked for others.
        payload: Bytes of one answer over UDP to whoever takes more.
    """

    def __init__(self, answers: Answers, upstreams: Upstreams, *, payload: int) -> None:
        self._answers = answers
        self._upstreams = upstreams
        self._payload = payload
        self._rotation = 0
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
            query = question.read(packet)
            found = self._at_once(query, source, client, most)
        except Refused as refused:
            if refused.reply is None:
                self.counted.dropped += 1
            else:
                self.counted.refused += 1
            return refused.reply
        except Exception:
            self._note_failure()
            return None if query is None else question.answer(query, Code.SERVFAIL)
        if isinstance(found, bytes):
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
            reply = await self._upstreams.ask(query, client.nameservers)
            return relayed(reply, query, most=self._room(query, most), payload=self._payload)
        except (NoAnswer, ContainerError):
            return question.answer(query, Code.SERVFAIL)
        except Exception:
            self._note_failure()
            return question.answer(query, Code.SERVFAIL)

    def _at_once(self, query: Query, source: str, client: Client, most: int) -> bytes | Later:
        address = question.reversed_address(query)
        if address is not None:
            names = self._answers.names_of(source, address)
            if names is not None:
                return self._pointers(query, names, most)
        else:
            for name in self._candidates(query.name, client):
                if name == "localhost" or name.endswith(".localhost"):
                    return self._records(query, _LOOPBACK, most)
                addresses = self._answers.addresses(source, name)
                if addresses is not None:
                    return self._records(query, addresses, most)
        if not client.elsewhere:
            found = self._without_asking(query, client)
            if found is not None:
                return found
        return Later(query, client)

    def _without_asking(self, query: Query, client: Client) -> bytes | None:
        """Return the answer of a name that no network of ours has, if nobody need be asked."""
        ours = query.name is not None and query.name.endswith(_OURS)
        alone = (
            len(query.labels) == 1 and query.rdtype not in _OF_TOP_LEVEL and not client.nameservers
        )
        if client.forwards and not ours and not alone:
            return None
        return question.answer(query, Code.NXDOMAIN, payload=self._payload)

    async def _elsewhere(
        self, query: Query, source: str, client: Client, most: int
    ) -> bytes | None:
        """Return the answer of another network that the client is in, if one knows the name.

        Raises:
            ContainerError: one does not tell, and nobody else may be asked.
        """
        try:
            if (address := question.reversed_address(query)) is not None:
                names = await self._answers.names_elsewhere(source, address)
                return None if names is None else self._pointers(query, names, most)
            for name in self._candidates(query.name, client):
                addresses = await self._answers.addresses_elsewhere(source, name)
                if addresses is not None:
                    return self._records(query, addresses, most)
        except ContainerError:
            # That it does not exist can't be said; a name of the internet is asked for there, so
            # that a network that is wedged does not cut its containers off.
            if self._without_asking(query, client) is not None:
                raise
        return None

    def _candidates(self, name: str | None, client: Client) -> Iterator[str]:
        """Give a name as it was asked for, then without each search domain that it ends in."""
        if name is None:
            return
        yield name
        for domain in client.search or self._upstreams.search():
            bare = name.removesuffix("." + domain)
            if bare and bare != name:
                yield bare

    def _records(self, query: Query, addresses: Sequence[str], most: int) -> bytes:
        data = [question.packed(address) for address in addresses]
        if query.rdtype != question.ANY:
            data = [record for record in data if record[0] == query.rdtype]
        if len(data) > 1:
            # Who takes the first one of several should not always take the same.
            self._rotation += 1
            first = self._rotation % len(data)
            data = data[first:] + data[:first]
        return self._told(query, data, most)

    def _pointers(self, query: Query, names: Sequence[str], most: int) -> bytes:
        if not names:
            return question.answer(query, Code.NXDOMAIN, payload=self._payload, authoritative=True)
        if query.rdtype not in (question.PTR, question.ANY):
            return self._told(query, (), most)
        # One alone, its own name: who compares it with what he expects reads the first.
        data = next((data for name in names if (data := question.pointer(name))), None)
        return self._told(query, () if data is None else [(question.PTR, data)], most)

    def _told(self, query: Query, data: Sequence[tuple[int, bytes]], most: int) -> bytes:
        return question.answer(
            query,
            data=data,
            ttl=TTL,
            most=self._room(query, most),
            payload=self._payload,
            authoritative=True,
        )

    def _room(self, query: Query, most: int) -> int:
        return most if most == STREAM else min(most, query.payload)

    def _note_failure(self) -> None:
        """Log what is being handled, once a second at most: a packet can be sent often."""
        self.counted.failures += 1
        now = trio.current_time()
        if now - self._logged >= _LOGGED_EVERY:
            self._logged = now
            _log.exception("could not answer a query")
