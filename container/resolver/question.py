"""Queries read and answers written, by dnspython. No input or output here.

The library is given to read what costs little whatever it is: the question. The rest of a hostile
packet of 4 KiB takes it up to 20 ms (Linux 6.18, 2 cores), in which nobody is answered; so of what
follows the question only the fixed fields of an OPT are looked at, and its options, signatures and
records of other kinds stay unread, as does all but the question of another server's answer.

Source: RFC 1035, sections 4.1 and 4.2; RFC 6891 (EDNS0); RFC 9619 (one question).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.reversename
import dns.rrset
import dns.wire
from dns.flags import Flag
from dns.message import Message, QueryMessage
from dns.rcode import Rcode
from dns.rdata import Rdata
from dns.rdataclass import IN, RdataClass
from dns.rdatatype import RdataType
from dns.rdtypes.ANY.PTR import PTR
from dns.rdtypes.IN.A import A
from dns.rdtypes.IN.AAAA import AAAA
from dns.rrset import RRset

SMALLEST = 512
"""Bytes of UDP that everybody takes."""
PAYLOAD = 1232
"""Bytes over UDP that we take: what no path fragments. Source: DNS Flag Day 2020."""
_HEADER = struct.Struct("!6H")
_OPT = struct.Struct("!xHHBBHH")
"""Of the root: type, payload, upper bits of the code, version, flags, bytes of options."""
_META = frozenset((RdataType.NONE, RdataType.OPT, RdataType.TKEY, RdataType.TSIG))
"""Types that no question can be of."""
_TRANSFERS = frozenset((RdataType.AXFR, RdataType.IXFR))


class Malformed(Exception):
    """What is not well formed, as far as it is read."""


class Refused(Exception):
    """A packet that is no query that we answer.

    Args:
        reply: What to send back; None: nothing, it is not a query at all.
    """

    def __init__(self, reply: bytes | None) -> None:
        super().__init__()
        self.reply = reply


def header(packet: bytes) -> tuple[int, ...]:
    """Return id, flags, and the numbers of questions, answers, authorities and additional records.

    Raises:
        Malformed: there is none.
    """
    try:
        return _HEADER.unpack_from(packet)
    except struct.error:
        raise Malformed from None


def read(packet: bytes) -> Message:
    """Read a query, which then has one question.

    Raises:
        Refused: it is none, is malformed, or asks for what we do not do.
    """
    try:
        number, flags, questions, answers, authorities, additional = header(packet)
    except Malformed:
        raise Refused(None) from None
    # An answer to an answer could be answered again.
    if flags & Flag.QR:
        raise Refused(None)
    if dns.opcode.from_flags(flags) != dns.opcode.QUERY:
        raise Refused(_bare(number, flags, Rcode.NOTIMP))
    if questions != 1 or answers or authorities:
        raise Refused(_bare(number, flags, Rcode.FORMERR))
    query = QueryMessage(number)
    query.flags = Flag(flags)
    try:
        asked, end = _read_question(packet)
        _read_edns(query, packet, end, additional)
    except (dns.exception.DNSException, ValueError, struct.error):
        raise Refused(_bare(number, flags, Rcode.FORMERR)) from None
    query.question = [asked]
    if query.edns > 0:
        raise Refused(answer(query, Rcode.BADVERS))
    if asked.rdclass != IN or asked.rdtype in _TRANSFERS:
        raise Refused(answer(query, Rcode.REFUSED))
    if asked.rdtype in _META:
        raise Refused(answer(query, Rcode.FORMERR))
    return query


def _read_question(packet: bytes) -> tuple[RRset, int]:
    """Return the question, and where it ends."""
    parser = dns.wire.Parser(packet, _HEADER.size)
    name = parser.get_name()
    rdtype, rdclass = RdataType.make(parser.get_uint16()), RdataClass.make(parser.get_uint16())
    return RRset(name, rdclass, rdtype), parser.current


def _read_edns(query: Message, packet: bytes, at: int, records: int) -> None:
    """Take what an OPT says from the first records that are of the root, as it is.

    Raises:
        ValueError, struct.error: there are two, or it goes beyond the end.
    """
    if not records and at != len(packet):
        raise ValueError("bytes behind the question")
    for _ in range(records):
        if at >= len(packet):
            raise ValueError("fewer records than there should be")
        if packet[at]:
            # Of another name, as a signature is, which is the last one.
            return
        rdtype, payload, _, version, flags, length = _OPT.unpack_from(packet, at)
        at += _OPT.size + length
        if at > len(packet):
            raise ValueError("a record goes beyond the end")
        if rdtype == RdataType.OPT:
            if query.edns >= 0:
                raise ValueError("two OPT records")
            query.use_edns(version, flags & dns.flags.DO, payload)


def answer(
    query: Message,
    code: Rcode = Rcode.NOERROR,
    data: Iterable[Rdata] = (),
    *,
    ttl: int = 0,
    most: int = SMALLEST,
    flags: int = 0,
) -> bytes:
    """Write an answer.

    Args:
        query: What it answers; its question comes back in the letters that it was asked in, so that
            who mixes upper and lower case against forgers finds its own.
        code: How it ended.
        data: Of each record, of the name that was asked for.
        ttl: Seconds that they may be kept.
        most: Bytes; records that do not fit are left out and TC is set.
        flags: Beside those that follow from the query.
    """
    made = dns.message.make_response(query, recursion_available=True, our_payload=PAYLOAD, pad=0)
    made.flags |= query.flags & Flag.CD | flags
    if wants_dnssec(query):
        made.want_dnssec()
    made.set_rcode(code)
    # A set each, in this order: the library shuffles what is in a set, and leaves out whole ones.
    name = query.question[0].name
    made.answer = [dns.rrset.from_rdata(name, ttl, one) for one in data]
    return made.to_wire(max_size=most, prefer_truncation=True)


def wants_dnssec(query: Message) -> bool:
    """Return DO. Source: RFC 3225."""
    return bool(query.ednsflags & dns.flags.DO)


def _bare(number: int, flags: int, code: Rcode) -> bytes:
    """Write an answer to what has no question that can be repeated."""
    made = dns.message.Message(id=number)
    made.flags = Flag(Flag.QR | Flag.RA | flags & Flag.RD)
    made.set_opcode(dns.opcode.from_flags(flags))
    made.set_rcode(code)
    return made.to_wire()


def plain_name(query: Message) -> str:
    """Return the name that is asked for: lower case, without the last dot.

    In a label, a dot and what is no ASCII are escaped, so that it is no name of ours.
    """
    return query.question[0].name.to_text(omit_final_dot=True).lower()


def address_data(address: str) -> Rdata:
    """Return the data of an address."""
    if ":" in address:
        return AAAA(IN, RdataType.AAAA, address)
    return A(IN, RdataType.A, address)


def pointer(name: str) -> Rdata | None:
    """Return the data of a PTR record; None: the name can't be written in DNS."""
    try:
        return PTR(IN, RdataType.PTR, dns.name.from_text(name)) if name else None
    except dns.exception.DNSException:
        return None


def reversed_address(query: Message) -> str | None:
    """Return the address whose name is asked for, as `inet_ntop` writes it; None: none is."""
    try:
        return dns.reversename.to_address(query.question[0].name)
    except (dns.exception.DNSException, ValueError):
        return None
