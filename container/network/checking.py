"""What an attachment may be asked for: everything that is wrong is said before anything is done."""

from __future__ import annotations

import ipaddress
import re

from container.contracts.network import AttachmentRequest, NetworkConfiguration
from container.ipc import InvalidArgument
from container.network.bridge import MTU, check_interface, check_mtu
from container.network.leases import check_mac

KEY = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}")
NETWORK_ID = re.compile(r"[0-9a-f]{12}")
_LABEL = re.compile(r"[a-zA-Z0-9_]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?")
_MOST_NAMES = 64
_MOST_SERVERS = 16


def check_name(name: str) -> str:
    """Return a name that DNS can say.

    Raises:
        InvalidArgument: it can't. Source: RFC 1035, 2.3.4; underscores are let pass.
    """
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise InvalidArgument(
            f"{name!r} is no name that DNS can say",
            hint="letters, digits, - and _, at most 63 between two dots",
        )
    return name


def check_request(request: AttachmentRequest, network: NetworkConfiguration) -> None:
    """Check what is asked of a network; addresses and ports have checks of their own.

    Raises:
        InvalidArgument: something is wrong; the message names it.
    """
    if not KEY.fullmatch(request.key):
        raise InvalidArgument(f"{request.key!r} is no key of an attachment")
    check_interface(request.interface)
    names = (request.name, *filter(None, (request.hostname,)), *request.aliases)
    if len(names) > _MOST_NAMES:
        raise InvalidArgument(f"{len(names)} names are too many: at most {_MOST_NAMES}")
    for name in names:
        check_name(name)
    if request.mac:
        check_mac(request.mac)
    if request.mtu is not None:
        ipv6 = any(":" in subnet for subnet in network.subnets)
        check_mtu(request.mtu, ipv6=ipv6, most=network.mtu or MTU)
    if len(request.nameservers) > _MOST_SERVERS or len(request.neighbours) > _MOST_NAMES:
        raise InvalidArgument("too many nameservers or networks")
    for server in request.nameservers:
        try:
            ipaddress.ip_address(server)
        except ValueError:
            raise InvalidArgument(f"nameserver {server!r} is no IP address") from None
    for neighbour in request.neighbours:
        # It becomes a part of a path.
        if not NETWORK_ID.fullmatch(neighbour):
            raise InvalidArgument(f"{neighbour!r} is no id of a network")


def check_network(network: NetworkConfiguration) -> None:
    """Check what a user asked for when the network was created.

    Raises:
        InvalidArgument: something is wrong; the message names it.
    """
    if network.mtu is not None:
        check_mtu(network.mtu, ipv6=any(":" in subnet for subnet in network.subnets))
    if network.options:
        raise InvalidArgument(
            f"network {network.name}: driver {network.driver} has no option "
            f"{min(network.options)!r}",
            hint="make the network anew without --opt",
        )


def check_ranges(network: NetworkConfiguration) -> None:
    """Check what was chosen for a network: without it there is nothing to serve.

    Raises:
        InvalidArgument: something is wrong; the message names it.
    """
    if not NETWORK_ID.fullmatch(network.id):
        raise InvalidArgument(f"{network.id!r} is no id of a network")
    subnets: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
    try:
        subnets = [ipaddress.ip_network(subnet) for subnet in network.subnets]
        gateways = [ipaddress.ip_address(gateway) for gateway in network.gateways]
    except ValueError as error:
        raise InvalidArgument(f"network {network.name}: {error}") from None
    if not subnets or len({subnet.version for subnet in subnets}) != len(subnets):
        raise InvalidArgument(f"network {network.name} needs one range of each family at most")
    if len(gateways) != len(subnets):
        raise InvalidArgument(f"network {network.name} needs a gateway for each range")
    for gateway, subnet in zip(gateways, subnets, strict=True):
        if gateway not in subnet:
            raise InvalidArgument(f"network {network.name}: {gateway} is not in {subnet}")
