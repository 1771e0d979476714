"""Which address is whose: allocation by key, in memory.

| wanted | is granted |
|---|---|
| an address by name | that one, if nobody holds it |
| any, and the key has held some before | the same again, if nobody holds it now |
| any | the next free one after the one that was granted last, round the whole range |

So an address that was given back is not used again before all others were: who still believes in it
(a cache, a connection) does not reach a stranger. Nothing here is written down: the caller does
that (`records`), before it uses what was granted.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Sequence

from attrs import define, field

from container.ipc import AlreadyExists, InvalidArgument, Overloaded

REMEMBERED = 4096
"""Keys whose last addresses are remembered; the oldest are forgotten."""

Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


@define
class Memory:
    """What is remembered of leases that are over."""

    cursors: dict[str, str] = field(factory=dict[str, str])
    """By subnet: the address that was granted last."""
    last: dict[str, tuple[str, ...]] = field(factory=dict[str, tuple[str, ...]])
    """By key, the oldest first: what it held last."""


class Leases:
    """The addresses of one network.

    Args:
        subnets: CIDR, at most one of each family.
        gateways: The host's own address in each subnet; nobody gets it.
        memory: Of earlier lives; changed here.
    """

    def __init__(
        self, subnets: Sequence[str], gateways: Sequence[str], memory: Memory | None = None
    ) -> None:
        self.subnets: tuple[Subnet, ...] = tuple(map(ipaddress.ip_network, subnets))
        self._gateways: frozenset[Address] = frozenset(map(ipaddress.ip_address, gateways))
        self.memory = Memory() if memory is None else memory
        self._held: dict[Address, str] = {}
        self._keys: dict[str, tuple[Address, ...]] = {}

    def restore(self, key: str, addresses: Iterable[str]) -> None:
        """Take note of addresses (without prefix) that a key holds already, from an earlier life.

        Raises:
            AlreadyExists: another key holds one of them; nothing was noted.
        """
        found = tuple(map(ipaddress.ip_address, addresses))
        for address in found:
            self._check_free(address, key)
        for address in found:
            self._held[address] = key
        self._keys[key] = found

    def grant(self, key: str, wanted: Sequence[str] = ()) -> tuple[str, ...]:
        """Give a key one address of each subnet, in the subnets' order.

        A key that holds addresses keeps them.

        Args:
            key: Who.
            wanted: Addresses that it must be, at most one of each subnet.

        Raises:
            InvalidArgument: a wanted one is no address, in no subnet, or reserved; or differs from
                what the key holds.
            AlreadyExists: a wanted one is held; `details["holder"]` is the key that holds it.
            Overloaded: a subnet has no free address. In all cases nothing was granted.
        """
        asked = self.check(wanted)
        held = self._keys.get(key)
        if held is not None:
            other = [str(address) for address in asked.values() if address not in held]
            if other:
                raise InvalidArgument(
                    f"{key} holds {', '.join(map(str, held))} already, not {', '.join(other)}",
                    hint="disconnect it from the network first",
                )
            return tuple(map(str, held))
        chosen: list[Address] = []
        for subnet in self.subnets:
            address = asked.get(subnet)
            if address is None:
                address = self._again(key, subnet) or self._next(subnet)
            else:
                self._check_free(address, key)
            chosen.append(address)
        for subnet, address in zip(self.subnets, chosen, strict=True):
            self._held[address] = key
            if subnet not in asked:
                self.memory.cursors[str(subnet)] = str(address)
        self._keys[key] = tuple(chosen)
        return tuple(map(str, chosen))

    def release(self, key: str) -> None:
        """Take a key's addresses back. One that holds none is none of our business."""
        addresses = self._keys.pop(key, ())
        for address in addresses:
            del self._held[address]
        if addresses:
            last = self.memory.last
            last.pop(key, None)
            last[key] = tuple(map(str, addresses))
            while len(last) > REMEMBERED:
                del last[next(iter(last))]

    def holder(self, address: str) -> str | None:
        """Return the key that holds an address."""
        return self._held.get(ipaddress.ip_address(address))

    def prefix_length(self, address: str) -> int:
        """Return the prefix length of the subnet that an address is in."""
        found = ipaddress.ip_address(address)
        return next(each.prefixlen for each in self.subnets if found in each)

    def check(self, wanted: Sequence[str]) -> dict[Subnet, Address]:
        """Return what is wanted, by subnet.

        Raises:
            InvalidArgument: see `grant`.
        """
        asked: dict[Subnet, Address] = {}
        for text in wanted:
            try:
                address = ipaddress.ip_address(text)
            except ValueError:
                raise InvalidArgument(f"{text!r} is no IP address") from None
            subnet = next((each for each in self.subnets if address in each), None)
            if subnet is None:
                ranges = ", ".join(map(str, self.subnets)) or "nothing"
                raise InvalidArgument(
                    f"{text} is not in the network's range, {ranges}",
                    hint="`container network inspect` shows the range",
                )
            if self._reserved(subnet, address):
                what = "the gateway" if address in self._gateways else "reserved"
                raise InvalidArgument(f"{text} is {what} in {subnet}")
            if subnet in asked:
                raise InvalidArgument(f"{asked[subnet]} and {text} are both in {subnet}: want one")
            asked[subnet] = address
        return asked

    def _check_free(self, address: Address, key: str) -> None:
        holder = self._held.get(address)
        if holder is not None and holder != key:
            raise AlreadyExists(f"{address} is held by {holder}", details={"holder": holder})

    def _again(self, key: str, subnet: Subnet) -> Address | None:
        for text in self.memory.last.get(key, ()):
            address = ipaddress.ip_address(text)
            if (
                address in subnet
                and address not in self._held
                and not self._reserved(subnet, address)
            ):
                return address
        return None

    def _next(self, subnet: Subnet) -> Address:
        first, last = int(subnet.network_address), int(subnet.broadcast_address)
        at = first
        cursor = self.memory.cursors.get(str(subnet))
        if cursor is not None:
            at = int(ipaddress.ip_address(cursor))
        make = type(subnet.network_address)
        # Of this many addresses in a row one is free, if any is: the others are held, or reserved.
        for _ in range(min(len(self._held) + len(self._gateways) + 3, subnet.num_addresses)):
            at = at + 1 if at < last else first
            address = make(at)
            if address not in self._held and not self._reserved(subnet, address):
                return address
        raise Overloaded(
            f"no address is left in {subnet}",
            hint="stop containers of this network, or make a network with a wider --subnet",
        )

    def _reserved(self, subnet: Subnet, address: Address) -> bool:
        if address in self._gateways:
            return True
        if subnet.version == 6:
            # The subnet-router anycast address. Source: RFC 4291, 2.6.1.
            return address == subnet.network_address and subnet.prefixlen < 127
        return address in (subnet.network_address, subnet.broadcast_address) and (
            subnet.prefixlen < 31
        )


def mac_of(address: str, salt: int = 0) -> str:
    """Return the MAC of whoever holds an address: the same again, and no other's in the subnet.

    Locally administered; of IPv4 the address itself stands in it.
    """
    parsed = ipaddress.ip_address(address)
    if parsed.version == 4 and not salt:
        return ":".join(f"{byte:02x}" for byte in b"\x02\x42" + parsed.packed)
    digest = hashlib.sha256(parsed.packed + bytes([salt])).digest()
    return ":".join(f"{byte:02x}" for byte in b"\x06" + digest[:5])


def check_mac(text: str) -> str:
    """Return a MAC in the kernel's spelling.

    Raises:
        InvalidArgument: it is none, or not that of one interface.
    """
    mac = text.lower().replace("-", ":")
    if not _MAC.fullmatch(mac):
        raise InvalidArgument(f"{text!r} is no MAC address", hint="such as 02:42:0a:59:00:02")
    first = int(mac[:2], 16)
    if first & 1 or mac == "00:00:00:00:00:00":
        raise InvalidArgument(f"{text} is a MAC of many interfaces, not of one")
    return mac
