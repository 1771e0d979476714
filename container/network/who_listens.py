"""Say who has a port of the host that somebody else wants: which process, or which container.

Read from /proc when it is asked for, which is when a port is taken. A socket in another network
namespace takes nothing from us and is not seen. The helper of another network is known by the
socket that it serves, and asked there whose the port is.

Source: proc(5), `/proc/net/tcp`, `/proc/net/unix`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import trio
from attrs import frozen

from container.contracts.network import Network, Protocol
from container.ipc import ContainerError

_LISTEN = "0A"
"""State of a TCP socket that takes its port; that of any UDP socket counts."""
_PROC = Path("/proc")
ANSWER_SECONDS = 2.0
"""That the helper of another network has to say whose a port is."""


@frozen
class Listener:
    """A socket that has a port."""

    inode: str
    uid: int


async def who_has(protocol: Protocol, address: str, port: int) -> str:
    """Return who has a port of the host, as the end of a sentence: `nginx (process 812)`.

    Args:
        protocol: The port's.
        address: That is wanted; empty is every one.
        port: Its number.
    """
    found = await trio.to_thread.run_sync(_who_has, protocol, address, port)
    if isinstance(found, Path):
        return await _which_container(found, protocol, port)
    return found


async def _which_container(helper: Path, protocol: Protocol, port: int) -> str:
    """Ask the helper of another network."""
    name = f"of {helper.stem}"
    with trio.move_on_after(ANSWER_SECONDS):
        try:
            async with Network.connect(helper) as network:
                status = await network.status()
        except* ContainerError:
            pass
        else:
            name = status.name
            for attachment in status.attachments:
                for each in attachment.ports:
                    row = range(each.host_port, each.host_port + each.count)
                    if each.protocol is protocol and port in row:
                        return f'container "{attachment.names[0]}" in network {name}'
    return f"a container in network {name}"


def _who_has(protocol: Protocol, address: str, port: int) -> str | Path:
    listeners = list(_listeners(protocol, address, port))
    wanted = {f"socket:[{each.inode}]" for each in listeners}
    for pid in sorted(filter(str.isdigit, os.listdir(_PROC)), key=int):
        sockets = _sockets(pid)
        if wanted & sockets:
            return _helper(sockets) or _name(pid)
    if listeners:
        return f"a process of user {listeners[0].uid} that can't be seen from here"
    return "another process"


def _sockets(pid: str) -> set[str]:
    """Return `socket:[inode]` of each socket of a process."""
    found: set[str] = set()
    # It may end meanwhile, or not be ours to look at.
    with contextlib.suppress(OSError):
        for number in os.listdir(_PROC / pid / "fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(_PROC / pid / "fd" / number))
    return {each for each in found if each.startswith("socket:")}


def _name(pid: str) -> str:
    try:
        return f"{(_PROC / pid / 'comm').read_text().strip()} (process {pid})"
    except OSError:
        return f"process {pid}"


def _helper(sockets: set[str]) -> Path | None:
    """Return where the helper of a network listens, if these sockets are one's."""
    with contextlib.suppress(OSError):
        for line in (_PROC / "net" / "unix").read_text().splitlines()[1:]:
            words = line.split(maxsplit=7)
            if len(words) < 8 or f"socket:[{words[6]}]" not in sockets:
                continue
            path = Path(words[7])
            if path.parent.name == "network" and path.suffix == ".sock":
                return path
    return None


def _listeners(protocol: Protocol, address: str, port: int) -> Iterator[Listener]:
    wanted = ipaddress.ip_address(address.partition("%")[0]) if address else None
    for suffix, family in (("", socket.AF_INET), ("6", socket.AF_INET6)):
        try:
            lines = (_PROC / "net" / f"{protocol.value}{suffix}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, _, state, *rest = line.split()
            host, _, number = local.partition(":")
            if int(number, 16) != port or (protocol is Protocol.TCP and state != _LISTEN):
                continue
            if _overlap(_address(host, family), wanted):
                yield Listener(inode=rest[5], uid=int(rest[3]))


def _overlap(
    has: ipaddress.IPv4Address | ipaddress.IPv6Address,
    wanted: ipaddress.IPv4Address | ipaddress.IPv6Address | None,
) -> bool:
    # A socket of every IPv6 address may have every IPv4 address too.
    if wanted is None or has.is_unspecified:
        return wanted is None or has.version == wanted.version or has.version == 6
    return has == wanted or (wanted.is_unspecified and has.version == wanted.version)


def _address(digits: str, family: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    words = (int(digits[at : at + 8], 16) for at in range(0, len(digits), 8))
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    return ipaddress.ip_address(socket.inet_ntop(family, packed))
