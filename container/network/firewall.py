"""The rules of one network: one nft table of its own, and nothing else.

Every change is one transaction of `nft -j`: it is in force whole or not at all. What does not
depend on published ports is written once, by `setup`; attaching a container without ports changes
no rule. Published ports are elements of maps. What is *not* here: reserving host ports and
relaying what rules can't (`ports`), the bridge, and rules that are not ours, which are never
changed and only told of (`problems`).

Source: nft(8), libnftables-json(5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen

from container.contracts.network import NetworkConfiguration, Protocol


@frozen
class DnsAt:
    """Where the network's DNS server listens for one gateway address."""

    gateway: str
    """The address that containers ask at port 53."""
    udp_port: int
    tcp_port: int


@frozen
class Forwarded:
    """One host port that leads to one port of a container."""

    protocol: Protocol
    host_address: str
    """Of the host; empty is every one of the family of `address`."""
    host_port: int
    address: str
    """The container's, without prefix length, of the same family."""
    container_port: int


class Firewall:
    """The table `inet container-<id>` of a network.

    Args:
        network: What the network is; subnets, gateways and `internal` are used.
        bridge: Name of its bridge. The rules name it; it need not exist yet.
    """

    def __init__(self, network: NetworkConfiguration, bridge: str) -> None:
        self._network = network
        self._bridge = bridge

    async def setup(
        self,
        dns: Sequence[DnsAt] = (),
        forwarded: Mapping[str, Sequence[Forwarded]] | None = None,
    ) -> None:
        """Make the table, or make it anew, in one transaction.

        Published ports of an earlier table are gone if `forwarded` does not have them.
        Also lets the bridge pass what comes from 127.0.0.1 (`route_localnet`), so it must exist.

        Args:
            dns: Where port 53 of each gateway leads.
            forwarded: By key of the attachment.

        Raises:
            Unsupported: the program `nft` is missing; the hint says what to install.
            Unavailable: nft refused; the message is nft's own sentence. Nothing was changed.
        """
        raise NotImplementedError

    async def forward(self, key: str, forwarded: Sequence[Forwarded]) -> None:
        """Let exactly these ports lead to an attachment; none of them takes its rules away.

        One transaction; no program is run when nothing changes. Raises as `setup` does.
        """
        raise NotImplementedError

    async def remove(self) -> None:
        """Take the table away; nothing happens if there is none. Raises as `setup` does."""
        raise NotImplementedError

    async def problems(self) -> tuple[str, ...]:
        """Return sentences about what stands in the way of the rules, each with what to do:
        another's chains that drop forwarded packets, a table that is gone, a missing nft."""
        raise NotImplementedError
