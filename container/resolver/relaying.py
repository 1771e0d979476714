"""Questions written for other servers, and their answers checked and cut for the client.

No input or output here. An answer is not taken apart: its records are walked along, each byte once,
and passed on as they are, with the client's id, question, and EDNS. A library of DNS reads into
every name and record, which a hostile answer of 64 KiB makes last 35 seconds (dnspython 2.9, Linux
6.18, 2 cores); the event loop has other things to do. What is inside of a record is for the client
to read, as it is with every forwarder.

Names in a message may point back into it, never forward, and not into its header. So a message can
be cut after any record, and its question be replaced by one of the same length.

Source: RFC 1035, section 4.1; RFC 2181, section 9 (TC); RFC 6891, section 6.
"""

from __future__ import annotations

import struct

from attrs import frozen

from container.resolver import question
from container.resolver.question import Code, Query

PAYLOAD = 1232
"""Bytes over UDP that we take of others: what no path fragments. Source: DNS Flag Day 2020."""
_ERRORS = frozenset((Code.FORMERR, Code.SERVFAIL, Code.NOTIMP, Code.REFUSED))
_HEADER = struct.Struct("!6H")
_RECORD = struct.Struct("!HHIH")
_POINTER = 0xC0


class Malformed(Exception):
    """No answer to the question."""


@frozen
class Reply:
    """An answer that is well formed."""

    packet: bytes
    flags: int
    code: int
    """With the bits that EDNS adds."""
    counts: tuple[int, int, int]
    """Of records: answers, authorities, additional ones before an OPT."""
    ends: tuple[int, ...]
    """Where each record ends."""

    @property
    def truncated(self) -> bool:
        """TC."""
        return bool(self.flags & question.TC)


def write(query: Query, number: int, *, edns: bool) -> bytes:
    """Write a client's question as ours: its flags go along, its options do not."""
    flags = query.flags & (question.RD | question.AD | question.CD)
    end = b""
    if edns:
        end = question.opt(PAYLOAD, 0, wants_dnssec=query.wants_dnssec)
    return _HEADER.pack(number, flags, 1, 0, 0, 1 if end else 0) + query.question + end


def read(packet: bytes, query: Query, number: int) -> Reply:
    """Read what should answer a question that was asked with this id.

    Raises:
        Malformed: it does not, or its records go beyond its end.
    """
    if len(packet) < _HEADER.size:
        raise Malformed
    found, flags, questions, *counts = _HEADER.unpack_from(packet)
    if found != number or not flags & question.QR or flags & question.OPCODE:
        raise Malformed
    code = flags & 0xF
    if not questions and code in _ERRORS:
        # It could not read the question, so it can't repeat it.
        return Reply(packet[: _HEADER.size], flags, code, (0, 0, 0), ())
    at = _HEADER.size + len(query.question)
    if questions != 1 or not _is_same(packet[_HEADER.size : at], query.question):
        raise Malformed
    try:
        return _read_records(packet, at, flags, (counts[0], counts[1], counts[2]))
    except (struct.error, IndexError):
        raise Malformed from None


def _is_same(asked: bytes, wanted: bytes) -> bool:
    """Compare questions. The lengths of labels, at most 63, are no letters; types may be."""
    return asked[-4:] == wanted[-4:] and asked[:-4].lower() == wanted[:-4].lower()


def _read_records(packet: bytes, at: int, flags: int, counts: tuple[int, int, int]) -> Reply:
    before_additional = counts[0] + counts[1]
    code = flags & 0xF
    ends: list[int] = []
    for number in range(sum(counts)):
        name = at
        at = _skip_name(packet, at)
        rdtype, _, rest, length = _RECORD.unpack_from(packet, at)
        at += _RECORD.size + length
        if at > len(packet):
            raise Malformed
        if rdtype == question.OPT:
            if number < before_additional or packet[name]:
                raise Malformed
            # What stands behind it, a signature of the whole, would not fit any more.
            code |= rest >> 24 << 4
            break
        ends.append(at)
    additional = len(ends) - before_additional
    return Reply(packet, flags, code, (counts[0], counts[1], additional), tuple(ends))


def _skip_name(packet: bytes, at: int) -> int:
    """Return where a name ends that begins here and is well formed, as far as it is here."""
    began = at
    while length := packet[at]:
        if length >= _POINTER:
            if not _HEADER.size <= (length & 0x3F) << 8 | packet[at + 1] < began:
                raise Malformed
            return at + 2
        if length > 63 or at - began > 255:
            raise Malformed
        at += 1 + length
    return at + 1


def relayed(reply: Reply, query: Query, *, most: int, payload: int) -> bytes:
    """Write an answer for the client that asked.

    What is longer than `most` bytes loses records from its end, and says so (TC) unless they are
    additional ones. Options of EDNS stay behind: they are between the server and us.
    """
    code = reply.code
    if code > 0xF and not query.edns:
        code = Code.SERVFAIL
    end = b""
    if query.edns:
        end = question.opt(payload, code >> 4, wants_dnssec=query.wants_dnssec)
    kept = 0
    for stop in reply.ends:
        if stop + len(end) > most:
            break
        kept += 1
    answers, authorities, _ = reply.counts
    flags = question.QR | question.RA | reply.flags & question.TC | code & 0xF
    flags |= query.flags & (question.RD | question.CD)
    if query.wants_authentic or query.wants_dnssec:
        flags |= reply.flags & question.AD
    if kept < answers + authorities:
        flags |= question.TC
    header = _HEADER.pack(
        query.id,
        flags,
        1,
        min(kept, answers),
        min(max(0, kept - answers), authorities),
        max(0, kept - answers - authorities) + (1 if end else 0),
    )
    records = b""
    if kept:
        records = reply.packet[_HEADER.size + len(query.question) : reply.ends[kept - 1]]
    return header + query.question + records + end
