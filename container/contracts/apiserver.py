"""The API server: containers, plugins, health."""

from __future__ import annotations

import enum
from abc import abstractmethod
from contextlib import AbstractAsyncContextManager
from datetime import datetime

from attrs import field, frozen
from trio.abc import ReceiveChannel

from container.contracts.images import Platform
from container.contracts.network import Attachment, PublishedPort
from container.contracts.runtime import (
    ExitStatus,
    LogFiles,
    Mount,
    NameOptions,
    ProcessSpec,
    Resources,
    Sandbox,
    SandboxStatistics,
    Stdio,
    StopOptions,
    TerminalSize,
)
from container.ipc import Contract, Endpoint, Fd


class PullPolicy(enum.Enum):
    """When `create` fetches the image."""

    MISSING = "missing"
    ALWAYS = "always"
    NEVER = "never"


class RestartCondition(enum.Enum):
    """After which end a container is started again."""

    NO = "no"
    ON_FAILURE = "on-failure"
    """One with another exit code than 0, or an unknown one; not when the system starts."""
    ALWAYS = "always"
    """Each but one that a user asked for; and whenever the system starts."""
    UNLESS_STOPPED = "unless-stopped"
    """As `ALWAYS`, but what a user has stopped stays stopped when the system starts."""


@frozen
class RestartPolicy:
    """When a container is started again that has ended.

    The first restart waits 100 ms, each further one twice as long, at most a minute; a run of 10 s
    ends the row. Source: the policies of `docker run --restart`.
    """

    condition: RestartCondition = RestartCondition.NO
    limit: int | None = None
    """Of `ON_FAILURE`: restarts in all since a user started it; None is no limit."""


@frozen
class HealthCheck:
    """A command that is run in a running container again and again; 0 says that it is well.

    In `ContainerOptions` None is the image's own, or else the default. Source: `HEALTHCHECK` of
    Dockerfiles.
    """

    command: tuple[str, ...] | None = None
    """The whole argv. Empty is no check at all, whatever the image has."""
    interval: float | None = None
    """Seconds from the start, and from each check's end, to the next one; 30."""
    timeout: float | None = None
    """Seconds after which a check is killed and has failed; 30."""
    start_period: float | None = None
    """Seconds from the start in which a failure does not count, until a check succeeds; 0."""
    retries: int | None = None
    """Failures in a row that make it unhealthy; 3."""


class HealthStatus(enum.Enum):
    """What the health checks of a running container say."""

    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


@frozen
class HealthResult:
    """One health check that was done."""

    started_at: datetime
    ended_at: datetime
    code: int | None
    """Exit code; None for one that was killed because it took too long."""
    output: str
    """The beginning of what it wrote, at most 4 KiB."""


DEFAULT_NETWORK = "default"
"""The network of containers that name none; it is made when it is first needed."""


@frozen
class NetworkUse:
    """One network that a container is in, as its user asked for it."""

    network: str
    """Its name."""
    addresses: tuple[str, ...] = ()
    """Wanted ones, at most one of IPv4 and one of IPv6."""
    mac: str = ""
    aliases: tuple[str, ...] = ()
    mtu: int | None = None
    interface: str = ""
    """Its name inside; empty: `eth0` for the first, `eth1`, and so on."""


@frozen
class ContainerOptions:
    """What the user asked for; what is empty or None is taken from the image or the defaults."""

    image: str
    name: str | None = None
    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    environment: tuple[str, ...] = ()
    """`NAME=value` each, added to the image's."""
    working_directory: str | None = None
    user: str | None = None
    terminal: bool = False
    terminal_size: TerminalSize | None = None
    keep_input: bool = False
    auto_remove: bool = False
    keep_log: bool = True
    read_only_root: bool = False
    mounts: tuple[Mount, ...] = ()
    """A volume without a source is an anonymous one; a named one that is not there is made."""
    volumes_from: tuple[str, ...] = ()
    """Containers whose volumes and binds are mounted too, each with `:ro` or `:rw` behind it, or
    neither."""
    resources: Resources = field(factory=Resources)
    network: str = ""
    """`none`, `host` or `container:NAME`; empty: `networks`."""
    networks: tuple[NetworkUse, ...] = ()
    """In order; empty (with an empty `network`) is the default network."""
    ports: tuple[PublishedPort, ...] = ()
    publish_all: bool = False
    """Publish each port that the image exposes, on a free port of the host."""
    names: NameOptions = field(factory=NameOptions)
    labels: dict[str, str] = field(factory=dict[str, str])
    hostname: str | None = None
    runtime: str | None = None
    stop_signal: str | None = None
    platform: Platform | None = None
    pull: PullPolicy = PullPolicy.MISSING
    restart: RestartPolicy = field(factory=RestartPolicy)
    health: HealthCheck | None = None
    """None is the image's own, if it has one."""
    stop_timeout: float | None = 10.0
    """Seconds from the stop signal to SIGKILL where `stop` is not told otherwise; None waits for
    ever."""


class ContainerStatus(enum.Enum):
    """The life of a container."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    """It ended, and is about to be started again."""
    STOPPED = "stopped"
    UNKNOWN = "unknown"
    """Its helper does not answer; never reported as stopped."""


@frozen
class Container:
    """A container: what `list` and `inspect` show."""

    id: str
    """12 hex digits; any unique prefix names the container too."""
    name: str
    image: str
    """Reference, normalised."""
    image_digest: str
    platform: Platform
    status: ContainerStatus
    created_at: datetime
    process: ProcessSpec
    resources: Resources
    mounts: tuple[Mount, ...]
    network: str
    """`none`, `host`, `container:ID`; empty: `networks`."""
    hostname: str
    labels: dict[str, str]
    auto_remove: bool
    keep_log: bool
    read_only_root: bool
    stop_signal: str
    runtime: str | None = None
    pid: int | None = None
    started_at: datetime | None = None
    exit: ExitStatus | None = None
    """Of the last run; None while it never ran or still runs."""
    restart: RestartPolicy = field(factory=RestartPolicy)
    restart_count: int = 0
    """Restarts by its policy since a user started it."""
    stopped_by_user: bool = False
    """A user has stopped or killed it since it was last started."""
    stop_timeout: float | None = 10.0
    health: HealthCheck | None = None
    """All its fields are set; None is no check."""
    health_status: HealthStatus | None = None
    """None while it does not run, or is not checked."""
    health_failures: int = 0
    """In a row, until now."""
    health_results: tuple[HealthResult, ...] = ()
    """The last five, oldest first; told by `get` alone."""
    networks: tuple[NetworkUse, ...] = ()
    ports: tuple[PublishedPort, ...] = ()
    """As asked for; `attachments` says which were chosen."""
    names: NameOptions = field(factory=NameOptions)
    attachments: tuple[Attachment, ...] = ()
    """What it is attached to, while it runs."""


class WaitCondition(enum.Enum):
    """What `wait` waits for."""

    EXITED = "exited"
    REMOVED = "removed"
    """Exited and, for a container that removes itself, gone with all that it had."""


class EventKind(enum.Enum):
    """What happened to a container."""

    CREATE = "create"
    START = "start"
    DIE = "die"
    """Attributes: `exit_code` (a number or `unknown`), `restarts` (`yes` or `no`)."""
    OOM = "oom"
    """The kernel ended it for want of memory; before its `die`."""
    KILL = "kill"
    """A user has sent a signal. Attribute: `signal`."""
    STOP = "stop"
    """A user has stopped it; after its `die`."""
    RESTART = "restart"
    """It was started again, by its policy or a user; after its `start`."""
    PAUSE = "pause"
    UNPAUSE = "unpause"
    HEALTH_STATUS = "health_status"
    """Attribute: `status`."""
    DESTROY = "destroy"


@frozen
class Event:
    """Something that happened to a container."""

    sequence: int
    """Grows from event to event, over restarts of the API server too."""
    time: datetime
    """When it happened; events come in the order in which the API server heard of them."""
    kind: EventKind
    container: str
    """Its id."""
    name: str
    image: str
    attributes: dict[str, str] = field(factory=dict[str, str])
    missed: int = 0
    """Events before this one that this subscriber was too slow for."""


@frozen
class EventFilter:
    """Which events a subscriber wants; what is empty or None wants all."""

    containers: tuple[str, ...] = ()
    """Names, ids or beginnings of ids, also of containers that are not there yet, or no more."""
    kinds: tuple[EventKind, ...] = ()
    since: datetime | None = None
    """Earlier ones first, as far as the API server remembers them: the last 1024."""
    until: datetime | None = None
    """End the stream at this time; None is never."""
    after: int | None = None
    """As `since`, but those with a higher sequence: to go on where another stream broke off."""


EVERYTHING = EventFilter()


class Containers(Contract, name="containers", version=3):
    """All containers of one root. `container` arguments take a name, an id, or a unique id
    prefix."""

    @abstractmethod
    async def create(self, options: ContainerOptions) -> Container:
        """Create a container: image present, configuration checked and on disk before the reply.

        Raises:
            AlreadyExists: the name is taken.
            InvalidArgument: a bad name, limit, mount or command; the message says the rule.
            NotFound: no such image, or a bind source that is not there.
        """
        ...

    @abstractmethod
    async def bootstrap(self, container: str, stdio: Stdio) -> Endpoint[Sandbox]:
        """Start the container's helper and create its first process.

        Returns:
            An endpoint limited to start, wait, resize, kill; it goes straight to the runtime
            helper,
            so whoever holds it does not need this server any more.
        """
        ...

    @abstractmethod
    async def create_process(
        self, container: str, process: str, spec: ProcessSpec, stdio: Stdio
    ) -> Endpoint[Sandbox]:
        """Prepare a further process (`exec`) under the caller's id `process`. Returns as
        `bootstrap` does.

        Empty fields of `spec` (environment, working directory, user) are taken from the container.
        """
        ...

    @abstractmethod
    async def start(self, container: str) -> Container:
        """Start a container that nobody is attached to: its output goes to its log. Idempotent."""
        ...

    @abstractmethod
    async def stop(self, container: str, options: StopOptions) -> Container:
        """Stop a container, and let no restart policy start it again. Idempotent."""
        ...

    @abstractmethod
    async def restart(self, container: str, options: StopOptions | None = None) -> Container:
        """Stop a container if it runs, and start it; its output goes to its log.

        Args:
            options: How to stop it; None is the container's own signal and timeout.
        """
        ...

    @abstractmethod
    async def pause(self, container: str) -> None:
        """Freeze all processes of a running container. One that is paused is no error.

        Raises:
            InvalidState: it does not run.
        """
        ...

    @abstractmethod
    async def unpause(self, container: str) -> None:
        """Let the processes of a paused container go on. One that runs is no error.

        Raises:
            InvalidState: it does not run.
        """
        ...

    @abstractmethod
    async def kill(self, container: str, signal: str) -> None:
        """Send a signal to the first process.

        SIGKILL and the container's own stop signal count as a stop: no policy restarts it.
        """
        ...

    @abstractmethod
    async def delete(self, container: str, force: bool = False, volumes: bool = False) -> None:
        """Delete a container and all that it had.

        Args:
            container: Which.
            force: Kill it if it runs.
            volumes: Delete the anonymous volumes too that no other container uses. Those of one
                that removes itself always go with it.

        Raises:
            InvalidState: it runs and `force` is not set.
        """
        ...

    @abstractmethod
    async def list(self) -> tuple[Container, ...]:
        """Return all containers, newest first."""
        ...

    @abstractmethod
    async def get(self, container: str) -> Container:
        """Return one container.

        Raises:
            NotFound: no such container; the hint names a close match.
            InvalidArgument: the prefix fits several.
        """
        ...

    @abstractmethod
    async def wait(
        self, container: str, condition: WaitCondition = WaitCondition.EXITED
    ) -> ExitStatus:
        """Return how the container's last run ended, once it has. No deadline of its own."""
        ...

    @abstractmethod
    async def logs(self, container: str) -> LogFiles:
        """Return the log's files, open for reading; whether it runs is `get`'s to say.

        Raises:
            InvalidState: this container keeps no log; the message says why.
        """
        ...

    @abstractmethod
    async def statistics(self, container: str) -> SandboxStatistics:
        """Return usage of a running container."""
        ...

    @abstractmethod
    async def dial(self, container: str, port: int) -> Fd:
        """Connect to a TCP port inside a running container and hand out the socket.

        Raises:
            InvalidArgument: no such port can be.
            InvalidState: it does not run.
            Unavailable: nobody listens there.
        """
        ...

    @abstractmethod
    def events(
        self, wanted: EventFilter = EVERYTHING
    ) -> AbstractAsyncContextManager[ReceiveChannel[Event]]:
        """Stream what happens to containers, from now on, or from earlier as `wanted` says.

        A subscriber that reads too slowly holds nothing up: it misses events, and the next one that
        it gets says how many.
        """
        ...


@frozen
class Plugin:
    """A service binary found by its `config.toml`."""

    name: str
    path: str
    """The folder that holds `config.toml`."""
    description: str
    author: str
    version: str
    service_types: tuple[str, ...]
    """`runtime`, `network`, `volume`, `core`."""
    command: tuple[str, ...]
    entry: str | None
    load_at_boot: bool
    shadows: tuple[str, ...] = ()
    """Folders later in the search path with the same name."""


class Plugins(Contract, name="plugins", version=1):
    """The plugins found on the search path: first name wins."""

    @abstractmethod
    async def list(self) -> tuple[Plugin, ...]:
        """Return all plugins, sorted by name."""
        ...

    @abstractmethod
    async def get(self, name: str) -> Plugin:
        """Return one plugin.

        Raises:
            NotFound: no such plugin; the hint says where was looked.
        """
        ...


@frozen
class SystemHealth:
    """The API server's answer to a ping."""

    version: str
    pid: int
    root: str
    run: str
    started: datetime
    containers: int
    running: int


class Health(Contract, name="health", version=1):
    """Is the API server up, and which is it?"""

    @abstractmethod
    async def ping(self) -> SystemHealth:
        """Return version, place and a count."""
        ...
