"""`LauncherService`: register, start, stop and list named services.

It owns the listening sockets and the processes; each service is supervised by a task of its own.
What it is *not*: it knows no contract but its own, and nothing of containers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import trio
from attrs import evolve

from container import __version__
from container.contracts.launcher import (
    Launcher,
    ServiceStatus,
    ServiceUnit,
    SystemStatus,
)
from container.ipc import (
    Actor,
    AlreadyExists,
    ContainerError,
    Fd,
    InvalidArgument,
    InvalidState,
    NotFound,
    Unavailable,
    current_call,
)
from container.ipc.client import socket_path
from container.launcher.children import Children
from container.launcher.dependencies import before, dependents, each, in_order
from container.launcher.descriptors import ancestry
from container.launcher.keeping import Keeping, check_keeper
from container.launcher.limits import raise_open_files
from container.launcher.logfiles import Logs
from container.launcher.mirror import Mirror, restore
from container.launcher.notifications import SOCKET_NAME, Notification, listen, notify_socket
from container.launcher.refusing import Refusal
from container.launcher.rundir import (
    BACKLOG,
    Inode,
    bind_listener,
    listening_at,
    somebody_listens,
    unlink_socket,
)
from container.launcher.spawner import Spawner, Surroundings
from container.launcher.supervision import Service
from container.launcher.units import check_unit
from container.notify import Notifier
from container.process import LOG_BOUND
from container.storage.paths import Paths

API_SERVER = "apiserver"
"""The service that may keep for all."""
SERVICES_BOUND = 10_000
ADOPTION_BOUND = 5.0
"""Seconds in which a service that outlived the previous launcher is expected to register."""
LOGS_SECONDS = 60.0
"""Between looks at the sizes of logs."""
UNNAMED = "stored"
"""The name of a descriptor that came by `FDSTORE=1` without one, as with systemd."""
STOP_SLACK = 15.0
"""Seconds beyond its stop timeout for a process to be killed, which the kernel may delay."""
ENDING_BOUND = 30.0
"""Seconds for a clean-up without `shutdown`."""
_OURS = (
    "LISTEN_",
    "WATCHDOG_",
    "NOTIFY_SOCKET",
    "CONTAINER_LIFELINE_FD",
    "CONTAINER_OWNED",
    "CONTAINER_IDLE_SECONDS",
    "CONTAINER_LOG",
)

_log = logging.getLogger(__name__)


def _caller() -> int:
    pid = current_call().peer.pid
    if pid <= 0:
        raise InvalidState("the caller's process is not known")
    return pid


class LauncherService(Actor, Launcher):
    """The launcher of one run directory.

    Its run directory is prepared and its lock held by the process around it; `Children` is the only
    one of the process. Leaving the block stops what does not outlive the launcher.

    Args:
        paths: The system's folders.
        units: Registered at start, in this order.
        listener: The launcher's own socket, bound: it listens once those of the units do.
        door: The listening socket of fast command lines, handed to the zygote.
        owner: In a private system, a socket whose other end the owner holds.
        environment: Of all services; None takes this process's own.
        preload: False makes every service a fresh interpreter.
        notifier: Under systemd, where what is kept is mirrored.
        stored: What systemd had kept; what is a service's is taken out when this opens.
        caller: Returns the pid of the process whose call is served.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        units: Sequence[ServiceUnit] = (),
        listener: socket.socket | None = None,
        door: socket.socket | None = None,
        owner: socket.socket | None = None,
        environment: Mapping[str, str] | None = None,
        preload: bool = True,
        notifier: Notifier | None = None,
        stored: dict[str, Fd] | None = None,
        caller: Callable[[], int] = _caller,
    ) -> None:
        self._paths = paths
        self._units = in_order(list(units))
        self._owner = owner
        self._environment = service_environment(paths, environment, owned=owner is not None)
        self._listener = listener
        self._door = door
        self._preload = preload
        self._notifier = notifier
        self._stored = stored or {}
        self._logs = Logs(paths.logs)
        self._caller = caller
        self._services: dict[str, Service] = {}
        self._started = datetime.now(UTC)
        self._refusal = Refusal()
        self._closing = False
        self._stop_containers = owner is not None
        self.own_sockets: dict[Path, Inode] = {}
        """Sockets of the launcher itself, unlinked when it shuts down."""
        self.shut_down = trio.Event()
        """Set when `shutdown` has done its work: the process may end."""
        self._told: list[trio.Event] = []
        """Of each call of `shutdown`: set when its connection has ended."""

    # --- life ---

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        """Hold lifeline, zygote and services; stop them at the end, within 30 s."""
        children = Children()
        held, given = socket.socketpair()
        open_files = raise_open_files()
        self._keeping = Keeping(None if self._notifier is None else Mirror(self._notifier))
        descriptors = self._keeping.store
        restore(descriptors, self._stored)
        surroundings = Surroundings(
            environment=self._environment,
            logs=self._logs,
            lifeline=given,
            owner=self._owner,
            preload=self._preload,
            open_files=open_files,
        )
        spawner = Spawner(children, surroundings, descriptors, self._door)
        self._children, self._spawner = children, spawner
        with (
            held,
            given,
            contextlib.closing(descriptors),
            self._refusal,
            notify_socket(self._paths.run / SOCKET_NAME) as self._notifications,
        ):
            async with spawner.running():
                try:
                    yield
                finally:
                    with trio.move_on_after(ENDING_BOUND, shield=True) as bound:
                        await self._stop_all()
                    if bound.cancelled_caught:
                        _log.error("services did not end within %s s", ENDING_BOUND)
                    for service in self._services.values():
                        # A service that goes on keeps its socket's name too.
                        if service.process is not None and service.unit.outlives_launcher:
                            service.let_go()
                        else:
                            service.close()
                    self._services.clear()

    async def begin(self) -> None:
        """Reap orphans, keep a zygote, and register the units."""
        self.nursery.start_soon(self._children.run, name="orphans")
        self.nursery.start_soon(self._spawner.keep, name="zygote")
        self.nursery.start_soon(listen, self._notifications, self._hear, name="notifications")
        self.nursery.start_soon(self._bound_logs, name="logs")
        for unit in self._units:
            await self._register(unit)
        if self._listener is not None:
            # Only now: who finds the launcher listening looks for the services' sockets next.
            self._listener.listen(BACKLOG)
        self.nursery.start_soon(self._boot, name="boot")

    async def _boot(self) -> None:
        """Start what starts with the launcher; a failure is the service's own to show."""
        units = [unit for unit in self._units if unit.listen is None or self._at_boot(unit)]

        async def start(name: str) -> None:
            service = self._services.get(name)
            try:
                if service is not None:
                    await service.start()
            except ContainerError as error:
                _log.error("%s", error.message)

        await each(units, start)

    def _at_boot(self, unit: ServiceUnit) -> bool:
        if not unit.start_at_boot or unit.boot_folder is None:
            return unit.start_at_boot
        try:
            return any((self._paths.root / unit.boot_folder).iterdir())
        except OSError:
            return False

    async def _stop_all(self) -> None:
        async def stop(name: str) -> None:
            service = self._services.get(name)
            if service is None:
                return
            with trio.move_on_after(service.unit.stop_timeout + STOP_SLACK) as bound:
                await service.retire()
            if bound.cancelled_caught:
                _log.error("%s did not end even by SIGKILL: it is left", name)

        units = [service.unit for service in self._services.values()]
        if self._stop_containers:
            # Each ends a container, and needs the other services for that.
            await each([unit for unit in units if unit.outlives_launcher], stop, backwards=True)
        await each([unit for unit in units if not unit.outlives_launcher], stop, backwards=True)

    async def _prepare(self, unit: ServiceUnit) -> None:
        """Start what a unit requires, all at once, and wait for what it comes after.

        Raises:
            NotFound: it requires what is not there.
            Unavailable: a required service can't be started; the message has its reason.
        """
        problems: list[ContainerError] = []

        async def start(name: str) -> None:
            try:
                await self._get(name).start()
            except ContainerError as error:
                problems.append(error)

        async with trio.open_nursery() as nursery:
            for name in unit.requires:
                nursery.start_soon(start, name)
            for name in unit.after:
                if (other := self._services.get(name)) is not None:
                    nursery.start_soon(other.wait_decided)
        for problem in problems:
            kind = NotFound if isinstance(problem, NotFound) else Unavailable
            raise kind(
                f'service "{unit.name}" needs another one: {problem.message}', hint=problem.hint
            )

    async def _bound_logs(self) -> None:
        while True:
            # Nothing tells that a file grows but a watch that would wake us at each line of a log.
            await trio.sleep(LOGS_SECONDS)
            sizes: dict[str, int] = {"launcher": LOG_BOUND, "zygote": LOG_BOUND}
            for name, service in self._services.items():
                kind = name.partition(".")[0]
                sizes[kind] = max(sizes.get(kind, 0), service.unit.log_size)
            for name, size in sizes.items():
                await trio.to_thread.run_sync(self._logs.bound, name, size)

    # --- what services say ---

    async def _hear(self, said: Notification) -> None:
        service = self._sender(said.pid)
        if service is None:
            _log.info("process %s said something, and is no service's", said.pid)
            return
        service.hear(said.fields)
        name = said.fields.get("FDNAME", UNNAMED)
        if said.fields.get("FDSTOREREMOVE") == "1":
            await self._keeping.drop(service.unit.name, name)
        elif said.fields.get("FDSTORE") == "1":
            for given in said.descriptors:
                await self._keeping.keep(service.unit, name, given)
        # BARRIER=1 wants no more than that its descriptor is closed when all before was heard.

    def _sender(self, pid: int) -> Service | None:
        """Return the service whose process, or a process below it, has this id."""
        serving = {
            service.process.pid: service
            for service in self._services.values()
            if service.process is not None
        }
        return next((serving[one] for one in ancestry(pid) if one in serving), None)

    # --- the contract ---

    async def register(self, unit: ServiceUnit) -> str:
        """Bind the unit's socket; see the contract."""
        path = await self._register(unit)
        if unit.listen is None:
            await self._services[unit.name].start()
        return path

    async def _register(self, unit: ServiceUnit) -> str:
        check_unit(unit)
        async with self.exclusive(unit.name):
            known = self._services.get(unit.name)
            if known is not None:
                if known.unit != unit:
                    raise AlreadyExists(
                        f'a service "{unit.name}" is registered already, and it is another one'
                    )
                return "" if known.path is None else str(known.path)
            self._check_open()
            self._check_order(unit)
            path = self._path_of(unit)
            listener, inode = None, None
            if path is not None:
                if unit.outlives_launcher and somebody_listens(path):
                    # It outlived the launcher before this one and will register itself: taking
                    # its name away now would cut it off from all.
                    self._expect(unit, path)
                    return str(path)
                listener, inode = bind_listener(path)
            self._add(
                Service(unit, path, listener, inode, self._spawner, self._prepare, self._refusal)
            )
        return "" if path is None else str(path)

    async def remove(self, name: str) -> None:
        """Stop the service, close and unlink its socket; see the contract."""
        async with self.exclusive(name):
            service = self._services.get(name)
            if service is None:
                await trio.lowlevel.checkpoint()
                await self._keeping.drop(name)
                return
            await service.retire()
            service.close()
            await self._keeping.drop(name)
            del self._services[name]

    async def start(self, name: str) -> ServiceStatus:
        """Start a registered service now; see the contract."""
        self._check_open()
        service = self._get(name)
        await service.start()
        return self._status(service)

    async def stop(self, name: str) -> ServiceStatus:
        """Stop a service; see the contract."""
        self._get(name)
        units = dependents(name, [service.unit for service in self._services.values()])

        async def stop(one: str) -> None:
            async with self.exclusive(one):
                service = self._services.get(one)
                if service is not None:
                    await service.stop()

        await each([*units, self._get(name).unit], stop, backwards=True)
        return self._status(self._get(name))

    async def adopt(self, unit: ServiceUnit, socket: Fd) -> None:
        """Register the caller, which outlived the previous launcher; see the contract."""
        check_unit(unit)
        pid = self._caller()
        async with self.exclusive(unit.name):
            self._check_open()
            path = self._path_of(unit)
            if path is None:
                raise InvalidArgument(f'service "{unit.name}" has no socket to be adopted with')
            known = self._services.get(unit.name)
            if known is not None and known.process is not None:
                if known.process.pid == pid and known.unit == unit:
                    await trio.lowlevel.checkpoint()
                    return
                raise AlreadyExists(f'another process serves "{unit.name}"')
            listener = listening_at(socket, path)
            inode = Inode.of(path)
            if known is not None:
                if known.listener is not None:
                    listener.close()
                    raise AlreadyExists(
                        f'"{unit.name}" was registered anew, and its name is served elsewhere'
                    )
                known.supervision.cancel()
                await known.ended.wait()
                del self._services[unit.name]
            try:
                process = self._children.add(pid)
            except ProcessLookupError:
                listener.close()
                raise InvalidState(f"process {pid} is gone") from None
            service = Service(
                unit, path, listener, inode, self._spawner, self._prepare, self._refusal
            )
            service.adopt(process)
            self._add(service)
            _log.info("%s was adopted with process %s", unit.name, pid)

    async def keep(self, service: str, name: str, descriptor: Fd) -> None:
        """Keep a descriptor for a service; see the contract."""
        await trio.lowlevel.checkpoint()
        found = self._get(service)
        self._check_keeper(found)
        await self._keeping.keep(found.unit, name, descriptor)

    async def drop(self, service: str, name: str) -> None:
        """Close what is kept for a service; see the contract."""
        await trio.lowlevel.checkpoint()
        found = self._services.get(service)
        if found is not None:
            self._check_keeper(found)
            await self._keeping.drop(service, name)

    async def orphan(self, pid: int) -> int | None:
        """Return how an orphan ended, once; see the contract."""
        await trio.lowlevel.checkpoint()
        return self._children.orphan_status(pid)

    async def status(self) -> SystemStatus:
        """Return the system and its services."""
        await trio.lowlevel.checkpoint()
        return SystemStatus(
            version=__version__,
            pid=os.getpid(),
            root=str(self._paths.root),
            run=str(self._paths.run),
            started=self._started,
            services=tuple(self._status(one) for _, one in sorted(self._services.items())),
            supervisor="" if self._notifier is None else "systemd",
        )

    async def shutdown(self, stop_containers: bool = False) -> None:
        """Stop all services in order; see the contract."""
        with contextlib.suppress(LookupError):  # the end of our owner is no call
            told = trio.Event()
            current_call().at_end.add(told.set)
            self._told.append(told)
        self._closing = True
        self._stop_containers = self._stop_containers or stop_containers
        self.hide()
        await self._stop_all()
        self.shut_down.set()

    async def wait_told(self) -> None:
        """Return once all who asked for the shutdown have the answer.

        A call's end is not told to its handler's process but by the connection's end: callers close
        theirs when they have the answer. Others, runtime helpers among them, hold theirs for good.
        """
        await trio.lowlevel.checkpoint()
        for told in self._told:
            await told.wait()

    # --- inside ---

    def _status(self, service: Service) -> ServiceStatus:
        return evolve(service.status(), kept=len(self._keeping.store.names(service.unit.name)))

    def _check_keeper(self, service: Service) -> None:
        both = (service, self._services.get(API_SERVER))
        admitted = [one.process.pid for one in both if one is not None and one.process is not None]
        check_keeper(self._caller(), service.unit.name, admitted)

    def hide(self) -> None:
        """Unlink the launcher's own sockets, so that who comes now starts the next launcher."""
        for path, inode in self.own_sockets.items():
            unlink_socket(path, inode)

    def _add(self, service: Service) -> None:
        self._services[service.unit.name] = service
        self.nursery.start_soon(service.run, name=f"service {service.unit.name}")

    def _expect(self, unit: ServiceUnit, path: Path) -> None:
        service = Service(unit, path, None, None, self._spawner, self._prepare, self._refusal)
        self._add(service)

        async def take_over() -> None:
            # Nothing says that it will not come: after a while its name is taken anew.
            await trio.sleep(ADOPTION_BOUND)
            async with self.exclusive(unit.name):
                if self._services.get(unit.name) is not service:
                    return
                _log.warning("%s did not register in time; its name is taken anew", unit.name)
                try:
                    service.listener, service.inode = bind_listener(path)
                except (InvalidArgument, Unavailable) as error:
                    _log.error("%s: %s", unit.name, error.message)
                service.wake()

        self.nursery.start_soon(take_over, name=f"expecting {unit.name}")

    def _get(self, name: str) -> Service:
        service = self._services.get(name)
        if service is None:
            raise NotFound(
                f'there is no service "{name}"',
                hint="known: " + (", ".join(sorted(self._services)) or "none"),
            )
        return service

    def _check_open(self) -> None:
        if self._closing:
            raise Unavailable("the system is shutting down", hint="try again in a moment")
        if len(self._services) >= SERVICES_BOUND:
            raise Unavailable(f"there are {SERVICES_BOUND} services already")

    def _check_order(self, unit: ServiceUnit) -> None:
        if before(unit):
            in_order([*(service.unit for service in self._services.values()), unit])

    def _path_of(self, unit: ServiceUnit) -> Path | None:
        if unit.listen is None:
            return None
        path = self._paths.run / unit.listen
        socket_path(path)
        for other in self._services.values():
            if other.path == path and other.unit.name != unit.name:
                raise AlreadyExists(f'the socket {path} belongs to service "{other.unit.name}"')
        return path


def service_environment(
    paths: Paths, environment: Mapping[str, str] | None, *, owned: bool
) -> dict[str, str]:
    """Return the environment of all services: ours, without what was meant for us alone."""
    source = os.environ if environment is None else environment
    kept = {name: value for name, value in source.items() if not name.startswith(_OURS)}
    kept.update(paths.environment())
    kept["CONTAINER_LOG"] = "-"
    kept["NOTIFY_SOCKET"] = str(paths.run / SOCKET_NAME)
    if "CONTAINER_LOG_LEVEL" in source:
        kept["CONTAINER_LOG_LEVEL"] = source["CONTAINER_LOG_LEVEL"]
    if owned:
        kept["CONTAINER_OWNED"] = "1"
    return kept
