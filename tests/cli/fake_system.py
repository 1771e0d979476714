"""A system in this process, for the command line's tests: contracts implemented by plain objects.

A fake container's process is a real process of this machine, run with the descriptors that the
command line sent, so that streams, terminals, signals and exit statuses are the real ones. Run as a
program, it is a `container` whose system is this fake: for tests that need a terminal of their own.
"""

from __future__ import annotations

import contextlib
import os
import pty
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import trio
from attrs import evolve

from container.cli.main import main
from container.cli.session import Session
from container.contracts.apiserver import (
    EVERYTHING,
    Container,
    ContainerOptions,
    Containers,
    ContainerStatus,
    Event,
    EventFilter,
    WaitCondition,
)
from container.contracts.images import (
    Images,
    Platform,
)
from container.contracts.launcher import (
    Launcher,
    ServiceState,
    ServiceStatus,
    SystemStatus,
)
from container.contracts.logs import LogStream, Record
from container.contracts.networks import Networks
from container.contracts.runtime import (
    ExitStatus,
    LogFiles,
    ProcessSpec,
    Sandbox,
    SandboxStatistics,
    Started,
    Stdio,
    StopOptions,
    TerminalSize,
)
from container.contracts.usage import Usage
from container.contracts.volumes import Volumes
from container.ipc import (
    AlreadyExists,
    Endpoint,
    Fate,
    Fd,
    InvalidArgument,
    InvalidState,
    NotFound,
    PeerGone,
)

try:
    from tests.cli.fake_images import FakeImages
    from tests.cli.fake_networks import FakeNetworks
    from tests.cli.fake_volumes import FakeUsage, FakeVolumes
except ModuleNotFoundError:  # run as a program: its own folder is on the path
    from fake_images import FakeImages
    from fake_networks import FakeNetworks
    from fake_volumes import FakeUsage, FakeVolumes

LINUX = Platform("linux", "amd64")
WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Log:
    """The two files of a log."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.folder = tempfile.TemporaryDirectory()
        self.data = f"{self.folder.name}/data"
        self.index = f"{self.folder.name}/index"
        for path in (self.data, self.index):
            with open(path, "wb"):
                pass

    def add(self, stream: LogStream, data: bytes = b"") -> None:
        with self._lock:
            offset = os.path.getsize(self.data)
            with open(self.data, "ab") as file:
                file.write(data)
            with open(self.index, "ab") as file:
                file.write(Record(offset, time.time_ns(), len(data), stream).encode())

    def open(self) -> LogFiles:
        flags = os.O_RDONLY | os.O_CLOEXEC
        return LogFiles(data=Fd(os.open(self.data, flags)), index=Fd(os.open(self.index, flags)))


class Process:
    """One process of a fake container."""

    def __init__(self, spec: ProcessSpec, stdio: Stdio, log: Log | None) -> None:
        self.spec = spec
        self.log = log
        self.sent = stdio
        self.stdio = [
            None if fd is None else os.dup(fd.fileno())
            for fd in (stdio.stdin, stdio.stdout, stdio.stderr)
        ]
        for fd in (stdio.stdin, stdio.stdout, stdio.stderr):
            if fd is not None and fd.ownership.value == "given":
                fd.close()
        self.popen: subprocess.Popen[bytes] | None = None
        self.threads: list[threading.Thread] = []
        self.sizes: list[TerminalSize] = []
        self.terminal: int | None = None

    def close(self) -> None:
        for fd in self.stdio:
            if fd is not None:
                os.close(fd)
        self.stdio = []

    def start(self) -> Started:
        terminal: Fd | None = None
        terminal_input: Fd | None = None
        if self.spec.terminal:
            terminal, terminal_input = self._start_in_terminal()
        else:
            self._start_with_stdio()
        assert self.popen is not None
        return Started(self.popen.pid, WHEN, terminal=terminal, terminal_input=terminal_input)

    def _spawn(self, stdin: int, stdout: int, stderr: int, **options: Any) -> None:
        environment = dict(entry.split("=", 1) for entry in self.spec.environment)
        try:
            self.popen = subprocess.Popen(
                self.spec.arguments,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env={**os.environ, **environment},
                start_new_session=True,
                **options,
            )
        except FileNotFoundError:
            raise NotFound(
                f'no command "{self.spec.arguments[0]}"', details={"exit_status": 127}
            ) from None
        except PermissionError:
            raise InvalidArgument(
                f'"{self.spec.arguments[0]}" can\'t be executed', details={"exit_status": 126}
            ) from None

    def _start_with_stdio(self) -> None:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        given = [fd if fd is not None else null for fd in self.stdio]
        readers: list[tuple[int, LogStream]] = []
        try:
            for place, stream in ((1, LogStream.STDOUT), (2, LogStream.STDERR)):
                if self.log is not None and self.stdio[place] is None:
                    reader, given[place] = os.pipe2(os.O_CLOEXEC)
                    self.stdio.append(given[place])
                    readers.append((reader, stream))
            self._spawn(*given[:3])
        finally:
            os.close(null)
            self.close()
            for reader, stream in readers:
                self._pump(reader, stream)

    def _start_in_terminal(self) -> tuple[Fd | None, Fd | None]:
        master, slave = pty.openpty()
        if self.spec.terminal_size is not None:
            size = self.spec.terminal_size
            termios.tcsetwinsize(master, (size.height, size.width))
        self.terminal = os.dup(master)

        def take_terminal() -> None:
            import fcntl

            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self._spawn(slave, slave, slave, preexec_fn=take_terminal)
        os.close(slave)
        if self.log is None:
            return Fd(master), None
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self._pump(os.dup(master), LogStream.TERMINAL)
        self.threads.append(threading.Thread(target=_feed, args=(reader, master)))
        self.threads[-1].start()
        return None, Fd(writer)

    def _pump(self, reader: int, stream: LogStream) -> None:
        assert self.log is not None
        log = self.log

        def pump() -> None:
            with contextlib.suppress(OSError):
                while data := os.read(reader, 65536):
                    log.add(stream, data)
            os.close(reader)

        self.threads.append(threading.Thread(target=pump))
        self.threads[-1].start()

    async def wait(self) -> ExitStatus:
        assert self.popen is not None
        if self.popen.returncode is None:
            pidfd = os.pidfd_open(self.popen.pid)
            try:
                await trio.lowlevel.wait_readable(pidfd)
            finally:
                os.close(pidfd)
        code = self.popen.wait()
        if self.terminal is not None:
            os.close(self.terminal)
            self.terminal = None
        for thread in self.threads:
            if not thread.name.endswith("(_feed)"):
                await trio.to_thread.run_sync(thread.join)
        return ExitStatus(code if code >= 0 else 128 - code, signal=-code if code < 0 else None)


def _feed(reader: int, master: int) -> None:
    with contextlib.suppress(OSError):
        while data := os.read(reader, 65536):
            os.write(master, data)
    os.close(reader)
    os.close(master)


class FakeEndpoint(Endpoint[Sandbox]):
    """An endpoint that leads to an object."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[Sandbox]:  # type: ignore[override]
        yield self.sandbox

    def close(self) -> None:
        pass


class FakeSandbox(Sandbox):
    """One container's processes."""

    def __init__(self, log: Log | None) -> None:
        self.log = log
        self.processes: dict[str, Process] = {}
        self.kills: list[tuple[str, str]] = []
        self.start_error: Exception | None = None
        self.wait_error: Exception | None = None

    async def create_process(self, process: str, spec: ProcessSpec, stdio: Stdio) -> None:
        self.processes[process] = Process(spec, stdio, self.log if process == "init" else None)

    async def start(self, process: str) -> Started:
        await trio.lowlevel.checkpoint()
        try:
            if self.start_error is not None:
                raise self.start_error
            if process == "init" and self.log is not None:
                self.log.add(LogStream.START)
            return self.processes[process].start()
        finally:
            self.processes[process].close()

    async def wait(self, process: str) -> ExitStatus:
        if self.wait_error is not None:
            await self.processes[process].wait()
            raise self.wait_error
        status = await self.processes[process].wait()
        if process == "init" and self.log is not None:
            self.log.add(LogStream.END)
        return status

    async def kill(self, process: str, signal: str) -> None:
        self.kills.append((process, signal))
        popen = self.processes[process].popen
        if popen is None or popen.poll() is not None:
            raise InvalidState("it does not run")
        popen.send_signal(_number(signal))

    async def resize(self, process: str, size: TerminalSize) -> None:
        self.processes[process].sizes.append(size)
        terminal = self.processes[process].terminal
        if terminal is not None:
            termios.tcsetwinsize(terminal, (size.height, size.width))

    async def statistics(self) -> SandboxStatistics:
        return SandboxStatistics(1_500_000, None, 2_500_000_000, 3, 4096, 0)

    async def _never(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    bootstrap = stop = pause = resume = state = dial = logs = shutdown = _never
    network_namespace = join_network = leave_network = _never


def _number(name: str) -> int:
    return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"]


class FakeContainers(Containers):
    """Containers by name."""

    def __init__(self) -> None:
        self.found: dict[str, Container] = {}
        self.sandboxes: dict[str, FakeSandbox] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.options: list[ContainerOptions] = []
        self.lines: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        """Our ends of what was dialled."""
        self.start_error: Exception | None = None
        self.delete_error: Exception | None = None
        self.wait_error: Exception | None = None
        self.create_gate: trio.Event | None = None
        self.happening: list[tuple[tuple[Event, ...], Exception | None]] = []
        """Of each connection to `events`: what is told, and how it then ends."""

    def add(self, name: str, status: ContainerStatus, **changes: Any) -> Container:
        """Put a container there; it keeps a log."""
        made = Container(
            id=f"{len(self.sandboxes) + 1:012x}",
            name=name,
            image="docker.io/library/demo:latest",
            image_digest="sha256:" + "ab" * 32,
            platform=LINUX,
            status=status,
            created_at=WHEN,
            process=ProcessSpec(("sleep", "9"), environment=("PATH=/bin", "A=1")),
            resources=ContainerOptions("demo").resources,
            mounts=(),
            network="none",
            hostname=name,
            labels={},
            auto_remove=False,
            keep_log=True,
            read_only_root=False,
            stop_signal="SIGTERM",
        )
        made = evolve(made, **changes)
        self.found[name] = made
        self.sandboxes[name] = FakeSandbox(Log() if made.keep_log else None)
        return made

    def _get(self, name: str) -> Container:
        for container in self.found.values():
            if name in (container.name, container.id):
                return container
        raise NotFound(f'no container "{name}"', hint='did you mean "web"?')

    async def create(self, options: ContainerOptions) -> Container:
        self.options.append(options)
        if self.create_gate is not None:
            self.create_gate.set()
            await trio.sleep_forever()
        if options.image == "alpin":
            raise NotFound('no image "alpin"', hint='did you mean "alpine"?')
        if options.name in self.found:
            raise AlreadyExists(f'the name "{options.name}" is taken')
        return self.add(
            options.name or f"made-{len(self.sandboxes)}",
            ContainerStatus.CREATED,
            auto_remove=options.auto_remove,
            keep_log=options.keep_log,
            process=ProcessSpec(
                options.command or ("true",),
                environment=options.environment,
                terminal=options.terminal,
                terminal_size=options.terminal_size,
                keep_input=options.keep_input,
            ),
        )

    async def bootstrap(self, container: str, stdio: Stdio) -> Endpoint[Sandbox]:
        found = self._get(container)
        sandbox = self.sandboxes[found.name]
        sandbox.start_error = self.start_error
        await sandbox.create_process("init", found.process, stdio)
        return FakeEndpoint(sandbox)

    async def create_process(
        self, container: str, process: str, spec: ProcessSpec, stdio: Stdio
    ) -> Endpoint[Sandbox]:
        sandbox = self.sandboxes[self._get(container).name]
        self.calls.append(("create_process", container, process, spec))
        await sandbox.create_process(process, spec, stdio)
        return FakeEndpoint(sandbox)

    async def start(self, container: str) -> Container:
        found = self._get(container)
        if self.start_error is not None:
            raise self.start_error
        self.calls.append(("start", found.name))
        return found

    async def stop(self, container: str, options: StopOptions) -> Container:
        self.calls.append(("stop", container, options))
        return self._get(container)

    async def restart(self, container: str, options: StopOptions | None = None) -> Container:
        self.calls.append(("restart", container, options))
        return self._get(container)

    async def pause(self, container: str) -> None:
        self._get(container)
        self.calls.append(("pause", container))

    async def unpause(self, container: str) -> None:
        self._get(container)
        self.calls.append(("unpause", container))

    async def kill(self, container: str, signal: str) -> None:
        self._get(container)
        self.calls.append(("kill", container, signal))

    async def delete(self, container: str, force: bool = False, volumes: bool = False) -> None:
        self.calls.append(("delete", container, force, volumes))
        if self.delete_error is not None:
            error, self.delete_error = self.delete_error, None
            raise error
        found = self._get(container)
        if found.status is ContainerStatus.RUNNING and not force:
            raise InvalidState(f'"{found.name}" runs', hint="stop it first, or use --force")
        del self.found[found.name]

    async def list(self) -> tuple[Container, ...]:
        return tuple(reversed(self.found.values()))

    async def get(self, container: str) -> Container:
        return self._get(container)

    async def wait(
        self, container: str, condition: WaitCondition = WaitCondition.EXITED
    ) -> ExitStatus:
        self.calls.append(("wait", container, condition))
        if self.wait_error is not None:
            error, self.wait_error = self.wait_error, None
            raise error
        if condition is WaitCondition.REMOVED:
            del self.found[self._get(container).name]
            return ExitStatus(0)
        return self._get(container).exit or ExitStatus(None)

    async def logs(self, container: str) -> LogFiles:
        log = self.sandboxes[self._get(container).name].log
        if log is None:
            raise InvalidState(f'"{container}" keeps no log', hint="run it without --rm")
        return log.open()

    async def statistics(self, container: str) -> SandboxStatistics:
        return await self.sandboxes[self._get(container).name].statistics()

    async def dial(self, container: str, port: int) -> Fd:
        self.calls.append(("dial", container, port))
        self._get(container)
        ours, theirs = socket.socketpair()
        self.lines.put(ours)
        return Fd(theirs.detach())

    @asynccontextmanager
    async def events(
        self, wanted: EventFilter = EVERYTHING
    ) -> AsyncGenerator[trio.abc.ReceiveChannel[Event]]:
        self.calls.append(("events", wanted))
        batch, error = self.happening.pop(0) if self.happening else ((), None)
        send, receive = trio.open_memory_channel[Event](100)
        for event in batch:
            send.send_nowait(event)
        send.close()
        with receive:
            yield receive
        if error is not None:
            raise error


class FakeLauncher(Launcher):
    """A launcher that says what it is told."""

    def __init__(self) -> None:
        self.version = "0.1.0"
        self.pid = 0
        self.calls: list[tuple[Any, ...]] = []
        self.process: subprocess.Popen[bytes] | None = None

    async def status(self) -> SystemStatus:
        pid = self.process.pid if self.process else os.getpid()
        services = tuple(
            ServiceStatus(name, "", ServiceState.RUNNING, 7, "/x", WHEN, 0, None)
            for name in ("apiserver", "runtime.000000000001")
        )
        return SystemStatus(self.version, pid, "/root-folder", "/run-folder", WHEN, services)

    async def shutdown(self, stop_containers: bool = False) -> None:
        self.calls.append(("shutdown", stop_containers))
        if self.process is not None:
            self.process.kill()

    async def _never(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    register = remove = start = stop = adopt = keep = drop = orphan = _never


class FakeSession(Session):
    """A session whose services are these objects."""

    def __init__(self) -> None:
        super().__init__()
        self.fake_containers = FakeContainers()
        self.fake_images = FakeImages()
        self.fake_networks = FakeNetworks()
        self.fake_volumes = FakeVolumes()
        self.fake_usage = FakeUsage()
        self.fake_launcher: FakeLauncher | None = FakeLauncher()
        self.connections = 0

    @asynccontextmanager
    async def containers(self, *, start: bool = True) -> AsyncGenerator[Containers]:  # type: ignore[override]
        self.connections += 1
        yield self.fake_containers

    @asynccontextmanager
    async def networks(self) -> AsyncGenerator[Networks]:  # type: ignore[override]
        self.connections += 1
        yield self.fake_networks

    @asynccontextmanager
    async def volumes(self) -> AsyncGenerator[Volumes]:  # type: ignore[override]
        self.connections += 1
        yield self.fake_volumes

    @asynccontextmanager
    async def usage(self) -> AsyncGenerator[Usage]:  # type: ignore[override]
        self.connections += 1
        yield self.fake_usage

    @asynccontextmanager
    async def images(self) -> AsyncGenerator[Images]:  # type: ignore[override]
        self.connections += 1
        yield self.fake_images

    @asynccontextmanager
    async def launcher(self) -> AsyncGenerator[Launcher]:  # type: ignore[override]
        if self.fake_launcher is None:
            raise PeerGone("nobody listens", fate=Fate.REFUSED)
        yield self.fake_launcher

    async def ensure_running(self) -> None:
        self.fake_launcher = self.fake_launcher or FakeLauncher()


if __name__ == "__main__":
    session = FakeSession()
    session.fake_containers.add("web", ContainerStatus.RUNNING)
    status = main(sys.argv[1:], session)
    print(f"[status {status}]", file=sys.stderr)
    sys.stderr.flush()
    os._exit(status)
