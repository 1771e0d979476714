"""Ranges of networks: which are free, and whether one that a user wants can be had.

A new network gets a range that overlaps no other network's and nothing that the host routes, so
that no container is ever sent to when the host means another machine. The range is chosen once and
stays: a route that the host gets later is told by the network helper, not evaded.

Pure but for `host_routes`, which reads what the kernel says.
"""

from __future__ import annotations

import ipaddress
import secrets
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from attrs import frozen

from container.ipc import AlreadyExists, InvalidArgument, Overloaded, Unsupported

Range = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

POOLS = ("10.89.0.0/16", "172.29.0.0/16", "192.168.224.0/19")
"""Where IPv4 ranges are chosen from; the later ones where the host routes all of the first."""
CHOSEN_PREFIX = 24
PREFIX_MAX = {4: 30, 6: 126}
"""The smallest ranges that hold the gateway and a container."""

_SPECIAL = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/3",
        "::/8",
        "fe80::/10",
        "ff00::/8",
    )
)
"""Loopback, link-local, multicast and what is not for hosts. Source: RFC 6890."""
_EVERYWHERE = 3
"""Prefix length up to which a route is a default route, also one in pieces, as VPNs make."""


@frozen
class Taken:
    """A range that can't be had any more."""

    range: Range
    by: str
    """Who has it, as a message says it: `network web`, `the host's route by eth0`."""


def host_routes(proc: Path = Path("/proc/net")) -> tuple[Taken, ...]:
    """Return what the host routes, but for its default routes. Blocking.

    Source: proc_net(5) for `route`, net/ipv6/route.c for `ipv6_route`.
    """
    found: list[Taken] = []
    for line in _lines(proc / "route")[1:]:
        words = line.split()
        if len(words) < 8:
            continue
        # Printed as numbers of this machine, whose bytes are the address.
        address, mask = (
            ipaddress.IPv4Address(int(words[place], 16).to_bytes(4, sys.byteorder))
            for place in (1, 7)
        )
        found.append(_route(f"{address}/{mask}", words[0]))
    for line in _lines(proc / "ipv6_route"):
        words = line.split()
        if len(words) < 10:
            continue
        address6 = ipaddress.IPv6Address(bytes.fromhex(words[0]))
        found.append(_route(f"{address6}/{int(words[1], 16)}", words[9]))
    return tuple(
        taken
        for taken in found
        if taken.range.prefixlen > _EVERYWHERE and not _special(taken.range)
    )


def has_ipv6(proc: Path = Path("/proc/net")) -> bool:
    """Return whether the kernel speaks IPv6. Blocking."""
    return (proc / "if_inet6").exists()


def parse_range(text: str) -> Range:
    """Return the range that a user wrote.

    Raises:
        InvalidArgument: it is none, or none that containers can live in.
    """
    try:
        found = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise InvalidArgument(
            f"{text!r} is no range: write it as an address and a prefix length, as in 10.9.0.0/24"
        ) from None
    if "/" not in text:
        raise InvalidArgument(f"the range {text!r} has no prefix length, as in {text}/24")
    given = ipaddress.ip_interface(text).ip
    if given != found.network_address:
        raise InvalidArgument(f"{text!r} is an address in the range {found}", hint=f"use {found}")
    if found.prefixlen > PREFIX_MAX[found.version]:
        raise InvalidArgument(
            f"the range {text} is too small: it needs room for the gateway and one container, "
            f"at most /{PREFIX_MAX[found.version]}"
        )
    special = _special(found)
    if special is not None:
        raise InvalidArgument(f"the range {text} can't be a network's: {special} is reserved")
    return found


def parse_address(text: str, what: str = "address") -> Address:
    """Return the address that a user wrote.

    Raises:
        InvalidArgument: it is none.
    """
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise InvalidArgument(f"{text!r} is no {what}: write an IPv4 or IPv6 address") from None


def ranges(
    wanted: Sequence[str], *, ipv6: bool, taken: Iterable[Taken], kernel_ipv6: bool
) -> tuple[Range, ...]:
    """Return the ranges of a new network: those that are wanted, or else chosen ones.

    Args:
        wanted: CIDR, at most one of each family; empty chooses one of IPv4.
        ipv6: Choose one of IPv6 too where none is wanted.
        taken: What can't be had.
        kernel_ipv6: Whether the kernel speaks IPv6.

    Raises:
        InvalidArgument: one that is wanted makes no sense.
        AlreadyExists: one that is wanted overlaps another; the message says whose.
        Overloaded: there is none left to choose.
        Unsupported: IPv6 is wanted, and the kernel has none.
    """
    taken = tuple(taken)
    found = [parse_range(text) for text in wanted]
    for version in (4, 6):
        if sum(each.version == version for each in found) > 1:
            raise InvalidArgument(f"a network has at most one range of IPv{version}")
    for each in found:
        for other in taken:
            if _overlap(each, other.range):
                raise AlreadyExists(
                    f"the range {each} overlaps {other.range}, which is {other.by}",
                    hint="choose another range, or name none to have a free one chosen",
                )
    if not found:
        found.append(_free_ipv4(taken))
    if ipv6 and all(each.version == 4 for each in found):
        found.append(_free_ipv6(taken))
    if not kernel_ipv6 and any(each.version == 6 for each in found):
        raise Unsupported("this kernel has no IPv6", hint="leave --ipv6 and IPv6 ranges out")
    return tuple(found)


def gateways(found: Sequence[Range], wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the gateway in each range: the wanted one, or else the first address.

    Raises:
        InvalidArgument: a wanted one is in no range, or can't be a host's.
    """
    chosen: dict[Range, Address] = {}
    for text in wanted:
        address = parse_address(text, "gateway")
        place = next((each for each in found if address in each), None)
        if place is None:
            shown = " and ".join(str(each) for each in found)
            raise InvalidArgument(f"the gateway {text} is not in the range {shown}")
        if place in chosen:
            raise InvalidArgument(f"the range {place} has two gateways: {chosen[place]} and {text}")
        check_host(address, place, f"the gateway {text}")
        chosen[place] = address
    return tuple(str(chosen.get(each, each.network_address + 1)) for each in found)


def check_host(address: Address, place: Range, what: str) -> None:
    """Check that an address in a range can be a host's.

    Raises:
        InvalidArgument: it is the range's own, or its broadcast address.
    """
    if address == place.network_address:
        raise InvalidArgument(f"{what} is the address of the range {place} itself")
    if place.version == 4 and address == place.broadcast_address:
        raise InvalidArgument(f"{what} is the broadcast address of the range {place}")


def _free_ipv4(taken: Sequence[Taken]) -> Range:
    for pool in POOLS:
        for candidate in ipaddress.IPv4Network(pool).subnets(new_prefix=CHOSEN_PREFIX):
            if not any(_overlap(candidate, other.range) for other in taken):
                return candidate
    raise Overloaded(
        f"no range is left in {', '.join(POOLS)}",
        hint="delete networks (`container network prune`), or choose a range with --subnet",
    )


def _free_ipv6(taken: Sequence[Taken]) -> Range:
    """Choose at random: two machines whose networks are joined one day will not collide.

    Source: RFC 4193, section 3.2.
    """
    while True:
        identifier = bytes([0xFD]) + secrets.token_bytes(5) + bytes(10)
        candidate = ipaddress.IPv6Network((identifier, 64))
        if not any(_overlap(candidate, other.range) for other in taken):
            return candidate


def _overlap(one: Range, other: Range) -> bool:
    if isinstance(one, ipaddress.IPv4Network):
        return isinstance(other, ipaddress.IPv4Network) and one.overlaps(other)
    return isinstance(other, ipaddress.IPv6Network) and one.overlaps(other)


def _special(found: Range) -> Range | None:
    return next((special for special in _SPECIAL if _overlap(found, special)), None)


def _route(text: str, interface: str) -> Taken:
    return Taken(ipaddress.ip_network(text, strict=False), f"the host's route by {interface}")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []  # a kernel without this family
