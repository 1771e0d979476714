"""What a container wants of networks: checked, and made into what its runtime helper is asked for.

Pure: every rule can be tested by a call. What a network itself decides (whether an address is free,
who has a host's port) is the network helper's to say, when the container starts.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence

from attrs import evolve

from container.apiserver.subnets import check_host, parse_address
from container.contracts.apiserver import Container, ContainerOptions, NetworkUse
from container.contracts.network import (
    AttachmentRequest,
    NetworkConfiguration,
    Protocol,
    PublishedPort,
)
from container.contracts.runtime import NameOptions, NetworkMode, SandboxNetwork
from container.ipc import InvalidArgument

NONE, HOST, SHARED = "none", "host", "container:"
"""Of `ContainerOptions.network`; the last is followed by the container's name."""
PORT_MAX = 65535
MTU_MIN, MTU_MAX = 68, 65535
"""Bytes. Source: RFC 791; the kernel's limit of a veth."""
MTU_MIN_IPV6 = 1280
"""Source: RFC 8200, section 5."""
INTERFACE_MAX = 15
"""Bytes of an interface's name: IFNAMSIZ less one."""
PORTS_MAX = 16_384
"""That one container publishes: each is a socket in the network's helper."""
MANY = 64
"""Of networks, aliases, servers, domains, options and hosts alike."""

_LABEL = re.compile(r"[a-zA-Z0-9_]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?")
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
_WORD = re.compile(r"[^\s\0]{1,255}")


def check_network_options(options: ContainerOptions) -> None:
    """Check all that can be told without knowing which networks there are.

    Raises:
        InvalidArgument: the message says the rule.
    """
    mode = options.network
    if mode not in ("", NONE, HOST) and not mode.startswith(SHARED):
        raise InvalidArgument(
            f"{mode!r} is no way to have a network: it is none, host or container:NAME",
            hint="networks by name are named in `networks`",
        )
    if mode == SHARED:
        raise InvalidArgument("container: names no container")
    if mode and options.networks:
        raise InvalidArgument(
            f"the network {mode} goes with no other: {options.networks[0].network!r} was given too"
        )
    if mode and (options.ports or options.publish_all):
        why = "its ports are the host's own" if mode == HOST else "nothing leads into it"
        if mode.startswith(SHARED):
            why = "the other container publishes its own"
        raise InvalidArgument(f"with the network {mode} no port can be published: {why}")
    if mode.startswith(SHARED) and options.names != NameOptions():
        raise InvalidArgument(
            f"with the network {mode} names are found as the other container finds them: "
            "servers, domains and hosts can't be chosen"
        )
    check_uses(options.networks)
    check_ports(options.ports)
    check_names(options.names)


def check_uses(uses: Sequence[NetworkUse]) -> None:
    """Check the networks of one container against each other.

    Raises:
        InvalidArgument: two have one name or interface, or a field is malformed.
    """
    _check_number("networks", uses)
    networks: set[str] = set()
    interfaces: set[str] = set()
    for use in uses:
        if not use.network:
            raise InvalidArgument("a network has no name")
        if use.network in networks:
            raise InvalidArgument(f"the network {use.network!r} is given twice")
        networks.add(use.network)
        if use.interface:
            check_interface(use.interface)
            if use.interface in interfaces:
                raise InvalidArgument(f"two networks have the interface {use.interface!r}")
            interfaces.add(use.interface)
        versions: set[int] = set()
        for text in use.addresses:
            version = parse_address(text).version
            if version in versions:
                raise InvalidArgument(
                    f"two addresses of IPv{version} are wanted in the network {use.network!r}: "
                    "at most one"
                )
            versions.add(version)
        if use.mac:
            check_mac(use.mac)
        if use.mtu is not None:
            check_mtu(use.mtu)
        _check_number("aliases", use.aliases)
        for alias in use.aliases:
            check_domain(alias, "an alias")


def check_use(use: NetworkUse, network: NetworkConfiguration) -> None:
    """Check a use against the network that it is of.

    Raises:
        InvalidArgument: an address that is not in its ranges, aliases where there are no names.
    """
    for text in use.addresses:
        address = parse_address(text)
        places = [ipaddress.ip_network(subnet) for subnet in network.subnets]
        place = next((each for each in places if address in each), None)
        if place is None:
            shown = " and ".join(network.subnets) or "none of its own"
            raise InvalidArgument(
                f"the address {text} is not in the range of the network {network.name}: {shown}"
            )
        check_host(address, place, f"the address {text}")
        if str(address) in network.gateways:
            raise InvalidArgument(
                f"the address {text} is the gateway of the network {network.name}"
            )
    if use.aliases and not network.names:
        raise InvalidArgument(
            f"the network {network.name} knows no names: {use.aliases[0]!r} can't be one"
        )
    if use.mtu is not None and use.mtu < MTU_MIN_IPV6 and _has_ipv6(network):
        raise InvalidArgument(
            f"an MTU of {use.mtu} is too small for the network {network.name}: "
            f"IPv6 needs {MTU_MIN_IPV6}"
        )


def check_interface(name: str) -> None:
    """Check the name of an interface. Source: dev_valid_name in the kernel's net/core/dev.c."""
    usable = name.isascii() and name.isprintable() and not any(each in name for each in "/: %")
    if not usable or not 1 <= len(name) <= INTERFACE_MAX or name in (".", "..", "lo"):
        raise InvalidArgument(
            f"{name!r} can't be an interface: use at most {INTERFACE_MAX} letters, digits, "
            "'.', '_' and '-', as in eth0"
        )


def check_mac(text: str) -> None:
    """Check a MAC address: six bytes, of one interface and not of a group."""
    if not _MAC.fullmatch(text):
        raise InvalidArgument(
            f"{text!r} is no MAC address: write six bytes, as in 02:42:ac:11:00:02"
        )
    if int(text[:2], 16) & 1 or not text.strip("0:"):
        raise InvalidArgument(
            f"the MAC address {text} can't be an interface's: begin it with an even byte, as in 02"
        )


def check_mtu(mtu: int, *, ipv6: bool = False) -> None:
    """Check a largest packet."""
    smallest = MTU_MIN_IPV6 if ipv6 else MTU_MIN
    if not smallest <= mtu <= MTU_MAX:
        why = " (IPv6 needs that)" if ipv6 and MTU_MIN <= mtu < smallest else ""
        raise InvalidArgument(f"an MTU of {mtu} is out of range: {smallest} to {MTU_MAX}{why}")


def check_domain(name: str, what: str) -> None:
    """Check a name of DNS. Source: RFC 1035, section 2.3.1; underscores as they are used."""
    labels = name.removesuffix(".").split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise InvalidArgument(
            f"{name!r} can't be {what}: use letters, digits and '-' between dots, "
            "at most 63 in a row"
        )


def check_names(names: NameOptions) -> None:
    """Check how names are to be found.

    Raises:
        InvalidArgument: the message says the rule.
    """
    for what, values in (
        ("servers", names.servers),
        ("search domains", names.search),
        ("options", names.options),
        ("hosts", names.hosts),
    ):
        _check_number(what, values)
    for server in names.servers:
        parse_address(server, "address of a DNS server")
    for domain in names.search:
        if domain != ".":
            check_domain(domain, "a search domain")
    for option in names.options:
        if not _WORD.fullmatch(option):
            raise InvalidArgument(f"{option!r} is no DNS option: one word, as in ndots:2")
    for host in names.hosts:
        name, colon, address = host.partition(":")
        if not colon:
            raise InvalidArgument(f"{host!r} is no host: write NAME:ADDRESS")
        check_domain(name, "a host's name")
        if address != "host-gateway":
            parse_address(address, f"address of the host {name}")
    if names.keep_hosts and names.hosts:
        raise InvalidArgument(
            "hosts can't be added to /etc/hosts and it be left as it is",
            hint="leave out one of --add-host and --no-hosts",
        )


def check_ports(ports: Sequence[PublishedPort]) -> None:
    """Check published ports by themselves and against each other.

    Raises:
        InvalidArgument: one is out of range, or two lead from one place.
    """
    if sum(max(1, port.count) for port in ports) > PORTS_MAX:
        raise InvalidArgument(f"more than {PORTS_MAX} ports are published")
    for port in ports:
        if port.count < 1:
            raise InvalidArgument(f"a row of {port.count} ports is none")
        for what, first, least in (
            ("port of the container", port.container_port, 1),
            ("port of the host", port.host_port, 0),
        ):
            last = first + port.count - 1
            if first < least or (last > PORT_MAX and first):
                wrong = first if first < least else last
                raise InvalidArgument(f"{wrong} can't be a {what}: {max(1, least)} to {PORT_MAX}")
        if port.host_address:
            parse_address(port.host_address, "address of the host")
    for place, port in enumerate(ports):
        for other in ports[:place]:
            shared = _collision(port, other)
            if shared is not None:
                raise InvalidArgument(
                    f"the host's port {shared}/{port.protocol.value} is published twice"
                )


def exposed(
    image_ports: Iterable[str], ports: Sequence[PublishedPort]
) -> tuple[PublishedPort, ...]:
    """Return what to publish of an image's ports: those that `ports` do not lead to already.

    Args:
        image_ports: `80`, `80/tcp`, `8000-8010/udp`; what is none of these is left out.
        ports: That the user publishes.
    """
    led = {
        (port.container_port + place, port.protocol)
        for port in ports
        for place in range(port.count)
    }
    found: list[PublishedPort] = []
    for text in image_ports:
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp))?", text.lower(), re.ASCII)
        if match is None:
            continue
        first, last = int(match[1]), int(match[2] or match[1])
        protocol = Protocol(match[3] or "tcp")
        for number in range(max(1, first), min(last, PORT_MAX) + 1):
            if (number, protocol) not in led:
                led.add((number, protocol))
                found.append(PublishedPort(number, protocol=protocol))
    return tuple(found)


def with_interfaces(uses: Sequence[NetworkUse]) -> tuple[NetworkUse, ...]:
    """Return the uses with an interface each: `eth0`, `eth1` and so on where none is given."""
    taken = {use.interface for use in uses}
    free = (name for name in (f"eth{number}" for number in range(MANY * 2)) if name not in taken)
    return tuple(use if use.interface else evolve(use, interface=next(free)) for use in uses)


def network_mode(container: Container) -> NetworkMode:
    """Return where a container's network namespace comes from."""
    if container.network.startswith(SHARED):
        return "shared"
    if container.network == HOST:
        return "host"
    return "networks" if container.networks and not container.network else "none"


def sandbox_networks(
    container: Container,
    configurations: Sequence[NetworkConfiguration],
    socket: Callable[[str], str],
) -> tuple[SandboxNetwork, ...]:
    """Return what a container's runtime helper asks of each network.

    The first network that has a way out is the way out, and its ports lead in by it.

    Args:
        container: With its `networks`.
        configurations: Of these, in their order.
        socket: From a network's id to its helper's socket.
    """
    leading = next(
        (place for place, network in enumerate(configurations) if not network.internal), None
    )
    found: list[SandboxNetwork] = []
    for place, (use, network) in enumerate(zip(container.networks, configurations, strict=True)):
        request = AttachmentRequest(
            key=container.id,
            interface=use.interface,
            name=container.name,
            hostname=container.hostname,
            aliases=use.aliases,
            addresses=use.addresses,
            mac=use.mac,
            mtu=use.mtu or network.mtu,
            ports=container.ports if place == (leading or 0) else (),
            default_route=place == leading,
            nameservers=container.names.servers,
            search=container.names.search,
            neighbours=tuple(each.id for each in configurations if each.id != network.id),
        )
        path, leads_out = socket(network.id), not network.internal
        found.append(SandboxNetwork(network.id, network.name, path, request, leads_out))
    return tuple(found)


def _collision(one: PublishedPort, other: PublishedPort) -> int | None:
    """Return the first host port that both want, if there is one."""
    if one.protocol is not other.protocol or not one.host_port or not other.host_port:
        return None
    if not _same_address(one.host_address, other.host_address):
        return None
    first = max(one.host_port, other.host_port)
    last = min(one.host_port + one.count, other.host_port + other.count) - 1
    return first if first <= last else None


def _same_address(one: str, other: str) -> bool:
    """Whether something could be bound to both at once."""
    if not one or not other:
        return True
    first, second = parse_address(one), parse_address(other)
    if first.version != second.version:
        return False
    return first == second or first.is_unspecified or second.is_unspecified


def _has_ipv6(network: NetworkConfiguration) -> bool:
    return any(":" in subnet for subnet in network.subnets)


def _check_number(what: str, values: Sequence[object]) -> None:
    if len(values) > MANY:
        raise InvalidArgument(f"{len(values)} {what} are too many: at most {MANY}")
