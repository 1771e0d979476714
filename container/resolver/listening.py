"""The sockets of a DNS server: high, random ports at one address.

There is one TCP socket and a row of UDP sockets at the same port. The kernel gives a packet to one
of the row by the address of its sender (a filter of ours, in the kernel), so that who floods fills
his own socket's buffer and not that of the others: nothing that runs after `recvfrom` can be fair
about packets that were dropped before it.

Source: socket(7), SO_REUSEPORT and SO_ATTACH_REUSEPORT_CBPF.
"""

from __future__ import annotations

import socket

from attrs import frozen


@frozen
class Listener:
    """Where one address is listened at."""

    gateway: str
    udp_port: int
    tcp_port: int
    udp: tuple[socket.socket, ...]
    tcp: socket.socket

    def close(self) -> None:
        """Close the sockets."""
        ...


def listen(gateway: str, *, ways: int = 32) -> Listener:
    """Bind sockets at random ports of an address, which need not be on an interface yet.

    Args:
        gateway: IPv4 or IPv6.
        ways: Number of UDP sockets: so many clients whose floods do not touch each other.

    Raises:
        Unavailable: the kernel refused.
    """
    raise NotImplementedError
