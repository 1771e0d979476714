"""The network helper: one process per network, found as a plugin.

A container's place in a network is an *attachment*: addresses, MAC, interface, names and published
ports, which exist while the scope of `attach` is held. Whoever holds it may be killed while the
container lives on, so a scope that breaks off (and was not left) does not end the attachment while
the network namespace that it leads into still exists: the kernel takes the interface away with the
namespace, and the helper takes that for the end. The next holder takes an attachment up again by
its key.

Source: apple/container's network service, whose allocation lasts as long as its client's session.
"""

from __future__ import annotations

import enum
from abc import abstractmethod
from contextlib import AbstractAsyncContextManager
from datetime import datetime

from attrs import field, frozen

from container.ipc import Contract, Fd


class Protocol(enum.Enum):
    """What a port is of."""

    TCP = "tcp"
    UDP = "udp"


@frozen
class PublishedPort:
    """A port, or a row of ports, of the host that leads into a container."""

    container_port: int
    """The first one inside, 1 to 65535."""
    host_port: int = 0
    """The first one on the host; 0: any that is free."""
    count: int = 1
    """How many in a row."""
    protocol: Protocol = Protocol.TCP
    host_address: str = ""
    """Of the host, IPv4 or IPv6; empty is every one of both."""


@frozen
class NetworkConfiguration:
    """A network as it was created; the API server's document, handed to the helper as
    `configuration.json` in the helper's folder, and never changed after."""

    id: str
    """12 hex digits, of all systems of this machine."""
    name: str
    driver: str
    """The plugin's name."""
    created_at: datetime
    subnets: tuple[str, ...] = ()
    """CIDR, at most one of IPv4 and one of IPv6."""
    gateways: tuple[str, ...] = ()
    """The host's address in each subnet, in their order."""
    internal: bool = False
    """No way out, and none in but from the host."""
    mtu: int | None = None
    """Bytes; None is the kernel's own."""
    options: dict[str, str] = field(factory=dict[str, str])
    """`--opt`; the driver checks them."""
    labels: dict[str, str] = field(factory=dict[str, str])
    names: bool = True
    """Whether containers are known by name in it."""


@frozen
class AttachmentRequest:
    """What a container wants of a network."""

    key: str
    """Who it is, for ever: the container's id. A second `attach` of a key takes it up again."""
    interface: str
    """Its name inside: `eth0`."""
    name: str
    """The container's name."""
    hostname: str = ""
    aliases: tuple[str, ...] = ()
    """Further names in this network."""
    addresses: tuple[str, ...] = ()
    """Wanted addresses, at most one a subnet; others are chosen."""
    mac: str = ""
    """Empty: derived from the address."""
    mtu: int | None = None
    ports: tuple[PublishedPort, ...] = ()
    default_route: bool = True
    """Whether it leads out by this network; for one network of each container."""
    nameservers: tuple[str, ...] = ()
    """To ask for names that no container has, instead of the host's."""
    search: tuple[str, ...] = ()
    """Its search domains: `web.example.com` is also `web` for who searches `example.com`."""
    neighbours: tuple[str, ...] = ()
    """Ids of the other networks that it is in: their names it sees too."""


@frozen
class Attachment:
    """A container's place in a network, as it is."""

    network: str
    """The network's id."""
    network_name: str
    key: str
    interface: str
    addresses: tuple[str, ...]
    """With prefix length: `10.89.0.2/24`, `fd00::2/64`."""
    gateways: tuple[str, ...]
    mac: str
    mtu: int
    nameservers: tuple[str, ...] = ()
    """Where the network answers names; empty: nowhere."""
    ports: tuple[PublishedPort, ...] = ()
    """With the host ports that were chosen."""
    names: tuple[str, ...] = ()
    """All that it is found by."""


@frozen
class NetworkStatus:
    """What a network is now."""

    id: str
    name: str
    interface: str = ""
    """On the host, of a driver that makes one; it is there while the helper has something to do."""
    subnets: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    mtu: int = 1500
    attachments: tuple[Attachment, ...] = ()
    problems: tuple[str, ...] = ()
    """Sentences about what stands in its way, each with what to do: forwarding that is off,
    another's rules that drop its packets, a route of the host's that covers its range."""


@frozen
class NameEntry:
    """Who answers to a name."""

    name: str
    addresses: tuple[str, ...]


class Network(Contract, name="network", version=1):
    """One network. The socket is the launcher's: connecting starts the helper."""

    @abstractmethod
    async def status(self) -> NetworkStatus:
        """Return what it is, with all attachments.

        Raises:
            InvalidArgument: it was created with what its driver can't do: an option, a range.
        """
        ...

    @abstractmethod
    def attach(
        self, request: AttachmentRequest, namespace: Fd
    ) -> AbstractAsyncContextManager[Attachment]:
        """Attach a network namespace while the scope is held.

        All or nothing: on failure or cancellation interface, address, rules and names are gone.
        Left in order they are gone when the leaving is done; broken off they stay with the
        namespace (see above). Written down before it is used: no address is ever held by two.

        Args:
            request: What is wanted. An equal key takes an earlier attachment up, with its
                addresses and ports.
            namespace: The network namespace (`/proc/PID/ns/net`).

        Raises:
            InvalidArgument: an address that is not in the subnets, a bad name, MAC, MTU or port.
            AlreadyExists: an address, MAC or host port is taken; the message says by whom.
            Overloaded: no address is left.
            PermissionDenied: forwarding is off and can't be turned on; the message has the sysctl.
            Unsupported: a program is missing; the hint says what to install.
            Unavailable: the kernel refused.
        """
        ...

    @abstractmethod
    async def publish(self, key: str, ports: tuple[PublishedPort, ...]) -> Attachment:
        """Let exactly these ports lead to an attachment, instead of those that did.

        Raises:
            NotFound: no attachment has this key.
            AlreadyExists: a host port is taken; the message says by whom. Nothing was changed.
        """
        ...

    @abstractmethod
    async def lookup(self, name: str) -> tuple[NameEntry, ...]:
        """Return who answers to a name (container, alias or address) in this network."""
        ...
