"""Descriptors that outlive this helper: whoever keeps them gives them to the next one.

`LauncherKeeper` has them kept by the launcher, for as long as there is one; a launcher that comes
later is told anew. What it does *not*: hold a container up. A launcher that is gone, or does not
answer, costs a second at most; what it should have kept is then lost if this helper is killed too.
"""

from __future__ import annotations

import logging
import os
from typing import Protocol

import trio

from container.contracts.launcher import Launcher
from container.ipc import ContainerError, Fd
from container.runtime.registration import connection_lost

FLUSH_SECONDS = 1.0
CALL_SECONDS = 10.0
_log = logging.getLogger(__name__)


class Keeper(Protocol):
    """Keeps descriptors for the next helper of this container, by name."""

    def keep(self, name: str, descriptor: int) -> None:
        """Have a descriptor kept, soon; it stays the caller's, who may close it at any time."""
        ...

    def drop(self, name: str) -> None:
        """Have it closed, soon. None of that name is no error."""
        ...

    async def flush(self) -> None:
        """Return when all that was said before is done, or can't be; within a second."""
        ...

    async def orphan(self, pid: int) -> int | None:
        """Return how a process ended whose parent had ended: exit code, or 128+n for a signal.

        None if that is not known.
        """
        ...


class NoKeeper(Keeper):
    """Keeps nothing: in a program that is helper and launcher at once there is no next helper."""

    def keep(self, name: str, descriptor: int) -> None:
        pass

    def drop(self, name: str) -> None:
        pass

    async def flush(self) -> None:
        pass

    async def orphan(self, pid: int) -> int | None:
        return None


class LauncherKeeper(Keeper):
    """Has descriptors kept by whatever launcher there is.

    Args:
        service: This helper's name at the launcher.
    """

    def __init__(self, service: str) -> None:
        self._service = service
        self._held: dict[str, Fd] = {}
        self._unsaid: dict[str, None] = {}
        """Names, in order, of which the launcher does not know the latest."""
        self._launcher: Launcher | None = None
        self._lost = False
        self._news = trio.Event()
        self._told = trio.Event()

    def keep(self, name: str, descriptor: int) -> None:
        self._forget(name)
        # A duplicate: what is sent later must not be another file under the same number.
        self._held[name] = Fd(os.dup(descriptor))
        self._say(name)

    def drop(self, name: str) -> None:
        if self._forget(name):
            self._say(name)

    def _forget(self, name: str) -> bool:
        held = self._held.pop(name, None)
        if held is not None:
            held.close()
        return held is not None

    def _say(self, name: str) -> None:
        self._unsaid.pop(name, None)
        self._unsaid[name] = None
        self._news.set()

    async def flush(self) -> None:
        with trio.move_on_after(FLUSH_SECONDS) as bound:
            while self._unsaid and not self._lost:
                await self._told.wait()
        if bound.cancelled_caught:
            _log.warning("the launcher does not answer: it keeps no descriptors of this container")

    async def orphan(self, pid: int) -> int | None:
        with trio.move_on_after(FLUSH_SECONDS):
            while self._launcher is None and not self._lost:
                await self._told.wait()
            if self._launcher is not None:
                try:
                    return await self._launcher.orphan(pid)
                except ContainerError as error:
                    _log.warning("the launcher can't say how process %s ended: %s", pid, error)
        return None

    async def serve(self, launcher: Launcher) -> None:
        """Tell a launcher what it is to keep, until it is gone."""
        if self._lost:
            self._unsaid = dict.fromkeys((*self._held, *self._unsaid))
        self._launcher, self._lost = launcher, False
        self._wake()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell, launcher)
                await connection_lost(launcher)
                nursery.cancel_scope.cancel()
        finally:
            self._launcher, self._lost = None, True
            self._wake()

    async def _tell(self, launcher: Launcher) -> None:
        while True:
            while self._unsaid:
                name = next(iter(self._unsaid))
                held = self._held.get(name)
                try:
                    with trio.fail_after(CALL_SECONDS):
                        if held is None:
                            await launcher.drop(self._service, name)
                        else:
                            with held.duplicate() as sent:
                                await launcher.keep(self._service, name, sent)
                except (ContainerError, trio.TooSlowError) as error:
                    _log.warning("the launcher does not keep %s: %s", name, error)
                if self._held.get(name) is held:
                    self._unsaid.pop(name, None)
                self._wake()
            self._news = trio.Event()
            await self._news.wait()

    def _wake(self) -> None:
        told, self._told = self._told, trio.Event()
        told.set()

    def close(self) -> None:
        """Close what is held here; the launcher keeps its own."""
        for name in tuple(self._held):
            self._forget(name)
