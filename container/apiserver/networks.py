"""All networks of one root: the actor behind the `Networks` contract.

It stands on the table of networks, and on the containers, which alone change what a container is
in. What is here: who uses a network, and what becomes of them when it goes.
"""

from __future__ import annotations

from functools import partial

import trio

from container.apiserver.containers import ContainersService
from container.apiserver.links import together
from container.apiserver.network_table import NetworkTable
from container.contracts.apiserver import DEFAULT_NETWORK, NetworkUse
from container.contracts.network import Attachment, NetworkConfiguration
from container.contracts.networks import NetworkInfo, NetworkOptions, Networks
from container.ipc import Actor, InvalidState, NotFound, PermissionDenied

SHOWN = 5
"""Containers that a refusal names."""


class NetworksService(Actor, Networks):
    """Create, look at and delete networks; put containers into them.

    Args:
        table: The networks.
        containers: Who is in them.
    """

    def __init__(self, table: NetworkTable, containers: ContainersService) -> None:
        self._table = table
        self._containers = containers

    async def create(self, options: NetworkOptions) -> NetworkInfo:
        """Create a network; see the contract. Cancelled or failed, it is not there."""
        return self._info(await self._table.make(options))

    async def delete(self, network: str, force: bool = False) -> None:
        """Delete a network; see the contract. Once its users are out, it is finished."""
        await trio.lowlevel.checkpoint()
        found = self._table.find(network)
        if found.name == DEFAULT_NETWORK:
            raise PermissionDenied(
                f"the network {found.name} can't be deleted: containers that name no network "
                "are in it",
            )
        users = self._table.holders(found.id)
        if users and not force:
            raise self._in_use(found, users)
        if users:
            await together(*(partial(self._take_out, user, found) for user in users))
            users = self._table.holders(found.id)
            if users:  # it was faster than we
                raise self._in_use(found, users)
        await self._table.remove(found)

    async def _take_out(self, container_id: str, network: NetworkConfiguration) -> None:
        try:
            await self._containers.disconnect_network(container_id, network.id)
        except NotFound:
            # In the making, or removed just now: what holds it then is told.
            await trio.lowlevel.checkpoint()

    def _in_use(self, network: NetworkConfiguration, users: tuple[str, ...]) -> InvalidState:
        names = [self._containers.name_of(user) for user in users]
        shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
        many = "containers" if len(names) > 1 else "container"
        return InvalidState(
            f"the network {network.name} is used by {many} {shown}",
            hint="delete them or disconnect them, or delete it with --force",
        )

    async def list(self) -> tuple[NetworkInfo, ...]:
        """Return all networks, by name; see the contract."""
        await trio.lowlevel.checkpoint()
        return tuple(self._info(network) for network in self._table.all())

    async def get(self, network: str) -> NetworkInfo:
        """Return one network, with its helper's word; see the contract."""
        found = self._table.find(network)
        status = await self._table.status(found.id)
        return NetworkInfo(found, self._table.holders(found.id), status)

    async def prune(self) -> tuple[str, ...]:
        """Delete all networks that no container is in, but for the default; see the contract."""
        await trio.lowlevel.checkpoint()
        gone: list[str] = []
        for network in self._table.all():
            unused = not self._table.holders(network.id) and self._table.is_there(network.id)
            if network.name != DEFAULT_NETWORK and unused:
                await self._table.remove(network)
                gone.append(network.name)
        return tuple(gone)

    async def connect_container(self, container: str, use: NetworkUse) -> Attachment | None:
        """Put a container into one more network; see the contract."""
        return await self._containers.connect_network(container, use)

    async def disconnect_container(self, container: str, network: str) -> None:
        """Take a container out of a network; see the contract."""
        await self._containers.disconnect_network(container, network)

    def _info(self, network: NetworkConfiguration) -> NetworkInfo:
        return NetworkInfo(network, self._table.holders(network.id))
