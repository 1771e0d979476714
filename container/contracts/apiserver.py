"""The API server: containers, plugins, health."""

from __future__ import annotations

import enum
from abc import abstractmethod
from datetime import datetime

from attrs import field, frozen

from container.contracts.images import Platform
from container.contracts.runtime import (
    ExitStatus,
    LogFiles,
    Mount,
    Network,
    ProcessSpec,
    Resources,
    Sandbox,
    SandboxStatistics,
    Stdio,
    StopOptions,
    TerminalSize,
)
from container.ipc import Contract, Endpoint


class PullPolicy(enum.Enum):
    """When `create` fetches the image."""

    MISSING = "missing"
    ALWAYS = "always"
    NEVER = "never"


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
    resources: Resources = field(factory=Resources)
    network: Network = "none"
    labels: dict[str, str] = field(factory=dict[str, str])
    hostname: str | None = None
    runtime: str | None = None
    stop_signal: str | None = None
    platform: Platform | None = None
    pull: PullPolicy = PullPolicy.MISSING


class ContainerStatus(enum.Enum):
    """The life of a container."""

    CREATED = "created"
    RUNNING = "running"
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
    network: Network
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


class WaitCondition(enum.Enum):
    """What `wait` waits for."""

    EXITED = "exited"
    REMOVED = "removed"
    """Exited and, for a container that removes itself, gone with all that it had."""


class Containers(Contract, name="containers", version=1):
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
        """Stop a container. Idempotent."""
        ...

    @abstractmethod
    async def kill(self, container: str, signal: str) -> None:
        """Send a signal to the first process."""
        ...

    @abstractmethod
    async def delete(self, container: str, force: bool = False) -> None:
        """Delete a container and all that it had.

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
    """`runtime`, `network`, `core`."""
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
