"""What is said to a query: the table of rules, line by line."""

from __future__ import annotations

import logging
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import pytest
import trio
import trio.testing

from container.ipc import Unavailable
from container.resolver import Client, Entry, Found, Names, Upstreams
from container.resolver.responder import STREAM, Later, Responder
from tests.resolver.loopback import addresses, nameserver, says

SUBNETS = ("10.89.0.0/24", "fd00::/64")
WEB = Entry("k1", ("10.89.0.2", "fd00::2"), ("web", "www"), search=("example.com", "lan"))
DB = Entry("k2", ("10.89.0.3",), ("db", "www", "db.internal"))
ASKER = "10.89.0.2"


def responder(*entries: Entry, resolv_conf: Path = Path("/nonexistent"), **options: object):
    """Return a responder of a network with these; nobody outside can be asked."""
    names = Names(SUBNETS, ("10.89.0.1", "fd00::1"), **options)  # type: ignore[arg-type]
    for entry in entries or (WEB, DB):
        names.put(entry)
    return Responder(names, Upstreams(resolv_conf=resolv_conf))


def at_once(
    made: Responder, name: str, rdtype: str = "A", source: str = ASKER, **options: object
) -> dns.message.Message:
    """Return what is said without asking anybody."""
    query = dns.message.make_query(name, rdtype, **options)  # type: ignore[arg-type]
    found = made.answer(query.to_wire(), source, 1232)
    assert isinstance(found, bytes), "it would be forwarded"
    response = dns.message.from_wire(found)
    assert query.is_response(response)
    assert response.flags & dns.flags.RA
    return response


def is_forwarded(made: Responder, name: str, rdtype: str = "A", source: str = ASKER) -> bool:
    """Is somebody else asked?"""
    return isinstance(
        made.answer(dns.message.make_query(name, rdtype).to_wire(), source, 1232), Later
    )


@pytest.mark.parametrize(
    ("name", "rdtype", "expected"),
    [
        ("web", "A", ["10.89.0.2"]),
        ("web.", "AAAA", ["fd00::2"]),
        ("WEB", "ANY", ["10.89.0.2", "fd00::2"]),
        ("www", "A", ["10.89.0.2", "10.89.0.3"]),
        ("db.internal", "A", ["10.89.0.3"]),
        ("web.example.com", "A", ["10.89.0.2"]),
        ("Web.LAN.", "A", ["10.89.0.2"]),
        ("db.internal.lan", "A", ["10.89.0.3"]),
        ("host.container.internal", "A", ["10.89.0.1"]),
        ("host.container.internal", "AAAA", ["fd00::1"]),
        ("localhost", "A", ["127.0.0.1"]),
        ("any.localhost", "AAAA", ["::1"]),
        ("2.0.89.10.in-addr.arpa", "PTR", ["web."]),
        ("2.0.89.10.in-addr.arpa", "ANY", ["web."]),
        ("1.0.89.10.in-addr.arpa", "PTR", ["host.container.internal."]),
        ("2." + "0." * 29 + "d.f.ip6.arpa", "PTR", ["web."]),
    ],
)
def test_a_name_of_ours_is_answered(name: str, rdtype: str, expected: list[str]) -> None:
    response = at_once(responder(), name, rdtype)
    assert response.rcode() == dns.rcode.NOERROR
    assert response.flags & dns.flags.AA
    assert addresses(response) == expected
    assert all(rrset.ttl == 5 for rrset in response.answer)


@pytest.mark.parametrize(
    ("name", "rdtype"),
    [
        ("db", "AAAA"),
        ("db.lan", "AAAA"),
        ("web", "MX"),
        ("web", "HTTPS"),
        ("web", "TXT"),
        ("web", "TYPE65000"),
        ("2.0.89.10.in-addr.arpa", "A"),
    ],
)
def test_a_name_of_ours_has_no_data_of_what_it_has_not(name: str, rdtype: str) -> None:
    response = at_once(responder(), name, rdtype)
    assert response.rcode() == dns.rcode.NOERROR
    assert response.flags & dns.flags.AA
    assert (response.answer, response.authority) == ([], [])


@pytest.mark.parametrize(
    ("name", "rdtype"),
    [
        ("nobody", "A"),
        ("nobody", "HTTPS"),
        ("com", "ANY"),
        ("lan", "A"),
        ("gateway.container.internal", "A"),
        ("77.0.89.10.in-addr.arpa", "PTR"),
    ],
)
def test_a_name_that_nobody_can_have_does_not_exist(name: str, rdtype: str) -> None:
    response = at_once(responder(), name, rdtype)
    assert response.rcode() == dns.rcode.NXDOMAIN
    assert (response.answer, response.authority) == ([], [])


@pytest.mark.parametrize(
    ("name", "rdtype"),
    [
        ("example.org", "A"),
        ("web.example.org", "A"),
        ("nobody.example.com", "A"),
        ("webexample.com", "A"),
        ("com", "NS"),
        ("com", "DS"),
        ("com", "DNSKEY"),
        (".", "NS"),
        ("2.0.90.10.in-addr.arpa", "PTR"),
        ("0.89.10.in-addr.arpa", "SOA"),
        (r"a\.b.example", "A"),
    ],
)
def test_a_name_of_others_is_forwarded(name: str, rdtype: str) -> None:
    assert is_forwarded(responder(), name, rdtype)


def test_a_name_of_one_label_goes_to_the_servers_that_a_container_was_given() -> None:
    made = responder(Entry("k", (ASKER,), ("web",), nameservers=("192.0.2.53",)))
    assert is_forwarded(made, "nas")
    assert not is_forwarded(made, "gateway.container.internal")


def test_search_domains_are_the_askers_own() -> None:
    assert is_forwarded(responder(), "web.lan", source="10.89.0.3")


def test_who_has_no_search_domains_has_the_hosts(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text("search corp.example\n")
    made = responder(resolv_conf=tmp_path / "resolv.conf")
    assert addresses(at_once(made, "db.corp.example", source="10.89.0.3")) == ["10.89.0.3"]
    assert is_forwarded(made, "db.corp.example", source="10.89.0.2")


@pytest.mark.parametrize(
    "name", ["example.org", "nobody", "2.0.90.10.in-addr.arpa", ".", "nobody.example.com"]
)
def test_in_an_internal_network_other_names_do_not_exist(name: str) -> None:
    made = responder(internal=True)
    assert at_once(made, name, "NS").rcode() == dns.rcode.NXDOMAIN
    assert addresses(at_once(made, "web.lan")) == ["10.89.0.2"]


def test_addresses_of_one_name_take_turns_at_being_first() -> None:
    made = responder()
    query = dns.message.make_query("www", "A").to_wire()
    firsts: set[str] = set()
    for _ in range(4):
        found = made.answer(query, ASKER, 1232)
        assert isinstance(found, bytes)
        response = dns.message.from_wire(found, one_rr_per_rrset=True)
        firsts.add(str(response.answer[0][0]))
    assert firsts == {"10.89.0.2", "10.89.0.3"}


def test_an_answer_is_cut_to_what_the_client_takes_and_whole_in_a_stream() -> None:
    many = [Entry(str(i), (f"10.89.0.{i}",), ("many",)) for i in range(2, 202)]
    made = responder(*many)
    sizes: dict[object, int] = {}
    for options in ({}, {"use_edns": 0, "payload": 900}, {"use_edns": 0, "payload": 65535}):
        response = at_once(made, "many", **options)
        assert response.flags & dns.flags.TC
        sizes[options.get("payload")] = len(response.to_wire())
    assert 450 < sizes[None] <= 512 < sizes[900] <= 900 < sizes[65535] <= 1232
    found = made.answer(dns.message.make_query("many", "A").to_wire(), ASKER, STREAM)
    assert isinstance(found, bytes)
    assert len(addresses(dns.message.from_wire(found))) == 200


def test_who_is_not_in_the_network_is_told_nothing() -> None:
    made = responder()
    query = dns.message.make_query("web", "A").to_wire()
    assert made.answer(query, "192.0.2.9", 1232) is None
    assert made.answer(b"no query", "192.0.2.9", 1232) is None
    assert (made.counted.queries, made.counted.dropped) == (2, 2)


def test_a_bug_of_who_knows_the_names_is_a_failure_that_is_logged_once_a_second(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Names):
        def addresses(self, name: str) -> tuple[str, ...] | None:
            raise KeyError("a bug")

    made = Responder(Broken(SUBNETS, ()), Upstreams())

    async def ask() -> None:
        for _ in range(10):
            assert at_once(made, "web").rcode() == dns.rcode.SERVFAIL

    with caplog.at_level(logging.ERROR):
        trio.run(ask, clock=trio.testing.MockClock())
    assert made.counted.failures == 10
    assert len(caplog.records) == 1


# Names of other networks


def in_two_networks(*, internal: bool = False, silent: bool = False) -> Responder:
    """Return a responder for somebody who is in another network, which knows `cache`."""

    async def ask(network: str, name: str) -> tuple[Found, ...]:
        await trio.lowlevel.checkpoint()
        if silent:
            raise Unavailable("its helper is gone")
        found = (Found("cache", ("10.90.0.5",)),)
        return found if name in ("cache", "10.90.0.5") else ()

    entry = Entry("k", (ASKER,), ("web",), search=("lan",), neighbours=("other",))
    return responder(entry, internal=internal, ask=ask)


async def resolved(made: Responder, name: str, rdtype: str = "A") -> dns.message.Message:
    """Return what is said after others were asked."""
    query = dns.message.make_query(name, rdtype)
    later = made.answer(query.to_wire(), ASKER, 1232)
    assert isinstance(later, Later)
    return dns.message.from_wire(await made.resolve(later, ASKER, 1232))


@pytest.mark.parametrize(
    ("name", "rdtype", "expected"),
    [
        ("cache", "A", ["10.90.0.5"]),
        ("CACHE.lan", "A", ["10.90.0.5"]),
        ("cache", "AAAA", []),
        ("5.0.90.10.in-addr.arpa", "PTR", ["cache."]),
    ],
)
async def test_a_name_of_another_network_is_answered(
    name: str, rdtype: str, expected: list[str]
) -> None:
    for internal in (False, True):
        response = await resolved(in_two_networks(internal=internal), name, rdtype)
        assert response.rcode() == dns.rcode.NOERROR
        assert addresses(response) == expected


def test_a_name_of_ours_is_answered_without_asking_another_network() -> None:
    assert addresses(at_once(in_two_networks(silent=True), "web")) == ["10.89.0.2"]


async def test_a_name_that_no_network_has_does_not_exist_and_one_outside_is_forwarded() -> None:
    assert (await resolved(in_two_networks(), "nobody")).rcode() == dns.rcode.NXDOMAIN
    made = in_two_networks(internal=True)
    assert (await resolved(made, "example.org")).rcode() == dns.rcode.NXDOMAIN
    # Nobody can be asked here.
    assert (await resolved(in_two_networks(), "example.org")).rcode() == dns.rcode.SERVFAIL


async def test_a_network_that_does_not_tell_leaves_open_whether_a_name_exists() -> None:
    assert (await resolved(in_two_networks(silent=True), "nobody")).rcode() == dns.rcode.SERVFAIL


async def test_a_network_that_does_not_tell_does_not_cut_off_the_internet(tmp_path: Path) -> None:
    made = in_two_networks(silent=True)
    async with nameserver(says("example.org. 60 IN A 192.0.2.7")) as server:
        names = made._answers
        assert isinstance(names, Names)
        names.put(
            Entry("k", (ASKER,), ("web",), nameservers=(server.address,), neighbours=("other",))
        )
        made._upstreams = Upstreams(port=server.port)
        assert addresses(await resolved(made, "example.org")) == ["192.0.2.7"]


def test_the_defaults_of_a_client_grant_what_most_have() -> None:
    assert Client() == Client(search=(), nameservers=(), forwards=True, elsewhere=False)
