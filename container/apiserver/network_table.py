"""The table of networks: what exists, on disk and in memory, who is to be in it, and its helper.

It stands below the containers, which name the networks that they are in: a network that a container
*holds* is not deleted, and who looks for users and takes a network away does both without an await
between. The contract `Networks` is `networks`' subject.

The helper of a network is a unit of the launcher, which starts it on the first connection. This
server does not stand between it and a container's runtime helper.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from functools import partial
from typing import TypeVar

import trio

from container.apiserver import subnets
from container.apiserver.links import Caller
from container.apiserver.names import check_name, new_id, resolve
from container.apiserver.network_options import check_mtu
from container.apiserver.network_store import NetworkStore
from container.contracts.apiserver import DEFAULT_NETWORK, Plugin, Plugins
from container.contracts.launcher import Launcher, Restart, ServiceUnit
from container.contracts.network import Network, NetworkConfiguration, NetworkStatus
from container.contracts.networks import NetworkOptions
from container.ipc import (
    Actor,
    AlreadyExists,
    Backoff,
    ContainerError,
    DataLoss,
    InvalidArgument,
    NotFound,
    Supervised,
    Unavailable,
)
from container.ipc.error_groups import leaves, single
from container.storage.paths import Paths

T = TypeVar("T")

BRIDGE = "container-network"
"""The plugin of networks that name no driver."""
RESERVED = ("none", "host", "bridge")
"""Words of `--network` that are no network's name."""
IDLE = 60.0
"""Seconds that a network's helper, and so its bridge, stays without anything to do."""
ANSWER = 1.0
"""Seconds that a helper has to say how its network is, before it is shown without."""
CHECK = 30.0
"""Seconds that a driver has to look at the options of a new network."""
TIDY = 20.0
"""Seconds that a helper has to take down what it made, before its network is removed."""
CLEAN_UP = 60.0
"""Seconds for a removal, which no cancellation cuts short."""
SWEEPING = Backoff(1.0, 60.0)
"""Between attempts to finish a removal."""
WAITERS = 10_000
"""That may wait while the default network is made."""

OpenNetwork = Callable[[str], AbstractAsyncContextManager[Network]]
"""Connect to the helper behind a socket path; connecting starts it."""

_log = logging.getLogger(__name__)


class NetworkTable(Actor):
    """Keep all networks of one root.

    Args:
        paths: Where the networks' documents and their helpers' sockets are.
        launcher: Calls the launcher.
        plugins: Knows the drivers.
        open_network: Connects to a network's helper by the path of its socket.
        clock: Says the time.
        host_routes: Says what the host routes; blocking.
        has_ipv6: Says whether the kernel has IPv6; blocking.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        launcher: Caller[Launcher],
        plugins: Plugins,
        open_network: OpenNetwork,
        clock: Callable[[], datetime],
        host_routes: Callable[[], tuple[subnets.Taken, ...]] = subnets.host_routes,
        has_ipv6: Callable[[], bool] = subnets.has_ipv6,
    ) -> None:
        self._paths = paths
        self._store = NetworkStore(paths.networks)
        self._launcher = launcher
        self._plugins = plugins
        self._open_network = open_network
        self._clock = clock
        self._host_routes = host_routes
        self._has_ipv6 = has_ipv6
        self._networks: dict[str, NetworkConfiguration] = {}
        self._names: dict[str, str] = {}
        self._broken: dict[str, DataLoss] = {}
        self._going: dict[str, NetworkConfiguration] = {}
        """That are being removed: their ranges are not free yet."""
        self._holders: dict[str, set[str]] = {}

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        """Load the documents."""
        loaded = await trio.to_thread.run_sync(self._store.load)
        self._broken = dict(loaded.broken)
        self._unfinished = loaded.removing
        for network in loaded.networks:
            self._insert(network)
        yield

    async def begin(self) -> None:
        """Register the helpers, end those whose networks are gone, and finish removals."""
        self.nursery.start_soon(self._take_up)
        for network_id in self._unfinished:
            self._remove_later(network_id)

    # --- looking ---

    def all(self) -> tuple[NetworkConfiguration, ...]:
        """Return all networks, by name."""
        return tuple(self._networks[self._names[name]] for name in sorted(self._names))

    def find(self, argument: str) -> NetworkConfiguration:
        """Return the network that a user means by name, id, or beginning of an id.

        Raises:
            NotFound: no such network; the hint names a close match.
            DataLoss: its document can't be read.
        """
        if argument in self._broken:
            raise self._broken[argument]
        return self._networks[resolve(argument, self._names, self._networks.keys(), "network")]

    def is_there(self, network_id: str) -> bool:
        """Return whether a network is there, and not about to be removed."""
        return network_id in self._networks

    def holders(self, network_id: str) -> tuple[str, ...]:
        """Return the ids of the containers that are to be in a network."""
        return tuple(sorted(self._holders.get(network_id, ())))

    def socket(self, network_id: str) -> str:
        """Return the path of the socket of a network's helper."""
        return str(self._paths.network_socket(network_id))

    async def status(self, network_id: str, within: float = ANSWER) -> NetworkStatus | None:
        """Return what a network's helper says; None when it does not in time."""
        with trio.move_on_after(within):
            try:
                return await self._ask(network_id)
            except ContainerError as error:
                _log.info("the helper of network %s does not answer: %s", network_id, error)
        return None

    async def _ask(self, network_id: str) -> NetworkStatus:
        try:
            async with self._open_network(self.socket(network_id)) as network:
                return await network.status()
        except Exception as error:
            raise single(error) from None
        raise AssertionError("unreachable")

    # --- who is in them ---

    def hold(self, container_id: str, names: Iterable[str]) -> tuple[NetworkConfiguration, ...]:
        """Keep networks from being deleted for a container; all or none. Never awaits.

        Raises:
            NotFound: there is no such network.
        """
        found = tuple(self.find(name) for name in names)
        for network in found:
            self._holders.setdefault(network.id, set()).add(container_id)
        return found

    def release(self, container_id: str, network_id: str | None = None) -> None:
        """Hold a network, or all, for a container no longer."""
        for key in (network_id,) if network_id is not None else tuple(self._holders):
            holders = self._holders.get(key, set())
            holders.discard(container_id)
            if not holders:
                self._holders.pop(key, None)

    # --- making ---

    async def default(self) -> NetworkConfiguration:
        """Return the default network; it is made if it is not there."""
        if DEFAULT_NETWORK not in self._names:
            async with self.exclusive("making", waiters=WAITERS):
                if DEFAULT_NETWORK not in self._names:
                    ipv6 = await self._in_thread(self._has_ipv6)
                    await self._make(NetworkOptions(DEFAULT_NETWORK, ipv6=ipv6))
        return self.find(DEFAULT_NETWORK)

    async def make(self, options: NetworkOptions) -> NetworkConfiguration:
        """Make a network; on disk when this returns. Cancelled or failed, it is not there.

        Raises:
            ContainerError: as `Networks.create`.
        """
        _check(options)
        async with self.exclusive("making", waiters=WAITERS):
            return await self._make(options)

    async def _make(self, options: NetworkOptions) -> NetworkConfiguration:
        if options.name in self._names:
            raise AlreadyExists(
                f"the name {options.name!r} is taken by network {self._names[options.name]}"
            )
        driver = await self._driver(options.driver)
        routes, ipv6 = await self._in_thread(lambda: (self._host_routes(), self._has_ipv6()))
        ranges = subnets.ranges(
            options.subnets, ipv6=options.ipv6, taken=(*self._taken(), *routes), kernel_ipv6=ipv6
        )
        if options.mtu is not None:
            check_mtu(options.mtu, ipv6=any(each.version == 6 for each in ranges))
        network = NetworkConfiguration(
            id=new_id(self._networks.keys() | self._broken.keys() | self._going.keys()),
            name=options.name,
            driver=driver.name,
            created_at=self._clock(),
            subnets=tuple(str(each) for each in ranges),
            gateways=subnets.gateways(ranges, options.gateways),
            internal=options.internal,
            mtu=options.mtu,
            options=options.options,
            labels=options.labels,
            names=options.names,
        )
        await self._in_thread(self._store.create, network)
        if options.options:
            # What they mean is known to the driver alone.
            try:
                await self._check_by_driver(network)
            except BaseException:
                await self._remove(network)
                raise
        self._insert(network)
        await self._quietly(network.id, partial(self.register, network))
        return network

    async def _check_by_driver(self, network: NetworkConfiguration) -> None:
        await self.register(network)
        try:
            with trio.fail_after(CHECK):
                await self._ask(network.id)
        except trio.TooSlowError as error:
            raise Unavailable(
                f"the driver {network.driver} did not look at the options in time",
                hint="its log is in the logs folder",
            ) from error

    def _taken(self) -> Iterable[subnets.Taken]:
        for network in (*self._networks.values(), *self._going.values()):
            for subnet in network.subnets:
                yield subnets.Taken(ipaddress.ip_network(subnet), f"the network {network.name}'s")

    async def _driver(self, name: str) -> Plugin:
        name = BRIDGE if name in ("", "bridge") else name
        drivers = [it for it in await self._plugins.list() if "network" in it.service_types]
        for plugin in drivers:
            if plugin.name == name:
                return plugin
        known = ", ".join(plugin.name for plugin in drivers) or "none"
        raise NotFound(f"no network driver {name!r}", hint=f"drivers that are there: {known}")

    def _insert(self, network: NetworkConfiguration) -> None:
        self._networks[network.id] = network
        self._names[network.name] = network.id

    # --- removing ---

    async def remove(self, network: NetworkConfiguration) -> None:
        """Remove a network that nobody holds; once begun, it is finished even if cancelled.

        It is gone for everybody before the first await.
        """
        self._networks.pop(network.id)
        self._names.pop(network.name, None)
        await self._remove(network)

    async def _remove(self, network: NetworkConfiguration) -> None:
        self._going[network.id] = network
        with trio.move_on_after(CLEAN_UP, shield=True) as bound:
            try:
                await self._in_thread(self._store.mark_removing, network.id)
            except Unavailable:
                del self._going[network.id]
                self._insert(network)
                raise
            try:
                await self._finish_removal(network.id)
                return
            except ContainerError as error:
                _log.warning("network %s can't be removed yet: %s", network.id, error)
        if bound.cancelled_caught:
            _log.error("the removal of network %s took too long", network.id)
        self._remove_later(network.id)

    def _remove_later(self, network_id: str) -> None:
        name = f"the removal of network {network_id}"
        removal = Supervised[None](
            partial(self._finish_removal, network_id), name=name, backoff=SWEEPING, intensity=None
        )
        self.nursery.start_soon(removal.run, name=name)

    async def _finish_removal(self, network_id: str) -> None:
        async with self.exclusive(network_id):
            # A helper that nobody is attached to takes bridge and rules down when it is stopped;
            # one that was killed left them, and its successor has to come for that.
            if await self.status(network_id, TIDY) is None:
                _log.warning("network %s is removed without a word of its helper", network_id)
            await self._launcher(lambda launcher: launcher.remove(unit_name(network_id)))
            await self._in_thread(self._store.remove, network_id)
            self._going.pop(network_id, None)

    # --- helpers ---

    async def register(self, network: NetworkConfiguration) -> None:
        """Have the launcher know the network's helper; nothing is started.

        Raises:
            ContainerError: its plugin is not there any more, or the launcher can't be reached.
        """
        unit = self._unit(network, await self._driver(network.driver))
        try:
            await self._launcher(lambda launcher: launcher.register(unit))
        except AlreadyExists:
            # An older version's. Attachments outlive their helper, so it can be replaced.
            async with self.exclusive(network.id):
                await self._launcher(lambda launcher: launcher.remove(unit.name))
                await self._launcher(lambda launcher: launcher.register(unit))

    def _unit(self, network: NetworkConfiguration, plugin: Plugin) -> ServiceUnit:
        folder = str(self._store.folder(network.id))
        return ServiceUnit(
            name=unit_name(network.id),
            command=(*plugin.command, "--root", folder, network.id),
            entry=plugin.entry,
            description=f"helper of network {network.name}",
            listen=f"network/{network.id}.sock",
            restart=Restart.ON_FAILURE,
            # Never left failed: containers wait for it. Its delays alone keep it from more.
            restart_limit=20,
            idle_timeout=IDLE,
        )

    async def _take_up(self) -> None:
        for network in tuple(self._networks.values()):
            await self._quietly(network.id, partial(self.register, network))
        try:
            status = await self._launcher(lambda launcher: launcher.status())
        except ContainerError as error:
            _log.warning("the launcher can't be asked for helpers of networks: %s", error)
            return
        for service in status.services:
            network_id = service.name.removeprefix("network.")
            known = self._networks.keys() | self._broken.keys() | self._going.keys()
            if network_id == service.name or network_id in {*known, *self._unfinished}:
                continue
            _log.info("the helper of network %s is ended: there is no such network", network_id)
            await self._quietly(
                network_id,
                partial(self._launcher, lambda launcher, name=service.name: launcher.remove(name)),
            )

    async def _quietly(self, network_id: str, step: Callable[[], Awaitable[object]]) -> None:
        try:
            await step()
        except Exception as error:
            if not all(isinstance(leaf, ContainerError) for leaf in leaves(error)):
                raise
            _log.warning("the helper of network %s: %s", network_id, error)

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        try:
            return await trio.to_thread.run_sync(function, *arguments)
        except OSError as error:
            raise Unavailable(
                f"{error.filename or 'the state folder'} can't be written: {error.strerror}",
                hint="is there space on the disk?",
            ) from error


def _check(options: NetworkOptions) -> None:
    check_name(options.name, "network")
    if options.name in RESERVED:
        raise InvalidArgument(
            f"{options.name!r} can't name a network: `--network {options.name}` has a meaning"
        )
    if options.gateways and not options.subnets:
        raise InvalidArgument(
            f"the gateway {options.gateways[0]} has no range", hint="name that with --subnet"
        )
    for what, values in (("an option", options.options), ("a label", options.labels)):
        _check_texts(what, values)
    if options.mtu is not None:
        check_mtu(options.mtu)
    for text in options.subnets:
        subnets.parse_range(text)


def _check_texts(what: str, values: dict[str, str]) -> None:
    for key, value in values.items():
        if not key:
            raise InvalidArgument(f"{what} has no name", hint="write it as name=value")
        if "\0" in key + value or len(key) + len(value) > 4096:
            raise InvalidArgument(f"{what} {key[:40]!r} holds a NUL byte or is too long")


def unit_name(network_id: str) -> str:
    """Return the name under which the launcher knows the helper of a network."""
    return f"network.{network_id}"
