"""Links, addresses and routes by rtnetlink: messages as bytes, and a socket that blocks.

Only what a bridge network needs, in messages of our own. With those of pyroute2 (0.9.7), tried in
their place, an attachment and its end took 22 ms of processor time instead of 8, until it was
attached 49 ms instead of 11, and the import of this module 0.3 s; each event of an interface took
a share of the loop that also answers names (2 busy cores, Linux 6.18).

Source: netlink(7), rtnetlink(7), linux/if_link.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Generator, Iterator, Mapping
from types import TracebackType
from typing import Self

from attrs import frozen

ACK_SECONDS = 20.0
"""The kernel answers in the sender's own call, unless another holds its lock: for ever is a bug."""

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_GETADDR = 20, 22
RTM_NEWROUTE, RTM_GETROUTE = 24, 26
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
RTMGRP_LINK = 1

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_LINKINFO, IFLA_IFALIAS, IFLA_AF_SPEC, IFLA_NET_NS_FD, IFLA_EXT_MASK = 18, 20, 26, 28, 29
IFLA_LINK_NETNSID = 37
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA, IFLA_BRPORT_MODE = 4, 5, 4
IFLA_INET6_ADDR_GEN_MODE, ADDR_GEN_MODE_NONE = 8, 1
RTEXT_FILTER_SKIP_STATS = 8
IFF_UP = 1

IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST = 1, 2, 4
IFA_F_NODAD = 0x02
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_TABLE = 1, 4, 5, 15
RT_TABLE_MAIN, RTPROT_STATIC, RTN_UNICAST = 254, 4, 1

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBi")
_ROUTE = struct.Struct("=BBBBBBBBI")


@frozen
class Link:
    """An interface."""

    index: int
    name: str
    kind: str = ""
    """`bridge`, `veth`; empty for a device."""
    master: int = 0
    """Index of the bridge that it is a port of."""
    peer: int = 0
    """Index of the other end of a veth pair."""
    mtu: int = 0
    mac: str = ""
    alias: str = ""
    up: bool = False
    family: int = socket.AF_UNSPEC
    """`AF_BRIDGE` in what is told of it as a port alone."""


@frozen
class Route:
    """A route of the main table."""

    destination: ipaddress.IPv4Network | ipaddress.IPv6Network
    interface: int


# --- bytes ---


def attribute(kind: int, payload: bytes) -> bytes:
    """Return one attribute, padded."""
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def text(kind: int, value: str) -> bytes:
    """Return an attribute that is a string."""
    return attribute(kind, value.encode() + b"\0")


def number(kind: int, value: int) -> bytes:
    """Return an attribute that is a number of 32 bits."""
    return attribute(kind, struct.pack("=I", value))


def nested(kind: int, *attributes: bytes) -> bytes:
    """Return an attribute that holds attributes."""
    return attribute(kind, b"".join(attributes))


def link_body(index: int = 0, *, flags: int = 0, family: int = socket.AF_UNSPEC) -> bytes:
    """Return a `struct ifinfomsg` that sets these flags and leaves the others alone."""
    return _LINK.pack(family, 0, index, flags, flags)


def mac_bytes(mac: str) -> bytes:
    """Return a MAC's bytes."""
    return bytes.fromhex(mac.replace(":", ""))


def attributes(data: bytes, offset: int) -> dict[int, bytes]:
    """Return the attributes from an offset on, by kind."""
    found: dict[int, bytes] = {}
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def _number(found: Mapping[int, bytes], kind: int) -> int:
    return struct.unpack("=I", found[kind][:4])[0] if kind in found else 0


def _text(found: Mapping[int, bytes], kind: int) -> str:
    return found.get(kind, b"").rstrip(b"\0").decode(errors="replace")


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and body of each message of a datagram."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def index_of(body: bytes) -> int:
    """Return of which link a message is."""
    return _LINK.unpack_from(body)[2]


def read_link(body: bytes) -> Link:
    """Read the body of a message about a link."""
    family, _, index, flags, _ = _LINK.unpack_from(body)
    found = attributes(body, _LINK.size)
    info = attributes(found.get(IFLA_LINKINFO, b""), 0)
    return Link(
        index=index,
        name=_text(found, IFLA_IFNAME),
        kind=_text(info, IFLA_INFO_KIND),
        master=_number(found, IFLA_MASTER),
        peer=_number(found, IFLA_LINK),
        mtu=_number(found, IFLA_MTU),
        mac=found.get(IFLA_ADDRESS, b"").hex(":"),
        alias=_text(found, IFLA_IFALIAS),
        up=bool(flags & IFF_UP),
        family=family,
    )


# --- the socket ---


class Netlink:
    """A conversation with the kernel about the namespace in which it was opened. Blocking."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.settimeout(ACK_SECONDS)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0)
        self._socket.sendto(header + body, (0, 0))

    def _answers(self, kind: int, flags: int, body: bytes) -> Generator[bytes]:
        self._send(kind, flags, body)
        while True:
            data = self._socket.recv(1 << 18)
            for answered, answer in messages(data):
                if answered == NLMSG_DONE:
                    return
                if answered == NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", answer)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return
                yield answer

    def change(self, kind: int, body: bytes, *, flags: int = 0) -> None:
        """Have the kernel do something.

        Raises:
            OSError: it refused.
        """
        for _ in self._answers(kind, NLM_F_REQUEST | NLM_F_ACK | flags, body):
            pass

    def links(self) -> list[Link]:
        """Return all interfaces."""
        body = link_body() + number(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
        return [
            read_link(each) for each in self._answers(RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, body)
        ]

    def link(self, name: str) -> Link | None:
        """Return the interface with a name, if there is one."""
        body = (
            link_body() + text(IFLA_IFNAME, name) + number(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
        )
        found: Link | None = None
        try:
            for each in self._answers(RTM_GETLINK, NLM_F_REQUEST | NLM_F_ACK, body):
                found = read_link(each)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
        return found

    def addresses(self, index: int) -> frozenset[str]:
        """Return an interface's addresses, with prefix length."""
        found: set[str] = set()
        body = _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, index)
        for each in self._answers(RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, body):
            _, length, _, _, at = _ADDRESS.unpack_from(each)
            parts = attributes(each, _ADDRESS.size)
            raw = parts.get(IFA_LOCAL) or parts.get(IFA_ADDRESS)
            if at == index and raw is not None:
                found.add(f"{ipaddress.ip_address(raw)}/{length}")
        return frozenset(found)

    def add_address(self, index: int, address: str) -> None:
        """Give an interface an address (CIDR), at once usable; one that it has is no error."""
        parsed = ipaddress.ip_interface(address)
        version6 = parsed.version == 6
        body = _ADDRESS.pack(
            socket.AF_INET6 if version6 else socket.AF_INET,
            parsed.network.prefixlen,
            # No wait for an address that nobody else can have: we gave it away ourselves.
            IFA_F_NODAD if version6 else 0,
            0,
            index,
        )
        body += attribute(IFA_LOCAL, parsed.packed) + attribute(IFA_ADDRESS, parsed.packed)
        if not version6 and parsed.network.prefixlen < 31:
            body += attribute(IFA_BROADCAST, parsed.network.broadcast_address.packed)
        self.change(RTM_NEWADDR, body, flags=NLM_F_CREATE | NLM_F_REPLACE)

    def add_default_route(self, index: int, gateway: str) -> None:
        """Let everything of a family leave by a gateway; replaces such a route."""
        parsed = ipaddress.ip_address(gateway)
        family = socket.AF_INET6 if parsed.version == 6 else socket.AF_INET
        body = _ROUTE.pack(family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST, 0)
        body += attribute(RTA_GATEWAY, parsed.packed) + number(RTA_OIF, index)
        self.change(RTM_NEWROUTE, body, flags=NLM_F_CREATE | NLM_F_REPLACE)

    def routes(self) -> list[Route]:
        """Return the unicast routes of the main table, default routes excepted."""
        found: list[Route] = []
        body = _ROUTE.pack(socket.AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0)
        for each in self._answers(RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, body):
            family, length, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(each)
            if family not in (socket.AF_INET, socket.AF_INET6) or kind != RTN_UNICAST or not length:
                continue
            parts = attributes(each, _ROUTE.size)
            if (_number(parts, RTA_TABLE) or table) != RT_TABLE_MAIN or RTA_DST not in parts:
                continue
            network = ipaddress.ip_network((parts[RTA_DST], length), strict=False)
            found.append(Route(network, _number(parts, RTA_OIF)))
        return found
