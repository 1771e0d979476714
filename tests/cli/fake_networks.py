"""Networks in memory, for the command line's tests."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from container.contracts.apiserver import NetworkUse
from container.contracts.network import Attachment, NetworkConfiguration, PublishedPort
from container.contracts.networks import NetworkInfo, NetworkOptions, Networks
from container.ipc import AlreadyExists, NotFound

WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class FakeNetworks(Networks):
    """Networks by name."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.found = {"default": network_info("default")}

    async def create(self, options: NetworkOptions) -> NetworkInfo:
        self.calls.append(("create", options))
        if options.name in self.found:
            raise AlreadyExists(f'the name "{options.name}" is taken')
        self.found[options.name] = network_info(options.name, subnets=options.subnets)
        return self.found[options.name]

    async def delete(self, network: str, force: bool = False) -> None:
        self.calls.append(("delete", network, force))
        if network not in self.found:
            raise NotFound(f'no network "{network}"')
        del self.found[network]

    async def list(self) -> tuple[NetworkInfo, ...]:
        return tuple(self.found.values())

    async def get(self, network: str) -> NetworkInfo:
        if network not in self.found:
            raise NotFound(f'no network "{network}"', hint='did you mean "default"?')
        return self.found[network]

    async def prune(self) -> tuple[str, ...]:
        gone = tuple(name for name in self.found if name != "default")
        for name in gone:
            del self.found[name]
        return gone

    async def connect_container(self, container: str, use: NetworkUse) -> Attachment | None:
        self.calls.append(("connect", container, use))
        return None if container == "stopped" else attachment(use.network)

    async def disconnect_container(self, container: str, network: str) -> None:
        self.calls.append(("disconnect", container, network))


def network_info(name: str, subnets: tuple[str, ...] = ("10.89.0.0/24",)) -> NetworkInfo:
    """Return a network of the bridge."""
    made = NetworkConfiguration("0123456789ab", name, "container-network", WHEN, subnets)
    return NetworkInfo(made, ("000000000001",))


def attachment(network: str, *ports: PublishedPort) -> Attachment:
    """Return an attachment to a network."""
    return Attachment(
        "0123456789ab", network, "000000000001", "eth0", ("10.89.0.2/24",), ("10.89.0.1",),
        "02:00:00:00:00:02", 1500, ports=ports,
    )  # fmt: skip
