"""`NetworkService`: the attachments of one network, each as long as its scope is held.

| a scope | and then |
|---|---|
| is left, or its holder's block fails | everything of it is gone before the leaving is done |
| is cancelled while it opens, or fails | the same |
| breaks off: its holder is killed, or we end | the attachment stays, as long as its namespace |

What stays has no holder. The kernel tells when its namespace ends (`links`); until then the next
`attach` of its key takes it up. While it is held we keep a descriptor of the namespace, so that an
interface that somebody removes is put back; without a holder nothing of ours keeps a namespace.

At the start what was written down is compared with the kernel: what has no interface is released.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio
from attrs import define, evolve, field

from container.contracts.network import (
    Attachment,
    AttachmentRequest,
    NameEntry,
    Network,
    NetworkConfiguration,
    NetworkStatus,
    PublishedPort,
)
from container.ipc import (
    Actor,
    AlreadyExists,
    Backoff,
    ContainerError,
    Fd,
    IdleTimer,
    NotFound,
    Supervised,
    Unavailable,
    current_call,
)
from container.network import namespaces
from container.network.checking import check_network, check_ranges, check_request
from container.network.leases import Leases, check_mac, mac_of
from container.network.links import Changed, Gone, LinkEvents, Missed, link_events
from container.network.netlink import Link
from container.network.ports import PublishedPorts, check_ports, open_published_ports
from container.network.records import Record, Records
from container.network.upkeep import Upkeep
from container.network.views import Views, entry_of

RELEASE_SECONDS = 20.0
"""What the end of an attachment may take; it takes some 20 ms."""
UP_AGAIN = Backoff(1.0, 30.0)
"""Between attempts to have the network up for attachments of an earlier life."""
RETRY_SECONDS = 0.5, 30.0
"""Between tries of what could not be taken away: the first pause, the longest."""
HEALINGS, HEALING_SECONDS = 5, 30.0
"""So many times in so many seconds an interface is put back that somebody removes."""

_log = logging.getLogger(__name__)


@define(eq=False)
class _Held:
    """An attachment, as it is in this process."""

    record: Record
    port: Link | None = None
    """The host's end."""
    holder: object | None = None
    """Of the scope that holds it; None: it was broken off."""
    namespace: int | None = None
    """A descriptor, while it is held."""
    healed: deque[float] = field(factory=partial(deque[float], maxlen=HEALINGS))

    def let_go(self) -> None:
        """Keep the namespace no more."""
        namespace, self.namespace = self.namespace, None
        if namespace is not None:
            os.close(namespace)


class NetworkService(Actor, Network):
    """Serve one network.

    Args:
        folder: The helper's: its state is kept there.
        network: What the network is.
        sockets: Where the helpers of other networks listen, to be asked for names.
        idle: Told of attachments without a holder, which keep the helper from ending.

    Raises:
        InvalidArgument: the network has no range that can be served.
    """

    def __init__(
        self,
        folder: Path,
        network: NetworkConfiguration,
        *,
        sockets: Path | None = None,
        idle: IdleTimer | None = None,
    ) -> None:
        check_ranges(network)
        self._network = network
        self._records = Records(folder)
        self._upkeep = Upkeep(network, folder, sockets)
        self._bridge = self._upkeep.bridge
        self._views = Views(network, self._bridge.mtu)
        self._idle = idle
        self._held: dict[str, _Held] = {}
        self._events: LinkEvents | None = None
        self._by_index: dict[int, _Held] = {}
        """By the index of the host's end."""
        self._leases = Leases(network.subnets, network.gateways)
        self._ports: PublishedPorts | None = None
        self._healing = False
        """Whether the bridge is about to be looked after."""
        self._troubles: dict[str, str] = {}
        """By key: what could not be put right."""

    # --- life ---

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        self._records.load()
        self._leases = Leases(
            self._network.subnets, self._network.gateways, self._records.state.memory
        )
        async with open_published_ports(self._upkeep.firewall) as self._ports:
            try:
                yield
            finally:
                if not self._held:
                    await self._upkeep.down()
                for held in self._held.values():
                    held.let_go()

    async def begin(self) -> None:
        await self.nursery.start(self._upkeep.run)
        self._events = events = await self.nursery.start(self._listen)
        await self._recover()
        self.nursery.start_soon(self._watch, events)

    async def _listen(self, *, task_status: trio.TaskStatus[LinkEvents]) -> None:
        async with link_events() as events:
            task_status.started(events)
            await trio.sleep_forever()

    async def _recover(self) -> None:
        """Compare what was written down with the kernel."""
        records = self._records.state.records
        survey = await self._upkeep.in_kernel(partial(self._bridge.survey, tuple(records)))
        for key, record in tuple(records.items()):
            self._leases.restore(key, record.addresses)
            if key in survey.ports:
                held = _Held(record)
                self._plugged(held, survey.ports[key])
                self._begin(key, held)
            else:
                del records[key]
                self._leases.release(key)
                _log.info("attachment %s ended while nobody looked", key)
        for key, link in survey.ports.items():
            if key not in records:
                _log.warning("interface %s belongs to nothing: removing it", link.name)
                await self._upkeep.in_kernel(partial(self._bridge.remove_port, link))
        self._records.save()
        if self._held:
            await self._restore()

    async def _restore(self) -> None:
        """Have the network up for attachments of an earlier life; what fails is told and logged."""
        assert self._ports is not None
        self._upkeep.forwarded = {
            key: await self._ports.restore(
                key,
                held.record.request.name,
                held.record.addresses,
                held.record.ports,
                default_route=held.record.request.default_route,
            )
            for key, held in self._held.items()
            if held.record.ports
        }
        for held in self._held.values():
            self._upkeep.names.put(entry_of(held.record))
        try:
            await self._upkeep.up()
        except ContainerError as error:
            _log.error("network %s: %s", self._network.name, error.message)
            self._troubles[""] = _sentence(error)
            again: Supervised[None] = Supervised(
                self._come_up, name="network", backoff=UP_AGAIN, intensity=None
            )
            self.nursery.start_soon(again.run)

    async def _come_up(self) -> None:
        await self._upkeep.up()
        self._troubles.pop("", None)

    # --- the contract ---

    async def status(self) -> NetworkStatus:
        check_network(self._network)
        return NetworkStatus(
            id=self._network.id,
            name=self._network.name,
            interface=self._bridge.name,
            subnets=self._network.subnets,
            gateways=self._network.gateways,
            mtu=self._bridge.mtu,
            attachments=tuple(self._views.attachment(held.record) for held in self._held.values()),
            problems=await self._problems(),
        )

    async def _problems(self) -> tuple[str, ...]:
        assert self._ports is not None
        found = list(self._troubles.values())
        try:
            found += await self._upkeep.problems()
            found += await self._ports.problems()
        except ContainerError as error:
            found.append(_sentence(error))
        return tuple(dict.fromkeys(found))

    @asynccontextmanager
    async def attach(self, request: AttachmentRequest, namespace: Fd) -> AsyncGenerator[Attachment]:
        held = await self._attach(request, namespace)
        holder = held.holder
        left = True
        try:
            yield self._views.attachment(held.record)
        except trio.Cancelled:
            left = _is_left()
            raise
        finally:
            # Another holder may have taken it up since.
            if held.holder is holder:
                held.holder = None
                if left:
                    await self._end(held)
                else:
                    held.let_go()

    async def publish(self, key: str, ports: tuple[PublishedPort, ...]) -> Attachment:
        assert self._ports is not None
        check_ports(ports)
        async with self.exclusive(key):
            held = self._held.get(key)
            if held is None:
                raise NotFound(f"no attachment of {key} to network {self._network.name}")
            await self._upkeep.up()
            record = held.record
            chosen = await self._ports.publish(
                key,
                record.request.name,
                record.addresses,
                ports,
                default_route=record.request.default_route,
            )
            held.record = evolve(record, ports=chosen)
            self._write(key, held.record)
            return self._views.attachment(held.record)

    async def lookup(self, name: str) -> tuple[NameEntry, ...]:
        await trio.lowlevel.checkpoint()
        return tuple(NameEntry(one.name, one.addresses) for one in self._upkeep.names.find(name))

    # --- making an attachment ---

    async def _attach(self, request: AttachmentRequest, namespace: Fd) -> _Held:
        check_network(self._network)
        check_request(request, self._network)
        check_ports(request.ports)
        async with self.exclusive(request.key):
            identity = namespaces.identity(namespace.fileno())
            held = self._held.get(request.key)
            if held is not None and held.record.namespace != identity:
                # The container was started anew, and the end of its last life is not here yet.
                await self._release(held)
                held = None
            earlier = None if held is None else held.record
            record = self._plan(request, identity, earlier)
            try:
                self._write(request.key, record)
                if held is None:
                    held = _Held(record)
                    self._begin(request.key, held)
                await self._upkeep.up()
                plug = self._views.plug(record)
                port = await self._upkeep.in_kernel(
                    partial(self._bridge.plug, plug, namespace.fileno())
                )
                self._plugged(held, port)
                held.record = await self._published(record)
            except BaseException:
                with trio.move_on_after(RELEASE_SECONDS, shield=True):
                    if earlier is not None:
                        self._write(request.key, earlier)
                    elif held is not None:
                        await self._release(held)
                    else:
                        self._leases.release(request.key)
                raise
            self._upkeep.names.put(entry_of(held.record))
            self._troubles.pop(request.key, None)
            held.let_go()
            held.namespace = namespace.take()
            held.holder = object()
            return held

    def _plan(self, request: AttachmentRequest, identity: str, earlier: Record | None) -> Record:
        """Choose addresses and MAC, which nobody else gets from now on."""
        key = request.key
        try:
            addresses = self._leases.grant(key, request.addresses)
        except AlreadyExists as error:
            holder = self._held.get(str(error.details.get("holder")))
            if holder is None:
                raise
            raise AlreadyExists(
                f"an address is taken: {error.message} ({holder.record.request.name})",
                details=error.details,
            ) from None
        try:
            mac = earlier.mac if earlier is not None else self._mac(request, addresses)
        except BaseException:
            self._leases.release(key)
            raise
        ports = earlier.ports if earlier is not None else None
        return Record(request, addresses, mac, identity, ports)

    def _mac(self, request: AttachmentRequest, addresses: tuple[str, ...]) -> str:
        taken = {held.record.mac: held.record.request.name for held in self._held.values()}
        if request.mac:
            mac = check_mac(request.mac)
            if mac in taken:
                raise AlreadyExists(f"MAC {mac} is taken by {taken[mac]}")
            return mac
        return next(mac for salt in range(256) if (mac := mac_of(addresses[0], salt)) not in taken)

    async def _published(self, record: Record) -> Record:
        """Publish an attachment's ports, once in its life."""
        assert self._ports is not None
        if record.ports is not None:
            return record
        request, chosen = record.request, ()
        if request.ports:
            chosen = await self._ports.publish(
                request.key,
                request.name,
                record.addresses,
                request.ports,
                default_route=request.default_route,
            )
            self._write(request.key, evolve(record, ports=chosen))
        return evolve(record, ports=chosen)

    def _begin(self, key: str, held: _Held) -> None:
        self._held[key] = held
        if self._idle is not None:
            self._idle.begin()

    # --- ending one ---

    async def _end(self, held: _Held) -> None:
        """Release what nobody has taken up since; cancellation is held off for as long."""
        key = held.record.request.key
        with trio.move_on_after(RELEASE_SECONDS, shield=True) as bound:
            async with self.exclusive(key):
                if self._held.get(key) is held and held.holder is None:
                    await self._release(held)
        if bound.cancelled_caught:
            _log.error("the end of attachment %s took too long", key)
            held.let_go()

    async def _release(self, held: _Held) -> None:
        """Take everything of an attachment away; in its section. What can't be is logged."""
        assert self._ports is not None
        key = held.record.request.key
        self._upkeep.names.remove(key)
        self._upkeep.forwarded.pop(key, None)
        held.let_go()
        try:
            await self._ports.withdraw(key)
        except ContainerError as error:
            _log.error("ports of attachment %s: %s", key, error.message)
        if not await self._unplug(key):
            self.nursery.start_soon(self._release_later, held)

    async def _unplug(self, key: str) -> bool:
        try:
            await self._upkeep.in_kernel(partial(self._bridge.unplug, key))
        except ContainerError as error:
            # It keeps its addresses: they are in use as long as the interface is there.
            _log.error("attachment %s: %s", key, error.message)
            self._troubles[key] = _sentence(error)
            return False
        self._forget(key)
        return True

    async def _release_later(self, held: _Held) -> None:
        """Release what could not be, for want of descriptors perhaps, once it can be."""
        key, pause = held.record.request.key, RETRY_SECONDS[0]
        while True:
            await trio.sleep(pause)
            pause = min(2 * pause, RETRY_SECONDS[1])
            async with self.exclusive(key):
                if self._held.get(key) is not held or held.holder is not None:
                    return
                if await self._unplug(key):
                    return

    def _forget(self, key: str) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            self._plugged(held, None)
            if self._idle is not None:
                self._idle.end()
        self._leases.release(key)
        self._troubles.pop(key, None)
        self._records.state.records.pop(key, None)
        try:
            self._records.save()
        except ContainerError as error:
            # The next start finds no interface to it.
            _log.error("%s", error.message)

    def _write(self, key: str, record: Record) -> None:
        records = self._records.state.records
        before = records.get(key)
        records[key] = record
        try:
            self._records.save()
        except BaseException:
            if before is None:
                del records[key]
            else:
                records[key] = before
            raise

    # --- what happens to interfaces ---

    async def _watch(self, events: LinkEvents) -> None:
        while True:
            for event in await events.next(self._is_ours):
                match event:
                    case Missed():
                        for held in self._held.values():
                            self.nursery.start_soon(self._look_after, held)
                        self._heal_soon()
                    case Gone(link) | Changed(link):
                        gone = isinstance(event, Gone)
                        held = self._by_index.get(link.index)
                        if held is None:  # the bridge
                            if gone or not link.up:
                                self._heal_soon()
                        # What is told of while it is made or removed is looked at after that.
                        elif gone or not self._in_place(link):
                            self.nursery.start_soon(self._look_after, held)

    def _is_ours(self, index: int) -> bool:
        bridge = self._upkeep.link
        return index in self._by_index or (bridge is not None and index == bridge.index)

    def _plugged(self, held: _Held, port: Link | None) -> None:
        """Take note of the host's end of an attachment; None: there is none any more."""
        if held.port is not None:
            self._by_index.pop(held.port.index, None)
        held.port = port
        if port is not None:
            self._by_index[port.index] = held
            if self._events is not None and port.index in self._events.gone:
                self.nursery.start_soon(self._look_after, held)

    def _in_place(self, link: Link) -> bool:
        bridge = self._upkeep.link
        return bridge is None or link.master == bridge.index

    def _heal_soon(self) -> None:
        # Once for all that happens at once: a bridge that goes is told of by each of its ports.
        if not self._healing:
            self._healing = True
            self.nursery.start_soon(self._heal_bridge)

    async def _look_after(self, held: _Held) -> None:
        """Put an attachment's interface back if it is gone and held; else release it."""
        key = held.record.request.key
        try:
            async with self.exclusive(key):
                if self._held.get(key) is not held or held.port is None:
                    return
                found = await self._upkeep.in_kernel(partial(self._bridge.port, key))
                if found is not None and found.index == held.port.index:
                    if not self._in_place(found):
                        self._heal_soon()
                    return
                if held.namespace is None:
                    await self._release(held)
                    return
                await self._put_back(held, held.namespace)
        except ContainerError as error:
            _log.error("attachment %s: %s", key, error.message)
            self._troubles[key] = _sentence(error)

    async def _put_back(self, held: _Held, namespace: int) -> None:
        key = held.record.request.key
        name = held.record.request.name
        while True:
            now = time.monotonic()
            if len(held.healed) == HEALINGS and now - held.healed[0] < HEALING_SECONDS:
                self._troubles[key] = (
                    f"somebody removes the interface of {name} again and again: it was put back "
                    f"{HEALINGS} times; find out who, then connect the container anew"
                )
                _log.error("%s", self._troubles[key])
                return
            held.healed.append(now)
            _log.warning("somebody removed the interface of %s: putting it back", name)
            try:
                port = await self._upkeep.in_kernel(
                    partial(self._bridge.plug, self._views.plug(held.record), namespace)
                )
                self._plugged(held, port)
                return
            except Unavailable as error:
                # Removed once more before it was complete: nothing tells of that one.
                _log.warning("%s", error.message)

    async def _heal_bridge(self) -> None:
        self._healing = False
        try:
            await self._upkeep.heal()
            self._troubles.pop("", None)
        except ContainerError as error:
            _log.error("network %s: %s", self._network.name, error.message)
            self._troubles[""] = _sentence(error)


def _sentence(error: ContainerError) -> str:
    return f"{error.message}: {error.hint}" if error.hint else error.message


def _is_left() -> bool:
    """Say whether a cancelled scope was left: its caller said so, rather than being lost."""
    try:
        return current_call().cancelled
    except LookupError:
        return True  # called in this process: there is no holder who could be lost
