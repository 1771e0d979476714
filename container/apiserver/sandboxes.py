"""The runtime helpers: one process per container, registered with the launcher, reached through a
gate.

For each container this keeps at most one connection: to the gate, which is the helper's public
socket, and through it a private endpoint on which the real operations are. A caller outside gets an
endpoint of its own, limited to what it may do.

What this is *not*: it does not know whether a container runs; that is `runs`' subject.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar, cast

import trio
from attrs import define, field, frozen

from container.apiserver.links import Caller
from container.contracts.apiserver import Plugin
from container.contracts.launcher import Launcher, Restart, ServiceUnit
from container.contracts.runtime import Sandbox, SandboxGate, SandboxState
from container.ipc import (
    Actor,
    AlreadyExists,
    ContainerError,
    Endpoint,
    Fate,
    NotFound,
    PeerGone,
    Unavailable,
)
from container.ipc.error_groups import leaves, single

T = TypeVar("T")

CLIENT_ROUTES = ("start", "wait", "resize", "kill")
"""What an endpoint offers that is handed to a caller outside."""

OpenGate = Callable[[str], AbstractAsyncContextManager[SandboxGate]]
"""Connect to the gate behind a socket path; connecting starts the helper."""

ChoosePlugin = Callable[[], Awaitable[Plugin]]
"""Return the plugin whose helper runs containers."""

_log = logging.getLogger(__name__)


@frozen
class Timeouts:
    """Bounds, in seconds, on what a helper or a client that does not answer may cost."""

    connect: float = 60.0
    """From registering a helper to its first answer."""
    adopt: float = 10.0
    """For a helper of an earlier API server to answer, before its container's own calls go on."""
    probe: float = 3.0
    """For a helper to show that it is not wedged, before its container is removed by another."""
    shutdown: float = 20.0
    """For a helper to end its container and itself."""
    question: float = 1.0
    """For `list` and `get` to ask a helper what runs."""
    linger: float = 1.0
    """Between a container's exit and its helper's end, for a client that has just started it and
    has not yet asked for its exit status."""
    start: float = 60.0
    """From bootstrap to start, after which the sandbox is undone."""
    claim: float = 3600.0
    """From the creation of a container that removes itself to its bootstrap, after which it is
    removed."""
    warm: float = 10.0
    """That a helper started in advance waits for its bootstrap."""
    clean_up: float = 60.0
    """For the clean-up of one container, which no cancellation cuts short."""


@frozen(eq=False)
class _Connection:
    gate: SandboxGate
    sandbox: Sandbox
    dropped: trio.Event = field(factory=trio.Event)
    closed: trio.Event = field(factory=trio.Event)


@define(eq=False)
class _Question:
    answered: trio.Event = field(factory=trio.Event)
    state: SandboxState | None = None
    error: ContainerError | None = None


class Sandboxes(Actor):
    """Reach the runtime helper of each container.

    Args:
        launcher: Registers and removes helpers.
        open_gate: Connects to a helper's public socket.
        plugin: Chooses the plugin that a new helper is started from.
        socket: From a container's id to the path of its helper's socket.
        timeouts: Bounds.
        ended: Called once nothing is left of a run.
    """

    def __init__(
        self,
        launcher: Caller[Launcher],
        open_gate: OpenGate,
        plugin: ChoosePlugin,
        socket: Callable[[str], str],
        timeouts: Timeouts,
        ended: Callable[[str], Awaitable[None]],
    ) -> None:
        self._ended = ended
        self._launcher = launcher
        self._open_gate = open_gate
        self._plugin = plugin
        self._socket = socket
        self._timeouts = timeouts
        self._connections: dict[str, _Connection] = {}
        self._connecting: dict[str, trio.CancelScope] = {}
        self._unanswered: dict[str, _Question] = {}

    def connected(self, container_id: str) -> bool:
        """Return whether a connection to the helper of container `id` is held."""
        return container_id in self._connections

    async def open(self, container_id: str) -> None:
        """Register the helper, start it, and connect; does nothing when connected.

        Atomic under cancellation but for the registered unit, which `discard` removes.

        Raises:
            Unavailable: it does not answer.
        """
        async with self.exclusive(container_id):
            if container_id in self._connections:
                return
            try:
                with trio.fail_after(self._timeouts.connect):
                    unit = self.unit(container_id, await self._plugin())
                    try:
                        path = await self._launcher(lambda launcher: launcher.register(unit))
                    except AlreadyExists:
                        # A helper that outlived its launcher, or an older version's: it is ours.
                        path = self._socket(container_id)
                    await self._connect(container_id, path)
            except (PeerGone, trio.TooSlowError) as error:
                raise Unavailable(
                    f"the runtime helper of container {container_id} does not answer",
                    hint="its log is in the logs folder; `container system status` shows it",
                ) from error

    async def rejoin(self, container_id: str) -> bool:
        """Connect to a helper that may be there from before; return whether one answers.

        A socket that the launcher holds starts the helper; without one nothing is started.
        """
        async with self.exclusive(container_id):
            if container_id in self._connections:
                return True
            try:
                with trio.fail_after(self._timeouts.connect):
                    await self._connect(container_id, self._socket(container_id))
            except (PeerGone, Unavailable, trio.TooSlowError):
                return False
            return True

    def unit(self, container_id: str, plugin: Plugin) -> ServiceUnit:
        """Return the launcher's unit of the helper of container `id`."""
        return ServiceUnit(
            name=unit_name(container_id),
            command=(*plugin.command, container_id),
            entry=plugin.entry,
            description=f"runtime helper of container {container_id}",
            listen=f"runtime/{container_id}.sock",
            # A helper that died comes back on the next connection, which its API server makes: were
            # it restarted by itself, a container whose helper can't work would start it for ever.
            restart=Restart.NO,
            outlives_launcher=True,
        )

    async def call(self, container_id: str, operation: Callable[[Sandbox], Awaitable[T]]) -> T:
        """Run an operation on the container's sandbox, on a new connection if the old one is lost.

        It is run again only when it certainly did not run.

        Raises:
            PeerGone: the helper went away under it.
            Unavailable: it can't be reached.
        """
        for attempt in (1, 2):
            if container_id not in self._connections and not await self.rejoin(container_id):
                await self.open(container_id)
            connection = self._connections.get(container_id)
            if connection is None:
                continue
            try:
                return await operation(connection.sandbox)
            except PeerGone as error:
                self._drop(container_id, connection)
                if attempt == 2 or error.fate is Fate.UNKNOWN:
                    raise
            except trio.ClosedResourceError:
                # Another task has given the helper up meanwhile.
                raise Unavailable(
                    f"the runtime helper of container {container_id} went away"
                ) from None
        raise Unavailable(f"the runtime helper of container {container_id} does not stay")

    async def state(
        self, container_id: str, within: float, *, patient: bool = False
    ) -> SandboxState | None:
        """Return what a helper says of its container, or None if it does not say so in time.

        A question that was not answered stays open: until it is, nobody asks again, so that a
        wedged helper costs one caller its time, once.

        Args:
            container_id: The container.
            within: Seconds.
            patient: Wait for the answer to an open question, too.

        Raises:
            ContainerError: it can't be reached, or went away.
        """
        question = self._unanswered.get(container_id)
        if question is None:
            question = _Question()
            self.nursery.start_soon(self._ask, container_id, question)
        elif not patient:
            await trio.lowlevel.checkpoint()
            return None
        with trio.move_on_after(within):
            await question.answered.wait()
        if not question.answered.is_set():
            self._unanswered[container_id] = question
        if question.error is not None:
            raise question.error
        return question.state

    async def _ask(self, container_id: str, question: _Question) -> None:
        """Ask in a task of its own: a caller's cancellation would wait for the helper's word."""
        try:
            for again in (True, False):
                try:
                    question.state = await self.call(container_id, lambda sandbox: sandbox.state())
                    return
                except PeerGone as error:
                    # A question may be asked twice: of the helper that comes next.
                    question.error = None if again else error
        except ContainerError as error:
            question.error = error
        finally:
            question.answered.set()
            if self._unanswered.get(container_id) is question:
                del self._unanswered[container_id]

    async def replace_if_wedged(self, container_id: str) -> None:
        """Have a helper killed that does not answer; its successor takes the container up."""
        try:
            if await self.state(container_id, self._timeouts.probe, patient=True) is not None:
                return
        except ContainerError:
            return  # it is gone: whoever calls next starts another
        _log.warning("the helper of container %s does not answer and is replaced", container_id)
        connection = self._connections.get(container_id)
        if connection is not None:
            self._drop(container_id, connection)
        try:
            await self._launcher(lambda launcher: launcher.stop(unit_name(container_id)))
        except NotFound:
            pass

    async def hand_out(self, container_id: str) -> Endpoint[Sandbox]:
        """Return an endpoint for a caller outside, limited to `CLIENT_ROUTES`."""
        connection = self._connections.get(container_id)
        if connection is None:
            await self.open(container_id)
            connection = self._connections[container_id]
        try:
            with trio.fail_after(self._timeouts.connect):
                return await connection.gate.open(CLIENT_ROUTES)
        except (PeerGone, trio.TooSlowError) as error:
            self._drop(container_id, connection)
            raise Unavailable(
                f"the runtime helper of container {container_id} went away"
            ) from error

    async def shut_down(self, container_id: str, *, thorough: bool) -> None:
        """End the container and its helper, and remove the helper's unit.

        Args:
            thorough: Something may be left of a run even if no helper answers, or one dies
            meanwhile: a
                fresh helper is started to clean it up.

        Raises:
            ContainerError: a fresh helper could not do it either; the unit stays, to try again.
        """
        await self.end(container_id, thorough=thorough)
        await self.discard(container_id)

    async def end(self, container_id: str, *, thorough: bool) -> None:
        """Do the first half of `shut_down`: all that the container had is gone, its unit is
        left."""
        done = await self._ask_to_end(container_id)
        if not done and thorough:
            await self._remove_unit(container_id)
            await self.open(container_id)
            try:
                with trio.fail_after(self._timeouts.shutdown):
                    await self.call(container_id, lambda sandbox: sandbox.shutdown())
            except trio.TooSlowError as error:
                raise Unavailable(
                    f"the runtime helper of container {container_id} does not end it",
                    hint="its log is in the logs folder",
                ) from error
        await self._ended(container_id)

    async def discard(self, container_id: str) -> None:
        """Close the connection and remove the helper's unit; the launcher ends what is left of
        it."""
        if container_id in self._connecting:
            self._connecting[container_id].cancel()  # a frozen one would be waited for
        async with self.exclusive(container_id):
            connection = self._connections.pop(container_id, None)
            if connection is not None:
                connection.dropped.set()
            await self._remove_unit(container_id)
            if connection is not None:
                with trio.move_on_after(self._timeouts.question):
                    await connection.closed.wait()

    async def _ask_to_end(self, container_id: str) -> bool:
        connection = self._connections.get(container_id)
        if connection is None:
            return False
        done = False
        with trio.move_on_after(self._timeouts.shutdown):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._give_up_if_wedged, container_id, connection)
                try:
                    await connection.sandbox.shutdown()
                    done = True
                except (PeerGone, Unavailable, trio.ClosedResourceError):
                    pass
                nursery.cancel_scope.cancel()
        if not done:
            self._drop(container_id, connection)
        return done

    async def _give_up_if_wedged(self, container_id: str, connection: _Connection) -> None:
        """Close the connection, and so end the calls on it, if its helper shows no sign of life."""
        half = self._timeouts.probe / 2
        await trio.sleep(half)
        try:
            if await self.state(container_id, half, patient=True) is None:
                self._drop(container_id, connection)
        except ContainerError:
            pass  # it is gone, which ends them too

    async def _remove_unit(self, container_id: str) -> None:
        await self._launcher(lambda launcher: launcher.remove(unit_name(container_id)))

    def _drop(self, container_id: str, connection: _Connection) -> None:
        if self._connections.get(container_id) is connection:
            del self._connections[container_id]
        connection.dropped.set()

    async def _connect(self, container_id: str, path: str) -> None:
        with trio.CancelScope() as scope:
            self._connecting[container_id] = scope
            try:
                started = await self.nursery.start(self._hold, container_id, path)
            finally:
                del self._connecting[container_id]
            self._connections[container_id] = cast("_Connection", started)
        if scope.cancelled_caught:
            raise Unavailable(f"the runtime helper of container {container_id} was given up")

    async def _hold(
        self, container_id: str, path: str, *, task_status: trio.TaskStatus[_Connection]
    ) -> None:
        connection: _Connection | None = None
        try:
            async with self._open_gate(path) as gate:
                endpoint = await gate.open(None)
                try:
                    async with endpoint.connect() as sandbox:
                        connection = _Connection(gate, sandbox)
                        task_status.started(connection)
                        await connection.dropped.wait()
                finally:
                    endpoint.close()
        except Exception as error:
            if connection is None:
                raise single(error) from None
            if not all(isinstance(leaf, PeerGone) for leaf in leaves(error)):
                _log.exception(
                    "the connection to the helper of container %s ended badly", container_id
                )
        finally:
            if connection is not None:
                connection.closed.set()
                self._drop(container_id, connection)


def unit_name(container_id: str) -> str:
    """Return the name under which the launcher knows the helper of container `id`."""
    return f"runtime.{container_id}"
