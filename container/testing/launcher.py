"""A launcher that starts helpers of containers and networks as tasks of this event loop.

The same contract as the launcher's process: a unit is registered, its helper starts on the first
connection, runs until it ends itself or is removed, and starts anew on the next connection. What it
does *not* do: sockets on disk, restarts of other services.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import Any, cast

import trio
from attrs import define, field

from container import __version__
from container.contracts.launcher import (
    Launcher,
    ServiceState,
    ServiceStatus,
    ServiceUnit,
    SystemStatus,
)
from container.contracts.network import Network
from container.contracts.runtime import SandboxGate
from container.ipc import Actor, AlreadyExists, Fate, Fd, NotFound, PeerGone, Unsupported
from container.storage.paths import Paths

Helper = Callable[
    [ServiceUnit, Callable[[], None]], AbstractAsyncContextManager[SandboxGate | Network]
]
"""Open the helper of a unit: a block that holds what it serves (the gate of a container, or a
network), and a function that ends the helper."""

Connect = Callable[[Any], AbstractAsyncContextManager[Any]]
"""Open one connection to what a helper in this process serves."""


@define(eq=False)
class _Process:
    served: SandboxGate | Network
    scope: trio.CancelScope
    ended: trio.Event = field(factory=trio.Event)


@define(eq=False)
class _Service:
    unit: ServiceUnit
    process: _Process | None = None
    starts: int = 0
    kept: dict[str, Fd] = field(factory=dict[str, Fd])
    since: datetime = field(factory=lambda: datetime.now(UTC))


@asynccontextmanager
async def as_it_is(served: Any) -> AsyncGenerator[Any]:
    """Connect by calling the service itself."""
    yield served


class InProcessLauncher(Actor, Launcher):
    """Run helpers as tasks.

    Args:
        paths: The system's place; names sockets that are never made.
        helper: Opens the helper of a unit.
        connect: Opens a connection to a helper: by default none, calls go straight to it.
    """

    def __init__(self, paths: Paths, helper: Helper, connect: Connect = as_it_is) -> None:
        self._paths = paths
        self._helper = helper
        self._connect = connect
        self._services: dict[str, _Service] = {}
        self._started = datetime.now(UTC)

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        """Close at the end what is kept."""
        try:
            yield
        finally:
            for service in self._services.values():
                _drop(service)

    # --- what the system calls ---

    async def register(self, unit: ServiceUnit) -> str:
        """Take a unit; see the contract."""
        await trio.lowlevel.checkpoint()
        known = self._services.get(unit.name)
        if known is not None and known.unit != unit:
            raise AlreadyExists(f"another service is named {unit.name!r}")
        if known is None:
            self._services[unit.name] = _Service(unit)
        return self._socket(unit)

    async def remove(self, name: str) -> None:
        """End a helper and forget its unit; see the contract."""
        await trio.lowlevel.checkpoint()
        service = self._services.pop(name, None)
        if service is not None and service.process is not None:
            process = service.process
            process.scope.cancel()
            await process.ended.wait()
        if service is not None:
            _drop(service)

    async def start(self, name: str) -> ServiceStatus:
        """Start a helper; see the contract."""
        service = self._find(name)
        await self._running(service)
        return self._status(service)

    async def stop(self, name: str) -> ServiceStatus:
        """End a helper; see the contract."""
        await trio.lowlevel.checkpoint()
        service = self._find(name)
        self.kill(name)
        if service.process is not None:
            await service.process.ended.wait()
        return self._status(service)

    async def adopt(self, unit: ServiceUnit, socket: Fd) -> None:
        """Refuse: no helper here outlives its launcher."""
        raise Unsupported("an in-process launcher adopts nothing")

    async def keep(self, service: str, name: str, descriptor: Fd) -> None:
        """Keep a descriptor for any service; see the contract."""
        await trio.lowlevel.checkpoint()
        found = self._find(service)
        _drop(found, name)
        found.kept[name] = Fd(descriptor.take())

    async def drop(self, service: str, name: str) -> None:
        """Close what is kept; see the contract."""
        await trio.lowlevel.checkpoint()
        if service in self._services:
            _drop(self._services[service], name)

    async def orphan(self, pid: int) -> int | None:
        """Know none: what ends here has its parent in this process."""
        await trio.lowlevel.checkpoint()
        return None

    async def status(self) -> SystemStatus:
        """Return the units; see the contract."""
        await trio.lowlevel.checkpoint()
        return SystemStatus(
            version=__version__,
            pid=os.getpid(),
            root=str(self._paths.root),
            run=str(self._paths.run),
            started=self._started,
            services=tuple(self._status(service) for service in self._services.values()),
        )

    async def shutdown(self, stop_containers: bool = False) -> None:
        """Remove all units; see the contract."""
        for name in tuple(self._services):
            await self.remove(name)

    # --- what a test calls ---

    def connect_gate(self, path: str) -> AbstractAsyncContextManager[SandboxGate]:
        """Connect to the gate behind a socket path, starting its helper.

        Raises:
            PeerGone: no unit has this socket (`fate` is refused).
        """
        return self._connected(path)

    def connect_network(self, path: str) -> AbstractAsyncContextManager[Network]:
        """Connect to the network behind a socket path; see `connect_gate`."""
        return self._connected(path)

    @asynccontextmanager
    async def _connected(self, path: str) -> AsyncGenerator[Any]:
        await trio.lowlevel.checkpoint()
        for service in self._services.values():
            if self._socket(service.unit) == path:
                process = await self._running(service)
                async with self._connect(process.served) as proxy:
                    yield proxy
                return
        raise PeerGone(f"nobody listens at {path}", fate=Fate.REFUSED, why="refused")

    def kill(self, name: str) -> None:
        """End a helper's task at once, as SIGKILL ends a process; its unit stays."""
        process = self._find(name).process
        if process is not None:
            process.scope.cancel()

    def kept(self, name: str) -> dict[str, Fd]:
        """Return duplicates of what is kept for a service, as its next helper gets them."""
        return {each: fd.duplicate() for each, fd in self._find(name).kept.items()}

    def names(self) -> tuple[str, ...]:
        """Return the names of all units."""
        return tuple(self._services)

    # --- ---

    def _find(self, name: str) -> _Service:
        if name not in self._services:
            raise NotFound(f"no service {name!r}")
        return self._services[name]

    def _socket(self, unit: ServiceUnit) -> str:
        return str(self._paths.run / (unit.listen or unit.name))

    def _status(self, service: _Service) -> ServiceStatus:
        running = service.process is not None
        return ServiceStatus(
            name=service.unit.name,
            description=service.unit.description,
            state=ServiceState.RUNNING if running else ServiceState.LISTENING,
            pid=os.getpid() if running else None,
            socket=self._socket(service.unit),
            since=service.since,
            restarts=max(0, service.starts - 1),
            last_exit=None,
        )

    async def _running(self, service: _Service) -> _Process:
        async with self.exclusive(service.unit.name):
            if service.process is None or service.process.ended.is_set():
                service.process = cast("_Process", await self.nursery.start(self._run, service))
            return service.process

    async def _run(self, service: _Service, *, task_status: trio.TaskStatus[_Process]) -> None:
        process: _Process | None = None
        try:
            with trio.CancelScope() as scope:
                async with self._helper(service.unit, scope.cancel) as served:
                    process = _Process(served, scope)
                    service.starts += 1
                    task_status.started(process)
                    await trio.sleep_forever()
        finally:
            if process is not None:
                process.ended.set()
                if service.process is process:
                    service.process = None


def _drop(service: _Service, name: str = "") -> None:
    for each in (name,) if name else tuple(service.kept):
        if each in service.kept:
            service.kept.pop(each).close()
