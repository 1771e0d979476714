"""The corpus of hostile packets, sent to a server on real sockets from both of its sides."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import pytest
import trio

from container.resolver import Entry, Names, Upstreams
from tests.resolver.loopback import addresses, nameserver, received, served

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"
A = "127.0.1.2"


def packets(target: str) -> list[bytes]:
    """Return what the corpus has for a side: whole, cut, and with bits turned."""
    dice = random.Random(target)
    found: list[bytes] = []
    for path in sorted((CORPUS / target).iterdir()):
        packet = path.read_bytes()[1:]
        found.append(packet)
        if packet:
            found.append(packet[: dice.randrange(len(packet))])
            turned = bytearray(packet)
            turned[dice.randrange(len(turned))] ^= 1 << dice.randrange(8)
            found.append(bytes(turned))
    return found


def names(*nameservers: str) -> Names:
    """Return the names of a network on loopback."""
    made = Names(["127.0.1.0/24"], ["127.0.0.1"])
    made.put(Entry("a", (A,), ("a",), nameservers=nameservers))
    return made


@pytest.fixture
def nothing_logged(caplog: pytest.LogCaptureFixture):
    """See that no packet was a bug's."""
    with caplog.at_level(logging.WARNING):
        yield
    assert not caplog.records


@pytest.mark.usefixtures("nothing_logged")
async def test_hostile_queries_are_survived_by_udp_and_by_tcp() -> None:
    async with served(names(), Upstreams(resolv_conf=Path("/nonexistent"))) as ours:
        async with ours.client(A) as client:
            for packet in packets("dns_query"):
                await client.send(packet)
        for packet in packets("dns_query"):
            async with await ours.connect(A) as stream:
                await stream.send_all(len(packet).to_bytes(2, "big") + packet)
                await stream.send_eof()
                with trio.fail_after(60):
                    await received(stream)
        assert addresses(await ours.ask("a", source=A)) == [A]
        found = ours.server.statistics()
        assert found.queries > 150
        assert found.under_way == found.waiting == 0


@pytest.mark.usefixtures("nothing_logged")
async def test_hostile_answers_are_survived_by_udp_and_by_tcp() -> None:
    hostile = iter([])

    def renumbered(query: dns.message.Message) -> bytes:
        packet = next(hostile, b"")
        return query.id.to_bytes(2, "big") + packet[2:]

    def by_udp(query: dns.message.Message) -> list[bytes]:
        if str(query.question[0].name) == "end.example.":
            response = dns.message.make_response(query)
            return [response.to_wire()]
        answer = renumbered(query)
        if str(query.question[0].name) == "tcp.example.":
            response = dns.message.make_response(query)
            response.flags |= dns.flags.TC
            answer = response.to_wire()
        # Else it would be waited for.
        last = dns.message.make_response(query)
        last.set_rcode(dns.rcode.SERVFAIL)
        return [answer, last.to_wire()]

    async with (
        nameserver(by_udp, by_tcp=renumbered) as upstream,
        served(names(upstream.address), Upstreams(port=upstream.port)) as ours,
    ):
        for name in ("example.org", "tcp.example"):
            hostile = iter(packets("dns_answer"))
            async with ours.client(A) as client:
                for number, _ in enumerate(packets("dns_answer")):
                    query = dns.message.make_query(name, "A", id=number).to_wire()
                    await client.send(query)
                    # What is inside of records is for the client to read.
                    with trio.fail_after(60):
                        answer = await client.recv(65535)
                    assert answer[:2] == query[:2]
        assert next(hostile, None) is None
        assert (await ours.ask("end.example", source=A)).rcode() == 0
        assert ours.server.statistics().under_way == 0
