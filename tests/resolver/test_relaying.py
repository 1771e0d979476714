"""Other servers' answers: what is one, and what of it the client is told."""

from __future__ import annotations

import struct

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest
from dns.message import Message

from container.resolver import question
from container.resolver.question import Malformed
from container.resolver.relaying import read, relayed, written
from tests.resolver.loopback import addresses, told

NUMBER = 0x1234
RECORD = "example.org. 60 IN A 192.0.2.7"
MANY = [f"example.org. 60 IN A 192.0.2.{i}" for i in range(1, 201)]
HEADER = struct.Struct("!6H")


def asked(name: str = "eXample.ORG.", rdtype: str = "A", **options: object) -> Message:
    """Return a query as a client sends it."""
    return question.read(dns.message.make_query(name, rdtype, **options).to_wire())  # type: ignore[arg-type]


def as_ours(query: Message) -> Message:
    """Return what another server is asked."""
    made = written(query, 1232)
    made.id = NUMBER
    return made


def an_answer(*records: str, **options: object) -> dns.message.Message:
    """Return a server's answer, in its own letters."""
    query = dns.message.make_query("example.org.", "A", id=NUMBER, **options)  # type: ignore[arg-type]
    return told(query, *records)


def relay(found: dns.message.Message, most: int = 1232, **options: object) -> dns.message.Message:
    """Return what a client reads that asked for the address of `eXample.ORG`."""
    query = asked(**options)
    wire = relayed(read(found.to_wire(), as_ours(query)), query, most)
    assert len(wire) <= most
    response = dns.message.from_wire(wire, one_rr_per_rrset=True)
    assert (response.id, response.flags & dns.flags.QR) == (query.id, dns.flags.QR)
    assert b"\x07eXample\x03ORG\x00" in wire
    return response


def test_what_is_longer_than_was_asked_for_is_left_out_and_that_is_said() -> None:
    whole = relay(an_answer(*MANY), most=65535)
    assert len(addresses(whole)) == 200
    assert not whole.flags & dns.flags.TC
    for options in ({}, {"use_edns": 0}):
        none = relay(an_answer(*MANY), most=512, **options)
        assert none.flags & dns.flags.TC
        assert none.answer == []


def test_what_a_server_has_cut_is_passed_on() -> None:
    found = an_answer(RECORD)
    found.flags |= dns.flags.TC
    response = relay(found)
    assert response.flags & dns.flags.TC
    assert addresses(response) == ["192.0.2.7"]


def test_records_keep_their_order() -> None:
    chain = ["example.org. 60 IN CNAME z.example.", "z.example. 60 IN CNAME a.example.",
             "a.example. 60 IN A 192.0.2.9", "a.example. 60 IN A 192.0.2.1"]  # fmt: skip
    response = relay(an_answer(*chain))
    told_in_order = [rrset.to_text() for rrset in response.answer]
    assert [line.replace("eXample.ORG", "example.org") for line in told_in_order] == chain


def test_all_sections_are_passed_on_as_they_are() -> None:
    found = an_answer(*MANY[:4], use_edns=0)
    found.authority = an_answer(*MANY[4:6]).answer
    found.additional = an_answer(*MANY[6:8]).answer
    response = relay(found, use_edns=0)
    assert (len(response.answer), len(response.authority), len(response.additional)) == (4, 2, 2)
    assert response.edns == 0


def test_authentic_data_is_told_to_who_asks_for_it() -> None:
    found = an_answer(RECORD)
    found.flags |= dns.flags.AD | dns.flags.AA
    assert not relay(found).flags & (dns.flags.AD | dns.flags.AA)
    assert relay(found, want_dnssec=True).flags & dns.flags.AD
    assert relay(found, flags=dns.flags.AD).flags & dns.flags.AD


def test_a_question_is_asked_as_the_client_asked_it() -> None:
    for options, edns in (
        ({}, -1),
        ({"use_edns": 0, "payload": 4096}, 0),
        ({"want_dnssec": True}, 0),
        ({"flags": dns.flags.RD | dns.flags.CD | dns.flags.AD}, -1),
    ):
        query = asked(**options)
        ours = dns.message.from_wire(written(query, 1232).to_wire())
        assert ours.question == query.question
        assert ours.question[0].name.labels == query.question[0].name.labels
        assert (ours.flags, ours.edns) == (query.flags, edns)
        assert ours.ednsflags == query.ednsflags
        assert ours.payload == (1232 if edns == 0 else 0)


def test_no_longer_an_answer_is_asked_for_than_the_client_takes() -> None:
    query = asked(use_edns=0)
    assert [written(query, most).payload for most in (512, 900, 65535)] == [512, 900, 1232]


@pytest.mark.parametrize("rdtype", ["A", "HTTPS", "TYPE97"])
def test_only_the_letters_of_a_name_may_differ(rdtype: str) -> None:
    """HTTPS is type 65, which as a letter is the capital of 97."""
    ours = as_ours(asked(rdtype="HTTPS"))
    wire = dns.message.make_response(
        dns.message.make_query("example.ORG.", rdtype, id=NUMBER)
    ).to_wire()
    if rdtype == "HTTPS":
        assert read(wire, ours).rcode() == 0
    else:
        with pytest.raises(Malformed):
            read(wire, ours)


def test_an_error_without_a_question_is_an_error() -> None:
    query = asked()
    found = read(HEADER.pack(NUMBER, 0x8181, 0, 0, 0, 0), as_ours(query))
    response = dns.message.from_wire(relayed(found, query, 512))
    assert response.rcode() == dns.rcode.FORMERR
    assert len(response.question) == 1
    with pytest.raises(Malformed):
        read(HEADER.pack(NUMBER, 0x8180, 0, 0, 0, 0), as_ours(query))


QUESTION = b"\x07example\x03org\0\0\1\0\1"
LONG = b"\1a" * 126 + b"\0"


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        HEADER.pack(NUMBER, 0x8180, 1, 0, 0, 0)[:11],
        HEADER.pack(NUMBER, 0x8180, 1, 0, 0, 0),
        HEADER.pack(NUMBER, 0x8180, 1, 0, 0, 0) + QUESTION[:-1],
        HEADER.pack(NUMBER, 0x8180, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1",
        HEADER.pack(NUMBER, 0x8180, 1, 0, 0, 0) + b"\x40" + QUESTION,
        HEADER.pack(NUMBER, 0x8180, 2, 0, 0, 0) + QUESTION * 2,
        HEADER.pack(NUMBER, 0x8180, 9999, 0, 0, 0) + LONG + b"\0\1\0\1\xc0\x0c" * 9999,
        HEADER.pack(NUMBER, 0xA980, 1, 0, 0, 0) + QUESTION,
        HEADER.pack(NUMBER, 0x0180, 1, 0, 0, 0) + QUESTION,
        HEADER.pack(NUMBER + 1, 0x8180, 1, 0, 0, 0) + QUESTION,
    ],
    ids=[
        "nothing", "a short header", "no question", "a short question",
        "a name that points to itself", "a label of no kind", "two questions", "many questions",
        "an update", "a query", "another id",
    ],
)  # fmt: skip
def test_what_does_not_answer_the_question_is_no_answer(packet: bytes) -> None:
    with pytest.raises(Malformed):
        read(packet, as_ours(asked()))


def test_the_longest_of_answers_is_passed_on_unread() -> None:
    """The library takes half a minute for the records of this one."""
    query = asked()
    fixed = b"\0\2\0\1\0\0\0\5\0\2"
    pointer = struct.pack("!H", 0xC000 | (12 + len(QUESTION)))
    first = LONG + fixed + pointer
    number = (65535 - 12 - len(QUESTION) - len(first)) // (2 + len(fixed) + 2)
    packet = HEADER.pack(NUMBER, 0x8180, 1, number + 1, 0, 0) + QUESTION + first
    packet += (pointer + fixed + pointer) * number
    wire = relayed(read(packet, as_ours(query)), query, 65535)
    assert wire[12 + len(QUESTION) :] == packet[12 + len(QUESTION) :]
    assert HEADER.unpack_from(wire)[2:] == (1, number + 1, 0, 0)
