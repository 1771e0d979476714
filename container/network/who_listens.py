"""Say which process has a port of the host that somebody else wants.

Read from /proc when it is asked for, which is when a port is taken. A socket in another network
namespace takes nothing from us and is not seen.

Source: proc(5), `/proc/net/tcp`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import trio
from attrs import frozen

from container.contracts.network import Protocol

_LISTEN = "0A"
"""State of a TCP socket that takes its port; that of any UDP socket counts."""
_PROC = Path("/proc")


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
    return await trio.to_thread.run_sync(_who_has, protocol, address, port)


def _who_has(protocol: Protocol, address: str, port: int) -> str:
    listeners = list(_listeners(protocol, address, port))
    for pid in sorted(filter(str.isdigit, os.listdir(_PROC)), key=int):
        # It may end meanwhile, or not be ours to look at.
        with contextlib.suppress(OSError):
            for number in os.listdir(_PROC / pid / "fd"):
                with contextlib.suppress(OSError):
                    link = os.readlink(_PROC / pid / "fd" / number)
                    if any(link == f"socket:[{each.inode}]" for each in listeners):
                        return _name(int(pid))
    if listeners:
        return f"a process of user {listeners[0].uid} that can't be seen from here"
    return "another process"


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


def _name(pid: int) -> str:
    command = (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    network = _network_of(command)
    if network is not None:
        return f"a container in network {network}"
    name = (_PROC / str(pid) / "comm").read_text().strip()
    return f"{name} (process {pid})"


def _network_of(command: list[str]) -> str | None:
    """Return the name of the network whose helper a process is: its folder is an argument."""
    if "--root" not in command[:-1]:
        return None
    file = Path(command[command.index("--root") + 1]) / "configuration.json"
    try:
        found = json.loads(file.read_text())
        return str(found["name"]) if "subnets" in found else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
