"""The contract that every server offers by itself: what is served, how it does, who calls, tasks.

The policy of the server judges its routes as all others. Beyond that, traffic and tasks are shown
to the same user and root alone, and an endpoint that is limited to some routes shows those and
nothing else; tasks, which are the whole process's, are shown only on sockets that it listens on.

A hello does not name this contract, since each server has it: `introspect(path)` connects.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections import Counter
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import trio
from attrs import frozen

from container.ipc.client import Address, connect, connection_proxy
from container.ipc.codec import codecs_of
from container.ipc.connection import Connection
from container.ipc.context import current_call
from container.ipc.contract import Contract, contracts_of
from container.ipc.describe import ContractDescription, describe_contract
from container.ipc.errors import Overloaded, PermissionDenied
from container.ipc.handling import Handler
from container.ipc.monitoring import Seen, watching
from container.ipc.scope import stream
from container.ipc.tasks import TaskSeen, task_tree
from container.ipc.wire_errors import process_name

ROOT = 0
WATCHERS = 8
"""Who may watch one server at once: each is told of every step."""


@frozen
class ServiceDescription:
    """What is served at one address, and by which process."""

    process: str
    """Its name, as in its logs."""
    pid: int
    build: str
    contracts: tuple[ContractDescription, ...]


@frozen
class RouteStatistics:
    """A look at one route."""

    path: str
    in_flight: int


@frozen
class ServiceStatistics:
    """A look at a server."""

    connections: int
    """Open now."""
    accepted: int
    """Since the beginning."""
    refused: int
    """Connections beyond the limit of their user, since the beginning."""
    routes: tuple[RouteStatistics, ...]
    """Those that have a call in flight."""


class Introspection(Contract, name="container.introspection"):
    """Look at a service: what it serves, how it does, who calls, what its tasks wait for."""

    @abstractmethod
    async def describe(self) -> ServiceDescription:
        """Return what is served here."""
        ...

    @abstractmethod
    async def statistics(self) -> ServiceStatistics:
        """Return a frozen look at the connections, and at the calls that run."""
        ...

    @abstractmethod
    def watch(
        self, values: bool = False
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[Seen]]:
        """Receive each step of the connections and calls of this server from now on.

        Args:
            values: Show values of arguments too.
        """
        ...

    @abstractmethod
    async def tasks(self, innermost: bool = False) -> tuple[TaskSeen, ...]:
        """Return the tasks of the process as a tree.

        Args:
            innermost: Show of each task only where it waits.
        """
        ...


class Looks(Protocol):
    """What `Server.statistics` returns."""

    @property
    def connections(self) -> int: ...
    @property
    def accepted(self) -> int: ...
    @property
    def refused(self) -> int: ...


class Looked(Protocol):
    """What is looked at: a `Server`."""

    @property
    def services(self) -> tuple[Contract, ...]: ...
    @property
    def only(self) -> frozenset[str] | None: ...
    def statistics(self) -> Looks: ...


class Description(Introspection):
    """Serve the introspection of one server.

    Args:
        server: What is looked at.
        routes: What it serves, by path: the object that its connections are made with.
        live: Its connections, as they come and go.
    """

    def __init__(
        self, server: Looked, routes: Mapping[str, Handler], live: Collection[Connection]
    ) -> None:
        self._server = server
        self._routes = routes
        self._live = live
        self._watchers = 0

    async def describe(self) -> ServiceDescription:
        from container import __version__

        found: list[ContractDescription] = []
        for service in (*self._server.services, self):
            for contract in contracts_of(type(service)):
                # The endpoint offers some routes only: the others are not described either.
                offered = [
                    name
                    for name, codec in codecs_of(contract).items()
                    if codec.path in self._routes
                ]
                found.append(describe_contract(contract, offered))
        return ServiceDescription(process_name(), os.getpid(), __version__, tuple(found))

    async def statistics(self) -> ServiceStatistics:
        look = self._server.statistics()
        running = Counter(path for link in self._live for path in link.routes_running)
        return ServiceStatistics(
            connections=look.connections,
            accepted=look.accepted,
            refused=look.refused,
            routes=tuple(RouteStatistics(path, count) for path, count in sorted(running.items())),
        )

    @asynccontextmanager
    async def watch(self, values: bool = False) -> AsyncGenerator[trio.abc.ReceiveChannel[Seen]]:
        self._check_same_user("its traffic")
        if self._watchers >= WATCHERS:
            raise Overloaded(f"{WATCHERS} watch this service already")
        self._watchers += 1
        try:
            with watching(self._routes, values=values) as steps:
                async with _passed_on(steps) as channel:
                    yield channel
        finally:
            self._watchers -= 1

    async def tasks(self, innermost: bool = False) -> tuple[TaskSeen, ...]:
        self._check_same_user("its tasks")
        if current_call().peer.connected_uid is None or self._server.only is not None:
            raise PermissionDenied(
                "an endpoint shows its own routes, not the tasks of the process behind it",
                hint="ask at a socket that the service listens on",
            )
        return task_tree(innermost=innermost)

    def _check_same_user(self, what: str) -> None:
        peer = current_call().peer
        uids = {peer.uid, peer.uid if peer.connected_uid is None else peer.connected_uid}
        if not uids <= {ROOT, os.geteuid()}:
            raise PermissionDenied(f"{process_name()} shows {what} to its own user and root alone")


@stream
async def _passed_on(steps: trio.MemoryReceiveChannel[Seen]) -> AsyncGenerator[Seen]:
    async for seen in steps:
        yield seen


def introspection_routes(
    server: Looked, routes: Mapping[str, Handler], live: Collection[Connection]
) -> dict[str, Handler]:
    """Return what serves the introspection of a server; see `Description`."""
    service = Description(server, routes, live)
    return {
        codec.path: Handler(codec, getattr(service, name))
        for name, codec in codecs_of(Introspection).items()
    }


@asynccontextmanager
async def introspect(address: Address) -> AsyncGenerator[Introspection]:
    """Hold a proxy of the introspection of whatever is served at an address.

    Raises: as `Contract.connect` does; `UnknownRoute`, by a call, if the server is of a version
        that has no introspection.
    """
    async with connect(address) as connection:
        yield connection_proxy(connection, Introspection)
