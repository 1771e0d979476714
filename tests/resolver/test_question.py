"""Queries that are read, those that are refused, and the answers that are written."""

from __future__ import annotations

import ipaddress
import struct

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.wire
import pytest
from dns.flags import Flag
from dns.rcode import Rcode
from hypothesis import given, settings
from hypothesis import strategies as st

from container.resolver import question
from container.resolver.question import Refused, address_data, answer, plain_name, pointer, read

LABEL = st.binary(min_size=1, max_size=63)
NAMES = (
    st.lists(LABEL, max_size=8)
    .filter(lambda labels: sum(len(label) + 1 for label in labels) < 255)
    .map(lambda labels: dns.name.Name((*labels, b"")))
)


def query(name: str = "web.", rdtype: str = "A", **options: object) -> bytes:
    """Return a query of the library's."""
    return dns.message.make_query(name, rdtype, id=0x1234, **options).to_wire()  # type: ignore[arg-type]


def refusal(packet: bytes) -> dns.message.Message | None:
    """Return what a packet is refused with."""
    with pytest.raises(Refused) as caught:
        read(packet)
    reply = caught.value.reply
    return None if reply is None else dns.message.from_wire(reply)


@settings(max_examples=60, deadline=None)
@given(NAMES, st.integers(1, 65535), st.booleans(), st.booleans(), st.integers(0, 65535))
def test_a_query_of_any_name_and_type_is_read_or_refused(
    name: dns.name.Name, rdtype: int, edns: bool, dnssec: bool, payload: int
) -> None:
    wire = dns.message.make_query(
        name,
        dns.rdatatype.RdataType.make(rdtype),
        use_edns=0 if edns or dnssec else False,
        want_dnssec=dnssec,
        payload=payload,
    ).to_wire()
    if rdtype in (41, 249, 250, 251, 252):
        assert refusal(wire) is not None
        return
    found = read(wire)
    (asked,) = found.question
    assert asked.name.labels == name.labels
    assert (asked.rdtype, asked.rdclass) == (rdtype, dns.rdataclass.IN)
    assert (found.edns == 0) == (edns or dnssec)
    assert question.wants_dnssec(found) == dnssec
    assert found.flags & Flag.RD


@settings(max_examples=60, deadline=None)
@given(NAMES, st.lists(st.ip_addresses(), max_size=40), st.booleans(), st.integers(512, 2000))
def test_an_answer_is_read_by_the_library_and_is_cut_where_it_is_too_long(
    name: dns.name.Name, addresses: list[object], edns: bool, most: int
) -> None:
    asked = dns.message.make_query(name, "ANY", use_edns=0 if edns else False)
    data = [address_data(str(address)) for address in addresses]
    wire = answer(read(asked.to_wire()), data=data, ttl=5, most=most, flags=Flag.AA)
    assert len(wire) <= most
    found = dns.message.from_wire(wire, one_rr_per_rrset=True)
    assert asked.is_response(found)
    assert found.flags & dns.flags.AA
    assert (found.edns == 0) == edns
    told = [ipaddress.ip_address(str(rrset[0])) for rrset in found.answer]
    assert told == addresses[: len(told)]
    assert bool(found.flags & dns.flags.TC) == (len(told) < len(addresses))
    assert all(rrset.ttl == 5 and rrset.name == name for rrset in found.answer)


def test_the_question_comes_back_in_the_letters_that_it_was_asked_in() -> None:
    found = read(query("wEb.ExAmPle."))
    assert plain_name(found) == "web.example"
    assert b"\x03wEb\x07ExAmPle\x00" in answer(found)


@pytest.mark.parametrize("name", [r"a\.b.example.", r"\228.example."])
def test_a_label_with_a_dot_or_beyond_ascii_is_no_name_of_ours(name: str) -> None:
    assert "\\" in plain_name(read(query(name)))


@pytest.mark.parametrize("packet", [b"", b"\0" * 11, b"\0\0\x80\0\0\1" + b"\0" * 6])
def test_what_is_too_short_or_an_answer_is_not_answered(packet: bytes) -> None:
    assert refusal(packet) is None


@pytest.mark.parametrize("opcode", range(1, 16))
def test_other_operations_are_not_implemented(opcode: int) -> None:
    packet = struct.pack("!6H", 7, opcode << 11, 1, 0, 0, 0) + b"\0\0\1\0\1"
    found = refusal(packet)
    assert found is not None
    assert (found.id, found.rcode(), found.opcode()) == (7, dns.rcode.NOTIMP, opcode)


@pytest.mark.parametrize(
    "counts", [(0, 0, 0, 0), (2, 0, 0, 0), (65535, 0, 0, 0), (1, 1, 0, 0), (1, 0, 1, 0)]
)
def test_none_or_several_questions_and_answers_in_a_query_are_malformed(
    counts: tuple[int, int, int, int],
) -> None:
    packet = struct.pack("!6H", 7, 0x0100, *counts) + b"\0\0\1\0\1" * 2
    found = refusal(packet)
    assert found is not None
    assert (found.rcode(), found.question) == (dns.rcode.FORMERR, [])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x03we",
        b"\x03web\0\0\1\0",
        b"\xc0\x0c\0\1\0\1",
        b"\x40" + b"a" * 64 + b"\0\0\1\0\1",
        b"\x80a\0\0\1\0\1",
        (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1",
        b"\x03web\0\0\1\0\1 more",
        b"\x03web\0\0\x29\0\1",
        b"\x03web\0\0\0\0\1",
    ],
    ids=[
        "nothing", "a short label", "no class", "a pointer to itself", "a label of 64",
        "a label of no kind", "a name of 257", "bytes behind it", "OPT asked for", "type 0",
    ],
)  # fmt: skip
def test_a_question_that_is_none_is_malformed(body: bytes) -> None:
    found = refusal(struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0) + body)
    assert found is not None
    assert found.rcode() == dns.rcode.FORMERR


@pytest.mark.parametrize(
    "additional",
    [b"", b"\0", b"\0\0\x29\x04\xd0\0\0\0\0\0", b"\0\0\x29\x04\xd0\0\0\0\0\0\x05abcd"],
    ids=["nothing", "no type", "no length", "short options"],
)  # fmt: skip
def test_an_additional_record_that_is_none_is_malformed(additional: bytes) -> None:
    found = refusal(struct.pack("!6H", 7, 0, 1, 0, 0, 1) + b"\x01a\0\0\1\0\1" + additional)
    assert found is not None
    assert found.rcode() == dns.rcode.FORMERR


def test_two_opt_records_are_malformed() -> None:
    opt = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"
    found = refusal(struct.pack("!6H", 7, 0, 1, 0, 0, 2) + b"\x01a\0\0\1\0\1" + opt + opt)
    assert found is not None
    assert found.rcode() == dns.rcode.FORMERR


LONG = b"\1a" * 126 + b"\0"


@pytest.mark.parametrize(
    "records",
    [
        b"\xc0\x0c\0\2\0\1\0\0\0\5\0\2\xc0\x0c" * 200,
        b"\xc0\x0c\0\x10\0\1\0\0\0\5\x0b\xb8" + bytes(3000),
        b"\0\0\x29\x04\xd0\0\0\0\0\x0f\xa0" + b"\0\5\0\0" * 1000,
    ],
    ids=["names that point to a long one", "many texts", "many options"],
)
def test_what_would_take_long_to_read_stays_unread(
    records: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library takes 10 to 20 ms for one of these."""
    parser = dns.wire.Parser
    reads: list[int] = []
    original = parser.get_bytes

    def get_bytes(self: dns.wire.Parser, size: int) -> bytes:
        reads.append(size)
        return original(self, size)

    monkeypatch.setattr(parser, "get_bytes", get_bytes)
    header = struct.pack("!6H", 7, 0x0100, 1, 0, 0, 1)
    found = read(header + LONG + b"\0\1\0\1" + records)
    assert len(found.question[0].name) == 127
    assert sum(reads) <= len(LONG) + 4


def test_a_signature_is_passed_over() -> None:
    signed = dns.message.make_query("web.", "A", use_edns=0)
    signed.use_tsig({dns.name.from_text("key."): b"secret"})
    found = read(signed.to_wire())
    reply = dns.message.from_wire(answer(found))
    assert (reply.rcode(), reply.had_tsig) == (dns.rcode.NOERROR, False)


def test_another_version_of_edns_is_told_ours() -> None:
    asked = dns.message.make_query("web.", "A", use_edns=1)
    found = refusal(asked.to_wire())
    assert found is not None
    assert (found.rcode(), found.edns) == (dns.rcode.BADVERS, 0)


@pytest.mark.parametrize(("rdtype", "rdclass"), [("AXFR", "IN"), ("TXT", "CH"), ("A", "ANY")])
def test_transfers_and_other_classes_are_refused(rdtype: str, rdclass: str) -> None:
    asked = dns.message.make_query("version.bind.", rdtype, rdclass)
    found = refusal(asked.to_wire())
    assert found is not None
    assert found.rcode() == dns.rcode.REFUSED
    assert found.question == asked.question


def test_options_of_edns_and_unknown_records_are_passed_over_and_not_repeated() -> None:
    cookie = struct.pack("!HH8s", 10, 8, b"whoknows")
    opt = b"\0\0\x29\x10\x00\0\0\x80\0" + struct.pack("!H", len(cookie)) + cookie
    other = b"\x01k\xc0\x0c\xff\1\0\xff\0\0\0\0\0\x03abc"
    packet = struct.pack("!6H", 7, 0, 1, 0, 0, 2) + b"\x01a\0\0\1\0\1" + opt + other
    found = read(packet)
    assert (found.edns, found.payload, question.wants_dnssec(found)) == (0, 4096, True)
    reply = answer(found, Rcode.NXDOMAIN)
    assert b"whoknows" not in reply
    assert len(reply) < len(packet) + 11
    assert dns.message.from_wire(reply).opt.rdtype == dns.rdatatype.OPT  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("2.0.89.10.in-addr.arpa.", "10.89.0.2"),
        ("2.0.89.10.IN-ADDR.ARPA.", "10.89.0.2"),
        ("256.0.89.10.in-addr.arpa.", None),
        ("02.0.89.10.in-addr.arpa.", None),
        ("0.89.10.in-addr.arpa.", None),
        ("1.2.0.89.10.in-addr.arpa.", None),
        ("-1.0.89.10.in-addr.arpa.", None),
        ("in-addr.arpa.", None),
        ("2." + "0." * 29 + "d.f.ip6.arpa.", "fd00::2"),
        ("2." + "0." * 28 + "d.f.ip6.arpa.", None),
        ("g." + "0." * 29 + "d.f.ip6.arpa.", None),
        ("20." + "0." * 28 + "d.f.ip6.arpa.", None),
        ("web.", None),
    ],
)
def test_the_address_of_a_reverse_name(name: str, address: str | None) -> None:
    assert question.reversed_address(read(query(name, "PTR"))) == address


@pytest.mark.parametrize("name", ["", "a..b", "a" * 64, ".".join(["a" * 63] * 4)])
def test_a_name_that_dns_can_not_carry_has_no_data(name: str) -> None:
    assert pointer(name) is None


def test_a_name_of_dns_is_data() -> None:
    data = pointer("web.example")
    assert data is not None
    assert data.to_wire() == b"\x03web\x07example\0"
