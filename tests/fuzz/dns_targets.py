"""The DNS server's two sides: what clients send it, and what other servers answer it.

The first byte of an input chooses who asks, or what was asked; the rest is the packet.
"""

from __future__ import annotations

import struct

import dns.edns
import dns.flags
import dns.message
import dns.rrset
from dns.message import Message

from container.resolver import Entry, Names, Upstreams
from container.resolver.question import Malformed, read
from container.resolver.relaying import read as read_reply
from container.resolver.relaying import relayed, written
from container.resolver.responder import STREAM, Later, Responder
from tests.fuzz.machine_target import Broken

NUMBER = 0x1234
_WAYS = (512, 1232, STREAM)
_CLIENTS = ("10.89.0.2", "10.89.0.3", "10.89.0.99", "fd00::2")


def _responder(*, internal: bool) -> Responder:
    names = Names(["10.89.0.0/24", "fd00::/64"], ["10.89.0.1", "fd00::1"], internal=internal)
    names.put(Entry("1", ("10.89.0.2", "fd00::2"), ("web", "www"), search=("example.com",)))
    names.put(Entry("2", ("10.89.0.3",), ("db", "www"), nameservers=("192.0.2.1",)))
    for i in range(100, 220):
        names.put(Entry(str(i), (f"10.89.0.{i}",), ("many",)))
    return Responder(names, Upstreams())


_RESPONDERS = (_responder(internal=False), _responder(internal=True))


def dns_query(data: bytes) -> None:
    """Ask with a packet."""
    if not data:
        return
    responder = _RESPONDERS[data[0] & 1]
    source = _CLIENTS[data[0] >> 1 & 3]
    most = STREAM if data[0] & 8 else 1232
    packet = data[1:]
    said = responder.answer(packet, source, most)
    if responder.counted.failures:
        raise Broken("a packet found a bug")
    if isinstance(said, Later):
        asked = dns.message.from_wire(written(said.query, most).to_wire())
        if asked.question != said.query.question or asked.options:
            raise Broken("something else is asked of others")
    elif said is not None:
        _check_answer(said, packet, source, most, responder)
        _check_again(said, packet, source, most, responder)


def _check_again(said: bytes, packet: bytes, source: str, most: int, responder: Responder) -> None:
    """See that an answer that was kept is the one that was written."""
    other = bytes((packet[0] ^ 1,)) + packet[1:]
    again = responder.answer(other, source, most)
    if not isinstance(again, bytes) or again[:2] != other[:2] or len(again) > most:
        raise Broken("what is asked again is answered otherwise")
    if again[2:12] != said[2:12]:
        raise Broken("another number of records is told the second time")


def _check_answer(said: bytes, packet: bytes, source: str, most: int, responder: Responder) -> None:
    if len(said) > most or said[:2] != packet[:2]:
        raise Broken("an answer that is too long, or of another's")
    answer = dns.message.from_wire(said)
    if not answer.flags & dns.flags.QR:
        raise Broken("an answer that is none")
    if answer.question:
        asked = answer.question[0]
        if b"".join(bytes((len(n),)) + n for n in asked.name.labels) not in packet:
            raise Broken("an answer to something else")
    elif len(said) > len(packet):
        raise Broken("more is said to what is malformed than was sent")
    if answer.opt is not None and answer.options:
        raise Broken("an option is repeated")
    if responder.answer(said, source, most) is not None:
        raise Broken("an answer is answered")


_ASKED = [
    read(dns.message.make_query(name, rdtype, id=NUMBER, use_edns=edns).to_wire())
    for name, rdtype, edns in (
        ("example.org", "A", 0), ("eXample.org", "ANY", False), ("example.org", "DNSKEY", 0),
        (".", "NS", 0), ("_s._tcp.example.org", "SRV", False),
    )
]  # fmt: skip


def dns_answer(data: bytes) -> None:
    """Answer a question with a packet."""
    if not data:
        return
    query = _ASKED[data[0] % len(_ASKED)]
    packet = data[1:]
    asked = written(query, 1232)
    asked.id = NUMBER
    try:
        found = read_reply(packet, asked)
    except Malformed:
        return
    for most in _WAYS:
        wire = relayed(found, query, most)
        if len(wire) > most:
            raise Broken("what is relayed is too long")
        _check_relayed(wire, packet, query)


def _check_relayed(wire: bytes, packet: bytes, query: Message) -> None:
    """See that a client reads an answer to its question, and the records as they came."""
    ours = dns.message.from_wire(wire, question_only=True)
    if not query.is_response(ours) or ours.question[0].name.labels != query.question[0].name.labels:
        raise Broken("something else is answered")
    if ours.flags & dns.flags.AA or not ours.flags & dns.flags.RA:
        raise Broken("flags of the server that it has of its own")
    kept = wire[4:12] == packet[4:12] and len(wire) == len(packet)
    empty = wire[6:10] == bytes(4) and (len(packet) > len(wire) or packet[4:6] == bytes(2))
    if not kept and not empty:
        raise Broken("records are passed on in part")


def seeds() -> dict[str, list[bytes]]:
    """Return the inputs to begin with: what is usual, and one of each kind of what is not."""
    return {"dns_query": _queries(), "dns_answer": _answers()}


def _queries() -> list[bytes]:
    packets = [
        dns.message.make_query(name, rdtype, id=NUMBER, **options).to_wire()
        for name, rdtype, options in (
            ("web", "A", {}),
            ("WEB.example.com", "AAAA", {"use_edns": 0, "payload": 4096}),
            ("many", "A", {"use_edns": 0, "want_dnssec": True}),
            ("many", "A", {}),
            ("www", "ANY", {}),
            ("db", "MX", {}),
            ("2.0.89.10.in-addr.arpa", "PTR", {}),
            ("2." + "0." * 29 + "d.f.ip6.arpa", "PTR", {}),
            ("99.0.89.10.in-addr.arpa", "PTR", {"use_edns": 0}),
            ("host.container.internal", "A", {}),
            ("example.org", "HTTPS", {"use_edns": 1}),
            ("nobody", "A", {}),
            (".", "NS", {}),
            (r"a\.b.\000\255", "A", {}),
            (".".join(["a" * 63] * 3 + ["b" * 61]), "A", {}),
            ("web", "AXFR", {}),
            ("web", "A", {"options": [dns.edns.ECSOption("198.51.100.0")], "use_edns": 0}),
            ("web", "A", {"use_edns": 0, "pad": 468}),
        )
    ]
    header = struct.pack("!6H", NUMBER, 0x0100, 1, 0, 0, 0)
    packets += [
        b"", header, header[:11], header + b"\xc0\x0c\0\1\0\1", header + b"\x40a\0\0\1\0\1",
        header + (b"\x01a" * 127) + b"\0\0\1\0\1", header + (b"\x01a" * 128) + b"\0\0\1\0\1",
        struct.pack("!6H", NUMBER, 0x8180, 1, 0, 0, 0) + b"\0\0\1\0\1",
        struct.pack("!6H", NUMBER, 5 << 11, 1, 0, 0, 0) + b"\0\0\1\0\1",
        struct.pack("!6H", NUMBER, 0, 2, 0, 0, 0) + b"\0\0\1\0\1" * 2,
        struct.pack("!6H", NUMBER, 0, 1, 0, 0, 9) + b"\0\0\1\0\1" + b"\0\0\x29\0\0\0\0\0\0\0\0" * 9,
        struct.pack("!6H", NUMBER, 0, 65535, 65535, 65535, 65535),
        struct.pack("!6H", NUMBER, 0, 1, 0, 0, 65535) + b"\0\0\1\0\1" + b"\xc0\x0c" * 200,
    ]  # fmt: skip
    return [bytes((number % 16,)) + packet for number, packet in enumerate(packets)]


def _answers() -> list[bytes]:
    found: list[bytes] = []
    for number, query in enumerate(_ASKED):
        asked = dns.message.from_wire(query.to_wire())
        for texts in ((), ("A 192.0.2.7", "A 192.0.2.8"), ("CNAME a.example.",), ("TXT x y",),
                      ("MX 1 .", "NS a.example."), ("SRV 0 1 2 a.example.",),
                      ("HTTPS 1 . alpn=h2 ipv4hint=192.0.2.1",), (r"TYPE65000 \# 3 010203",),
                      ("SOA a. b. 1 2 3 4 5",)):  # fmt: skip
            response = dns.message.make_response(asked)
            name = asked.question[0].name
            for text in texts:
                rdtype, data = text.split(" ", 1)
                response.answer.append(dns.rrset.from_text(name, 60, "IN", rdtype, data))
            found.append(bytes((number,)) + response.to_wire())
        whole = found[-1][1:]
        found += [bytes((number,)) + part for part in (whole[:-2], whole + b"x", whole[:12])]
    question = _ASKED[0].to_wire()[12:-11]
    header = struct.pack("!6H", NUMBER, 0x8180, 1, 1, 0, 0) + question
    found += [
        b"\0" + header + b"\xc0\x1d\0\1\0\1\0\0\0\1\0\0",
        b"\0" + header + b"\xc0\xff\0\1\0\1\0\0\0\1\0\4abcd",
        b"\0" + header + b"\xc0\x0c\0\1\0\1\x80\0\0\1\0\4abcd",
        b"\0" + header + b"\xc0\x0c\0\1\0\1\0\0\0\1\xff\xffabcd",
        b"\0" + struct.pack("!6H", NUMBER, 0x8182, 0, 0, 0, 0),
        b"\0" + struct.pack("!6H", NUMBER, 0x8380, 1, 0xFFFF, 0, 0) + question,
        b"\0" + struct.pack("!6H", NUMBER, 0xA980, 1, 0, 0, 0) + question,
    ]
    return found
