"""Clients' questions written as ours, and other servers' answers passed on. No sockets here.

A question is asked as the client asked it: with EDNS if it came with it, and for no longer an
answer than the client takes. So the answer is passed on as it is, but for its id, flags and
question, which become the client's. What is inside of a record is for the client to read: a library
needs 30 seconds for that of a hostile answer of 64 KiB (dnspython 2.9, Linux 6.18, 2 cores), in
which the event loop would serve nobody.

Source: RFC 5625, section 3 (a proxy is transparent); RFC 2181, section 9 (TC).
"""

from __future__ import annotations

import secrets
import struct

import dns.exception
import dns.message
from dns.flags import Flag
from dns.message import Message

from container.resolver import question
from container.resolver.question import Malformed


def written(query: Message, most: int, *, edns: bool = True) -> Message:
    """Return a client's question as we ask it, with an id that nobody can guess."""
    (asked,) = query.question
    edns = edns and query.edns >= 0
    return dns.message.make_query(
        asked.name,
        asked.rdtype,
        asked.rdclass,
        use_edns=0 if edns else False,
        want_dnssec=edns and question.wants_dnssec(query),
        payload=min(most, question.PAYLOAD),
        id=secrets.randbits(16),
        flags=query.flags & (Flag.RD | Flag.AD | Flag.CD),
    )


def read(packet: bytes, asked: Message) -> Message:
    """Return what answers a question of ours, of which only header and question are read.

    Raises:
        Malformed: it does not.
    """
    # A thousand questions take a library as long as a thousand records.
    if question.header(packet)[2] > 1:
        raise Malformed
    try:
        # No key: a signature is not looked into.
        found = dns.message.from_wire(packet, keyring=False, question_only=True)
    except (dns.exception.DNSException, ValueError, LookupError, struct.error):
        raise Malformed from None
    if not asked.is_response(found):
        raise Malformed
    return found


def relayed(found: Message, query: Message, most: int) -> bytes:
    """Return an answer as the client gets it."""
    packet = found.wire
    if not packet or not found.question:
        # It could not read the question, so it can't repeat it.
        return question.answer(query, found.rcode())
    if len(packet) > most:
        return question.answer(query, found.rcode(), flags=Flag.TC)
    made = dns.message.make_response(query, recursion_available=True)
    made.use_edns(False)
    made.flags |= query.flags & Flag.CD | found.flags & Flag.TC
    if query.flags & Flag.AD or question.wants_dnssec(query):
        made.flags |= found.flags & Flag.AD
    made.set_rcode(found.rcode())
    start = made.to_wire()
    # The question is as long as theirs, so that what points into it still does.
    return start[:4] + packet[4:12] + start[12:] + packet[len(start) :]
