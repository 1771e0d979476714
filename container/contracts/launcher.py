"""The launcher: names to sockets to processes."""

from __future__ import annotations

import enum
from abc import abstractmethod
from datetime import datetime

from attrs import field, frozen

from container.ipc import Contract, Fd


class Restart(enum.Enum):
    """When an ended service is started again (systemd's `Restart=`)."""

    NO = "no"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


@frozen
class ServiceUnit:
    """One named service: a listening socket and the process that serves it."""

    name: str
    """`apiserver`, `images`, `runtime.<container id>`."""
    command: tuple[str, ...]
    """argv of a program of its own (systemd's `ExecStart=`); used when `entry` is None, or asked
    for."""
    entry: str | None = None
    """`package.module:function` of a service of ours: forked from the preloaded zygote with
    `command[1:]`
    as its arguments."""
    description: str = ""
    listen: str | None = None
    """Socket path relative to the run directory; None: no socket, started at once."""
    environment: dict[str, str] = field(factory=dict[str, str])
    restart: Restart = Restart.ON_FAILURE
    restart_delay: float = 0.1
    """Seconds before the first restart; doubles each time, up to 10 s."""
    restart_limit: int = 5
    """Failures within 30 s after which the service is left failed."""
    stop_timeout: float = 10.0
    """Seconds from SIGTERM to SIGKILL."""
    outlives_launcher: bool = False
    """True for runtime helpers: no lifeline; the helper registers with the next launcher."""
    after: tuple[str, ...] = ()
    """Stopped before, started after these."""
    start_at_boot: bool = False
    """Start with the launcher rather than on the first connection."""


class ServiceState(enum.Enum):
    """The life of a service."""

    LISTENING = "listening"
    """Registered; starts on the first connection."""
    RUNNING = "running"
    BACKOFF = "backoff"
    """Ended with a failure; starts again after its delay."""
    STOPPING = "stopping"
    FAILED = "failed"
    """Failed too often; `start` tries again."""


@frozen
class ServiceStatus:
    """A row of `system status`."""

    name: str
    description: str
    state: ServiceState
    pid: int | None
    socket: str | None
    since: datetime
    restarts: int
    last_exit: int | None
    """Exit code, or 128+n, of the last process."""


@frozen
class SystemStatus:
    """The launcher's own view of the system."""

    version: str
    pid: int
    root: str
    run: str
    started: datetime
    services: tuple[ServiceStatus, ...]


class Launcher(Contract, name="launcher", version=1):
    """Register, start, stop and list named services."""

    @abstractmethod
    async def register(self, unit: ServiceUnit) -> str:
        """Bind the unit's socket and start it on its first connection; return the socket's
        absolute path.

        Idempotent for an equal unit.

        Raises:
            AlreadyExists: another unit has this name.
            InvalidArgument: a bad name or path.
        """
        ...

    @abstractmethod
    async def remove(self, name: str) -> None:
        """Stop the service, close and unlink its socket. An unknown name is no error."""
        ...

    @abstractmethod
    async def start(self, name: str) -> ServiceStatus:
        """Start a registered service now."""
        ...

    @abstractmethod
    async def stop(self, name: str) -> ServiceStatus:
        """Stop a service: SIGTERM, its stop timeout, SIGKILL. Its socket stays and starts it
        again."""
        ...

    @abstractmethod
    async def adopt(self, unit: ServiceUnit, socket: Fd) -> None:
        """Register the caller, a service that outlived the previous launcher, with its listening
        socket. What it had kept there is lost with that launcher: it sends it again by `keep`."""
        ...

    @abstractmethod
    async def keep(self, service: str, name: str, descriptor: Fd) -> None:
        """Keep a descriptor for a service through the end of its process, however that comes.

        The next process of the service gets it at its start, by `LISTEN_FDS` and `LISTEN_FDNAMES`
        after the listening socket. A second one under the same name replaces the first. It is kept
        until it is dropped, replaced, or the service removed: through stops and failed starts, and
        also when a pipe or socket has hung up, since what was written before can still be read.

        Only the service's own process, one below it, and the API server keep for a service.

        Args:
            service: A registered service.
            name: 1 to 255 printable ASCII characters without a colon; not the service's own name,
                which is its listening socket's.
            descriptor: Anything that is open.

        Raises:
            NotFound: no service has this name.
            InvalidArgument: a bad name; or a listening socket, for a service without one of its
                own, which would take it for its own.
            PermissionDenied: another process calls.
            Overloaded: too many are kept, for this service or in all; nothing was changed.
        """
        ...

    @abstractmethod
    async def drop(self, service: str, name: str) -> None:
        """Close what is kept for a service under a name; an empty name drops all of the service's.

        Nothing of the name, and no such service, are no errors.

        Raises:
            PermissionDenied: another process than those that may `keep`.
        """
        ...

    @abstractmethod
    async def orphan(self, pid: int) -> int | None:
        """Return how an orphan ended: exit code, or 128+n for a signal; each is told once.

        An orphan is a process whose parent ended and that so became the launcher's child. The last
        1,024 are remembered. None: it lives on, was told already, or was never the launcher's.
        """
        ...

    @abstractmethod
    async def status(self) -> SystemStatus:
        """Return the system and its services."""
        ...

    @abstractmethod
    async def shutdown(self, stop_containers: bool = False) -> None:
        """Stop all services in order, dependents first, and end the launcher after the reply.

        Args:
            stop_containers: Also end the services that outlive the launcher.
        """
        ...
