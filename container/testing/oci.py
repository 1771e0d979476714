"""An OCI runtime that is played: containers without root, without Linux namespaces, in
microseconds.

`recorded_machinery()` gives a `SandboxService` all that it works with. A process of such a
container is an async function, found by its command line in `programs`; it reads and writes the
very descriptors that a real process would have been given, so pipes, terminals and the log are the
real ones. What a container's first process is to the kernel holds here too: signals that it does
not handle are ignored, but for SIGKILL.

For tests alone: nothing of the command line reaches it.
"""

from __future__ import annotations

import array
import json
import os
import shutil
import signal
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import trio
from attrs import define, field, frozen

from container.contracts.network import Network
from container.contracts.runtime import SandboxStatistics
from container.ipc import Actor, Fd, Unavailable, Unsupported
from container.runtime.cgroup import ControlGroup
from container.runtime.kernel import Machine
from container.runtime.machinery import Machinery
from container.runtime.namespace import NetworkNamespaces
from container.runtime.oci import (
    AskForOrphan,
    ContainerProcess,
    Ended,
    OciRuntime,
    ProcessStdio,
    command_not_found,
)
from container.runtime.rootfs import RootFilesystem
from container.runtime.sessions import ConnectNetwork

FIRST_PID = 5_000_000
"""Above all that a kernel gives: no process of the machine is meant."""


@frozen
class RecordedCall:
    """One call of the OCI runtime."""

    verb: str
    """`create`, `start`, `exec`, `pause`, `resume` or `delete`."""
    container: str
    arguments: tuple[str, ...] = ()
    """Of the process, for `create` and `exec`."""


class Play:
    """What a played program sees of the world."""

    def __init__(
        self, arguments: tuple[str, ...], environment: dict[str, str], stdio: Sequence[int]
    ) -> None:
        self.arguments = arguments
        self.environment = environment
        self.stdio = tuple(stdio)
        """Its own stdin, stdout and stderr."""
        self.handled: dict[int, int] = {}
        """Signal to the exit code with which it ends this program; others are ignored."""

    async def read(self, size: int = 65536) -> bytes:
        """Read from stdin; empty at its end."""
        while True:
            await _readable(self.stdio[0])
            try:
                return os.read(self.stdio[0], size)
            except BlockingIOError:
                continue
            except OSError:
                return b""  # a terminal whose other side is gone

    async def write(self, data: bytes, stream: int = 1) -> None:
        """Write to stdout (1) or stderr (2)."""
        view = memoryview(data)
        while view:
            await _writable(self.stdio[stream])
            view = view[os.write(self.stdio[stream], view[:4096]) :]


Program = Callable[[Play], Awaitable[int]]
"""A played program: returns its exit code."""


async def _readable(fd: int) -> None:
    try:
        await trio.lowlevel.wait_readable(fd)
    except PermissionError:
        await trio.lowlevel.checkpoint()  # a plain file or /dev/null is always ready


async def _writable(fd: int) -> None:
    try:
        await trio.lowlevel.wait_writable(fd)
    except PermissionError:
        await trio.lowlevel.checkpoint()


async def _true(play: Play) -> int:
    await trio.lowlevel.checkpoint()
    return 0


async def _false(play: Play) -> int:
    await trio.lowlevel.checkpoint()
    return 1


async def _echo(play: Play) -> int:
    await play.write(" ".join(play.arguments[1:]).encode() + b"\n")
    return 0


async def _cat(play: Play) -> int:
    while data := await play.read():
        await play.write(data)
    return 0


async def _sleep(play: Play) -> int:
    await trio.sleep(float(play.arguments[1]))
    return 0


async def _env(play: Play) -> int:
    for name, value in play.environment.items():
        await play.write(f"{name}={value}\n".encode())
    return 0


async def _shell(play: Play) -> int:
    text = play.arguments[2] if play.arguments[1:2] == ("-c",) else ""
    word, _, rest = text.partition(" ")
    if word == "exit":
        return int(rest)
    await trio.lowlevel.checkpoint()
    return 2  # no shell is played: give the whole command line a program of its own


PROGRAMS: dict[str, Program] = {
    "true": _true,
    "false": _false,
    "echo": _echo,
    "cat": _cat,
    "sleep": _sleep,
    "env": _env,
    "sh": _shell,
}
"""What is played without being told, by the last part of the command's path."""


class PlayedProcess(ContainerProcess):
    """A program that is played."""

    def __init__(
        self,
        container: str,
        pid: int,
        root: Path,
        play: Play,
        program: Program,
        *,
        first: bool,
    ) -> None:
        self.container = container
        self.pid = pid
        self.root = root
        self.play = play
        self._program = program
        self._first = first
        self._scope = trio.CancelScope()
        self._over = trio.Event()
        self._ended = Ended()
        self._paused: trio.Event | None = None
        self._pending: list[int] = []
        self.gate = trio.Event()
        """Set when it may begin."""

    async def run(self) -> None:
        """Play it to its end, then close its descriptors as the kernel would."""
        try:
            with self._scope:
                await self.gate.wait()
                code = await self._program(self.play)
                while self._paused is not None:
                    await self._paused.wait()
                self._end(Ended(code=code & 0xFF))
        except OSError:
            self._end(Ended(signal=signal.SIGPIPE))
        finally:
            self._over.set()
            for descriptor in self.play.stdio:
                trio.lowlevel.notify_closing(descriptor)
                os.close(descriptor)

    def _end(self, ended: Ended) -> None:
        if self._ended == Ended():
            self._ended = ended

    async def wait(self) -> Ended:
        await self._over.wait()
        return self._ended

    def send_signal(self, number: int) -> None:
        if self._over.is_set():
            raise ProcessLookupError(self.pid)
        if self._paused is not None:
            self._pending.append(number)  # as the freezer of cgroup v1 has it, SIGKILL too
            return
        if number == signal.SIGKILL:
            self._end(Ended(signal=number))
        elif number in self.play.handled and self.gate.is_set():
            self._end(Ended(code=self.play.handled[number]))
        elif self._first:
            return
        else:
            self._end(Ended(signal=number))
        self._scope.cancel()

    def pause(self) -> None:
        """Hold its end back, and all signals, until `resume`; what it plays goes on unseen."""
        if self._paused is None:
            self._paused = trio.Event()

    def resume(self) -> None:
        """Deliver what was held back."""
        paused, self._paused = self._paused, None
        if paused is not None:
            paused.set()
        pending, self._pending = self._pending, []
        for number in sorted(pending, key=lambda number: number != signal.SIGKILL):
            if not self._over.is_set():
                self.send_signal(number)

    def descriptor(self) -> int | None:
        return None

    def close(self) -> None:
        pass


class RecordedRuntime(Actor, OciRuntime):
    """Play containers and record what was asked. Open it (`async with`) before it is used.

    Args:
        programs: A whole command line (a tuple) or a command's name to its program; `PROGRAMS`
        comes
            after them.
    """

    name = "recorded"

    def __init__(self, programs: Mapping[str | tuple[str, ...], Program] | None = None) -> None:
        self.programs: dict[str | tuple[str, ...], Program] = {**PROGRAMS, **(programs or {})}
        self.calls: list[RecordedCall] = []
        self.containers: dict[str, PlayedProcess] = {}
        """First processes of containers that were not deleted."""
        self.processes: list[PlayedProcess] = []
        """All that were ever made."""

    async def create(
        self, container: str, bundle: Path, stdio: ProcessStdio, console: str | None
    ) -> ContainerProcess:
        text = await trio.to_thread.run_sync((bundle / "config.json").read_text)
        configuration = json.loads(text)
        process = self._make(
            "create",
            container,
            bundle,
            configuration["process"],
            Path(configuration["root"]["path"]),
            stdio,
            console,
            first=True,
        )
        self.containers[container] = process
        await trio.lowlevel.checkpoint()
        return process

    async def start(self, container: str) -> None:
        self.calls.append(RecordedCall("start", container))
        self.containers[container].gate.set()
        await trio.lowlevel.checkpoint()

    async def execute(
        self,
        container: str,
        bundle: Path,
        process: dict[str, Any],
        stdio: ProcessStdio,
        console: str | None,
    ) -> ContainerProcess:
        root = self.containers[container].root
        made = self._make("exec", container, bundle, process, root, stdio, console, first=False)
        made.gate.set()
        await trio.lowlevel.checkpoint()
        return made

    async def pause(self, container: str) -> None:
        self.calls.append(RecordedCall("pause", container))
        for process in self._of(container):
            process.pause()
        await trio.lowlevel.checkpoint()

    async def resume(self, container: str) -> None:
        self.calls.append(RecordedCall("resume", container))
        for process in self._of(container):
            process.resume()
        await trio.lowlevel.checkpoint()

    def _of(self, container: str) -> list[PlayedProcess]:
        return [process for process in self.processes if process.container == container]

    def find(
        self, pid: int, began: int, pidfd: int | None, orphan: AskForOrphan
    ) -> ContainerProcess:
        return self.processes[pid - FIRST_PID]

    def has_begun(self, process: ContainerProcess) -> bool:
        return isinstance(process, PlayedProcess) and process.gate.is_set()

    async def settle(self, container: str) -> None:
        await trio.lowlevel.checkpoint()

    async def delete(self, container: str) -> None:
        self.calls.append(RecordedCall("delete", container))
        process = self.containers.pop(container, None)
        if process is not None:
            self.kill_all(container)
            await process.wait()
        await trio.lowlevel.checkpoint()

    def kill_all(self, container: str) -> None:
        """Kill all processes of a container, as the end of a pid namespace does."""
        for process in self._of(container):
            try:
                process.send_signal(signal.SIGKILL)
            except ProcessLookupError:
                pass

    def _make(
        self,
        verb: str,
        container: str,
        bundle: Path,
        process: dict[str, Any],
        root: Path,
        stdio: ProcessStdio,
        console: str | None,
        *,
        first: bool,
    ) -> PlayedProcess:
        arguments = tuple(cast("list[str]", process["args"]))
        self.calls.append(RecordedCall(verb, container, arguments))
        command = arguments[0].rsplit("/", 1)[-1]
        program = self.programs.get(arguments) or self.programs.get(command)
        if program is None:
            raise command_not_found(arguments[0])
        environment = dict(variable.split("=", 1) for variable in process["env"])
        descriptors = (stdio.stdin, stdio.stdout, stdio.stderr)
        if console is not None:
            owned = _hand_over_terminal(bundle, console)
        else:
            owned = [os.dup(descriptor) for descriptor in descriptors]
        made = PlayedProcess(
            container=container,
            pid=FIRST_PID + len(self.processes),
            root=root,
            play=Play(arguments, environment, owned),
            program=program,
            first=first,
        )
        self.processes.append(made)
        self.nursery.start_soon(self._play, made)
        return made

    async def _play(self, process: PlayedProcess) -> None:
        await process.run()
        if self.containers.get(process.container) is process:
            self.kill_all(process.container)


def _hand_over_terminal(bundle: Path, console: str) -> list[int]:
    master, slave = os.openpty()
    folder = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(f"/proc/self/fd/{folder}/{console}")
            rights = array.array("i", [master])
            connection.sendmsg([b"tty"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    finally:
        os.close(folder)
        os.close(master)
    return [slave, os.dup(slave), os.dup(slave)]


class FolderRoot(RootFilesystem):
    """A root that is a plain folder with hard links to what the layers hold.

    Args:
        folder: Where it is made.
        commands: Names of empty programs that it has in `/bin` when no layer is there.
    """

    def __init__(self, folder: Path, commands: Sequence[str] = tuple(PROGRAMS)) -> None:
        self._root = folder / "rootfs"
        self._commands = tuple(commands)

    async def mount(self, layers: Sequence[str], *, volatile: bool) -> Path:
        await trio.to_thread.run_sync(self._fill, tuple(layers))
        return self._root

    async def unmount(self) -> None:
        await trio.to_thread.run_sync(lambda: shutil.rmtree(self._root, ignore_errors=True))

    def _fill(self, layers: tuple[str, ...]) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        found = [layer for layer in layers if os.path.isdir(layer)]
        for layer in reversed(found):
            shutil.copytree(
                layer, self._root, symlinks=True, dirs_exist_ok=True, copy_function=_link
            )
        if not found:
            (self._root / "bin").mkdir(exist_ok=True)
            for name in self._commands:
                program = self._root / "bin" / name
                program.touch()
                program.chmod(0o755)


def _link(source: str, destination: str) -> None:
    Path(destination).unlink(missing_ok=True)
    try:
        os.link(source, destination, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, destination, follow_symlinks=False)


@define(eq=False)
class RecordedCgroup(ControlGroup):
    """A control group in memory."""

    statistics: SandboxStatistics | None = field(
        default=SandboxStatistics(
            memory_bytes=1 << 20,
            memory_limit_bytes=None,
            cpu_nanoseconds=1_000_000,
            pids=1,
            read_bytes=0,
            written_bytes=0,
        )
    )
    """What `usage` says; None plays a group that is gone."""
    memory_kills: int = 0
    kills: int = 0
    """How often `kill` was called."""
    is_frozen: bool = False

    def usage(self) -> SandboxStatistics | None:
        return self.statistics

    def out_of_memory_kills(self) -> int:
        return self.memory_kills

    def freeze(self) -> None:
        self.is_frozen = True

    def thaw(self) -> None:
        self.is_frozen = False

    def frozen(self) -> bool:
        return self.is_frozen

    def kill(self) -> None:
        self.kills += 1

    def kill_strays(self, known: Collection[int]) -> None:
        pass

    def remove(self) -> bool:
        return True


class RecordedNamespaces(NetworkNamespaces):
    """Network namespaces that are none: each is a descriptor of `/dev/null`."""

    def __init__(self) -> None:
        self.in_use = False
        """What `has_processes` says."""

    def make(self) -> Fd:
        return Fd(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    def of(self, pid: int) -> Fd:
        return self.make()

    def check(self, namespace: Fd) -> None:
        pass

    def has_processes(self, namespace: Fd) -> bool:
        return self.in_use


async def _nobody_listens(pid: int, port: int) -> Fd:
    await trio.lowlevel.checkpoint()
    raise Unavailable(f"nobody listens on port {port} in the container")


def recorded_machinery(
    folder: Path,
    runtime: RecordedRuntime,
    *,
    root: RootFilesystem | None = None,
    cgroup: ControlGroup | None = None,
    namespaces: NetworkNamespaces | None = None,
    connect_network: ConnectNetwork = Network.connect,
) -> Machinery:
    """Return what a `SandboxService` works with, all of it played.

    Args:
        folder: The container's folder.
        runtime: Open already; may be shared by several containers.
        root: None takes a plain folder.
        cgroup: None takes one in memory.
        namespaces: None takes such as are none.
        connect_network: From the path of a network helper's socket to its network.
    """

    def choose(name: str | None) -> OciRuntime:
        if name not in (None, "recorded", "runc", "crun"):
            raise Unsupported(f"OCI runtime {name!r} is not installed")
        return runtime

    return Machinery(
        runtime=choose,
        root=root or FolderRoot(folder / "bundle"),
        cgroup=cgroup or RecordedCgroup(),
        machine=Machine(architecture="x86_64", own_cgroup_namespace=True),
        namespaces=namespaces or RecordedNamespaces(),
        connect=_nobody_listens,
        connect_network=connect_network,
    )
