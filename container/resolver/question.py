"""Queries read and answers written, by hand: what is done for each packet.

No input or output here. The usual query is one question and perhaps an OPT record; a library of
DNS takes 200 us to read and answer it, this takes some ten. Only a query's fixed fields, question
and OPT are ever used; what else it carries is checked for form and ignored. An answer repeats the
question byte for byte, so that who mixes upper and lower case against forgers finds its own.

Source: RFC 1035, sections 4.1 and 4.2; RFC 6891 (EDNS0); RFC 9619 (one question).
"""

from __future__ import annotations

import enum
import socket
import struct
from collections.abc import Sequence

from attrs import define

A, NS, SOA, PTR, AAAA, OPT, DS, DNSKEY, IXFR, AXFR, ANY = 1, 2, 6, 12, 28, 41, 43, 48, 251, 252, 255
IN = 1
META = frozenset((OPT, 249, 250))
"""Types that no question can be of: OPT, TKEY, TSIG."""

QR, AA, TC, RD, RA, AD, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010
OPCODE = 0x7800
_DO = 0x8000
_HEADER = struct.Struct("!6H")
_QUESTION = struct.Struct("!2H")
_RECORD = struct.Struct("!HHIH")
_OPT = struct.Struct("!xHHBBHH")
_TO_QUESTION = b"\xc0\x0c"
"""A compressed name: what stands after the header."""
SMALLEST = 512
"""Bytes of UDP that everybody takes."""


class Code(enum.IntEnum):
    """How a query ended. Source: RFC 6895, section 2.3."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


@define
class Query:
    """A query that is well formed."""

    id: int
    flags: int
    question: bytes
    """As it came: name, type, class."""
    labels: tuple[bytes, ...]
    """Of the name, in the case in which they came, without the root."""
    name: str | None
    """Lower case, without the last dot; None: a label has a dot or is no ASCII."""
    rdtype: int
    rdclass: int
    edns: bool = False
    edns_version: int = 0
    wants_dnssec: bool = False
    payload: int = SMALLEST
    """Bytes over UDP that the client takes."""

    @property
    def recursion_desired(self) -> bool:
        """RD."""
        return bool(self.flags & RD)

    @property
    def wants_authentic(self) -> bool:
        """AD. Source: RFC 6840, section 5.7."""
        return bool(self.flags & AD)

    @property
    def checking_disabled(self) -> bool:
        """CD."""
        return bool(self.flags & CD)


class Refused(Exception):
    """A packet that is no query that we answer.

    Args:
        reply: What to send back; None: nothing, it is not a query at all.
    """

    def __init__(self, reply: bytes | None) -> None:
        super().__init__()
        self.reply = reply


def read(packet: bytes) -> Query:
    """Read a query.

    Raises:
        Refused: it is none, is malformed, or asks for what we do not do.
    """
    if len(packet) < _HEADER.size:
        raise Refused(None)
    number, flags, questions, answers, authorities, additional = _HEADER.unpack_from(packet)
    # An answer to an answer could be answered again.
    if flags & QR:
        raise Refused(None)
    if flags & OPCODE:
        raise Refused(_bare(number, flags, Code.NOTIMP))
    if questions != 1 or answers or authorities:
        raise Refused(_bare(number, flags, Code.FORMERR))
    try:
        query, end = _read_question(packet, number, flags)
        if additional:
            end = _read_additional(packet, end, additional, query)
    except (struct.error, IndexError):
        raise Refused(_bare(number, flags, Code.FORMERR)) from None
    if end != len(packet):
        raise Refused(_bare(number, flags, Code.FORMERR))
    if query.edns_version:
        raise Refused(answer(query, Code.BADVERS))
    if query.rdclass != IN or query.rdtype in (AXFR, IXFR):
        raise Refused(answer(query, Code.REFUSED))
    if query.rdtype in META or not query.rdtype:
        raise Refused(answer(query, Code.FORMERR))
    return query


def _read_question(packet: bytes, number: int, flags: int) -> tuple[Query, int]:
    labels: list[bytes] = []
    at = _HEADER.size
    while length := packet[at]:
        # Compressed (there is nothing before it to point to), or of a kind that does not exist.
        if length > 63:
            raise IndexError
        at += 1
        label = packet[at : at + length]
        labels.append(label)
        at += length
    at += 1
    if at - _HEADER.size > 255:
        raise IndexError
    rdtype, rdclass = _QUESTION.unpack_from(packet, at)
    end = at + _QUESTION.size
    joined = b".".join(labels).lower()
    name = None
    if joined.isascii() and joined.count(b".") == max(0, len(labels) - 1):
        name = joined.decode("ascii")
    question = packet[_HEADER.size : end]
    return Query(number, flags, question, tuple(labels), name, rdtype, rdclass), end


def _read_additional(packet: bytes, at: int, count: int, query: Query) -> int:
    """Take EDNS from what follows the question; return where it ends."""
    for _ in range(count):
        root = packet[at] == 0
        at = _skip_name(packet, at)
        rdtype, payload, rest, length = _RECORD.unpack_from(packet, at)
        at += _RECORD.size + length
        if rdtype != OPT:
            continue
        if query.edns or not root:
            raise IndexError
        query.edns = True
        query.edns_version = rest >> 16 & 0xFF
        query.wants_dnssec = bool(rest & _DO)
        query.payload = max(payload, SMALLEST)
    return at


def _skip_name(packet: bytes, at: int) -> int:
    while length := packet[at]:
        if length >= 0xC0:
            return at + 2
        if length > 63:
            raise IndexError
        at += 1 + length
    return at + 1


def answer(
    query: Query,
    code: Code = Code.NOERROR,
    data: Sequence[tuple[int, bytes]] = (),
    *,
    ttl: int = 0,
    most: int = SMALLEST,
    payload: int = 1232,
    authoritative: bool = False,
) -> bytes:
    """Write an answer.

    Args:
        query: What it answers.
        code: How it ended.
        data: Type and data of each record, of the name that was asked for.
        ttl: Seconds that they may be kept.
        most: Bytes; records that do not fit are left out and TC is set.
        payload: Bytes over UDP that we take, for EDNS.
        authoritative: Whether the name is one of ours.
    """
    flags = QR | RA | query.flags & (RD | CD) | code & 0xF
    if authoritative:
        flags |= AA
    end = b""
    if query.edns:
        end = opt(payload, code >> 4, wants_dnssec=query.wants_dnssec)
    room = most - _HEADER.size - len(query.question) - len(end)
    records: list[bytes] = []
    for rdtype, rdata in data:
        record = _TO_QUESTION + _RECORD.pack(rdtype, IN, ttl, len(rdata)) + rdata
        room -= len(record)
        if room < 0:
            flags |= TC
            break
        records.append(record)
    header = _HEADER.pack(query.id, flags, 1, len(records), 0, 1 if end else 0)
    return b"".join((header, query.question, *records, end))


def opt(payload: int, code: int, *, wants_dnssec: bool) -> bytes:
    """Write the record of EDNS.

    Args:
        payload: Bytes over UDP that its writer takes.
        code: Upper bits of how a query ended.
        wants_dnssec: DO.
    """
    return _OPT.pack(OPT, payload, code, 0, _DO if wants_dnssec else 0, 0)


def _bare(number: int, flags: int, code: Code) -> bytes:
    """Write an answer to what has no question that can be repeated."""
    return _HEADER.pack(number, QR | RA | flags & (OPCODE | RD) | code, 0, 0, 0, 0)


def packed(address: str) -> tuple[int, bytes]:
    """Return the type and the data of an address."""
    if ":" in address:
        return AAAA, socket.inet_pton(socket.AF_INET6, address)
    return A, socket.inet_pton(socket.AF_INET, address)


def pointer(name: str) -> bytes | None:
    """Return the data of a PTR record; None: the name can't be written in DNS."""
    labels = name.encode("ascii", "replace").split(b".")
    if not all(0 < len(label) < 64 for label in labels):
        return None
    data = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    return data if len(data) <= 255 else None


def reversed_address(query: Query) -> str | None:
    """Return the address whose name is asked for, as `inet_ntop` writes it; None: none is.

    Source: RFC 1035, section 3.5; RFC 3596, section 2.5.
    """
    name = query.name
    if name is None:
        return None
    if name.endswith(".in-addr.arpa"):
        parts = name.split(".")[-3::-1]
        well = len(parts) == 4 and all(
            part.isdigit() and len(part) < 4 and int(part) < 256 and str(int(part)) == part
            for part in parts
        )
        return ".".join(parts) if well else None
    if name.endswith(".ip6.arpa"):
        nibbles = "".join(name.split(".")[-3::-1])
        if len(nibbles) != 32 or len(query.labels) != 34:
            return None
        try:
            return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(nibbles))
        except ValueError:
            return None
    return None
