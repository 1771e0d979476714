"""The runtime helper: one process per container, behind a gate.

The public socket offers one route, `open`, which hands out a private connected endpoint; all real
operations exist only there.
"""

from __future__ import annotations

import enum
from abc import abstractmethod
from datetime import datetime
from typing import Literal

from attrs import field, frozen

from container.contracts.network import Attachment, AttachmentRequest
from container.ipc import Contract, Endpoint, Fd

INIT = "init"
"""The process id of a container's first process."""


@frozen
class TerminalSize:
    """In character cells."""

    width: int
    height: int


@frozen
class Stdio:
    """The descriptors of one process, from its caller.

    A descriptor that is given is handed to the container's process as it is. None means: for stdin
    `/dev/null` (with a terminal, `terminal_input` instead), for stdout and stderr the container's
    log
    (`init`) or `/dev/null` (other processes).
    """

    stdin: Fd | None = None
    stdout: Fd | None = None
    stderr: Fd | None = None


@frozen
class ProcessSpec:
    """One process to run inside a container."""

    arguments: tuple[str, ...]
    """The whole argv; the first is looked up in the container's PATH."""
    environment: tuple[str, ...] = ()
    """`NAME=value` each, complete."""
    working_directory: str = "/"
    user: str = ""
    """`name[:group]` or `uid[:gid]`, resolved in the container's own passwd and group; empty is
    root."""
    terminal: bool = False
    terminal_size: TerminalSize | None = None
    keep_input: bool = False
    """Keep stdin open (a pipe) where no descriptor was given."""
    privileged: bool = False
    """Reserved; refused in this version."""


@frozen
class Resources:
    """Limits, None for none."""

    memory: int | None = None
    """Bytes."""
    cpus: float | None = None
    """Cores: 1.5 is one and a half."""
    pids: int | None = 2048
    """Processes and threads, as podman's default."""


class MountKind(enum.Enum):
    """What a mount is made from."""

    BIND = "bind"
    TMPFS = "tmpfs"
    VOLUME = "volume"


@frozen
class Mount:
    """One mount inside the container."""

    kind: MountKind
    destination: str
    """Absolute path inside; resolved inside the root, never outside."""
    source: str = ""
    """Absolute host path, for a bind; for a volume its name, or in a `SandboxSpec` the path of its
    data."""
    read_only: bool = False
    options: tuple[str, ...] = ()
    """For tmpfs: `size=64m`, `mode=1777`, `noexec`, ..."""
    populate: bool = True
    """Of a volume that is empty: give it what the image has there, at its first use."""
    anonymous: bool = False
    """A volume that nobody named, made for this container, or that of another one."""


NetworkMode = Literal["networks", "none", "host", "shared"]
"""Where a container's network namespace comes from: its own with the attachments that are asked
for, its own with nothing but loopback, the host's, or another container's."""


@frozen
class NameOptions:
    """How a container finds names: `/etc/resolv.conf` and `/etc/hosts`."""

    servers: tuple[str, ...] = ()
    """Instead of the host's."""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    """As in resolv.conf(5)."""
    hosts: tuple[str, ...] = ()
    """`NAME:ADDRESS` each; the address `host-gateway` is the host's."""
    keep_hosts: bool = False
    """Leave the image's own `/etc/hosts` as it is (`--no-hosts`)."""


@frozen
class SandboxNetwork:
    """One network that a container is to be attached to."""

    id: str
    name: str
    socket: str
    """Path of the network helper's socket."""
    request: AttachmentRequest
    leads_out: bool = True
    """Whether it has a way out, so that it can be the container's."""


@frozen
class SandboxSpec:
    """All that the runtime helper needs to know of its container."""

    id: str
    name: str
    hostname: str
    layers: tuple[str, ...]
    """Lower directories, topmost first."""
    process: ProcessSpec
    resources: Resources = field(factory=Resources)
    mounts: tuple[Mount, ...] = ()
    network: NetworkMode = "none"
    networks: tuple[SandboxNetwork, ...] = ()
    """With the mode `networks`: at least one; the first gives the nameserver."""
    names: NameOptions = field(factory=NameOptions)
    read_only_root: bool = False
    stop_signal: str = "SIGTERM"
    runtime: str | None = None
    """`runc`, `crun`, or a path; None takes the first that is there."""
    keep_log: bool = True
    """False only for a foreground container that is removed at its end."""
    labels: dict[str, str] = field(factory=dict[str, str])


@frozen
class ExitStatus:
    """How a process ended."""

    code: int | None
    """0 to 255: its own exit code, or 128+n for a signal; None when it can't be known."""
    signal: int | None = None
    out_of_memory: bool = False
    """Whether the kernel killed this very process for want of memory."""
    exited_at: datetime | None = None


@frozen
class Started:
    """A process that runs."""

    pid: int
    """In the host's pid namespace."""
    started_at: datetime
    terminal: Fd | None = None
    """The pty's master, when the process has a terminal and no log is kept of it."""
    terminal_input: Fd | None = None
    """A pipe into the terminal, when its output goes to the log."""


class ProcessState(enum.Enum):
    """The life of a process."""

    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"


@frozen
class SandboxProcess:
    """One process of a container, as the helper knows it."""

    id: str
    pid: int | None
    state: ProcessState
    arguments: tuple[str, ...]
    started_at: datetime | None = None
    exit: ExitStatus | None = None


class SandboxPhase(enum.Enum):
    """The life of a sandbox."""

    EMPTY = "empty"
    """The helper is up, nothing is bootstrapped."""
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    """It runs, but the kernel gives it no processor until it is resumed."""
    STOPPED = "stopped"


@frozen
class SandboxState:
    """What the helper knows of its container."""

    id: str
    phase: SandboxPhase
    processes: tuple[SandboxProcess, ...] = ()
    networks: tuple[Attachment, ...] = ()
    """What it is attached to now."""
    out_of_memory: bool = False
    """Whether the kernel ended the first process, and so the container, for want of memory."""
    out_of_memory_kills: int = 0
    """Processes of this run that the kernel has killed for want of memory, the first one too. It
    also counts where the container went on."""


@frozen
class SandboxStatistics:
    """Usage, read from the container's cgroup and interfaces."""

    memory_bytes: int
    memory_limit_bytes: int | None
    cpu_nanoseconds: int
    pids: int
    read_bytes: int
    written_bytes: int
    received_bytes: int | None = None
    """By its networks while in them; None with the host's network, or another container's."""
    sent_bytes: int | None = None


@frozen
class LogFiles:
    """The log of a container: raw bytes, and an index of 24-byte records that says which are whose.

    A record is little-endian: offset u64, time u64 (nanoseconds since 1970), length u32, stream u8
    (1 stdout, 2 stderr, 3 terminal, 254 start, 255 end), three bytes 0. A `start` record (length 0)
    opens each run of the container, an `end` record closes it: no byte of that run comes after it.
    """

    data: Fd
    index: Fd


@frozen
class StopOptions:
    """How to stop."""

    signal: str | None = None
    """None takes the container's own stop signal."""
    timeout: float | None = 10.0
    """Seconds before SIGKILL; 0 kills at once, None waits for ever. Not negative."""


class Sandbox(Contract, name="sandbox", version=2):
    """The real operations on one container. `init` is the process id of its first process."""

    @abstractmethod
    async def bootstrap(self, spec: SandboxSpec, stdio: Stdio, namespace: Fd | None = None) -> None:
        """Mount the root, write the bundle, create the container: its first process waits to be
        started.

        All or nothing: on failure or cancellation mounts, cgroups, attachments and files are gone.

        Args:
            spec: The container.
            stdio: Of its first process.
            namespace: Another container's network namespace, with the mode `shared`.

        Raises:
            InvalidState: already bootstrapped.
            NotFound: a bind source, the user, or the command is not there
            (`details["exit_status"]` 127
                for a command).
            InvalidArgument: a limit or an option is refused.
            Unsupported: no OCI runtime is installed; the hint says what to install.
            Unavailable: no space is left, or the kernel refused.
        """
        ...

    @abstractmethod
    async def create_process(self, process: str, spec: ProcessSpec, stdio: Stdio) -> None:
        """Prepare a further process under the id `process`; `start` runs it, within 30 s.

        Raises:
            InvalidState: the container does not run, or is paused.
            AlreadyExists: a process of this id is there.
        """
        ...

    @abstractmethod
    async def start(self, process: str) -> Started:
        """Run a created process.

        Raises:
            NotFound: the command is not in the container; `details["exit_status"]` is 127.
            InvalidArgument: the command can't be executed; `details["exit_status"]` is 126.
        """
        ...

    @abstractmethod
    async def stop(self, options: StopOptions) -> ExitStatus:
        """Signal the first process, wait, then SIGKILL all; return how it ended. Idempotent.

        A paused container, or a first process that a signal has stopped, is set going once the
        signal is on its way: it ends as any other does, within the same time.

        Raises:
            InvalidArgument: the timeout is negative, or no such signal.
            Unavailable: it does not end even by SIGKILL: the kernel holds it.
        """
        ...

    @abstractmethod
    async def pause(self) -> None:
        """Stop giving it any processor; its memory and descriptors stay. A paused one stays so.

        Raises:
            InvalidState: it does not run.
            Unavailable: the kernel did not freeze it in time; it runs on.
        """
        ...

    @abstractmethod
    async def resume(self) -> None:
        """Let a paused container go on. One that runs is no error.

        Raises:
            InvalidState: it does not run.
            Unavailable: the kernel refused.
        """
        ...

    @abstractmethod
    async def kill(self, process: str, signal: str) -> None:
        """Send a signal by name (`SIGTERM`, `TERM`, `RTMIN+3`) or number (`15`).

        In a paused container it waits until that is resumed; SIGKILL of the first process resumes
        it.

        Raises:
            InvalidState: it does not run.
        """
        ...

    @abstractmethod
    async def resize(self, process: str, size: TerminalSize) -> None:
        """Set the window size of a process's terminal."""
        ...

    @abstractmethod
    async def wait(self, process: str) -> ExitStatus:
        """Return how a process ended, once it has and its output is in the log. Has no deadline of
        its own."""
        ...

    @abstractmethod
    async def state(self) -> SandboxState:
        """Return what runs."""
        ...

    @abstractmethod
    async def statistics(self) -> SandboxStatistics:
        """Return the cgroup's usage.

        Raises:
            InvalidState: the container does not run.
        """
        ...

    @abstractmethod
    async def network_namespace(self) -> Fd:
        """Hand out the container's network namespace (an nsfs descriptor).

        Raises:
            InvalidState: the container is not there, or uses the host's.
        """
        ...

    @abstractmethod
    async def join_network(self, network: SandboxNetwork) -> Attachment:
        """Attach a container that is there to one more network.

        Raises:
            AlreadyExists: it is in this network, or the interface's name is taken.
            InvalidState: it is not there, or has no network namespace of its own.
            ContainerError: as `Network.attach`.
        """
        ...

    @abstractmethod
    async def leave_network(self, network: str) -> None:
        """Leave a network, by its id. One that it is not in is no error."""
        ...

    @abstractmethod
    async def dial(self, port: int) -> Fd:
        """Connect to a TCP port inside the container's network namespace and hand out the socket.

        Raises:
            Unavailable: nobody listens there.
        """
        ...

    @abstractmethod
    async def logs(self) -> LogFiles:
        """Return the log's files, open for reading.

        Raises:
            InvalidState: this container keeps no log; the message says why.
        """
        ...

    @abstractmethod
    async def shutdown(self) -> None:
        """Kill what runs, delete the container, unmount, and end the helper after the reply."""
        ...


class SandboxGate(Contract, name="sandbox-gate", version=1):
    """The public socket of a runtime helper: one route."""

    @abstractmethod
    async def open(self, routes: tuple[str, ...] | None = None) -> Endpoint[Sandbox]:
        """Hand out a private endpoint, limited to `routes` (method names) if given.

        It is revoked when the caller's connection to the gate ends, unless it was passed on.
        """
        ...
