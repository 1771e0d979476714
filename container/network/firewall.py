"""The rules of one network: one nft table of its own, and nothing else.

Every change is one transaction: it is in force whole or not at all. What does not depend on
published ports is written once, by `setup`; attaching a container without ports changes no rule.
Published ports are elements of maps. What is *not* here: the text of the table (`ruleset`),
reserving host ports and relaying what rules can't (`ports`), the bridge, and rules that are not
ours, which are never changed and only told of (`coexistence`).

Who flushes all rules of a machine (as reloading nftables.service does) flushes ours too: `keep`
hears of it and writes them again.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio
from attrs import evolve

from container.contracts.network import NetworkConfiguration, Protocol
from container.ipc import ContainerError, Unavailable
from container.network import coexistence, conntrack, nft
from container.network.ruleset import DnsAt as DnsAt
from container.network.ruleset import Element, Ruleset, elements_of
from container.network.ruleset import Forwarded as Forwarded
from container.network.table_events import TableEvents

log = logging.getLogger(__name__)

_Ports = dict[str, tuple[Forwarded, ...]]
"""By key of the attachment."""

AGAIN = 1.0
"""Seconds between two times that the table is written again because it was gone."""


class Firewall:
    """The table `inet container-<id>` of a network.

    Args:
        network: What the network is; subnets, gateways and `internal` are used.
        bridge: Name of its bridge. The rules name it; it need not exist yet.
    """

    def __init__(self, network: NetworkConfiguration, bridge: str) -> None:
        self._ruleset = Ruleset(network, bridge)
        self._forwarded: _Ports = {}
        self._written: frozenset[Element] | None = None
        """Elements in force; None: there is no table, or it is not known what is in it."""
        self._wanted = False
        """Whether there is to be a table."""
        self._lock = trio.Lock()

    async def setup(
        self,
        dns: Sequence[DnsAt] = (),
        forwarded: Mapping[str, Sequence[Forwarded]] | None = None,
    ) -> None:
        """Make the table, or make it anew, in one transaction.

        Published ports that another process wrote are gone.
        Also lets the bridge pass what comes from 127.0.0.1 (`route_localnet`), so it must exist.

        Args:
            dns: Where port 53 of each gateway leads.
            forwarded: By key of the attachment; None: those that `forward` was told of.

        Raises:
            Unsupported: the program `nft` is missing; the hint says what to install.
            Unavailable: nft refused; the message is nft's own sentence. Nothing was changed.
        """
        async with self._lock:
            ports = self._forwarded
            if forwarded is not None:
                ports = {key: tuple(each) for key, each in forwarded.items() if each}
            await self._rewrite(evolve(self._ruleset, dns=tuple(dns)), ports)

    async def again(self) -> None:
        """Write the table once more as it is to be: its bridge was made anew.

        Does nothing if there is to be none. Raises as `setup` does.
        """
        async with self._lock:
            if self._wanted:
                await self._rewrite(self._ruleset, self._forwarded)

    async def forward(self, key: str, forwarded: Sequence[Forwarded]) -> None:
        """Let exactly these ports lead to an attachment; none of them takes its rules away.

        One transaction; no program is run when nothing changes. Raises as `setup` does, and then
        nothing was changed, but that what was to go is not written again.
        """
        await trio.lowlevel.checkpoint()
        async with self._lock:
            ports = {**self._forwarded, key: tuple(forwarded)}
            if not forwarded:
                del ports[key]
            try:
                await self._change(ports)
            except ContainerError:
                if not forwarded:
                    self._forwarded, self._written = ports, None
                raise

    async def _change(self, ports: _Ports) -> None:
        wanted, written = elements_of(ports), self._written
        if not self._wanted or written == wanted:
            self._forwarded = ports
            return
        if written is None:
            await self._rewrite(self._ruleset, ports)
            return
        commands = self._ruleset.deleting(written - wanted)
        commands += self._ruleset.adding(wanted - written)
        try:
            await self._apply(commands)
        except Unavailable as error:
            # Another may have taken the table away, or changed it.
            log.warning("%s; writing all rules of the network again", error)
            await self._rewrite(self._ruleset, ports)
        else:
            before, self._forwarded, self._written = self._forwarded, ports, wanted
            await _forget_flows(before, ports)

    async def remove(self) -> None:
        """Take the table away; nothing happens if there is none. Raises as `setup` does."""
        async with self._lock:
            self._wanted = False
            # Adding first lets the deletion find one.
            table = {"add": {"table": {"family": "inet", "name": self._ruleset.table}}}
            await self._apply([table, *self._ruleset.none()])
            self._written = None

    async def problems(self) -> tuple[str, ...]:
        """Return sentences about what stands in the way of the rules, each with what to do:
        another's chains that drop forwarded packets, a table that is gone, a missing nft."""
        try:
            rules = await nft.ruleset()
        except ContainerError as error:
            return (f"{error}: {error.hint}" if error.hint else str(error),)
        network, bridge = self._ruleset.network, self._ruleset.bridge
        families = tuple("ip6" if ":" in subnet else "ip" for subnet in network.subnets)
        found = coexistence.problems(
            rules,
            table=self._ruleset.table if self._wanted else None,
            bridge=bridge,
            families=families,
            leads_out=not network.internal,
            answers_names=bool(self._ruleset.dns),
        )
        hooks = ("forward",) * (not network.internal) + ("input",) * bool(self._ruleset.dns)
        for family, hook in itertools.product(families, hooks):
            program = "iptables-legacy" if family == "ip" else "ip6tables-legacy"
            listing = await nft.legacy_listing(program, hook.upper())
            found += coexistence.legacy_problems(listing, bridge, program, hook=hook)
        return found

    async def keep(self) -> None:
        """Write the table again whenever another has taken it away; until cancelled."""
        with TableEvents(self._ruleset.table) as events:
            while True:
                await events.gone()
                async with self._lock:
                    if self._wanted:
                        log.warning("another deleted the network's rules: writing them again")
                        try:
                            await self._rewrite(self._ruleset, self._forwarded)
                        except ContainerError as error:
                            log.error("the network has no rules: %s", error)
                # Not more often, lest two that delete each other's rules keep the machine busy.
                await trio.sleep(AGAIN)

    async def _rewrite(self, ruleset: Ruleset, ports: _Ports) -> None:
        ruleset = evolve(ruleset, loopback=let_loopback_pass(ruleset.bridge))
        elements = elements_of(ports)
        await self._apply(ruleset.whole(elements))
        self._ruleset, self._written, self._wanted = ruleset, elements, True
        self._forwarded = ports
        # Of all ports: what came while there was no table went astray.
        await _forget_flows({}, ports)

    async def _apply(self, commands: Sequence[object]) -> None:
        try:
            await nft.apply(commands)
        except Unavailable as error:
            if error.details.get("unknown"):
                self._written = None
            raise


async def _forget_flows(before: _Ports, after: _Ports) -> None:
    """Have datagrams that go on meet the rules again, where those have changed."""
    was, now = (
        {
            (port.host_port, port.address, port.container_port)
            for ports in each.values()
            for port in ports
            if port.protocol is Protocol.UDP
        }
        for each in (before, after)
    )
    changed: dict[int, set[conntrack.Place]] = {port: set() for port, _, _ in was ^ now}
    for port, address, inside in now:
        if port in changed:
            changed[port].add((address, inside))
    if changed:
        formerly = {(address, inside) for _, address, inside in was - now}
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(conntrack.forget, changed, formerly)


def let_loopback_pass(bridge: str) -> bool:
    """Let packets from 127.0.0.0/8 out to a bridge; say whether it does now."""
    switch = Path(f"/proc/sys/net/ipv4/conf/{bridge}/route_localnet")
    try:
        if switch.read_text().strip() != "1":
            switch.write_text("1")
    except OSError:
        return False
    return True
