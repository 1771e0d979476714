"""Containers in a program of your own: a container whose life is a block.

```python
import container, trio

async def main() -> None:
    async with container.open_system() as system:
        await system.load("demo.tar")
        async with system.run("demo", ["sh", "-c", "echo hello; sleep 9"]) as c:
            print(await c.stdout.receive_some())
            print((await c.exec(["uname", "-s"])).stdout)

trio.run(main)
```

`open_system()` starts a private system: own root, own sockets, owned by this program, so that even
its SIGKILL ends every container. `connect_system()` uses the system that runs. What is *not* here:
a blocking facade.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import trio
from attrs import field, frozen

from container.contracts.apiserver import (
    ContainerOptions,
    Containers,
    NetworkUse,
    PullPolicy,
    WaitCondition,
)
from container.contracts.images import Images, ImageSummary
from container.contracts.network import PublishedPort
from container.contracts.networks import Networks
from container.contracts.runtime import (
    INIT,
    ExitStatus,
    Mount,
    ProcessSpec,
    Resources,
    Sandbox,
    Stdio,
)
from container.ipc import (
    ContainerError,
    Fate,
    Fd,
    InvalidState,
    NotFound,
    Overloaded,
    PeerGone,
    Unavailable,
)
from container.ipc.error_groups import single
from container.storage.paths import Paths

CLEAN_UP_SECONDS = 60.0
"""For a container, or a private system, to be gone; no cancellation cuts it short."""
OUTPUT_MAX = 16 * 1024 * 1024
"""Bytes that `exec` collects of each stream unless told otherwise."""

_log = logging.getLogger(__name__)


class ContainerFailed(Exception):
    """A process ended with another status than 0, and `check=True` was asked for."""

    def __init__(self, what: str, status: ExitStatus, stderr: bytes = b"") -> None:
        code = "an unknown status" if status.code is None else f"status {status.code}"
        super().__init__(f"{what} ended with {code}")
        self.status = status
        """How it ended."""
        self.stderr = stderr
        """What `exec` had collected of its stderr."""


@frozen
class Result:
    """What a command that ran to its end left."""

    status: ExitStatus
    stdout: bytes
    stderr: bytes

    @property
    def code(self) -> int | None:
        """The exit code: 0 to 255, or None when it can't be known."""
        return self.status.code


@frozen(eq=False)
class Container:
    """A container inside its block; made by `System.run`.

    `stdout` and `stderr` are pipes: a container that writes more than fits waits until they are
    read.
    """

    id: str
    """12 hex digits."""
    name: str
    stdout: trio.abc.ReceiveStream
    """What the first process writes; ends when all writers have ended."""
    stderr: trio.abc.ReceiveStream
    stdin: trio.abc.SendStream | None
    """A pipe to the first process, with `stdin=True`; `aclose` is its end of file."""
    _containers: Containers = field(alias="containers", repr=False)
    _sandbox: Sandbox = field(alias="sandbox", repr=False)
    _check: bool = field(alias="check", repr=False)

    async def wait(self) -> ExitStatus:
        """Return how the first process ended, once it has. Cancelled, changes nothing.

        Raises:
            ContainerFailed: it did not end with 0, and the container was run with `check=True`.
        """
        try:
            status = await self._sandbox.wait(INIT)
        except PeerGone:
            # It ended and its helper is gone, or the helper died: the API server knows more.
            status = await self._containers.wait(self.id, WaitCondition.EXITED)
        if self._check and status.code != 0:
            raise ContainerFailed(f"container {self.name}", status)
        return status

    async def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send a signal to the first process, by name or number.

        Raises:
            InvalidState: it does not run any more.
        """
        try:
            await self._sandbox.kill(INIT, str(signal))
        except PeerGone as error:
            raise InvalidState(f"container {self.name} does not run any more") from error

    async def exec(
        self,
        command: Sequence[str],
        *,
        input: bytes = b"",  # noqa: A002 (as subprocess.run names it)
        check: bool = False,
        environment: Mapping[str, str] | None = None,
        working_directory: str = "",
        user: str = "",
        output_max: int = OUTPUT_MAX,
    ) -> Result:
        """Run a further command in the container to its end and return what it wrote.

        Cancelled, the command is killed.

        ```python
        result = await c.exec(["cat", "/etc/hostname"])
        assert result.code == 0 and result.stdout == b"web\\n"
        ```

        Args:
            command: Command and arguments.
            input: What it reads from stdin.
            check: Raise if it does not end with 0.
            environment: Laid over the container's own.
            working_directory: Empty is the container's own.
            user: Empty is the container's own.
            output_max: Bytes of each stream that are kept in memory at most.

        Raises:
            ContainerFailed: it did not end with 0, and `check` is set.
            NotFound: there is no such command.
            Overloaded: it wrote more than `output_max`; it was killed.
        """
        process = f"exec-{uuid.uuid4().hex[:12]}"
        spec = ProcessSpec(
            arguments=tuple(command),
            environment=_lines(environment),
            working_directory=working_directory,
            user=user,
        )
        stdout, stderr = bytearray(), bytearray()
        async with _Pipes(stdin=True) as pipes:
            endpoint = await self._containers.create_process(self.id, process, spec, pipes.theirs)
            pipes.close_theirs()
            async with endpoint.connect() as sandbox:
                try:
                    await _start(sandbox, process)
                    async with trio.open_nursery() as nursery:
                        assert pipes.stdin is not None
                        nursery.start_soon(_feed, pipes.stdin, input)
                        nursery.start_soon(_collect, pipes.stdout, stdout, output_max)
                        nursery.start_soon(_collect, pipes.stderr, stderr, output_max)
                    status = await sandbox.wait(process)
                except BaseException as error:
                    with trio.move_on_after(CLEAN_UP_SECONDS, shield=True):
                        await _ignore(lambda: sandbox.kill(process, "SIGKILL"))
                    raise single(error) from None
        if check and status.code != 0:
            raise ContainerFailed(f"`{' '.join(command)}`", status, bytes(stderr))
        return Result(status, bytes(stdout), bytes(stderr))


class System:
    """One container system: `open_system()` or `connect_system()` hands it out.

    Args:
        containers: All containers of the system.
        images: All images of the system.
        networks: All networks of the system.
        paths: Where its state and sockets are.
    """

    def __init__(
        self, containers: Containers, images: Images, networks: Networks, paths: Paths
    ) -> None:
        self._containers = containers
        self._images = images
        self._networks = networks
        self._paths = paths

    @property
    def containers(self) -> Containers:
        """The contract itself, for all that `run` does not offer."""
        return self._containers

    @property
    def images(self) -> Images:
        """The contract itself: pull, tag, list, delete."""
        return self._images

    @property
    def networks(self) -> Networks:
        """The contract itself: create, list, delete, connect and disconnect containers."""
        return self._networks

    @property
    def paths(self) -> Paths:
        """Where its state and sockets are."""
        return self._paths

    async def load(
        self, path: str | os.PathLike[str], *, name: str | None = None
    ) -> tuple[ImageSummary, ...]:
        """Load images from an OCI layout (directory or tar) or a docker-archive.

        Args:
            path: The archive.
            name: The reference to give the image, instead of its own.

        Raises:
            NotFound: there is no such file.
            InvalidArgument: it is no image archive.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise NotFound(f"{os.fspath(path)} can't be opened: {error.strerror}") from error
        with Fd(descriptor) as archive:
            return await self._images.load(archive, name, os.fspath(path))

    def run(
        self,
        image: str,
        command: Sequence[str] = (),
        *,
        check: bool = False,
        stdin: bool = False,
        name: str | None = None,
        entrypoint: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        working_directory: str | None = None,
        user: str | None = None,
        hostname: str | None = None,
        mounts: Sequence[Mount] = (),
        resources: Resources | None = None,
        network: str | None = None,
        networks: Sequence[str | NetworkUse] = (),
        ports: Sequence[PublishedPort] = (),
        labels: Mapping[str, str] | None = None,
        read_only_root: bool = False,
        runtime: str | None = None,
        pull: PullPolicy = PullPolicy.MISSING,
    ) -> AbstractAsyncContextManager[Container]:
        """Run a container whose life is the block: leaving it kills and removes, and leaves
        nothing.

        ```python
        async with system.run("demo", ["sh", "-c", "exit 3"]) as c:
            assert (await c.wait()).code == 3

        async with system.run("demo", ["cat"], stdin=True) as c:
            await c.stdin.send_all(b"hello")
            await c.stdin.aclose()
            assert await c.stdout.receive_some() == b"hello"
        ```

        Args:
            image: Reference of the image; pulled if it is not here, unless `pull` says otherwise.
            command: Command and arguments; empty is the image's own.
            check: `c.wait()` raises `ContainerFailed` for any exit status but 0.
            stdin: Give the process a pipe as its stdin; otherwise it reads from `/dev/null`.
            name: The container's name; None makes one up.
            entrypoint: Instead of the image's.
            environment: Laid over the image's.
            working_directory: None is the image's.
            user: `name[:group]` or `uid[:gid]`; None is the image's.
            hostname: None is the container's id.
            mounts: Binds, volumes and tmpfs.
            resources: Limits.
            network: `none`, `host`, `container:NAME`, or the name of a network. None, without
                `networks`: what `CONTAINER_NETWORK` says, or else the default network.
            networks: Several, by name or with what is wanted in each.
            ports: Of the host that lead into it.
            labels: Added to the image's.
            read_only_root: Mount the root read-only.
            runtime: `runc`, `crun`, or a path; None takes the first that is there.
            pull: When to pull.

        Raises:
            NotFound: no such image or command, or a bind source that is not there.
            InvalidArgument: an option is wrong; the message says the rule.
            AlreadyExists: the name is taken.
        """
        uses = [use if isinstance(use, NetworkUse) else NetworkUse(use) for use in networks]
        if network is None:
            network = "" if uses else os.environ.get("CONTAINER_NETWORK", "")
        if network not in ("", "none", "host") and not network.startswith("container:"):
            uses, network = [NetworkUse(network), *uses], ""
        options = ContainerOptions(
            image=image,
            name=name,
            command=tuple(command),
            entrypoint=None if entrypoint is None else tuple(entrypoint),
            environment=_lines(environment),
            working_directory=working_directory,
            user=user,
            hostname=hostname,
            keep_input=stdin,
            auto_remove=True,
            keep_log=False,
            read_only_root=read_only_root,
            mounts=tuple(mounts),
            resources=resources or Resources(),
            network=network,
            networks=tuple(uses),
            ports=tuple(ports),
            labels=dict(labels or {}),
            runtime=runtime,
            pull=pull,
        )
        return _running(self._containers, options, check)


@asynccontextmanager
async def open_system(
    root: str | os.PathLike[str] | None = None,
) -> AsyncGenerator[System]:
    """Start a private system for the block; when the block, or this process, ends, so does all of
    it.

    The system's processes hold one end of a lifeline whose other end is in this process alone:
    however it ends, SIGKILL included, they stop every container and themselves.

    ```python
    async with container.open_system() as system:
        async with system.run("alpine", ["sleep", "9"]) as c:
            ...
    ```

    Args:
        root: Where images and containers are kept. None makes a temporary folder that is removed at
            the end.

    Raises:
        Unavailable: the system did not start; the hint says where its log is.
        InvalidState: another system works in this root.
    """
    # Late: a program that connects to a running system starts no launcher.
    from container.launcher.boot import start_private, wait_stopped

    made: Path | None = None
    # A socket's path has at most 107 bytes: a run folder below a long root would not do.
    run = Path(tempfile.mkdtemp(prefix="container-", dir=_run_parent()))
    try:
        if root is None:
            made = Path(tempfile.mkdtemp(prefix="container-root-"))
        paths = Paths(root=made or _absolute(root), run=run)
        lifeline = await start_private(paths)
        try:
            async with _connected(paths) as system:
                yield system
        finally:
            lifeline.close()
            with trio.move_on_after(CLEAN_UP_SECONDS, shield=True) as bound:
                await wait_stopped(paths)
            if bound.cancelled_caught:
                _log.error("the private system in %s did not end in time", paths.run)
    finally:
        shutil.rmtree(run, ignore_errors=True)
        if made is not None:
            _remove_root(made)


@asynccontextmanager
async def connect_system(paths: Paths | None = None) -> AsyncGenerator[System]:
    """Connect to the system that runs; its containers outlive the block, those of `run` do not.

    Args:
        paths: Where it is; None is this user's own.

    Raises:
        Unavailable: no system runs.
    """
    place = paths or Paths.default()
    try:
        async with _connected(place) as system:
            yield system
    except PeerGone as error:
        if error.fate is not Fate.REFUSED:
            raise
        raise Unavailable(
            "no container system runs",
            hint="`container system start` starts it; open_system() makes a private one",
        ) from error


@asynccontextmanager
async def _connected(paths: Paths) -> AsyncGenerator[System]:
    async with (
        Containers.connect(paths.apiserver_socket) as containers,
        Images.connect(paths.images_socket) as images,
        Networks.connect(paths.apiserver_socket) as networks,
    ):
        yield System(containers, images, networks, paths)


@asynccontextmanager
async def _running(
    containers: Containers, options: ContainerOptions, check: bool
) -> AsyncGenerator[Container]:
    made = await containers.create(options)
    try:
        async with _Pipes(stdin=options.keep_input) as pipes:
            endpoint = await containers.bootstrap(made.id, pipes.theirs)
            pipes.close_theirs()
            async with endpoint.connect() as sandbox:
                await _start(sandbox, INIT)
                yield Container(
                    id=made.id,
                    name=made.name,
                    stdout=pipes.stdout,
                    stderr=pipes.stderr,
                    stdin=pipes.stdin,
                    containers=containers,
                    sandbox=sandbox,
                    check=check,
                )
    finally:
        with trio.move_on_after(CLEAN_UP_SECONDS, shield=True) as bound:
            await _ignore(lambda: containers.delete(made.id, True))
        if bound.cancelled_caught:
            _log.error("container %s could not be removed in time", made.id)


class _Pipes:
    """The pipes of one process: our ends as streams, the other ends in a `Stdio`."""

    def __init__(self, *, stdin: bool) -> None:
        out_read, out_write = os.pipe2(os.O_CLOEXEC)
        error_read, error_write = os.pipe2(os.O_CLOEXEC)
        self._streams = [trio.lowlevel.FdStream(out_read), trio.lowlevel.FdStream(error_read)]
        self.stdout: trio.abc.ReceiveStream = self._streams[0]
        self.stderr: trio.abc.ReceiveStream = self._streams[1]
        self.stdin: trio.abc.SendStream | None = None
        in_read: int | None = None
        if stdin:
            in_read, in_write = os.pipe2(os.O_CLOEXEC)
            self._streams.append(trio.lowlevel.FdStream(in_write))
            self.stdin = self._streams[2]
        self.theirs = Stdio(
            stdin=None if in_read is None else Fd(in_read),
            stdout=Fd(out_write),
            stderr=Fd(error_write),
        )

    def close_theirs(self) -> None:
        """Close the other ends, which the process has now: else no end of file would come."""
        for descriptor in (self.theirs.stdin, self.theirs.stdout, self.theirs.stderr):
            if descriptor is not None:
                descriptor.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close_theirs()
        with trio.CancelScope(shield=True):  # closing a descriptor does not wait
            for stream in self._streams:
                await stream.aclose()


async def _start(sandbox: Sandbox, process: str) -> None:
    """Start a process that has no terminal."""
    started = await sandbox.start(process)
    for descriptor in (started.terminal, started.terminal_input):
        if descriptor is not None:
            descriptor.close()


async def _feed(stream: trio.abc.SendStream, data: bytes) -> None:
    async with stream:
        try:
            await stream.send_all(data)
        except trio.BrokenResourceError:
            pass  # it does not read its input, which is no error


async def _collect(stream: trio.abc.ReceiveStream, into: bytearray, most: int) -> None:
    while part := await stream.receive_some(65536):
        if len(into) + len(part) > most:
            raise Overloaded(
                f"the command wrote more than {most} bytes", hint="raise output_max, or use a file"
            )
        into += part


async def _ignore(step: Callable[[], Awaitable[None]]) -> None:
    """Do a step of a clean-up whose subject may be gone already."""
    try:
        await step()
    except (NotFound, InvalidState):
        pass
    except ContainerError as error:
        _log.warning("clean-up failed: %s", error)


def _lines(environment: Mapping[str, str] | None) -> tuple[str, ...]:
    return tuple(f"{name}={value}" for name, value in (environment or {}).items())


def _absolute(root: str | os.PathLike[str] | None) -> Path:
    return Path(root or ".").absolute()


def _run_parent() -> str:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and len(runtime) < 40 and os.access(runtime, os.W_OK | os.X_OK):
        return runtime
    temporary = tempfile.gettempdir()
    return temporary if len(temporary) < 40 else "/tmp"


def _remove_root(root: Path) -> None:
    """Remove a temporary root; never through a mount that is left below it."""
    beginning = f"{root}/"
    with open("/proc/self/mountinfo") as lines:
        mounted = [line for line in lines if line.split(" ", 5)[4].startswith(beginning)]
    if mounted:
        _log.error("%s is kept: something is still mounted below it", root)
        return
    shutil.rmtree(root, ignore_errors=True)
