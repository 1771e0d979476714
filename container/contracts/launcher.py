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


class Ready(enum.Enum):
    """When a started service is ready (systemd's `Type=`)."""

    STARTED = "started"
    """As soon as its process runs (`exec`)."""
    NOTIFY = "notify"
    """When it says `READY=1` on the socket that `NOTIFY_SOCKET` names (`notify`)."""


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
    """Stopped before, started after these, if they are started or stopped too."""
    start_at_boot: bool = False
    """Start with the launcher rather than on the first connection."""
    boot_folder: str | None = None
    """Relative to the system's root: with it, `start_at_boot` holds if something is in there
    (systemd's `ConditionDirectoryNotEmpty=`)."""
    requires: tuple[str, ...] = ()
    """These are started before, and must be ready; it is stopped before they are."""
    ready: Ready = Ready.STARTED
    start_timeout: float = 30.0
    """Seconds from its start to `READY=1`, after which it has failed."""
    watchdog: float | None = None
    """Seconds without `WATCHDOG=1`, once it is ready, after which it is killed and has failed."""
    idle_timeout: float | None = None
    """Seconds without work after which the service ends by itself; it is started again on the next
    connection. Handed to it as `CONTAINER_IDLE_SECONDS`."""
    open_files: int | None = None
    """RLIMIT_NOFILE; None: as many as the launcher was started with. Like `core_size` never above
    the launcher's own hard limit."""
    core_size: int | None = None
    """RLIMIT_CORE, in bytes."""
    oom_score_adjust: int | None = None
    """-1000 (never killed for want of memory) to 1000 (first)."""
    nice: int | None = None
    """-20 (first) to 19 (last)."""
    log_size: int = 8 * 2**20
    """Bytes of its log after which that is moved to `<name>.log.1`; looked at once a minute."""


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
    ready: bool = True
    """False while a RUNNING service has not said yet that it is ready."""
    said: str = ""
    """The service's own word on what it does (`STATUS=`)."""
    problem: str = ""
    """Its last failure, with the last lines of its log if it had not become ready."""
    problem_at: datetime | None = None
    kept: int = 0
    """Descriptors that are kept for it."""


@frozen
class SystemStatus:
    """The launcher's own view of the system."""

    version: str
    pid: int
    root: str
    run: str
    started: datetime
    services: tuple[ServiceStatus, ...]
    supervisor: str = ""
    """`systemd`, if that starts the named services, so that only the others are `services`."""


class Launcher(Contract, name="launcher", version=1):
    """Register, start, stop and list named services."""

    @abstractmethod
    async def register(self, unit: ServiceUnit) -> str:
        """Bind the unit's socket and start it on its first connection; return the socket's
        absolute path.

        Idempotent for an equal unit.

        Raises:
            AlreadyExists: another unit has this name.
            InvalidArgument: a bad name, path or number; or services would start after each other,
                and the message names the circle.
        """
        ...

    @abstractmethod
    async def remove(self, name: str) -> None:
        """Stop the service, close and unlink its socket. An unknown name is no error."""
        ...

    @abstractmethod
    async def start(self, name: str) -> ServiceStatus:
        """Start a registered service now, after those that it requires; return once it is ready.

        Raises:
            NotFound: no service has this name, or one that it requires.
            Unavailable: it did not start, or was not ready in time; the message has the last lines
                of its log. It, or a service that it requires.
        """
        ...

    @abstractmethod
    async def stop(self, name: str) -> ServiceStatus:
        """Stop a service: SIGTERM, its stop timeout, SIGKILL. Its socket stays and starts it
        again. Those that require it are stopped before."""
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
            name: 1 to 128 printable ASCII characters without a colon; not the service's own name,
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
