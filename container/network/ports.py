"""Published ports of one network: reserved, led into the containers, and relayed where rules can't.

A host port is reserved by sockets that this process listens on, so nobody else takes it, and
`ss -ltnp` names us. Rules take what they can before it reaches those sockets; what still arrives
at them (`::1`, link-local addresses, IPv6 to a network without it) is relayed by a proxy.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

from container.contracts.network import PublishedPort
from container.network.firewall import Firewall, Forwarded


def check_ports(ports: Iterable[PublishedPort]) -> None:
    """Check ports as a container asks for them, before anything is done.

    Raises:
        InvalidArgument: a port or a row of them is out of range, an address is none, two of them
            take the same host port, or there are too many.
    """
    raise NotImplementedError


class PublishedPorts:
    """Which host ports lead to which attachments of this network."""

    async def restore(
        self, key: str, name: str, addresses: Sequence[str], ports: tuple[PublishedPort, ...]
    ) -> tuple[Forwarded, ...]:
        """Take up what an earlier helper had published, when this one starts.

        Nothing is raised: a host port that another process has taken meanwhile still leads into
        the container by rules, and `problems` tells of it. Give what is returned to
        `Firewall.setup`, all attachments at once.

        Args:
            key: The attachment's.
            name: The container's, for messages.
            addresses: The container's, with or without prefix length.
            ports: With the host ports that were chosen.
        """
        raise NotImplementedError

    async def publish(
        self, key: str, name: str, addresses: Sequence[str], ports: tuple[PublishedPort, ...]
    ) -> tuple[PublishedPort, ...]:
        """Let exactly these ports lead to an attachment, instead of those that did.

        All or nothing: on failure or cancellation the earlier ones still do. None of them
        releases all. Does no more than a checkpoint if nothing changes.

        Returns:
            The ports with the host ports that were chosen.

        Raises:
            InvalidArgument: see `check_ports`; or the host has no such address.
            AlreadyExists: a host port is taken; the message says by whom.
            Overloaded: no port of that many in a row is free.
            Unsupported, Unavailable: see `Firewall.setup`.
        """
        raise NotImplementedError

    async def withdraw(self, key: str) -> None:
        """Release the ports of an attachment that goes: rules first, then the sockets."""
        raise NotImplementedError

    async def problems(self) -> tuple[str, ...]:
        """Return sentences about ports that are not as they should be."""
        raise NotImplementedError


@asynccontextmanager
async def open_published_ports(firewall: Firewall) -> AsyncIterator[PublishedPorts]:
    """Open the published ports of a network; at the end sockets close and relays stop.

    Rules are left as they are: who ends for good calls `withdraw` or `Firewall.remove` first.
    """
    raise NotImplementedError
    yield  # pyright: ignore[reportUnreachable]
