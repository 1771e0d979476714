"""The names of one network: who has which, as the DNS server asks for them.

Changes are seen by the next query. Nothing here waits, but what asks other networks. A name may be
had by several: all their addresses are its answer.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio
from attrs import frozen

from container.ipc.errors import ContainerError, Unavailable
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
        patience: Seconds that other networks may take.
    """

    def __init__(
        self,
        subnets: Sequence[str],
        gateways: Sequence[str],
        *,
        internal: bool = False,
        ask: Ask | None = None,
        patience: float = 1.0,
    ) -> None:
        self._subnets = [ipaddress.ip_network(subnet) for subnet in subnets]
        self._gateways = tuple(_written(gateway) for gateway in gateways)
        self._forwards = not internal
        self._ask = ask
        self._patience = patience
        self._entries: dict[str, Entry] = {}
        self._named: dict[str, list[Entry]] = {}
        self._addressed: dict[str, Entry] = {}
        self._answers: dict[str, tuple[str, ...]] = {}
        self._clients: dict[str, Client] = {}
        self._answers[HOST] = self._gateways
        self.generation = 0
        """See `Answers`."""

    def put(self, entry: Entry) -> None:
        """Let an attachment be known, instead of what its key had before."""
        self.remove(entry.key)
        self.generation += 1
        entry = Entry(
            key=entry.key,
            addresses=tuple(_written(address) for address in entry.addresses),
            names=tuple(dict.fromkeys(plain(name) for name in entry.names)),
            search=tuple(plain(domain) for domain in entry.search),
            nameservers=entry.nameservers,
            neighbours=entry.neighbours,
        )
        self._entries[entry.key] = entry
        for name in entry.names:
            self._named.setdefault(name, []).append(entry)
            self._answer_anew(name)
        client = Client(
            search=tuple(domain for domain in entry.search if domain),
            nameservers=entry.nameservers,
            forwards=self._forwards,
            elsewhere=bool(entry.neighbours) and self._ask is not None,
        )
        for address in entry.addresses:
            self._addressed[address] = entry
            self._clients[address] = client

    def remove(self, key: str) -> None:
        """Forget an attachment, if it is known."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self.generation += 1
        for name in entry.names:
            self._named[name].remove(entry)
            self._answer_anew(name)
        for address in entry.addresses:
            # Somebody else may have been given it since.
            if self._addressed.get(address) is entry:
                del self._addressed[address], self._clients[address]

    def find(self, name: str) -> tuple[Found, ...]:
        """Return who answers to a name or an address, in any case, for `Network.lookup`."""
        sought = plain(name)
        if sought == HOST:
            return (Found(HOST, self._gateways),)
        entries = self._named.get(sought)
        if entries is None:
            try:
                entry = self._addressed.get(_written(sought))
            except ValueError:
                entry = None
            entries = [] if entry is None else [entry]
        return tuple(
            Found(entry.names[0] if entry.names else entry.key, entry.addresses)
            for entry in entries
        )

    def client(self, source: str) -> Client | None:
        """See `Answers`. Who has no attachment, but an address in range, has no search domains."""
        known = self._clients.get(source)
        if known is not None or not self._is_ours(source):
            return known
        return Client(forwards=self._forwards)

    def addresses(self, name: str) -> tuple[str, ...] | None:
        """See `Answers`."""
        return self._answers.get(name)

    def names_of(self, address: str) -> tuple[str, ...] | None:
        """See `Answers`."""
        entry = self._addressed.get(address)
        if entry is not None:
            return entry.names
        if address in self._gateways:
            return (HOST,)
        return () if self._is_ours(address) else None

    async def addresses_elsewhere(self, source: str, name: str) -> tuple[str, ...] | None:
        """See `Answers`. The host is the same everywhere; its other gateways are not told."""
        found = await self._elsewhere(source, name)
        return tuple(address for one in found for address in one.addresses) or None

    async def names_elsewhere(self, source: str, address: str) -> tuple[str, ...] | None:
        """See `Answers`."""
        return tuple(one.name for one in await self._elsewhere(source, address)) or None

    async def _elsewhere(self, source: str, name: str) -> tuple[Found, ...]:
        """Return what the first other network knows that knows it, in the client's order."""
        entry = self._addressed.get(source)
        if entry is None or self._ask is None:
            return ()
        told: dict[str, tuple[Found, ...]] = {}
        with trio.move_on_after(self._patience):
            async with trio.open_nursery() as nursery:
                for network in entry.neighbours:
                    nursery.start_soon(partial(self._ask_one, self._ask, network, name, told))
        for network in entry.neighbours:
            if found := told.get(network):
                return found
        if silent := [network for network in entry.neighbours if network not in told]:
            raise Unavailable(f"network {silent[0]} does not tell whether it knows {name}")
        return ()

    async def _ask_one(
        self, ask: Ask, network: str, name: str, told: dict[str, tuple[Found, ...]]
    ) -> None:
        try:
            told[network] = await ask(network, name)
        except ContainerError:
            # Its absence from what was told is what the caller goes by.
            pass

    def _answer_anew(self, name: str) -> None:
        entries = self._named[name]
        if name == HOST:
            return
        if not entries:
            del self._named[name]
            self._answers.pop(name, None)
            return
        addresses = (address for entry in entries for address in entry.addresses)
        self._answers[name] = tuple(dict.fromkeys(addresses))

    def _is_ours(self, address: str) -> bool:
        parsed = ipaddress.ip_address(address)
        return any(parsed in subnet for subnet in self._subnets)


def plain(name: str) -> str:
    """Return a name as it is compared: lower case, without dots at its ends."""
    return name.strip(".").lower()


def _written(address: str) -> str:
    return str(ipaddress.ip_address(address))
