"""Other servers' answers: what is one, and what of it the client is told."""

from __future__ import annotations

import struct

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest

from container.resolver import question
from container.resolver.question import Query
from container.resolver.relaying import Malformed, read, relayed, write
from tests.resolver.loopback import addresses, told

NUMBER = 0x1234
RECORD = "example.org. 60 IN A 192.0.2.7"
MANY = [f"example.org. 60 IN A 192.0.2.{i}" for i in range(1, 201)]
HEADER = struct.Struct("!6H")


def asked(name: str = "eXample.ORG.", rdtype: str = "A", **options: object) -> Query:
    """Return a query as a client sends it."""
    return question.read(dns.message.make_query(name, rdtype, **options).to_wire())  # type: ignore[arg-type]


def an_answer(*records: str, **options: object) -> dns.message.Message:
    """Return a server's answer, in its own letters."""
    query = dns.message.make_query("example.org.", "A", id=NUMBER, **options)  # type: ignore[arg-type]
    return told(query, *records)


def relay(found: dns.message.Message, most: int = 1232, **options: object) -> dns.message.Message:
    """Return what a client reads that asked for the address of `eXample.ORG`."""
    query = asked(**options)
    wire = relayed(read(found.to_wire(), query, NUMBER), query, most=most, payload=1232)
    assert len(wire) <= most
    response = dns.message.from_wire(wire, one_rr_per_rrset=True)
    assert (response.id, response.flags & dns.flags.QR) == (query.id, dns.flags.QR)
    assert b"\x07eXample\x03ORG\x00" in wire
    return response


def test_what_is_too_long_for_a_client_is_cut_and_says_so() -> None:
    whole = relay(an_answer(*MANY), most=65535)
    assert len(addresses(whole)) == 200
    assert not whole.flags & dns.flags.TC
    part = relay(an_answer(*MANY), most=512)
    assert part.flags & dns.flags.TC
    assert 0 < len(addresses(part)) < 40


def test_records_keep_their_order() -> None:
    chain = ["example.org. 60 IN CNAME z.example.", "z.example. 60 IN CNAME a.example.",
             "a.example. 60 IN A 192.0.2.9", "a.example. 60 IN A 192.0.2.1"]  # fmt: skip
    response = relay(an_answer(*chain))
    told_in_order = [rrset.to_text() for rrset in response.answer]
    assert [line.replace("eXample.ORG", "example.org") for line in told_in_order] == chain


def test_options_of_the_server_stay_behind() -> None:
    found = an_answer(RECORD, use_edns=0)
    found.use_edns(0, options=[dns.edns.GenericOption(10, b"a cookie")])
    assert relay(found, use_edns=0).options == ()
    assert relay(found).edns == -1


def test_authentic_data_is_told_to_who_asks_for_it() -> None:
    found = an_answer(RECORD)
    found.flags |= dns.flags.AD | dns.flags.AA
    assert not relay(found).flags & (dns.flags.AD | dns.flags.AA)
    assert relay(found, want_dnssec=True).flags & dns.flags.AD
    assert relay(found, flags=dns.flags.AD).flags & dns.flags.AD


def test_an_error_that_needs_edns_is_a_failure_to_who_has_none() -> None:
    found = an_answer()
    found.use_edns(0)
    found.set_rcode(dns.rcode.BADVERS)
    assert relay(found).rcode() == dns.rcode.SERVFAIL
    assert relay(found, use_edns=0).rcode() == dns.rcode.BADVERS


def test_a_question_is_written_as_the_library_writes_it() -> None:
    for edns in (False, True):
        for options in ({}, {"want_dnssec": True}, {"flags": dns.flags.RD | dns.flags.CD}):
            query = asked(**options)
            theirs = dns.message.make_query(
                "eXample.ORG.",
                "A",
                id=7,
                use_edns=0 if edns else False,
                payload=1232,
                want_dnssec=edns and query.wants_dnssec,
                flags=query.flags & (question.RD | question.CD),
            )
            assert write(query, 7, edns=edns) == theirs.to_wire()


@pytest.mark.parametrize("rdtype", ["A", "HTTPS", "TYPE97"])
def test_only_the_letters_of_a_name_may_differ(rdtype: str) -> None:
    """HTTPS is type 65, which as a letter is the capital of 97."""
    query = asked(rdtype="HTTPS")
    wire = dns.message.make_response(
        dns.message.make_query("example.ORG.", rdtype, id=NUMBER)
    ).to_wire()
    if rdtype == "HTTPS":
        assert read(wire, query, NUMBER).code == 0
    else:
        with pytest.raises(Malformed):
            read(wire, query, NUMBER)


def test_an_error_without_a_question_is_an_error() -> None:
    query = asked()
    reply = read(HEADER.pack(NUMBER, 0x8181, 0, 0, 0, 0), query, NUMBER)
    response = dns.message.from_wire(relayed(reply, query, most=512, payload=1232))
    assert response.rcode() == dns.rcode.FORMERR
    assert len(response.question) == 1
    with pytest.raises(Malformed):
        read(HEADER.pack(NUMBER, 0x8180, 0, 0, 0, 0), query, NUMBER)


QUESTION = b"\x07example\x03org\0\0\1\0\1"
FIXED = b"\0\1\0\1\0\0\0\5"


@pytest.mark.parametrize(
    ("counts", "records"),
    [
        ((1, 0, 0), b""),
        ((1, 0, 0), b"\xc0"),
        ((1, 0, 0), b"\xc0\x0c" + FIXED + b"\0"),
        ((1, 0, 0), b"\xc0\x0c" + FIXED + b"\0\4abc"),
        ((1, 0, 0), b"\xc0\x0c" + FIXED + b"\xff\xffabcd"),
        ((1, 0, 0), b"\xc0\x1d" + FIXED + b"\0\0"),
        ((1, 0, 0), b"\xff\xff" + FIXED + b"\0\0"),
        ((1, 0, 0), b"\xc0\x0b" + FIXED + b"\0\0"),
        ((1, 0, 0), b"\x01a\xc0\x1d" + FIXED + b"\0\0"),
        ((1, 0, 0), b"\x40" + b"a" * 64 + b"\0" + FIXED + b"\0\0"),
        ((1, 0, 0), b"\x3f" + b"a" * 63 * 5),
        ((65535, 65535, 65535), b"\xc0\x0c" + FIXED + b"\0\0"),
        ((1, 0, 0), b"\0\0\x29\4\xd0\0\0\0\0\0\0"),
        ((0, 0, 1), b"\1a\0\0\x29\4\xd0\0\0\0\0\0\0"),
    ],
    ids=[
        "no record", "half a pointer", "no length", "short data", "much shorter data",
        "a name that points to itself", "a name that points ahead",
        "a name that points into the header", "one that points into itself",
        "a label of 64", "a name that goes on", "one record of many", "OPT as an answer",
        "OPT of a name",
    ],
)  # fmt: skip
def test_what_is_not_well_formed_is_no_answer(counts: tuple[int, int, int], records: bytes) -> None:
    packet = HEADER.pack(NUMBER, 0x8180, 1, *counts) + QUESTION + records
    with pytest.raises(Malformed):
        read(packet, asked(), NUMBER)


def test_what_stands_behind_the_last_record_is_not_passed_on() -> None:
    query = asked()
    packet = an_answer(RECORD).to_wire()
    assert b"more" not in relayed(
        read(packet + b"more", query, NUMBER), query, most=1232, payload=1232
    )


def test_the_longest_of_answers_is_read() -> None:
    """A library takes half a minute for this one, which is why there is none."""
    long = b"\1a" * 126 + b"\0"
    pointer = struct.pack("!H", 0xC000 | (12 + len(QUESTION)))
    fixed = b"\0\2\0\1\0\0\0\5\0\2"
    first = long + fixed + pointer
    number = (65535 - 12 - len(QUESTION) - len(first)) // (2 + len(fixed) + 2)
    packet = HEADER.pack(NUMBER, 0x8180, 1, number + 1, 0, 0) + QUESTION + first
    packet += (pointer + fixed + pointer) * number
    reply = read(packet, asked(), NUMBER)
    assert reply.counts == (number + 1, 0, 0)


def test_sections_are_counted_as_they_were_cut() -> None:
    query = asked(use_edns=0)
    found = an_answer(*MANY[:4], use_edns=0)
    found.authority = an_answer(*MANY[4:6]).answer
    found.additional = an_answer(*MANY[6:8]).answer
    reply = read(found.to_wire(), query, NUMBER)
    assert reply.counts == (4, 2, 2)
    whole = len(relayed(reply, query, most=1232, payload=1232))
    for most in range(whole, 60, -1):
        response = dns.message.from_wire(
            relayed(reply, query, most=most, payload=1232), one_rr_per_rrset=True
        )
        kept = len(response.answer), len(response.authority), len(response.additional)
        assert kept in ((4, 2, 2), (4, 2, 1), (4, 2, 0), (4, 1, 0), (4, 0, 0), (3, 0, 0),
                        (2, 0, 0), (1, 0, 0), (0, 0, 0))  # fmt: skip
        assert bool(response.flags & dns.flags.TC) == (sum(kept[:2]) < 6)
        assert response.edns == 0
