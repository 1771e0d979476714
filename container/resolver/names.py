"""The names of one network: who has which, as the DNS server asks for them.

Changes are seen by the next query. Nothing here waits, but what asks other networks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from attrs import frozen

from container.resolver.answers import Client

HOST = "host.container.internal"
"""The host's name, seen from a container: the gateway."""


@frozen
class Entry:
    """What one attachment is called, and what it may ask."""

    key: str
    addresses: tuple[str, ...]
    """Without prefix length."""
    names: tuple[str, ...]
    """All, the first its own."""
    search: tuple[str, ...] = ()
    nameservers: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    """Ids of the other networks that it is in."""


@frozen
class Found:
    """Who answers to a name or an address."""

    name: str
    addresses: tuple[str, ...]


Ask = Callable[[str, str], Awaitable[tuple[Found, ...]]]
"""Asks a network (its id) who answers to a name or an address; raises ContainerError."""


class Names:
    """The names of a network's attachments; an `Answers`.

    Args:
        subnets: CIDR; addresses in them are ours, and who is in none of them gets no answer.
        gateways: The host's addresses in them: `host.container.internal`.
        internal: Nothing is asked of servers outside.
        ask: Asks another network; None: there is no other.
    """

    def __init__(
        self,
        subnets: Sequence[str],
        gateways: Sequence[str],
        *,
        internal: bool = False,
        ask: Ask | None = None,
    ) -> None: ...

    def put(self, entry: Entry) -> None:
        """Let an attachment be known, instead of what its key had before."""
        ...

    def remove(self, key: str) -> None:
        """Forget an attachment, if it is known."""
        ...

    def find(self, name: str) -> tuple[Found, ...]:
        """Return who answers to a name or an address, in any case, for `Network.lookup`."""
        raise NotImplementedError

    def client(self, source: str) -> Client | None:
        """See `Answers`."""
        raise NotImplementedError

    def addresses(self, source: str, name: str) -> tuple[str, ...] | None:
        """See `Answers`."""
        raise NotImplementedError

    def names_of(self, source: str, address: str) -> tuple[str, ...] | None:
        """See `Answers`."""
        raise NotImplementedError

    async def addresses_elsewhere(self, source: str, name: str) -> tuple[str, ...] | None:
        """See `Answers`."""
        raise NotImplementedError

    async def names_elsewhere(self, source: str, address: str) -> tuple[str, ...] | None:
        """See `Answers`."""
        raise NotImplementedError
