"""What an attachment is to others: to its holder, to the kernel, to the names."""

from __future__ import annotations

import ipaddress

from attrs import frozen

from container.contracts.network import Attachment, AttachmentRequest, NetworkConfiguration
from container.network.bridge import Plug
from container.network.records import Record
from container.resolver import Entry


@frozen
class Views:
    """Views of the attachments of one network."""

    network: NetworkConfiguration
    mtu: int
    """Of its bridge."""

    def attachment(self, record: Record) -> Attachment:
        """Return what its holder is told."""
        request = record.request
        return Attachment(
            network=self.network.id,
            network_name=self.network.name,
            key=request.key,
            interface=request.interface,
            addresses=self._with_length(record.addresses),
            gateways=self.network.gateways,
            mac=record.mac,
            mtu=request.mtu or self.mtu,
            nameservers=self.network.gateways if self.network.names else (),
            ports=record.ports or (),
            names=names_of(request),
        )

    def plug(self, record: Record) -> Plug:
        """Return what the kernel is to have."""
        request = record.request
        leads_out = request.default_route and not self.network.internal
        return Plug(
            key=request.key,
            interface=request.interface,
            mac=record.mac,
            mtu=request.mtu or self.mtu,
            addresses=self._with_length(record.addresses),
            routes=self.network.gateways if leads_out else (),
        )

    def _with_length(self, addresses: tuple[str, ...]) -> tuple[str, ...]:
        lengths = {
            subnet.version: subnet.prefixlen
            for subnet in map(ipaddress.ip_network, self.network.subnets)
        }
        return tuple(f"{each}/{lengths[ipaddress.ip_address(each).version]}" for each in addresses)


def entry_of(record: Record) -> Entry:
    """Return what it is found by, and what it may ask."""
    request = record.request
    return Entry(
        key=request.key,
        addresses=record.addresses,
        names=names_of(request),
        search=request.search,
        nameservers=request.nameservers,
        neighbours=request.neighbours,
    )


def names_of(request: AttachmentRequest) -> tuple[str, ...]:
    """Return all names of a container in this network, its own first."""
    names = (request.name, request.hostname, *request.aliases, request.key[:12])
    return tuple(dict.fromkeys(filter(None, names)))
