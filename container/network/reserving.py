"""Host ports, taken by sockets of this process so that nobody else takes them.

A TCP socket listens: only a listening one keeps others from binding beside it (with SO_REUSEADDR),
and only SO_REUSEADDR lets it bind while old connections of its port wind down. IPv4 and IPv6 have
sockets of their own.

Source: socket(7), ip(7), ipv6(7).
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Callable, Iterator

from attrs import field, frozen

from container.contracts.network import Protocol
from container.ipc import AlreadyExists, InvalidArgument, Overloaded, PermissionDenied, Unavailable

BACKLOG = 128
"""Connections that wait to be relayed."""
TRIES = 64
"""For a row of ports that is free."""
IP_PKTINFO = 8
"""Source: ip(7); Python has no name for it."""


class PortTaken(AlreadyExists, name="network.port-taken"):
    """Somebody has a host port; `details` are its `protocol`, `address` and `port`."""


@frozen
class Reserved:
    """One port of the host, of one address or of every one."""

    protocol: Protocol
    address: str
    """Empty: every one, of both families."""
    port: int
    sockets: tuple[socket.socket, ...] = field(repr=False)
    """Of IPv4, of IPv6, or both; non-blocking."""

    def close(self) -> None:
        """Let others have it."""
        for each in self.sockets:
            each.close()


def reserve(protocol: Protocol, address: str, first: int, count: int) -> list[Reserved]:
    """Take a row of host ports, all or none.

    Args:
        protocol: Of all of them.
        address: One of the host's; empty is every one, of both families.
        first: The first port; 0 chooses.
        count: How many in a row.

    Raises:
        PortTaken: one of them is taken.
        InvalidArgument: the host has no such address.
        PermissionDenied: ports this low are not for this process.
        Overloaded: no row of that length is free, or this process has no descriptor left.
    """
    if first:
        return _row(protocol, address, first, count)
    for _ in range(TRIES):
        try:
            beginning = _one(protocol, address, 0)
        except PortTaken:
            continue
        try:
            return [beginning, *_row(protocol, address, beginning.port + 1, count - 1)]
        except (PortTaken, OverflowError):
            beginning.close()
        except BaseException:
            beginning.close()
            raise
    wanted = "port" if count == 1 else f"{count} ports in a row"
    raise Overloaded(f"no {wanted} of the host could be found free, in {TRIES} tries")


def named(protocol: Protocol, address: str, port: int) -> str:
    """Return how a port is called in messages: `127.0.0.1:80/tcp`."""
    host = f"[{address}]" if ":" in address else address
    return f"{host}:{port}/{protocol.value}" if host else f"{port}/{protocol.value}"


def _row(protocol: Protocol, address: str, first: int, count: int) -> list[Reserved]:
    taken: list[Reserved] = []
    try:
        for port in range(first, first + count):
            taken.append(_one(protocol, address, port))  # noqa: PERF401
    except BaseException:
        for each in taken:
            each.close()
        raise
    return taken


def _one(protocol: Protocol, address: str, port: int) -> Reserved:
    sockets: list[socket.socket] = []
    try:
        for family, host in _places(address):
            found = _bound(protocol, family, host, port, optional=not address and bool(sockets))
            if found is not None:
                sockets.append(found)
                # The second family takes the port that the first one was given.
                port = found.getsockname()[1]
    except BaseException:
        for each in sockets:
            each.close()
        raise
    return Reserved(protocol, address, port, tuple(sockets))


def _places(address: str) -> Iterator[tuple[socket.AddressFamily, str]]:
    if not address:
        yield socket.AF_INET, "0.0.0.0"
        yield socket.AF_INET6, "::"
    elif ipaddress.ip_address(address).version == 4:
        yield socket.AF_INET, address
    else:
        yield socket.AF_INET6, address


def _bound(
    protocol: Protocol, family: socket.AddressFamily, host: str, port: int, *, optional: bool
) -> socket.socket | None:
    kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
    found: socket.socket | None = None
    try:
        found = socket.socket(family, kind)
        found.setblocking(False)
        if family == socket.AF_INET6:
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        _OPTIONS[protocol](found)
        found.bind(_socket_address(family, host, port))
        if protocol is Protocol.TCP:
            found.listen(BACKLOG)
        return found
    except OSError as error:
        if found is not None:
            found.close()
        if optional and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            return None
        raise _error(error, protocol, host, port) from error


def _socket_address(family: socket.AddressFamily, host: str, port: int) -> tuple[str | int, ...]:
    if family == socket.AF_INET:
        return host, port
    address, _, scope = host.partition("%")
    try:
        index = int(scope) if scope.isdigit() else socket.if_nametoindex(scope) if scope else 0
    except OSError as error:
        # It says no number.
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV)) from error
    return address, port, 0, index


def _for_streams(found: socket.socket) -> None:
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def _for_datagrams(found: socket.socket) -> None:
    # A socket of every address is to answer from the one that was asked.
    if found.family == socket.AF_INET6:
        found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        found.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)


_OPTIONS: dict[Protocol, Callable[[socket.socket], None]] = {
    Protocol.TCP: _for_streams,
    Protocol.UDP: _for_datagrams,
}


def _error(error: OSError, protocol: Protocol, host: str, port: int) -> Exception:
    address = "" if host in ("0.0.0.0", "::") else host
    what = named(protocol, address, port)
    match error.errno:
        case errno.EADDRINUSE:
            details = {"protocol": protocol.value, "address": host, "port": port}
            return PortTaken(f"port {what} of the host is taken", details=details)
        case errno.EADDRNOTAVAIL | errno.ENODEV | errno.ENXIO:
            return InvalidArgument(f"this host has no address {host}")
        case errno.EACCES | errno.EPERM:
            return PermissionDenied(f"port {what} of the host may not be taken: {error.strerror}")
        case errno.EMFILE | errno.ENFILE | errno.ENOBUFS | errno.ENOMEM:
            return Overloaded(
                f"port {what} of the host: {error.strerror}",
                hint="every published port takes two descriptors: raise the limit of open files",
            )
        case _:
            return Unavailable(f"port {what} of the host can't be taken: {error.strerror}")
