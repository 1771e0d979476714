"""Stay known: a runtime helper outlives its launcher and registers with the next one.

The helper holds a connection to the launcher for one reason, to see it end. Then it waits for the
launcher's socket to come back (by inotify on the run directory, with a slow second look for the
case that the folder itself was replaced), hands the new launcher its own listening socket, and
watches again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

import trio

from container.contracts.launcher import Launcher, ServiceUnit
from container.ipc import (
    AlreadyExists,
    Backoff,
    Fd,
    RestartPolicy,
    Supervised,
    connection_of,
)
from container.storage.watch import Change, watch

LOOK_SECONDS = 10.0
"""Between looks at a launcher's socket of which inotify said nothing."""
CALL_SECONDS = 30.0
BACKOFF = Backoff(0.05, 1.0, jitter=0.5)
"""A launcher that refuses us must not be asked in a loop, nor a new one by all helpers at once."""

_log = logging.getLogger(__name__)

OpenLauncher = Callable[[], AbstractAsyncContextManager[Launcher]]
"""Connect to the launcher's socket."""

UntilGone = Callable[[Launcher], Awaitable[None]]
"""Return when a launcher is gone."""


class HasFileno(Protocol):
    """The helper's listening socket."""

    def fileno(self) -> int: ...


async def stay_registered(
    open_launcher: OpenLauncher,
    unit: ServiceUnit,
    listener: HasFileno,
    socket: Path,
    *,
    until_gone: UntilGone | None = None,
) -> None:
    """Keep this helper registered with whatever launcher there is; runs until cancelled.

    The first launcher is the one that started us: it knows us already.

    Args:
        open_launcher: Connects to the launcher.
        unit: This helper's own unit, as the launcher was given it.
        listener: This helper's listening socket; borrowed.
        socket: Where the launcher listens.
        until_gone: Returns when the launcher that it is given has gone.
    """

    async def stay() -> None:
        first = registration.restarts == 0
        if not first:
            await _until_back(socket)
        async with open_launcher() as launcher:
            if not first:
                with trio.fail_after(CALL_SECONDS):
                    await _register(launcher, unit, listener)
                _log.info("registered with a new launcher")
            await (until_gone or connection_lost)(launcher)

    registration = Supervised[None](
        stay,
        name="the registration with the launcher",
        restart=RestartPolicy.ALWAYS,
        backoff=BACKOFF,
        intensity=None,
    )
    await registration.run()


async def _register(launcher: Launcher, unit: ServiceUnit, listener: HasFileno) -> None:
    try:
        await launcher.adopt(unit, Fd.borrow(listener))
    except AlreadyExists:
        pass  # it found us itself, by the same name


async def connection_lost(launcher: Launcher) -> None:
    """Return when the connection that a launcher's proxy speaks on has ended."""
    await connection_of(launcher).wait_lost()


async def _until_back(socket: Path) -> None:
    """Return when the launcher's socket may be there."""
    try:
        with watch(socket.parent, change=Change.ENTRIES) as changes:
            if await trio.Path(socket).exists():
                return
            with trio.move_on_after(LOOK_SECONDS):
                await changes.changed()
    except OSError:
        # The run directory itself is gone: nothing can be watched until somebody makes it anew.
        await trio.sleep(LOOK_SECONDS)
