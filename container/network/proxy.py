"""Relay what arrives at a reserved host port to a container: what no rule could lead there.

That is what is sent to `::1` (the kernel can't translate its address), to link-local addresses, and
to IPv6 addresses of a host whose network has only IPv4. The container sees the host's address as
the source, not the client's: that is lost. Bounded in connections, flows and memory; a slow reader
slows its own sender and nobody else.

Streams go through pipes by splice(2), so that no byte of theirs enters this process. Each direction
ends for itself, as TCP's do; an error in one ends both, by a reset. Datagrams go by flows: one
socket for each client, for as long as one of both sides says something.

Source: splice(2), tcp(7), ipv6(7).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import struct
from collections import OrderedDict
from typing import cast

import trio
from attrs import define, evolve, field, frozen

from container.network.reserving import IP_PKTINFO

log = logging.getLogger(__name__)

CONNECTIONS = 256
"""Of one host port at a time; further ones wait in the kernel's queue."""
FLOWS = 256
"""Of one host port at a time; a further one takes the place of the one that was silent longest."""
ALL_CONNECTIONS = 1024
"""Connections and flows of all ports of a network."""
CONNECT_DEADLINE = 10
"""Seconds that a container has to take a connection."""
FLOW_IDLE = 60
"""Seconds without a datagram after which a flow ends."""
_CHUNK = 2**20
_DATAGRAM = 65_535
_ALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
"""A peer that vanished is noticed within two minutes."""
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

SocketAddress = tuple[str, int] | tuple[str, int, int, int]


@frozen
class Target:
    """Where a host port leads."""

    addresses: tuple[str, ...]
    """The container's."""
    port: int

    def for_family(self, family: int) -> Target:
        """Return it with the addresses of a family first: a service may listen on one alone."""
        six = family == socket.AF_INET6
        best = sorted(self.addresses, key=lambda address: (":" in address) != six)
        return evolve(self, addresses=tuple(best))


def room_for_all() -> trio.CapacityLimiter:
    """Return the limit that all relays of a network share."""
    return trio.CapacityLimiter(ALL_CONNECTIONS)


async def relay_streams(
    listener: socket.socket, target: Target, everyone: trio.CapacityLimiter
) -> None:
    """Accept connections and relay each to the target, until cancelled.

    Cancelled it resets all of them. The listener stays the caller's.
    """
    # A second object for one descriptor: the caller closes it.
    accepts = trio.socket.from_stdlib_socket(listener)
    target = target.for_family(listener.family)
    here = trio.CapacityLimiter(CONNECTIONS)
    # Most ports are never asked here: a task each, and no more, where there are thousands.
    await trio.lowlevel.wait_readable(listener)
    async with trio.open_nursery() as nursery:
        while True:
            try:
                client, _ = await accepts.accept()
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    # Nothing tells that a descriptor is free again.
                    await trio.sleep(0.2)
                elif error.errno in (errno.EBADF, errno.EINVAL, errno.ENOTSOCK):
                    raise
                continue
            try:
                for limit in (here, everyone):
                    await limit.acquire_on_behalf_of(client)
            except BaseException:
                client.close()
                raise
            nursery.start_soon(_relay_one, client, target, (here, everyone))


async def _relay_one(
    client: trio.socket.SocketType, target: Target, limits: tuple[trio.CapacityLimiter, ...]
) -> None:
    try:
        with client:
            _reset_when_closed(client)
            container = await _connect(target)
            if container is None:
                return
            with container:
                _reset_when_closed(container)
                for each in (client, container):
                    _keep_alive(each)
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_pump, client, container)
                        nursery.start_soon(_pump, container, client)
                except* OSError:
                    # Either side is gone: the reset tells the other.
                    pass
                else:
                    for each in (client, container):
                        _end_when_closed(each)
    finally:
        for limit in limits:
            limit.release_on_behalf_of(client)


async def _connect(target: Target) -> trio.socket.SocketType | None:
    with trio.move_on_after(CONNECT_DEADLINE):
        for address in target.addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            try:
                container = trio.socket.socket(family, socket.SOCK_STREAM)
            except OSError as error:
                log.warning("a published port can't be relayed: %s", error.strerror)
                return None
            try:
                await container.connect((address, target.port))
            except OSError:
                container.close()
            except BaseException:
                container.close()
                raise
            else:
                return container
    return None


async def _pump(source: trio.socket.SocketType, sink: trio.socket.SocketType) -> None:
    """Move bytes until the source ends, then end the sink's side. Raises OSError."""
    out, into = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        flags = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
        while True:
            # One that has always something to move would let nobody else run.
            await trio.lowlevel.checkpoint()
            try:
                held = os.splice(source.fileno(), into, _CHUNK, flags=flags)
            except BlockingIOError:
                # The pipe is empty here: it is the source that has nothing.
                await trio.lowlevel.wait_readable(source)
                continue
            if held == 0:
                break
            while held:
                try:
                    held -= os.splice(out, sink.fileno(), held, flags=flags)
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(sink)
        # The sink may have ended already.
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
    finally:
        os.close(out)
        os.close(into)


def _keep_alive(connected: trio.socket.SocketType) -> None:
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Whoever wrote the bytes decided when they are worth a packet.
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option, value in _ALIVE:
        connected.setsockopt(socket.IPPROTO_TCP, option, value)


def _reset_when_closed(connected: trio.socket.SocketType) -> None:
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _end_when_closed(connected: trio.socket.SocketType) -> None:
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))


@define
class _Flow:
    """What one client and the container say to each other."""

    container: socket.socket
    client: SocketAddress
    asked: list[tuple[int, int, bytes]]
    """The address of the host that the client asked, as ancillary data: it answers from there."""
    spoke: float
    """When one of both said something last."""
    scope: trio.CancelScope = field(factory=trio.CancelScope)


async def relay_datagrams(
    bound: socket.socket, target: Target, everyone: trio.CapacityLimiter
) -> None:
    """Relay datagrams to the target and its answers back, until cancelled.

    A datagram for which there is no room anywhere is dropped, as the network would.
    """
    target = target.for_family(bound.family)
    await _Datagrams(trio.socket.from_stdlib_socket(bound), target, everyone).relay()


_Key = tuple[SocketAddress, bytes]


@define
class _Datagrams:
    bound: trio.socket.SocketType
    target: Target
    everyone: trio.CapacityLimiter
    flows: OrderedDict[_Key, _Flow] = field(factory=OrderedDict[_Key, _Flow])
    """The one whose client spoke last is last."""
    refused: int = 0
    """How often the container said that nobody listens: the next address is tried then."""

    async def relay(self) -> None:
        room = socket.CMSG_SPACE(20)
        await trio.lowlevel.wait_readable(self.bound)
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    received = await self.bound.recvmsg(_DATAGRAM, room)
                except OSError as error:
                    if error.errno in (errno.EBADF, errno.EINVAL, errno.ENOTSOCK):
                        raise
                    continue
                data, ancillary = received[:2]
                client = cast("SocketAddress", received[3])
                key = (client, b"".join(each for _, _, each in ancillary))
                flow = self.flows.get(key)
                if flow is None:
                    flow = self._new_flow(client, ancillary)
                    if flow is None:
                        continue
                    self.flows[key] = flow
                    nursery.start_soon(self._answers, key, flow)
                self.flows.move_to_end(key)
                flow.spoke = trio.current_time()
                self._send_or_drop(flow, data)

    def _new_flow(
        self, client: SocketAddress, ancillary: list[tuple[int, int, bytes]]
    ) -> _Flow | None:
        if len(self.flows) >= FLOWS:
            _, silent = self.flows.popitem(last=False)
            silent.scope.cancel()
        address = self.target.addresses[self.refused % len(self.target.addresses)]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        container: socket.socket | None = None
        try:
            container = socket.socket(family, socket.SOCK_DGRAM)
            container.setblocking(False)
            container.connect((address, self.target.port))
            self.everyone.acquire_on_behalf_of_nowait(container)
        except (OSError, trio.WouldBlock):
            if container is not None:
                container.close()
            return None
        return _Flow(container, client, _answering(ancillary), trio.current_time())

    def _send_or_drop(self, flow: _Flow, data: bytes) -> None:
        try:
            # Waiting for room would let one flow hold up all others.
            flow.container.send(data)
        except ConnectionRefusedError:
            # Of an earlier datagram. Nobody listens there: the next one begins anew.
            self.refused += 1
            flow.scope.cancel()
        except OSError:
            pass

    async def _answers(self, key: _Key, flow: _Flow) -> None:
        container = trio.socket.from_stdlib_socket(flow.container)
        try:
            with container, flow.scope:
                while trio.current_time() < flow.spoke + FLOW_IDLE:
                    with trio.CancelScope(deadline=flow.spoke + FLOW_IDLE):
                        data = await container.recv(_DATAGRAM)
                        flow.spoke = trio.current_time()
                        with contextlib.suppress(OSError):
                            await self.bound.sendmsg([data], flow.asked, 0, flow.client)
        except OSError:
            self.refused += 1
        finally:
            if self.flows.get(key) is flow:
                del self.flows[key]
            self.everyone.release_on_behalf_of(flow.container)


def _answering(ancillary: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            address, index = struct.unpack("16sI", data)
            # Only a link-local address needs its interface; others are routed as usual.
            if address[0] != 0xFE or address[1] & 0xC0 != 0x80:
                index = 0
            return [(level, kind, struct.pack("16sI", address, index))]
        if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
            _, local, _ = struct.unpack("i4s4s", data)
            return [(level, kind, struct.pack("i4s4s", 0, local, bytes(4)))]
    return []
