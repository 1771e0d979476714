"""One run of a container, seen from outside: does it run, and how did it end?

The helper is the one who knows. A caller starts the container through its own endpoint, past this
server, so a run is watched from its bootstrap on, and `list` asks the helpers. A helper that does
not answer makes its container UNKNOWN, never stopped; one that came back and knows nothing makes
the exit code None, never 0.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

import trio
from attrs import evolve

from container.apiserver.sandboxes import Sandboxes, Timeouts
from container.contracts.apiserver import Container, ContainerStatus
from container.contracts.runtime import (
    INIT,
    ExitStatus,
    ProcessState,
    SandboxPhase,
    SandboxProcess,
    SandboxState,
)
from container.ipc import (
    Backoff,
    ContainerError,
    InvalidState,
    NotFound,
    Supervised,
)

RECONNECT = Backoff(0.005, 30.0, factor=3.0, jitter=0.3)
"""Between attempts to reach a helper that went away. The first is made almost at once: connecting
to its socket, which the launcher holds, starts its successor."""
PATIENCE = 5
"""Failures in a row after which the container's status is UNKNOWN."""

_log = logging.getLogger(__name__)


class RunWatch:
    """Ask runtime helpers about their containers.

    Args:
        sandboxes: Reaches the helpers.
        timeouts: Bounds.
        clock: Says when an exit was noticed that nobody saw.
    """

    def __init__(
        self, sandboxes: Sandboxes, timeouts: Timeouts, clock: Callable[[], datetime]
    ) -> None:
        self._sandboxes = sandboxes
        self._timeouts = timeouts
        self._clock = clock

    async def exit_of(
        self, container_id: str, unreachable: Callable[[], None]
    ) -> ExitStatus | None:
        """Return how the run ended, once it has; None when nobody started it in time.

        Args:
            id: The container.
            unreachable: Called when its helper has not answered for a while; the wait goes on.
        """
        started = False

        async def ended() -> ExitStatus | None:
            nonlocal started
            try:
                if watch.restarts:
                    state = await self._ask(container_id)
                    if state.phase is SandboxPhase.EMPTY:
                        return self.unknown_exit()
                if not started:
                    with trio.move_on_after(self._timeouts.start):
                        return await self._wait(container_id)
                    state = await self._ask(container_id)
                    if state.phase is SandboxPhase.CREATED:
                        return None
                    started = True
                return await self._wait(container_id)
            except (NotFound, InvalidState):
                # A helper that came back and found nothing of this run.
                return self.unknown_exit()
            except ContainerError:
                if watch.row + 1 == PATIENCE:
                    unreachable()
                raise

        # Never given up: the helper's socket may be made by anyone at any time.
        watch = Supervised[None](
            ended,
            name=f"the watch of container {container_id}",
            backoff=RECONNECT,
            intensity=None,
        )
        return await watch.run()

    async def _ask(self, container_id: str) -> SandboxState:
        return await self._sandboxes.call(container_id, lambda sandbox: sandbox.state())

    async def _wait(self, container_id: str) -> ExitStatus:
        return await self._sandboxes.call(container_id, lambda sandbox: sandbox.wait(INIT))

    async def look(self, container: Container) -> Container:
        """Return `container` as its helper knows it now; UNKNOWN when it does not say in time."""
        try:
            state = await self._sandboxes.state(container.id, self._timeouts.question)
            if state is not None:
                return seen(container, state)
        except ContainerError as error:
            _log.info("the helper of container %s does not answer: %s", container.id, error)
        return evolve(container, status=ContainerStatus.UNKNOWN)

    def unknown_exit(self) -> ExitStatus:
        """Return the exit status of a run whose end nobody saw."""
        return ExitStatus(code=None, exited_at=self._clock())


def seen(container: Container, state: SandboxState) -> Container:
    """Return `container` with what its helper says of the first process."""
    init = first_process(state)
    if init is None:
        return evolve(container, status=ContainerStatus.UNKNOWN)
    match init.state:
        case ProcessState.CREATED:
            return evolve(
                container,
                status=ContainerStatus.CREATED,
                pid=init.pid,
                exit=None,
                attachments=state.networks,
            )
        case ProcessState.RUNNING:
            paused = state.phase is SandboxPhase.PAUSED
            return evolve(
                container,
                status=ContainerStatus.PAUSED if paused else ContainerStatus.RUNNING,
                pid=init.pid,
                started_at=init.started_at or container.started_at,
                exit=None,
                attachments=state.networks,
            )
        case ProcessState.EXITED:
            return evolve(
                container,
                status=ContainerStatus.STOPPED,
                pid=None,
                started_at=init.started_at or container.started_at,
                exit=init.exit or ExitStatus(code=None),
                attachments=(),
            )


def first_process(state: SandboxState) -> SandboxProcess | None:
    """Return the container's first process, if the helper has one."""
    return next((process for process in state.processes if process.id == INIT), None)
