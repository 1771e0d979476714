"""A session: how one command line reaches the services.

Commands get one and open what they need with `async with session.containers() as containers:`. A
test gives its own, whose services are fakes or in this process. Trio and the framework are imported
inside, since help and completion make a session too.
"""

from __future__ import annotations

import math
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple, Unpack

if TYPE_CHECKING:
    from pathlib import Path

    from container.contracts.apiserver import Containers, Health
    from container.contracts.images import Images
    from container.contracts.launcher import Launcher
    from container.contracts.networks import Networks
    from container.contracts.usage import Usage
    from container.contracts.volumes import Volumes
    from container.ipc import Contract
    from container.storage.paths import Paths

QUICK = 60.0
"""Seconds that a call may take which does no long work."""
CONNECTING = 60.0
"""Seconds for a connection, the start of the service behind it included."""

_ANY_VERSION = ("launcher", "health")
"""Contracts by which a system of another version is looked at and stopped."""

T = TypeVar("T")
C = TypeVar("C", bound="Contract")
Arguments = TypeVarTuple("Arguments")


class Session:
    """The services of one system, connected to when they are needed.

    Args:
        paths: Where the system is; None is this user's.
        debug: Show tracebacks.
    """

    def __init__(self, paths: Paths | None = None, *, debug: bool = False) -> None:
        self._paths = paths
        self.debug = debug

    @property
    def paths(self) -> Paths:
        """Where state and sockets of the system are."""
        if self._paths is None:
            from container.storage.paths import Paths

            self._paths = Paths.default()
        return self._paths

    def run(
        self,
        function: Callable[[Unpack[Arguments]], Awaitable[T]],
        *arguments: *Arguments,
    ) -> T:
        """Run a coroutine function to its end and return what it returns.

        Raises:
            KeyboardInterrupt: Ctrl-C, whatever else went wrong because of it.
            BaseException: what the function raised; a group of one as that one.
        """
        import trio

        from container.cli.failure import leaves_of

        try:
            return trio.run(self._traced, function, *arguments)
        except BaseExceptionGroup as group:
            leaves = list(leaves_of(group))
            for leaf in leaves:
                if isinstance(leaf, KeyboardInterrupt):
                    raise leaf from None
            if len(leaves) == 1:
                raise leaves[0] from None
            raise

    async def _traced(
        self,
        function: Callable[[Unpack[Arguments]], Awaitable[T]],
        *arguments: *Arguments,
    ) -> T:
        """Run a function as one span, so that all its calls are of one trace.

        `CONTAINER_TRACE` names the file that spans are written to, `TRACEPARENT` the span that
        this command line is a part of.
        """
        path = os.environ.get("CONTAINER_TRACE")
        traceparent = os.environ.get("TRACEPARENT")
        if path is None and traceparent is None:
            return await function(*arguments)
        from container.ipc import set_process_name, tracing

        if path is None:
            tracing.enter(traceparent)
            return await function(*arguments)
        from container.process import install_trace

        set_process_name("container")
        install_trace(path, "container")
        span = tracing.begin("client", "container", traceparent)
        tracing.enter(span.traceparent)
        try:
            return await function(*arguments)
        finally:
            tracing.finish(span)

    def containers(self, *, start: bool = True) -> AbstractAsyncContextManager[Containers]:
        """Connect to the API server; the system is started if it is not up, and `start` is set."""
        from container.contracts.apiserver import Containers

        return self._connected(Containers, self.paths.apiserver_socket, start=start)

    def networks(self) -> AbstractAsyncContextManager[Networks]:
        """Connect to the API server's networks; the system is started if it is not up."""
        from container.contracts.networks import Networks

        return self._connected(Networks, self.paths.apiserver_socket, start=True)

    def volumes(self) -> AbstractAsyncContextManager[Volumes]:
        """Connect to the volumes; the system is started if it is not up."""
        from container.contracts.volumes import Volumes

        return self._connected(Volumes, self.paths.apiserver_socket, start=True)

    def usage(self) -> AbstractAsyncContextManager[Usage]:
        """Connect to who knows what the disk is used for; the system is started if need be."""
        from container.contracts.usage import Usage

        return self._connected(Usage, self.paths.apiserver_socket, start=True)

    def health(self) -> AbstractAsyncContextManager[Health]:
        """Connect to the API server's health; the system is not started for that."""
        from container.contracts.apiserver import Health

        return self._connected(Health, self.paths.apiserver_socket, start=False)

    def images(self) -> AbstractAsyncContextManager[Images]:
        """Connect to the images helper; the system is started if it is not up."""
        from container.contracts.images import Images

        return self._connected(Images, self.paths.images_socket, start=True)

    def launcher(self) -> AbstractAsyncContextManager[Launcher]:
        """Connect to the launcher; the system is not started for that.

        Raises:
            PeerGone: it does not run (`fate` is refused).
        """
        from container.contracts.launcher import Launcher

        return self._connected(Launcher, self.paths.launcher_socket, start=False)

    async def ensure_running(self) -> None:
        """Start the system if it is not up, saying so on stderr."""
        from container.cli.failure import say
        from container.launcher.boot import ensure_running
        from container.launcher.rundir import prepare_run_directory, somebody_listens

        # First: a folder of somebody else is refused before anything is said.
        prepare_run_directory(self.paths.run)
        if somebody_listens(self.paths.launcher_socket):
            return
        say(f"starting the system (logs in {self.paths.logs})")
        await ensure_running(self.paths)

    @asynccontextmanager
    async def _connected(self, contract: type[C], path: Path, *, start: bool) -> AsyncGenerator[C]:
        import trio

        from container.ipc import DeadlineExceeded, Fate, PeerGone, Unsupported, connection_of

        if start and os.geteuid() != 0:
            raise Unsupported(
                "containers need root: rootless containers are not there yet",
                hint="run it as root, for example with sudo",
            )
        connected = False
        for attempt in (1, 2):
            try:
                # Not `fail_after` around the entering alone: the connection's tasks outlive it.
                with trio.CancelScope(deadline=trio.current_time() + CONNECTING) as connecting:
                    async with contract.connect(path) as proxy:
                        connected = True
                        if contract.contract_name not in _ANY_VERSION:
                            _check_version(connection_of(proxy).peer_build)
                        connecting.deadline = math.inf
                        yield proxy
                if connected:
                    return
                raise DeadlineExceeded(
                    f"no answer from {path} within {CONNECTING:.0f} s",
                    hint=f"see the logs in {self.paths.logs}",
                )
            except PeerGone as gone:
                refused = not connected and gone.fate is Fate.REFUSED
                if not (refused and start and attempt == 1):
                    raise
            await self.ensure_running()


def _check_version(theirs: str) -> None:
    """Refuse a system of another version: what it would make of our options can't be known."""
    from container import __version__
    from container.ipc import Incompatible

    if theirs != __version__:
        raise Incompatible(
            f"the running system is container {theirs}, this command is container {__version__}",
            hint="restart it with `container system stop`; containers go on running",
        )
