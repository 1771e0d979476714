"""Carry one process from its start to its end, attached: its streams, its terminal, its signals.

Used by `run`, `start -a` and `exec`. The endpoint goes straight to the container's helper, so what
is attached survives the API server's death.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from container.cli.failure import PROCESS_FAILURE, say
from container.cli.plumbing import Plumbing
from container.cli.session import Session
from container.cli.signals import SignalRelay
from container.contracts.apiserver import Container, Containers, WaitCondition
from container.contracts.runtime import INIT, ExitStatus, LogFiles, Sandbox
from container.ipc import ContainerError, Endpoint, NotFound, PeerGone, Unavailable

STARTING = 120.0
"""Seconds that the start of a created process may take."""
LAST_OUTPUT = 10.0
"""Seconds for the rest of the log after the helper died and could not say that all is there."""
REMOVING = 60.0
"""Seconds that a container which removes itself has to be gone."""


class Attachment:
    """One process that this command line is attached to.

    Args:
        plumbing: Its streams.
        relay: The signals that we get.
        otherwise: Tells how the process ended if its helper dies meanwhile.
    """

    def __init__(
        self,
        process: str,
        plumbing: Plumbing,
        relay: SignalRelay,
        otherwise: Callable[[], Awaitable[ExitStatus]] | None = None,
    ) -> None:
        self._process = process
        self._plumbing = plumbing
        self._relay = relay
        self._otherwise = otherwise
        self._lost = False
        self.started = False
        """The process runs, or ran: whatever fails now, it was not the start."""

    async def run(self, endpoint: Endpoint[Sandbox], log: LogFiles | None) -> ExitStatus | None:
        """Start the process and return how it ended; None if the user detached from it.

        Cancellation leaves the process running and the terminal as it was.
        """
        async with endpoint.connect() as sandbox:
            self._relay.starting()
            with trio.fail_after(STARTING):
                started = await sandbox.start(self._process)
            self.started = True
            self._plumbing.started(started)
            with self._plumbing.raw_terminal():
                resize = self._pass_signals_on(sandbox)
                if self._plumbing.terminal:
                    with suppress(ContainerError):  # it may have ended already
                        await resize()  # the size may have changed since it was sent
                return await self._carry(sandbox, log)

    def _pass_signals_on(self, sandbox: Sandbox) -> Callable[[], Awaitable[None]]:
        async def kill(name: str) -> None:
            await sandbox.kill(self._process, name)

        async def resize() -> None:
            size = self._plumbing.resized()
            if size is not None:
                await sandbox.resize(self._process, size)

        terminal = self._plumbing.terminal
        self._relay.attached(kill, resize if terminal else None, raw=self._plumbing.raw)
        return resize

    async def _carry(self, sandbox: Sandbox, log: LogFiles | None) -> ExitStatus | None:
        detached = False
        status: ExitStatus | None = None
        async with trio.open_nursery() as inputs:

            async def copy_input() -> None:
                nonlocal detached
                detached = await self._plumbing.copy_input()
                if detached:
                    inputs.cancel_scope.cancel()

            inputs.start_soon(copy_input)
            async with trio.open_nursery() as outputs:
                outputs.start_soon(self._plumbing.copy_output, log)
                status = await self._wait(sandbox)
                self._plumbing.finish()
                if self._lost:
                    outputs.cancel_scope.deadline = trio.current_time() + LAST_OUTPUT
            inputs.cancel_scope.cancel()
        return None if detached else status

    async def _wait(self, sandbox: Sandbox) -> ExitStatus:
        try:
            return await sandbox.wait(self._process)
        except PeerGone:
            if self._otherwise is None:
                raise
            self._lost = True
            return await self._otherwise()


async def attach_init(
    session: Session,
    containers: Containers,
    container: Container,
    plumbing: Plumbing,
    relay: SignalRelay,
    when_removed: Callable[[], None] | None = None,
) -> int:
    """Start a created container, attached, and return the exit status of the command line.

    A container that removes itself is gone when this returns; if it could not be started, it is
    removed here, and `when_removed` is called.
    """

    async def otherwise() -> ExitStatus:
        async with session.containers() as again:
            return await again.wait(container.id, WaitCondition.EXITED)

    attachment = Attachment(INIT, plumbing, relay, otherwise)
    try:
        with trio.fail_after(STARTING):
            endpoint = await containers.bootstrap(container.id, plumbing.stdio)
        log: LogFiles | None = None
        try:
            plumbing.sent()
            if plumbing.logged:
                with trio.fail_after(STARTING):
                    log = await containers.logs(container.id)
            status = await attachment.run(endpoint, log)
        finally:
            endpoint.close()
            if log is not None:
                log.data.close()
                log.index.close()
    except BaseException:
        if container.auto_remove and not attachment.started:
            await remove_unstarted(session, containers, container.id)
            if when_removed is not None:
                when_removed()
        raise
    if status is None:
        print(file=sys.stderr)  # the cursor is where the container left it
        say(f'detached from "{container.name}", which goes on')
        return 0
    if container.auto_remove:
        await wait_until_removed(session, containers, container)
    return exit_code(status, container.name)


async def remove_unstarted(session: Session, containers: Containers, container: str) -> None:
    """Remove a container that never ran, whatever is happening to us; failures are only said.

    It may hold our own standard output: whoever reads that would wait for its end. So the system is
    started again if it has just ended.
    """
    with trio.move_on_after(REMOVING, shield=True):
        try:
            try:
                await containers.delete(container, force=True)
            except (PeerGone, Unavailable):
                async with session.containers() as again:
                    await again.delete(container, force=True)
        except NotFound:
            pass
        except ContainerError as error:
            say(
                f"{container} is left behind: {error.message}", f'try "container rm -f {container}"'
            )


async def wait_until_removed(
    session: Session, containers: Containers, container: Container
) -> None:
    """Return when a container that removes itself is gone, or could not be removed in time."""
    with trio.move_on_after(REMOVING) as waiting:
        try:
            try:
                await containers.wait(container.id, WaitCondition.REMOVED)
            except PeerGone:
                async with session.containers() as again:
                    await again.wait(container.id, WaitCondition.REMOVED)
        except NotFound:
            pass
    if waiting.cancelled_caught:
        say(
            f'"{container.name}" has ended but is not removed yet',
            f'try "container rm -f {container.name}"',
        )


def exit_code(status: ExitStatus, name: str) -> int:
    """Return the exit status for a process that ended so; what is not known is never 0."""
    if status.code is None:
        say(f'how "{name}" ended is not known', f'see "container logs {name}"')
        return PROCESS_FAILURE
    return status.code
