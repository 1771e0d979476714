"""A host with networks whose containers talk, and a neighbour of it: real packets, no helper.

Bridges and cables are made by ip(8) here, so that what is tested is rules and ports alone. Services
run in the test's own tasks, on sockets of the containers' namespaces.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager

import trio
from attrs import define, field

from container.contracts.network import NetworkConfiguration, Protocol, PublishedPort
from container.network.firewall import Firewall
from container.network.ports import PublishedPorts, open_published_ports
from container.testing.network import NetworkNamespace, network_configuration

HOST4, HOST6 = "192.0.2.1", "2001:db8::1"
OUTSIDE4, OUTSIDE6 = "192.0.2.9", "2001:db8::9"
PATIENCE = 2.0
"""Seconds that an answer may take on a busy machine."""
NO_ANSWER = 0.25
"""Seconds after which there is none: where packets are dropped nothing tells so."""


@define
class Place:
    """A container's end: where its services listen."""

    namespace: NetworkNamespace
    addresses: tuple[str, ...]

    def address(self, family: int) -> str:
        """Return its address of a family."""
        return next(each for each in self.addresses if (":" in each) == (family == 6))


@define
class Lan:
    """A network of the host, with its rules."""

    configuration: NetworkConfiguration
    bridge: str
    firewall: Firewall
    host: NetworkNamespace
    stack: ExitStack
    places: list[Place] = field(factory=list[Place])

    def container(self) -> Place:
        """Return a container that is in it."""
        namespace = self.stack.enter_context(NetworkNamespace())
        _trust_addresses(namespace)
        last, port = len(self.places) + 2, f"{self.bridge}p{len(self.places)}"
        addresses = tuple(each[:-1] + str(last) for each in self.gateways)
        self.host.connect_to(
            namespace,
            port,
            "eth0",
            (),
            tuple(f"{each}/{24 if '.' in each else 64}" for each in addresses),
        )
        # Where br_netfilter is at work, a container reaches itself by the host only so.
        lines = [f"link set {port} master {self.bridge}"]
        lines.append(f"link set {port} type bridge_slave hairpin on")
        self.host.run("ip", "-batch", "-", input="\n".join(lines))
        if not self.configuration.internal:
            lines = [f"route add default via {gateway}" for gateway in self.gateways]
            namespace.run("ip", "-batch", "-", input="\n".join(lines))
        place = Place(namespace, addresses)
        self.places.append(place)
        return place

    @property
    def gateways(self) -> Sequence[str]:
        return self.configuration.gateways

    @asynccontextmanager
    async def publishing(
        self, place: Place, *ports: PublishedPort, name: str = "web", default_route: bool = True
    ) -> AsyncIterator[PublishedPorts]:
        """Publish ports of a container for a block."""
        async with open_published_ports(self.firewall) as published:
            await published.publish(name, name, place.addresses, ports, default_route=default_route)
            yield published
            await published.withdraw(name)


@define
class Neighbourhood:
    """A host and a machine beside it."""

    host: NetworkNamespace
    outside: NetworkNamespace
    stack: ExitStack

    async def lan(
        self, number: int = 1, *, families: Sequence[int] = (4, 6), **fields: object
    ) -> Lan:
        """Return a network of the host; its rules are in force."""
        ranges = {4: f"10.89.{number}.", 6: f"fd00:{number}::"}
        lengths = {4: "0/24", 6: "/64"}
        configuration = network_configuration(
            f"lan{number}",
            tuple(ranges[each] + lengths[each] for each in families),
            tuple(ranges[each] + "1" for each in families),
            **fields,
        )
        bridge = f"ctb{number:08x}"
        lines = [f"link add {bridge} type bridge", f"link set {bridge} up"]
        for gateway in configuration.gateways:
            length, flags = ("64", "nodad") if ":" in gateway else ("24", "")
            lines.append(f"address add {gateway}/{length} dev {bridge} {flags}")
        self.host.run("ip", "-batch", "-", input="\n".join(lines))
        firewall = Firewall(configuration, bridge)
        await firewall.setup()
        return Lan(configuration, bridge, firewall, self.host, self.stack)


@contextmanager
def neighbourhood(host: NetworkNamespace) -> Iterator[Neighbourhood]:
    """Give a host a neighbour, by a cable with IPv4 and IPv6."""
    with ExitStack() as stack:
        outside = stack.enter_context(NetworkNamespace())
        _trust_addresses(host)
        _trust_addresses(outside)
        host.connect_to(
            outside,
            "eth0",
            "eth0",
            (f"{HOST4}/24", f"{HOST6}/64"),
            (f"{OUTSIDE4}/24", f"{OUTSIDE6}/64"),
        )
        for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            host.run("sysctl", "-qw", f"{name}=1")
        # The first look for a neighbour on a new cable is lost, and the next is a second later.
        mac = outside.run("ip", "-br", "link", "show", "eth0").stdout.split()[2]
        host.run("ip", "neighbour", "add", OUTSIDE6, "lladdr", mac, "dev", "eth0")
        yield Neighbourhood(host, outside, stack)


@asynccontextmanager
async def telling(
    place: Place | NetworkNamespace, port: int, *families: int
) -> AsyncIterator[None]:
    """Run a service at a port, TCP and UDP, that tells each client its address as seen there."""
    namespace = place.namespace if isinstance(place, Place) else place
    async with trio.open_nursery() as nursery:
        for family in families or (4, 6):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                bound = namespace.socket(_family(family), kind)
                nursery.start_soon(_closed_in_the_end, bound)
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == 6:
                    bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                bound.bind(("::" if family == 6 else "0.0.0.0", port))
                if kind == socket.SOCK_STREAM:
                    bound.listen()
                bound.setblocking(False)
                tell = _tell_streams if kind == socket.SOCK_STREAM else _tell_datagrams
                nursery.start_soon(tell, trio.socket.from_stdlib_socket(bound))
        yield
        nursery.cancel_scope.cancel()


async def _closed_in_the_end(bound: socket.socket) -> None:
    with bound:
        await trio.sleep_forever()


async def _tell_streams(bound: trio.socket.SocketType) -> None:
    with bound:
        while True:
            client, address = await bound.accept()
            with client, contextlib.suppress(OSError):
                await client.send(address[0].encode())


async def _tell_datagrams(bound: trio.socket.SocketType) -> None:
    with bound:
        while True:
            data, address = await bound.recvfrom(65_536)
            await bound.sendto(address[0].encode() + b" " + data, address)


async def ask(
    origin: NetworkNamespace | Place,
    address: str,
    port: int,
    protocol: Protocol = Protocol.TCP,
    *,
    patience: float = PATIENCE,
) -> str | None:
    """Return the source that a service saw when it was asked from a namespace; None: no answer."""
    namespace = origin.namespace if isinstance(origin, Place) else origin
    kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
    plain = namespace.socket(_family(6 if ":" in address else 4), kind)
    plain.setblocking(False)
    with trio.socket.from_stdlib_socket(plain) as client, trio.move_on_after(patience):
        try:
            await client.connect(client_address(namespace, address, port))
            if protocol is Protocol.UDP:
                await client.send(b"?")
            answer = await client.recv(1024)
        except OSError:
            return None
        return answer.decode().partition(" ")[0] or None
    return None


async def silent(*questions: tuple[NetworkNamespace | Place, str, int]) -> bool:
    """Say whether none of these is answered: who asks, an address and a port, all at once."""
    answers: list[str | None] = []

    async def one(origin: NetworkNamespace | Place, address: str, port: int) -> None:
        answers.append(await ask(origin, address, port, patience=NO_ANSWER))

    async with trio.open_nursery() as nursery:
        for question in questions:
            nursery.start_soon(one, *question)
    return answers == [None] * len(questions)


def client_address(
    origin: NetworkNamespace, address: str, port: int
) -> tuple[str, int] | tuple[str, int, int, int]:
    """Return what a socket of a namespace is connected to."""
    host, _, scope = address.partition("%")
    if not scope:
        return host, port
    return host, port, 0, origin.call(lambda: socket.if_nametoindex(scope))


def _trust_addresses(namespace: NetworkNamespace) -> None:
    # A link-local address is no source of anything for its first second otherwise.
    namespace.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")


def _family(version: int) -> socket.AddressFamily:
    return socket.AF_INET6 if version == 6 else socket.AF_INET
