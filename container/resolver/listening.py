"""The sockets of a DNS server: high, random ports at one address.

There is one TCP socket and a row of UDP sockets at one port. The kernel gives a packet to one of
the row by the address of its sender (a filter of ours, run by the kernel), so that who floods fills
the buffer of one socket and not that of all: nothing that runs after `recvfrom` can be fair about
packets that were dropped before it.

Source: socket(7), SO_REUSEPORT and SO_ATTACH_REUSEPORT_CBPF; linux/filter.h.
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import struct

from attrs import frozen

from container.ipc.errors import Unavailable

_ATTACH_REUSEPORT_CBPF = 51
_IPV6_FREEBIND = 78
_IP_FREEBIND = 15
_LOAD_WORD = 0x20
_AND = 0x54
_RETURN_ACCUMULATOR = 0x16
_NETWORK_HEADER = 0xFFF00000
"""SKF_NET_OFF: offsets count from the IP header, since the packet begins after the UDP header."""
_LAST_WORD_OF_SOURCE = {socket.AF_INET: 12, socket.AF_INET6: 20}
_BACKLOG = 128


@frozen
class Listener:
    """Where one address is listened at."""

    gateway: str
    udp_port: int
    tcp_port: int
    udp: tuple[socket.socket, ...]
    tcp: socket.socket

    def close(self) -> None:
        """Close the sockets; once more does nothing."""
        for one in (*self.udp, self.tcp):
            one.close()


def listen(gateway: str, *, ways: int = 32) -> Listener:
    """Bind sockets at random ports of an address, which need not be on an interface yet.

    Args:
        gateway: IPv4 or IPv6.
        ways: Number of UDP sockets, a power of two: so many clients in a row of addresses whose
            floods do not touch each other.

    Raises:
        Unavailable: the kernel refused.
    """
    family = socket.AF_INET if ipaddress.ip_address(gateway).version == 4 else socket.AF_INET6
    opened: list[socket.socket] = []
    try:
        tcp = _bound(opened, family, socket.SOCK_STREAM, gateway)
        tcp.listen(_BACKLOG)
        # Shared only after it was bound: else the kernel might choose a port that is shared.
        first = _bound(opened, family, socket.SOCK_DGRAM, gateway)
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        port = first.getsockname()[1]
        rest = (
            _bound(opened, family, socket.SOCK_DGRAM, gateway, shared_port=port)
            for _ in range(ways - 1)
        )
        udp = (first, *rest)
        if ways > 1:
            _spread_by_source(first, family, ways)
    except OSError as error:
        for one in opened:
            one.close()
        raise Unavailable(f"can't listen for DNS at {gateway}: {error.strerror}") from error
    return Listener(gateway, port, tcp.getsockname()[1], udp, tcp)


def _bound(
    opened: list[socket.socket],
    family: socket.AddressFamily,
    kind: socket.SocketKind,
    address: str,
    *,
    shared_port: int = 0,
) -> socket.socket:
    made = socket.socket(family, kind)
    opened.append(made)
    made.setblocking(False)
    # An address of IPv6 can't be bound before the bridge has a carrier: it is tentative till then.
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
    else:
        made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    if shared_port:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind((address, shared_port))
    return made


def _spread_by_source(member: socket.socket, family: socket.AddressFamily, ways: int) -> None:
    """Let the kernel choose among the sockets of a port by the last bits of who sends."""
    program = (
        (_LOAD_WORD, _NETWORK_HEADER + _LAST_WORD_OF_SOURCE[family]),
        (_AND, ways - 1),
        (_RETURN_ACCUMULATOR, 0),
    )
    code = ctypes.create_string_buffer(
        b"".join(struct.pack("=HBBI", operation, 0, 0, value) for operation, value in program)
    )
    filter_program = struct.pack("@HP", len(program), ctypes.addressof(code))
    member.setsockopt(socket.SOL_SOCKET, _ATTACH_REUSEPORT_CBPF, filter_program)
