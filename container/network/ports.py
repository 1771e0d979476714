"""Published ports of one network: reserved, led into the containers, and relayed where rules can't.

A host port is reserved by sockets that this process listens on (`reserving`), so nobody else takes
it, and `ss -ltnp` names us. Rules (`firewall`) take what they can before it reaches those sockets;
what still arrives at them is relayed (`proxy`): `::1`, link-local addresses, IPv6 to a network
without it, and everything while another has deleted our rules.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import resource
import socket
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager

import trio
from attrs import define, evolve, field

from container.contracts.network import Protocol, PublishedPort
from container.ipc import ContainerError, InvalidArgument
from container.network import proxy, who_listens
from container.network.firewall import Firewall, Forwarded
from container.network.reserving import PortTaken, Reserved, named, reserve

log = logging.getLogger(__name__)

MOST = 16_384
"""Host ports of one container; each takes two descriptors and a task."""
LAST = 65_535

_Place = tuple[Protocol, str, int]
"""Protocol, address and number of a host port."""


def check_ports(ports: Iterable[PublishedPort]) -> None:
    """Check ports as a container asks for them, before anything is done.

    Raises:
        InvalidArgument: a port or a row of them is out of range, an address is none, two of them
            take the same host port, or there are too many.
    """
    ports = tuple(ports)
    if sum(max(port.count, 0) for port in ports) > MOST:
        raise InvalidArgument(f"more than {MOST:,} published ports of one container")
    for port in ports:
        _check_port(port)
    rows = sorted(
        (port for port in ports if port.host_port),
        key=lambda port: (port.protocol.value, port.host_port),
    )
    for at, port in enumerate(rows):
        for other in rows[at + 1 :]:
            if other.protocol != port.protocol or other.host_port >= port.host_port + port.count:
                break
            if _meet(port.host_address, other.host_address):
                what = named(other.protocol, other.host_address, other.host_port)
                raise InvalidArgument(f"port {what} of the host is to be published twice")


def _check_port(port: PublishedPort) -> None:
    if not 1 <= port.container_port <= LAST:
        raise InvalidArgument(f"container port {port.container_port}: ports are 1 to {LAST}")
    if not 0 <= port.host_port <= LAST:
        raise InvalidArgument(f"host port {port.host_port}: ports are 1 to {LAST}, and 0 is any")
    if port.count < 1:
        raise InvalidArgument(f"{port.count} ports in a row: at least one is published")
    for what, first in (("container", port.container_port), ("host", port.host_port)):
        if first + port.count - 1 > LAST:
            raise InvalidArgument(
                f"{port.count} {what} ports from {first} on: the last one possible is {LAST}"
            )
    if not port.host_address:
        return
    try:
        address = ipaddress.ip_address(port.host_address)
    except ValueError as error:
        raise InvalidArgument(
            f'"{port.host_address}" is no IP address of this host',
            hint="give one, such as 127.0.0.1 or ::1, or none for all of them",
        ) from error
    if address.is_multicast or port.host_address == "255.255.255.255":
        raise InvalidArgument(f"{address} is an address of many hosts: no port can be published")
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            raise InvalidArgument(f"{address} is an IPv4 address: say {address.ipv4_mapped}")
        if address.is_link_local and address.scope_id is None:
            raise InvalidArgument(
                f"{address} is another host on every link",
                hint=f"say which interface: {address}%eth0",
            )


def _meet(one: str, other: str) -> bool:
    """Whether a port of both addresses can't be taken twice."""
    if not one or not other:
        return True
    first, second = ipaddress.ip_address(one), ipaddress.ip_address(other)
    if first.version != second.version:
        return False
    return first == second or first.is_unspecified or second.is_unspecified


@define(eq=False)
class _Relay:
    """What relays from one socket."""

    scope: trio.CancelScope = field(factory=trio.CancelScope)
    ended: trio.Event = field(factory=trio.Event)


@define(eq=False)
class _Host:
    """A host port of ours and where it leads."""

    reserved: Reserved
    target: proxy.Target
    relays: list[_Relay] = field(factory=list[_Relay])
    """Of its sockets, in their order."""

    def stop(self) -> None:
        """Have the relays end."""
        for each in self.relays:
            each.scope.cancel()


@define
class _Published:
    """What one attachment has."""

    name: str
    wanted: tuple[PublishedPort, ...]
    """With the host ports that were chosen."""
    addresses: tuple[str, ...]
    hosts: dict[_Place, _Host]


class PublishedPorts:
    """Which host ports lead to which attachments of this network.

    Calls for one key come one after another; those for different keys may overlap.
    """

    def __init__(self, firewall: Firewall, nursery: trio.Nursery) -> None:
        self._firewall = firewall
        self._nursery = nursery
        self._everyone = proxy.room_for_all()
        self._published: dict[str, _Published] = {}
        self._lost: dict[str, list[str]] = {}
        """By key: sentences about ports that another has taken while no helper was there."""

    async def restore(
        self,
        key: str,
        name: str,
        addresses: Sequence[str],
        ports: tuple[PublishedPort, ...],
        *,
        default_route: bool = True,
    ) -> tuple[Forwarded, ...]:
        """Take up what an earlier helper had published, when this one starts.

        Nothing is raised: a host port that another process has taken meanwhile still leads into
        the container by rules, and `problems` tells of it. `Firewall.setup` knows them then; what
        is returned is to look at.

        Args:
            key: The attachment's.
            name: The container's, for messages.
            addresses: The container's, with or without prefix length.
            ports: With the host ports that were chosen.
            default_route: Whether the container's way out is this network.
        """
        bare = _bare(addresses)
        published = _Published(name, ports, bare, {})
        for port in ports:
            for at in range(port.count):
                place = (port.protocol, port.host_address, port.host_port + at)
                target = proxy.Target(bare, port.container_port + at)
                try:
                    (reserved,) = reserve(*place, 1)
                except ContainerError as error:
                    lost = await self._explained(error)
                    log.warning('container "%s": %s', name, lost.message)
                    self._lost.setdefault(key, []).append(
                        f'{lost.message}: container "{name}" published it before, and is '
                        "reached there only from outside; free the port and restart the container"
                    )
                else:
                    published.hosts[place] = self._relayed(reserved, target)
        self._published[key] = published
        forwarded = _forwarded(bare, ports, default_route)
        await self._firewall.forward(key, forwarded)
        return forwarded

    async def publish(
        self,
        key: str,
        name: str,
        addresses: Sequence[str],
        ports: tuple[PublishedPort, ...],
        *,
        default_route: bool = True,
    ) -> tuple[PublishedPort, ...]:
        """Let exactly these ports lead to an attachment, instead of those that did.

        All or nothing: on failure or cancellation the earlier ones still do. None of them
        releases all. Does no more than a checkpoint if there are none and were none.

        Args:
            key: The attachment's.
            name: The container's, for messages.
            addresses: The container's, with or without prefix length.
            ports: What is wanted; host port 0 chooses.
            default_route: Whether the container's way out is this network. Where it is not, the
                container sees the gateway as the source of all that arrives.

        Returns:
            The ports with the host ports that were chosen.

        Raises:
            InvalidArgument: see `check_ports`; or the host has no such address.
            AlreadyExists: a host port is taken; the message says by whom.
            PermissionDenied: this process may not take ports that low.
            Overloaded: no port of that many in a row is free, or no descriptor.
            Unsupported, Unavailable: see `Firewall.setup`.
        """
        await trio.lowlevel.checkpoint()
        earlier = self._published.get(key)
        if not ports and earlier is None:
            return ()
        check_ports(ports)
        before = {} if earlier is None else earlier.hosts
        bare = _bare(addresses)
        new: dict[_Place, Reserved] = {}
        try:
            chosen = tuple([await self._reserve(port, before, new) for port in ports])
            check_ports(chosen)
            await self._firewall.forward(key, _forwarded(bare, chosen, default_route))
        except BaseException:
            for each in new.values():
                each.close()
            raise

        # From here on nothing waits: the ports are as they are to be.
        published = _Published(name, chosen, bare, {})
        for port in chosen:
            for at in range(port.count):
                place = (port.protocol, port.host_address, port.host_port + at)
                target, kept = proxy.Target(bare, port.container_port + at), before.get(place)
                if kept is None:
                    published.hosts[place] = self._relayed(new[place], target)
                elif kept.target == target:
                    published.hosts[place] = kept
                else:
                    kept.stop()
                    published.hosts[place] = self._relayed(kept.reserved, target, after=kept)
        self._lost.pop(key, None)
        self._published[key] = published
        if not chosen:
            del self._published[key]
        await self._release(
            [host for place, host in before.items() if place not in published.hosts]
        )
        return chosen

    async def withdraw(self, key: str) -> None:
        """Release the ports of an attachment that goes: rules first, then the sockets.

        The sockets are closed also if the rules can't be changed, which is raised then.
        """
        await trio.lowlevel.checkpoint()
        published = self._published.pop(key, None)
        self._lost.pop(key, None)
        if published is None:
            return
        try:
            await self._firewall.forward(key, ())
        finally:
            await self._release(published.hosts.values())

    async def problems(self) -> tuple[str, ...]:
        """Return sentences about ports that are not as they should be."""
        await trio.lowlevel.checkpoint()
        return tuple(sentence for lost in self._lost.values() for sentence in lost)

    async def _reserve(
        self, port: PublishedPort, before: dict[_Place, _Host], new: dict[_Place, Reserved]
    ) -> PublishedPort:
        """Take the host ports of a row that are not taken yet for this attachment."""
        first = port.host_port
        places = [(port.protocol, port.host_address, first + at) for at in range(port.count)]
        try:
            if not first or not any(place in before for place in places):
                row = reserve(port.protocol, port.host_address, first, port.count)
            else:
                row = list[Reserved]()
                for place in places:
                    if place not in before:
                        row += reserve(*place, 1)
        except PortTaken as error:
            raise await self._explained(error) from None
        finally:
            # A row of thousands takes tens of milliseconds.
            await trio.lowlevel.cancel_shielded_checkpoint()
        for each in row:
            new[each.protocol, each.address, each.port] = each
        return evolve(port, host_port=first or row[0].port)

    async def _explained(self, error: ContainerError) -> ContainerError:
        """Return the error with who has the port."""
        if not isinstance(error, PortTaken):
            return error
        protocol, port = Protocol(error.details["protocol"]), int(str(error.details["port"]))
        address = str(error.details["address"])
        who = self._owner(protocol, address, port)
        who = who or await who_listens.who_has(protocol, address, port)
        return PortTaken(f"{error.message} by {who}", details=error.details)

    def _owner(self, protocol: Protocol, address: str, port: int) -> str | None:
        for published in self._published.values():
            for place in published.hosts:
                if (protocol, port) == (place[0], place[2]) and _meet(place[1], address):
                    return f'container "{published.name}"'
        return None

    def _relayed(
        self, reserved: Reserved, target: proxy.Target, *, after: _Host | None = None
    ) -> _Host:
        host = _Host(reserved, target)
        for at, each in enumerate(reserved.sockets):
            relay = _Relay()
            host.relays.append(relay)
            earlier = None if after is None else after.relays[at]
            self._nursery.start_soon(self._relay, relay, each, target, earlier)
        return host

    async def _relay(
        self, relay: _Relay, bound: socket.socket, target: proxy.Target, earlier: _Relay | None
    ) -> None:
        streams = bound.type == socket.SOCK_STREAM
        work = proxy.relay_streams if streams else proxy.relay_datagrams
        try:
            with relay.scope:
                if earlier is not None:
                    # Two can't wait for one socket.
                    await earlier.ended.wait()
                await work(bound, target, self._everyone)
        finally:
            relay.ended.set()

    async def _release(self, hosts: Iterable[_Host]) -> None:
        hosts = tuple(hosts)
        for host in hosts:
            host.stop()
        # Relays end at once; a socket must not be closed while one waits for it.
        with trio.CancelScope(shield=True):
            for host in hosts:
                for relay in host.relays:
                    await relay.ended.wait()
                host.reserved.close()

    def close(self) -> None:
        """Close all sockets; the relays have ended."""
        for published in self._published.values():
            for host in published.hosts.values():
                host.reserved.close()


@asynccontextmanager
async def open_published_ports(firewall: Firewall) -> AsyncGenerator[PublishedPorts]:
    """Open the published ports of a network; at the end sockets close and relays stop.

    Rules are left as they are: who ends for good calls `withdraw` or `Firewall.remove` first.
    Raises this process's limit of open files to what it may be.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    ports: PublishedPorts | None = None
    try:
        async with trio.open_nursery() as nursery:
            ports = PublishedPorts(firewall, nursery)
            yield ports
            nursery.cancel_scope.cancel()
    finally:
        if ports is not None:
            ports.close()


def _bare(addresses: Sequence[str]) -> tuple[str, ...]:
    return tuple(address.partition("/")[0] for address in addresses)


def _forwarded(
    addresses: Sequence[str], ports: Iterable[PublishedPort], default_route: bool
) -> tuple[Forwarded, ...]:
    """Return what rules can lead on: to an address of the same family as the host's."""
    return tuple(
        Forwarded(
            port.protocol,
            "" if _is_everyone(port.host_address) else port.host_address,
            port.host_port + at,
            address,
            port.container_port + at,
            keep_source=default_route,
        )
        for port in ports
        for address in addresses
        if _rules_can(port.host_address, address)
        for at in range(port.count)
    )


@functools.lru_cache
def _is_everyone(host_address: str) -> bool:
    return bool(host_address) and ipaddress.ip_address(host_address).is_unspecified


@functools.lru_cache
def _rules_can(host_address: str, address: str) -> bool:
    if not host_address:
        return True
    host = ipaddress.ip_address(host_address)
    if host.version == 6 and (host.is_link_local or host.is_loopback):
        return False
    return host.version == ipaddress.ip_address(address).version
