"""Have the kernel forget datagrams' flows that a change of published ports has made wrong.

A flow that goes on never meets the rules again: a client that keeps sending would reach the
container that had the port before, or nobody, for ever. TCP's connections end by themselves.

Source: linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_common.h; the filter of a dump is Linux
5.8's (an older kernel does not look at it, so all is looked at here again).
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Collection, Iterator, Mapping

from attrs import frozen

from container.network import netlink as nl

_NETLINK_NETFILTER = 12
_GET, _DELETE = 0x101, 0x102
"""Of the subsystem conntrack."""
_TUPLE_ORIGINAL, _TUPLE_REPLY, _STATUS, _ID, _FILTER = 1, 2, 3, 12, 25
_TUPLE_IP, _TUPLE_PROTOCOL = 1, 2
_SOURCE, _DESTINATION = {4: 1, 6: 3}, {4: 2, 6: 4}
"""By version of IP."""
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_FILTER_ORIGINAL = 1
_BY_NUMBER, _BY_DESTINATION_PORT = 1 << 3, 1 << 5
_SOURCE_NAT, _DESTINATION_NAT = 1 << 4, 1 << 5
_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct("=BBH")
_NESTED = 0x8000
_SECONDS = 10.0
_EACH = 16
"""So many ports are asked for one by one, more of them by a look at all flows."""


Place = tuple[str, int]
"""Address and port of a container."""


@frozen
class _Flow:
    family: int
    original: bytes
    """Its tuple, as the kernel wrote it."""
    identity: bytes
    destination: str
    """Where its datagrams were sent."""
    port: int
    answerer: Place
    """Who answers them: another than the destination if it was translated."""
    status: int


def forget(ports: Mapping[int, Collection[Place]], formerly: Collection[Place]) -> int:
    """Forget the flows of datagrams to host ports that don't lead where the ports do.

    Blocking. Nothing is raised where the kernel can't be asked.

    Args:
        ports: Host ports of UDP, and where each leads now.
        formerly: Where they led before; a flow to anybody else is not ours.

    Returns:
        How many flows there were.
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as kernel:
            kernel.settimeout(_SECONDS)
            wrong = [
                flow
                for family in (socket.AF_INET, socket.AF_INET6)
                for flow in _flows(kernel, family, ports)
                if _is_wrong(flow, ports, formerly)
            ]
            for flow in wrong:
                _delete(kernel, flow)
    except OSError:
        return 0
    return len(wrong)


def _is_wrong(
    flow: _Flow, ports: Mapping[int, Collection[Place]], formerly: Collection[Place]
) -> bool:
    if flow.port not in ports:
        return False
    if flow.status & _DESTINATION_NAT:
        return flow.answerer in formerly and flow.answerer not in ports[flow.port]
    # It came before the port was published. What only passes by, or goes out, is let alone.
    return not flow.status & _SOURCE_NAT and _is_local(flow.family, flow.destination)


def _is_local(family: int, address: str) -> bool:
    with socket.socket(family, socket.SOCK_DGRAM) as trial:
        try:
            trial.bind((address, 0))
        except OSError:
            return False
    return True


def _flows(kernel: socket.socket, family: int, ports: Collection[int]) -> Iterator[_Flow]:
    by_number = nl.attribute(_NUMBER, bytes([socket.IPPROTO_UDP]))
    if len(ports) > _EACH:
        yield from _dump(kernel, family, by_number, _BY_NUMBER)
        return
    for port in ports:
        wanted = by_number + nl.attribute(_DESTINATION_PORT, struct.pack("!H", port))
        yield from _dump(kernel, family, wanted, _BY_NUMBER | _BY_DESTINATION_PORT)


def _dump(kernel: socket.socket, family: int, wanted: bytes, flags: int) -> Iterator[_Flow]:
    body = _GENERIC.pack(family, 0, 0)
    body += nl.nested(_TUPLE_ORIGINAL | _NESTED, nl.attribute(_TUPLE_PROTOCOL | _NESTED, wanted))
    body += nl.nested(_FILTER | _NESTED, nl.number(_FILTER_ORIGINAL, flags))
    _send(kernel, _GET, nl.NLM_F_REQUEST | nl.NLM_F_DUMP, body)
    for answer in list(_answers(kernel)):
        flow = _read(family, answer)
        if flow is not None:
            yield flow


def _read(family: int, answer: bytes) -> _Flow | None:
    found = nl.attributes(answer, _GENERIC.size)
    original = nl.attributes(found[_TUPLE_ORIGINAL], 0)
    protocol = nl.attributes(original[_TUPLE_PROTOCOL], 0)
    if protocol[_NUMBER][0] != socket.IPPROTO_UDP:
        return None
    version = 6 if family == socket.AF_INET6 else 4
    reply = nl.attributes(found[_TUPLE_REPLY], 0)
    answers = nl.attributes(reply[_TUPLE_PROTOCOL], 0)
    return _Flow(
        family,
        original=nl.attribute(_TUPLE_ORIGINAL | _NESTED, found[_TUPLE_ORIGINAL]),
        identity=nl.attribute(_ID, found[_ID]) if _ID in found else b"",
        destination=_address(nl.attributes(original[_TUPLE_IP], 0)[_DESTINATION[version]]),
        port=struct.unpack_from("!H", protocol[_DESTINATION_PORT])[0],
        answerer=(
            _address(nl.attributes(reply[_TUPLE_IP], 0)[_SOURCE[version]]),
            struct.unpack_from("!H", answers[_SOURCE_PORT])[0],
        ),
        status=struct.unpack_from("!I", found[_STATUS])[0],
    )


def _address(packed: bytes) -> str:
    return str(ipaddress.ip_address(packed))


def _delete(kernel: socket.socket, flow: _Flow) -> None:
    body = _GENERIC.pack(flow.family, 0, 0) + flow.original + flow.identity
    _send(kernel, _DELETE, nl.NLM_F_REQUEST | nl.NLM_F_ACK, body)
    try:
        list(_answers(kernel))
    except FileNotFoundError:
        # It ended meanwhile.
        pass


def _send(kernel: socket.socket, kind: int, flags: int, body: bytes) -> None:
    kernel.sendto(_HEADER.pack(_HEADER.size + len(body), kind, flags, 0, 0) + body, (0, 0))


def _answers(kernel: socket.socket) -> Iterator[bytes]:
    while True:
        for kind, body in nl.messages(kernel.recv(1 << 18)):
            if kind == nl.NLMSG_DONE:
                return
            if kind == nl.NLMSG_ERROR:
                (code,) = struct.unpack_from("=i", body)
                if code:
                    raise OSError(-code, os.strerror(-code))
                return
            yield body
