"""Asking other servers: which, in what order, for how long, and whose answers count."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest
import trio
from dns.message import Message
from trio.testing import MockClock

from container.resolver import Upstreams
from container.resolver.question import read
from container.resolver.upstreams import NoAnswer
from tests.resolver.loopback import Reply, addresses, fails, nameserver, says, told

RECORD = "example.org. 60 IN A 192.0.2.7"
OTHER = "example.org. 60 IN A 192.0.2.66"


@pytest.fixture
def mock_clock() -> MockClock:
    """Jump when nothing has happened for a while: packets on loopback take no time, but some."""
    return MockClock(autojump_threshold=0.05)


def silence(query: dns.message.Message) -> list[bytes]:
    """Say nothing."""
    return []


def question(name: str = "example.org.", rdtype: str = "A", **options: object):
    """Return a query as a client sends it."""
    return read(dns.message.make_query(name, rdtype, **options).to_wire())  # type: ignore[arg-type]


async def asked_of(
    upstreams: Upstreams, query: Message, servers: Sequence[str] = (), *, stream: bool = False
) -> dns.message.Message:
    """Return what a client reads that takes answers of any length."""
    return dns.message.from_wire(await upstreams.ask(query, servers, most=65535, stream=stream))


async def port_of_nobody() -> int:
    """Return a port where nothing listens."""
    with trio.socket.socket(type=socket.SOCK_DGRAM) as sock:
        await sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


async def test_the_hosts_servers_are_asked_and_its_file_is_read_anew(tmp_path: Path) -> None:
    conf = tmp_path / "resolv.conf"
    async with (
        nameserver(says(RECORD)) as first,
        nameserver(says(OTHER), address="127.0.0.2", port=first.port),
    ):
        upstreams = Upstreams(resolv_conf=conf, port=first.port)
        with pytest.raises(NoAnswer):
            await asked_of(upstreams, question())
        conf.write_text("nameserver 127.0.0.1\n")
        assert addresses(await asked_of(upstreams, question())) == ["192.0.2.7"]
        conf.write_text("nameserver 127.0.0.2 # another\n")
        assert addresses(await asked_of(upstreams, question())) == ["192.0.2.66"]


async def test_a_clients_own_servers_are_asked_instead_of_the_hosts(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    async with (
        nameserver(says(RECORD)) as first,
        nameserver(says(OTHER), address="127.0.0.2", port=first.port),
    ):
        upstreams = Upstreams(resolv_conf=tmp_path / "resolv.conf", port=first.port)
        assert addresses(await asked_of(upstreams, question(), ["127.0.0.2"])) == ["192.0.2.66"]
        assert first.asked == []


async def test_nobody_asks_himself() -> None:
    async with nameserver(says(RECORD)) as server:
        upstreams = Upstreams(["127.0.0.1"], port=server.port)
        with pytest.raises(NoAnswer):
            await asked_of(upstreams, question(), ["127.0.0.1"])
        assert server.asked == []


async def test_a_question_goes_on_with_its_flags_and_without_its_options() -> None:
    options = [dns.edns.GenericOption(10, b"a cookie"), dns.edns.ECSOption("198.51.100.0", 24)]
    asked = question(use_edns=0, payload=4096, options=options, want_dnssec=True)
    asked.flags |= dns.flags.CD
    async with nameserver(says(RECORD)) as server:
        await asked_of(Upstreams(port=server.port), asked, ["127.0.0.1"])
        (query,) = server.asked
        assert query.flags == dns.flags.RD | dns.flags.CD
        assert (query.edns, query.payload, query.options) == (0, 1232, ())
        assert query.ednsflags & dns.flags.DO


async def test_each_question_has_an_id_and_a_port_that_nobody_guesses() -> None:
    async with nameserver(says(RECORD)) as server:
        upstreams = Upstreams(port=server.port)
        for _ in range(40):
            await asked_of(upstreams, question(), ["127.0.0.1"])
        # By chance two may be equal, and one may follow another.
        for values in ([query.id for query in server.asked], server.came_from):
            assert len(set(values)) > 35
            assert sum(b - a == 1 for a, b in pairwise(values)) < 5


def forged(make: Reply) -> Reply:
    """Return a reply that comes after a forged one."""
    return lambda query: [*make(query), *says(RECORD)(query)]


def another_id(query: dns.message.Message) -> list[bytes]:
    response = told(query, OTHER)
    response.id ^= 1
    return [response.to_wire()]


def another_question(query: dns.message.Message) -> list[bytes]:
    other = dns.message.make_query("example.com.", "A", id=query.id)
    return [told(other, OTHER).to_wire()]


def another_type(query: dns.message.Message) -> list[bytes]:
    other = dns.message.make_query("example.org.", "AAAA", id=query.id)
    return [told(other, OTHER).to_wire()]


def no_response(query: dns.message.Message) -> list[bytes]:
    response = told(query, OTHER)
    response.flags &= ~dns.flags.QR
    return [response.to_wire()]


def rubbish(query: dns.message.Message) -> list[bytes]:
    whole = told(query, OTHER).to_wire()
    return [b"", whole[:11], whole[:20], whole[:12] + b"\xc0\x0c" * 20]


@pytest.mark.parametrize(
    "forgery", [another_id, another_question, another_type, no_response, rubbish]
)
async def test_what_does_not_answer_the_question_is_passed_over(forgery: Reply) -> None:
    async with nameserver(forged(forgery)) as server:
        found = await asked_of(Upstreams(port=server.port), question(), ["127.0.0.1"])
        assert addresses(found) == ["192.0.2.7"]


async def test_what_comes_from_another_address_is_not_even_received() -> None:
    async with nameserver(silence) as server:

        def forge_first(query: dns.message.Message) -> list[bytes]:
            with socket.socket(type=socket.SOCK_DGRAM) as forger:
                forger.bind(("127.0.0.9", server.port))
                forger.sendto(told(query, OTHER).to_wire(), ("127.0.0.1", server.came_from[-1]))
            return says(RECORD)(query)

        server.reply = forge_first
        found = await asked_of(Upstreams(port=server.port), question(), ["127.0.0.1"])
        assert addresses(found) == ["192.0.2.7"]


async def test_where_nobody_listens_the_next_is_asked_at_once(mock_clock: MockClock) -> None:
    async with nameserver(says(RECORD), address="127.0.0.2") as server:
        upstreams = Upstreams(port=server.port)
        began = trio.current_time()
        found = await asked_of(upstreams, question(), ["127.0.0.1", "127.0.0.2"])
        assert addresses(found) == ["192.0.2.7"]
        assert trio.current_time() == began


async def test_who_can_be_asked_nowhere_has_no_answer_at_once(mock_clock: MockClock) -> None:
    upstreams = Upstreams(port=await port_of_nobody())
    began = trio.current_time()
    with pytest.raises(NoAnswer):
        await asked_of(upstreams, question(), ["127.0.0.1", "127.0.0.3"])
    assert trio.current_time() == began


async def test_one_that_is_silent_is_asked_after_the_others_for_a_while(
    mock_clock: MockClock,
) -> None:
    async with (
        nameserver(silence) as first,
        nameserver(says(RECORD), address="127.0.0.2", port=first.port) as second,
    ):
        upstreams = Upstreams(port=first.port)
        servers = ["127.0.0.1", "127.0.0.2"]
        began = trio.current_time()
        await asked_of(upstreams, question(), servers)
        assert 1.0 <= trio.current_time() - began < 1.5
        await asked_of(upstreams, question(), servers)
        assert (len(first.asked), len(second.asked)) == (1, 2)
        mock_clock.jump(31)
        first.reply = says(OTHER)
        assert addresses(await asked_of(upstreams, question(), servers)) == ["192.0.2.66"]
        assert upstreams._silent == {}


async def test_one_that_loses_a_packet_is_asked_again(mock_clock: MockClock) -> None:
    async with nameserver(silence) as server:

        def late(query: dns.message.Message) -> list[bytes]:
            return says(RECORD)(query) if len(server.asked) == 3 else []

        server.reply = late
        upstreams = Upstreams(port=server.port)
        assert addresses(await asked_of(upstreams, question(), ["127.0.0.1"])) == ["192.0.2.7"]
        assert len({query.id for query in server.asked}) > 1


async def test_silence_of_all_ends_in_less_than_five_seconds(mock_clock: MockClock) -> None:
    async with (
        nameserver(silence) as first,
        nameserver(silence, address="127.0.0.2", port=first.port),
    ):
        upstreams = Upstreams(port=first.port)
        began = trio.current_time()
        with pytest.raises(NoAnswer):
            await asked_of(upstreams, question(), ["127.0.0.1", "127.0.0.2"])
        assert 4.0 < trio.current_time() - began < 5.0
        assert upstreams.in_flight == 0


@pytest.mark.parametrize("code", [dns.rcode.SERVFAIL, dns.rcode.REFUSED])
async def test_one_that_can_not_answer_is_passed_over_and_told_of_if_none_can(
    code: dns.rcode.Rcode,
) -> None:
    async with (
        nameserver(fails(code)) as first,
        nameserver(says(RECORD), address="127.0.0.2", port=first.port) as second,
    ):
        upstreams = Upstreams(port=first.port)
        servers = ["127.0.0.1", "127.0.0.2"]
        assert addresses(await asked_of(upstreams, question(), servers)) == ["192.0.2.7"]
        second.reply = fails(dns.rcode.SERVFAIL)
        assert (await asked_of(upstreams, question(), servers)).rcode() == code


async def test_that_a_name_does_not_exist_is_an_answer() -> None:
    async with (
        nameserver(fails(dns.rcode.NXDOMAIN)) as first,
        nameserver(says(RECORD), address="127.0.0.2", port=first.port) as second,
    ):
        found = await asked_of(Upstreams(port=first.port), question(), ["127.0.0.1", "127.0.0.2"])
        assert found.rcode() == dns.rcode.NXDOMAIN
        assert second.asked == []


async def test_one_that_knows_no_edns_is_asked_without() -> None:
    def old(query: dns.message.Message) -> list[bytes]:
        return fails(dns.rcode.FORMERR)(query) if query.edns >= 0 else says(RECORD)(query)

    async with nameserver(old) as server:
        asked = question(use_edns=0)
        found = await asked_of(Upstreams(port=server.port), asked, ["127.0.0.1"])
        assert addresses(found) == ["192.0.2.7"]


def cut(query: dns.message.Message) -> list[bytes]:
    """Say that the answer is longer than this."""
    response = told(query, OTHER)
    response.flags |= dns.flags.TC
    return [response.to_wire()]


MANY = [f"example.org. 60 IN A 192.0.2.{i}" for i in range(1, 201)]


async def test_an_answer_that_was_cut_is_asked_for_by_tcp_for_who_came_by_it() -> None:
    async with nameserver(cut, by_tcp=lambda query: told(query, *MANY).to_wire()) as server:
        found = await asked_of(Upstreams(port=server.port), question(), ["127.0.0.1"], stream=True)
        assert len(addresses(found)) == 200
        (asked,) = server.asked_by_tcp
        assert asked.question == server.asked[0].question
        part = await asked_of(Upstreams(port=server.port), question(), ["127.0.0.1"])
        assert addresses(part) == ["192.0.2.66"]
        assert part.flags & dns.flags.TC
        assert len(server.asked_by_tcp) == 1


@pytest.mark.parametrize("by_tcp", [None, lambda query: b"rubbish", lambda query: b""])
async def test_part_of_an_answer_is_better_than_none(by_tcp: object) -> None:
    async with nameserver(cut, by_tcp=by_tcp) as server:  # type: ignore[arg-type]
        found = await asked_of(Upstreams(port=server.port), question(), ["127.0.0.1"], stream=True)
        assert addresses(found) == ["192.0.2.66"]
        assert found.flags & dns.flags.TC


async def test_who_asks_what_is_under_way_waits_for_the_same_answer(
    mock_clock: MockClock,
) -> None:
    answers: list[bytes] = []

    async with nameserver(silence) as server, trio.open_nursery() as nursery:
        upstreams = Upstreams(port=server.port)

        async def ask(query: Message) -> None:
            answers.append(await upstreams.ask(query, ["127.0.0.1"], most=1232))

        for _ in range(10):
            nursery.start_soon(ask, question())
        nursery.start_soon(ask, question(want_dnssec=True))
        nursery.start_soon(ask, question(rdtype="AAAA"))
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert upstreams.in_flight == len(server.asked) == 3
        # It is heard at the second try.
        server.reply = says(RECORD)
    assert len(answers) == 12
    assert len({answer[:2] for answer in answers}) > 3
    assert len({answer[2:] for answer in answers}) == 3


async def test_a_loop_ends_with_the_first_question(mock_clock: MockClock) -> None:
    """The host's server is a container whose own questions come to us."""
    async with nameserver(silence) as server, trio.open_nursery() as nursery:
        upstreams = Upstreams(port=server.port)
        ends: list[float] = []

        async def ask() -> None:
            with pytest.raises(NoAnswer):
                await asked_of(upstreams, question(), ["127.0.0.1"])
            ends.append(trio.current_time())

        def ask_us(query: dns.message.Message) -> list[bytes]:
            nursery.start_soon(ask)
            return []

        server.reply = ask_us
        nursery.start_soon(ask)
    assert len(server.asked) == 3
    assert len(ends) == 4
    assert max(ends) == min(ends)


async def test_who_is_cancelled_leaves_nothing_under_way() -> None:
    async with nameserver(silence) as server, trio.open_nursery() as nursery:
        upstreams = Upstreams(port=server.port)
        others: list[str] = []

        async def wait_too() -> None:
            with pytest.raises(NoAnswer):
                await asked_of(upstreams, question(), ["127.0.0.1"])
            others.append("told")

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(asked_of, upstreams, question(), ["127.0.0.1"])
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(wait_too)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert others == ["told"]
        assert upstreams.in_flight == 0
