"""The network as a whole: bridge, rules and names, up while there is something to do.

| part | made | taken down |
|---|---|---|
| forwarding | with the first attachment, if off and needed | never: others may rely on it |
| bridge, table, DNS | with the first attachment | when the helper ends without attachments |

It takes some 20 ms, so it stays a while after the last attachment: as long as the helper does.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import trio

from container.contracts.network import NameEntry, Network, NetworkConfiguration
from container.ipc import Backoff, ContainerError, Supervised
from container.ipc.error_groups import leaves
from container.network.bridge import Bridge
from container.network.firewall import DnsAt, Firewall, Forwarded
from container.network.forwarding import allow_forwarding
from container.network.netlink import Link
from container.resolver import DnsServer, Found, Listener, Names, Upstreams, listen

T = TypeVar("T")

KERNEL_TASKS = 16
"""Threads that talk to the kernel at once. It does one thing at a time, but for the end of an
interface, of which most is waiting: by itself 19 ms, 4 ms each of many (Linux 6.18, 2 cores)."""
DOWN_SECONDS = 10.0

_log = logging.getLogger(__name__)


class Upkeep:
    """Keep one network up.

    Args:
        network: What it is.
        folder: Of the helper.
        sockets: Where the helpers of other networks listen; None: they are not asked for names.
    """

    def __init__(self, network: NetworkConfiguration, folder: Path, sockets: Path | None) -> None:
        self._network = network
        self._sockets = sockets
        self._limiter = trio.CapacityLimiter(KERNEL_TASKS)
        self._lock = trio.Lock()
        self._listeners: tuple[Listener, ...] = ()
        self.bridge = Bridge(network, folder)
        self.firewall = Firewall(network, self.bridge.name)
        self.names = Names(
            network.subnets, network.gateways, internal=network.internal, ask=self._ask
        )
        self.link: Link | None = None
        """The bridge while the network is up."""
        self.forwarded: dict[str, Sequence[Forwarded]] = {}
        """By key: what an earlier life had published, until the rules are written."""
        self._nursery: trio.Nursery | None = None

    async def in_kernel(self, function: Callable[[], T]) -> T:
        """Call a function that talks to the kernel in a thread; not given up half way."""
        return await trio.to_thread.run_sync(function, limiter=self._limiter)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Hold the tasks of the network until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._supervised, "rules", self.firewall.keep)
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            for listener in self._listeners:
                listener.close()

    async def up(self) -> None:
        """Have the network up; does nothing if it is.

        Cancelled or failed, parts may be up: the next call goes on from there.

        Raises:
            PermissionDenied, Unsupported, Unavailable, AlreadyExists: see `Network.attach`.
        """
        async with self._lock:
            if self.link is not None:
                return
            versions = {6 if ":" in subnet else 4 for subnet in self._network.subnets}
            if not self._network.internal:
                await allow_forwarding(ipv4=4 in versions, ipv6=6 in versions)
            link = await self.in_kernel(self.bridge.ensure)
            if self._network.names and not self._listeners:
                self._listeners = _listen(self._network.gateways)
                assert self._nursery is not None
                self._nursery.start_soon(self._supervised, "names", self._serve_names)
            dns = [DnsAt(each.gateway, each.udp_port, each.tcp_port) for each in self._listeners]
            await self.firewall.setup(dns, self.forwarded)
            self.forwarded.clear()
            self.link = link

    async def heal(self) -> None:
        """Have a network up again whose bridge somebody has changed or removed.

        Raises: as `up` does.
        """
        async with self._lock:
            if self.link is None:
                return
            self.link = await self.in_kernel(self.bridge.ensure)
            await self.firewall.again()

    async def down(self) -> None:
        """Take rules and bridge away, also those that an earlier helper has left.

        What can't be is logged; cancellation is held off for as long.
        """
        with trio.move_on_after(DOWN_SECONDS, shield=True):
            async with self._lock:
                self.link = None
                for remove in (self.firewall.remove, self._remove_bridge):
                    try:
                        await remove()
                    except ContainerError as error:
                        _log.warning("network %s: %s", self._network.name, error.message)

    async def _remove_bridge(self) -> None:
        await self.in_kernel(self.bridge.remove)

    async def _serve_names(self) -> None:
        upstreams = Upstreams(self._network.gateways)
        await DnsServer(self.names, upstreams).serve(self._listeners)

    async def _supervised(self, name: str, work: Callable[[], Awaitable[object]]) -> None:
        child: Supervised[None] = Supervised(
            work, name=name, backoff=Backoff(0.5, 10.0), intensity=None
        )
        await child.run()

    async def problems(self) -> tuple[str, ...]:
        """Return sentences about what stands in the way, each with what to do."""
        found = list(await self.in_kernel(self.bridge.covered))
        if self.link is not None:
            found += await self.in_kernel(self.bridge.incomplete)
            found += await self.firewall.problems()
            if not self._network.internal:
                found += forwarding_problems(self._network.subnets)
        return tuple(found)

    async def _ask(self, network: str, name: str) -> tuple[Found, ...]:
        if self._sockets is None:
            return ()
        found: tuple[NameEntry, ...] = ()
        try:
            async with Network.connect(self._sockets / f"{network}.sock") as other:
                found = await other.lookup(name)
        except* ContainerError as group:
            raise next(leaves(group)) from None
        return tuple(Found(entry.name, entry.addresses) for entry in found)


def _listen(gateways: Sequence[str]) -> tuple[Listener, ...]:
    with ExitStack() as failed:
        listeners: list[Listener] = []
        for gateway in gateways:
            listeners.append(listen(gateway))
            failed.callback(listeners[-1].close)
        failed.pop_all()
    return tuple(listeners)


def forwarding_problems(subnets: Sequence[str]) -> list[str]:
    """Return a sentence for each family whose packets the kernel does not pass on."""
    found: list[str] = []
    for version, path in ((4, "ipv4/ip_forward"), (6, "ipv6/conf/all/forwarding")):
        if not any((":" in subnet) == (version == 6) for subnet in subnets):
            continue
        try:
            on = Path("/proc/sys/net", path).read_text().strip() != "0"
        except OSError:
            on = False
        if not on:
            name = f"net/{path}".replace("/", ".")
            found.append(
                f"IPv{version} packets are not passed on by this machine: somebody has switched "
                f"it off; run: sysctl -w {name}=1"
            )
    return found
