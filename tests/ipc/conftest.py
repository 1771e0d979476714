"""Two ends of a conversation, over the memory pair and over a real socket: one test proves both.

The mock clock may jump while real sockets are used: both ends live in one loop, and what one end
wrote is readable at the other at once, so the loop is never idle while bytes are under way.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
import trio

from container.ipc import Contract, Limits, Policy, in_memory, open_service, same_user
from container.ipc.client import asked, connect_contract
from container.ipc.contract import contracts_of
from container.ipc.transport import SocketTransport, Transport, memory_pair, socket_pair
from container.ipc.wire.machine import Budget, Event, Machine


class Link(Protocol):
    """Hold a proxy of a service that is served in this loop."""

    kind: str

    def __call__(
        self, service: Contract, *, limits: Limits | None = None, policy: Policy = same_user
    ) -> AbstractAsyncContextManager[Any]: ...


class _MemoryLink:
    kind = "memory"

    def __call__(
        self, service: Contract, *, limits: Limits | None = None, policy: Policy = same_user
    ) -> AbstractAsyncContextManager[Any]:
        return in_memory(service, limits=limits, policy=policy)


class _SocketLink:
    kind = "socket"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made = 0

    @asynccontextmanager
    async def __call__(
        self, service: Contract, *, limits: Limits | None = None, policy: Policy = same_user
    ) -> AsyncGenerator[Any]:
        self._made += 1
        path = self._folder / f"{self._made}.sock"
        contract = contracts_of(type(service))[0]
        async with open_service(service, at=path, limits=limits, policy=policy):
            async with connect_contract(contract, path, limits=limits) as proxy:
                yield proxy


@pytest.fixture(params=["memory", "socket"])
def link(request: pytest.FixtureRequest, tmp_path: Path) -> Link:
    """Serve a service and hold a proxy of it."""
    return _MemoryLink() if request.param == "memory" else _SocketLink(tmp_path)


class RawPeer:
    """The other end, played frame by frame: what a hostile or broken peer would say."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.machine = Machine(Limits(), Budget(1 << 30))
        self._events: deque[Event] = deque()

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send all of it at once; it must fit."""
        assert self.transport.send(memoryview(data), descriptors) == len(data)

    def read(self) -> bool:
        """Read what is here; False if nothing is, or it is the end."""
        try:
            data, descriptors, sender = self.transport.receive()
        except BlockingIOError:
            return False
        if data:
            self._events.extend(self.machine.receive(data, descriptors, sender))
        return bool(data)

    async def next(self) -> Event:
        """Return the next event."""
        while not self._events:
            await self.transport.wait_readable()
            if not self.read() and not self._events:
                await trio.lowlevel.checkpoint()
        return self._events.popleft()

    def pending_events(self) -> list[Event]:
        """Return what has come and was not looked at."""
        while self.read():
            pass
        events, self._events = list(self._events), deque()
        return events

    async def wait_end(self) -> None:
        """Read until the other end has closed; what comes before is dropped."""
        while True:
            await self.transport.wait_readable()
            try:
                if not self.transport.receive().data:
                    return
            except BlockingIOError:
                await trio.lowlevel.checkpoint()
            except ConnectionResetError:
                return

    async def greet_as_server(self, contract: type[Contract]) -> None:
        """Wait for a client's hello and answer it."""
        await self.next()
        self.send(self.machine.hello(asked(contract), "raw-server", "0"))

    async def greet_as_client(self) -> None:
        """Say hello and wait for the server's."""
        self.send(self.machine.hello({}, "raw-client", "0"))
        await self.next()


Pair = tuple[Transport, Transport]


@pytest.fixture(params=["memory", "socket"])
def make_pair(request: pytest.FixtureRequest) -> Callable[[], Pair]:
    """Make two connected transports."""
    if request.param == "memory":
        return memory_pair

    def make() -> Pair:
        one, two = socket_pair()
        for end in (one, two):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        return SocketTransport(one), SocketTransport(two)

    return make


@pytest.fixture
def raw_peer(make_pair: Callable[[], Pair]) -> Callable[[], tuple[Transport, RawPeer]]:
    """Make one transport and the peer, to be played, at its other end."""

    def make() -> tuple[Transport, RawPeer]:
        ours, theirs = make_pair()
        return ours, RawPeer(theirs)

    return make
