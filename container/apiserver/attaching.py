"""The networks of containers: chosen at creation, asked for at each bootstrap, changed meanwhile.

A container's document says which networks it is to be in; its runtime helper holds the attachments
while it runs. Intent comes before effect: `connect` and `disconnect` change the document first, so
an API server that is killed between leaves its successor a difference to make up (`_reconcile`).

Between the table of containers and their runs.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

from attrs import evolve

from container.apiserver.configuration import sandbox_spec
from container.apiserver.links import together
from container.apiserver.network_options import (
    HOST,
    NONE,
    SHARED,
    check_use,
    check_uses,
    network_mode,
    sandbox_networks,
    with_interfaces,
)
from container.apiserver.records import Record
from container.apiserver.table import ContainerTable
from container.contracts.apiserver import (
    DEFAULT_NETWORK,
    Container,
    ContainerOptions,
    NetworkUse,
)
from container.contracts.network import Attachment, NetworkConfiguration
from container.contracts.runtime import SandboxNetwork, SandboxSpec, SandboxState
from container.ipc import (
    AlreadyExists,
    ContainerError,
    Fd,
    InvalidState,
    NotFound,
    PermissionDenied,
    Unsupported,
)

ATTACH = "network/attach"
"""The route by which a network's helper attaches a container."""

_log = logging.getLogger(__name__)


class ContainerNetworks(ContainerTable):
    """Know which networks each container is to be in."""

    # --- at creation ---

    async def _choose_networks(
        self, container_id: str, options: ContainerOptions
    ) -> ContainerOptions:
        """Return the options with the networks that they mean, which are held from now on.

        Raises:
            NotFound: there is no such network, or no container of this name.
            InvalidArgument: a use does not fit its network.
        """
        if options.network.startswith(SHARED):
            other = self._find(options.network.removeprefix(SHARED)).container
            if other.network == HOST:
                raise InvalidState(
                    f"container {other.name} uses the host's network: there is none to share",
                    hint="`--network host` does the same",
                )
            return evolve(options, network=f"{SHARED}{other.id}")
        if options.network:
            return options
        uses = with_interfaces(options.networks or (NetworkUse(DEFAULT_NETWORK),))
        return evolve(options, networks=await self._hold(container_id, uses))

    async def _hold(
        self, container_id: str, uses: tuple[NetworkUse, ...]
    ) -> tuple[NetworkUse, ...]:
        """Hold the networks of uses, and return these with the networks' own names."""
        if any(use.network == DEFAULT_NETWORK for use in uses):
            await self._networks.default()
        held = self._networks.hold(container_id, [use.network for use in uses])
        named = tuple(
            evolve(use, network=network.name) for use, network in zip(uses, held, strict=True)
        )
        check_uses(named)  # two words for one network
        for use, network in zip(uses, held, strict=True):
            check_use(use, network)
        return named

    # --- at bootstrap ---

    async def _sandbox_spec(self, container: Container, layers: tuple[str, ...]) -> SandboxSpec:
        """Return what the runtime helper needs to know of a container."""
        return sandbox_spec(container, layers, self._sandbox_networks(container))

    def _sandbox_networks(self, container: Container) -> tuple[SandboxNetwork, ...]:
        if network_mode(container) != "networks":
            return ()
        return sandbox_networks(container, self._networks_of(container), self._networks.socket)

    def _networks_of(self, container: Container) -> list[NetworkConfiguration]:
        return [self._networks.find(use.network) for use in container.networks]

    async def _register_networks(self, container: Container) -> None:
        """Have the launcher know the helpers that a container's runtime helper will call."""
        if network_mode(container) == "networks":
            await together(
                *(
                    partial(self._networks.register, network)
                    for network in self._networks_of(container)
                )
            )

    @asynccontextmanager
    async def _shared_namespace(self, container: Container) -> AsyncGenerator[Fd | None]:
        """Have the network namespace that a container shares, if it shares one.

        Raises:
            InvalidState: the other container does not run.
        """
        if network_mode(container) != "shared":
            yield None
            return
        other_id = container.network.removeprefix(SHARED)
        try:
            other = await self._settled(other_id)
        except NotFound:
            raise NotFound(
                f"container {container.name} shares the network of container {other_id}, which was "
                "removed",
                hint="create it anew, with the network of another",
            ) from None
        if not other.live:
            name = other.container.name
            raise InvalidState(
                f"container {container.name} shares the network of container {name}, which does "
                "not run",
                hint=f"`container start {name}` starts it",
            )
        with await self._call(other, lambda sandbox: sandbox.network_namespace()) as namespace:
            yield namespace

    @contextmanager
    def _hinting_at_none(self) -> Generator[None]:
        """Say with what this machine can't do for a network that a container can do without."""
        try:
            yield
        except (Unsupported, PermissionDenied) as error:
            if any(hop.route == ATTACH for hop in error.provenance):
                without = "`--network none` does without"
                error.hint = f"{error.hint}; {without}" if error.hint else without
            raise

    # --- meanwhile ---

    def name_of(self, container_id: str) -> str:
        """Return a container's name; its id for one that is in the making."""
        record = self._records.get(container_id)
        return container_id if record is None else record.container.name

    async def connect_network(self, container: str, use: NetworkUse) -> Attachment | None:
        """Put a container into one more network; see `Networks.connect_container`.

        Failed or cancelled, it is in the networks that it was in before.
        """
        record = await self._settled(container)
        async with self.exclusive(record.id):
            self._check_present(record)
            _check_own_namespace(record.container)
            name = record.container.name
            mode = network_mode(record.container)
            present = record.saved.networks if mode == "networks" else ()
            network = await self._network_of(use)
            if any(each.network == network.name for each in present):
                raise AlreadyExists(f"container {name} is in the network {network.name} already")
            use = evolve(use, network=network.name)
            uses = with_interfaces((*present, use))
            check_uses(uses)
            check_use(uses[-1], network)
            before = record.saved.network, record.saved.networks
            self._networks.hold(record.id, [network.name])
            try:
                await self._save(record, network="", networks=uses)
                if not record.live:
                    return None
                return await self._join(record, network.id)
            except BaseException:
                with self._finishing(record.id):
                    await self._quietly(self._leave(record, network.id))
                    await self._quietly(self._save(record, network=before[0], networks=before[1]))
                    self._networks.release(record.id, network.id)
                raise

    async def disconnect_network(self, container: str, network: str) -> None:
        """Take a container out of a network; see `Networks.disconnect_container`."""
        record = await self._settled(container)
        found = self._networks.find(network)
        async with self.exclusive(record.id):
            self._check_present(record)
            left = tuple(use for use in record.saved.networks if use.network != found.name)
            if left != record.saved.networks:
                mode = record.saved.network if left else NONE
                await self._save(record, network=mode, networks=left)
            # Also when it is in it no more: an earlier attempt may have got no further.
            with self._finishing(record.id):
                await self._leave(record, found.id)
            self._networks.release(record.id, found.id)

    async def _network_of(self, use: NetworkUse) -> NetworkConfiguration:
        if use.network == DEFAULT_NETWORK:
            return await self._networks.default()
        return self._networks.find(use.network)

    async def _join(self, record: Record, network_id: str) -> Attachment:
        wanted = next(
            each for each in self._sandbox_networks(record.saved) if each.id == network_id
        )
        await self._networks.register(self._networks.find(network_id))
        attachment = await self._call(record, lambda sandbox: sandbox.join_network(wanted))
        others = (it for it in record.container.attachments if it.network != network_id)
        record.change(evolve(record.container, attachments=(*others, attachment)))
        return attachment

    async def _leave(self, record: Record, network_id: str) -> None:
        if not record.live:
            return
        await self._call(record, lambda sandbox: sandbox.leave_network(network_id))
        left = tuple(it for it in record.container.attachments if it.network != network_id)
        record.change(evolve(record.container, attachments=left))

    # --- after an earlier API server ---

    async def _reconcile(self, record: Record, state: SandboxState) -> None:
        """Bring what a running container is attached to in line with its document."""
        if not any(self._difference(record, state)):
            return
        async with self.exclusive(record.id):
            if not record.live:
                return
            try:
                state = await self._call(record, lambda sandbox: sandbox.state())
            except ContainerError as error:
                _log.warning("container %s can't be asked for its networks: %s", record.id, error)
                return
            await self._make_up(record, *self._difference(record, state))

    def _difference(self, record: Record, state: SandboxState) -> tuple[set[str], set[str]]:
        """Return which networks a container is in too much, and in which not."""
        if record.saved.network.startswith(SHARED) or record.saved.network == HOST:
            return set(), set()
        attached = {attachment.network for attachment in state.networks}
        wanted: set[str] = set()
        for use in record.saved.networks:
            try:
                wanted.add(self._networks.find(use.network).id)
            except ContainerError as error:
                _log.warning("container %s is in a network that is none: %s", record.id, error)
        return attached - wanted, wanted - attached

    async def _make_up(self, record: Record, surplus: set[str], missing: set[str]) -> None:
        for network_id in surplus:
            _log.info("container %s leaves network %s, as was wanted", record.id, network_id)
            await self._quietly(self._leave(record, network_id))
        for network_id in missing:
            _log.info("container %s joins network %s, as was wanted", record.id, network_id)
            try:
                await self._join(record, network_id)
            except AlreadyExists:
                pass  # its helper is about to do it
            except ContainerError as error:
                _log.warning("container %s is not in network %s: %s", record.id, network_id, error)


def _check_own_namespace(container: Container) -> None:
    if container.network == HOST or container.network.startswith(SHARED):
        whose = "the host's" if container.network == HOST else "another container's"
        raise InvalidState(
            f"container {container.name} uses {whose} network: it can't be in others",
            hint="create it with --network NAME",
        )
