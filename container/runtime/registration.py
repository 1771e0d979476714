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
from container.ipc import AlreadyExists, ContainerError, Fd, connection_of
from container.storage.watch import Change, watch

LOOK_SECONDS = 10.0
"""Between looks at a launcher's socket of which inotify said nothing."""
CALL_SECONDS = 30.0
_FIRST_DELAY, _LAST_DELAY = 0.05, 1.0

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
    known = True
    delay = _FIRST_DELAY
    while True:
        try:
            async with open_launcher() as launcher:
                if not known:
                    with trio.fail_after(CALL_SECONDS):
                        await _register(launcher, unit, listener)
                    _log.info("registered with a new launcher")
                known, delay = True, _FIRST_DELAY
                await (until_gone or connection_lost)(launcher)
        except* (ContainerError, OSError, trio.TooSlowError) as group:
            _log.info("the launcher is not there: %s", group.exceptions[0])
        known = False
        await _until_back(socket, delay)
        delay = min(delay * 2, _LAST_DELAY)


async def _register(launcher: Launcher, unit: ServiceUnit, listener: HasFileno) -> None:
    try:
        await launcher.adopt(unit, Fd.borrow(listener))
    except AlreadyExists:
        pass  # it found us itself, by the same name


async def connection_lost(launcher: Launcher) -> None:
    """Return when the connection that a launcher's proxy speaks on has ended."""
    await connection_of(launcher).wait_lost()


async def _until_back(socket: Path, delay: float) -> None:
    """Return when the launcher's socket may be there: a name came, or after `delay` at least."""
    try:
        with watch(socket.parent, change=Change.ENTRIES) as changes:
            await trio.sleep(delay)  # a launcher that refuses us must not be asked in a loop
            if await trio.Path(socket).exists():
                return
            with trio.move_on_after(LOOK_SECONDS):
                await changes.changed()
    except OSError:
        # The run directory itself is gone: nothing can be watched until somebody makes it anew.
        await trio.sleep(LOOK_SECONDS)
