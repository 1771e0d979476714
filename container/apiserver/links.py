"""Links to the services that the API server depends on, and how its steps run beside each other.

A service that needs another one takes a `Caller`: `await images(lambda it: it.release(id))`. In a
test the caller is the other service itself (`direct`); in the process it is a `Link`, which
connects on first use and reconnects after the other side was restarted. Every operation that goes
through one is idempotent, so a lost reply is asked for once more.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar, cast

import trio

from container.ipc import Actor, Contract, PeerGone, Unavailable
from container.ipc.error_groups import leaves, single
from container.ipc.nursery import together as together

C = TypeVar("C", bound=Contract)
C_co = TypeVar("C_co", bound=Contract, covariant=True)
T = TypeVar("T")

CONNECT_TIMEOUT = 60.0
"""Seconds for a connection, the start of the service behind it included."""

WAITERS = 10_000
"""Operations that may wait for one connection."""

_log = logging.getLogger(__name__)


class Caller(Protocol[C_co]):
    """Run an operation on a service, wherever it is."""

    async def __call__(self, operation: Callable[[C_co], Awaitable[T]], /) -> T: ...


def direct(service: C) -> Caller[C]:
    """Return a caller of a service in this process, or of a proxy that somebody else keeps open."""

    async def call(operation: Callable[[C], Awaitable[T]], /) -> T:
        return await operation(service)

    return cast("Caller[C]", call)


class Link(Actor, Generic[C]):
    """Keep one connection to a named service, made when first needed and again when it was lost.

    Args:
        contract: What the service speaks.
        path: Its socket, held by the launcher: connecting starts it.
    """

    def __init__(self, contract: type[C], path: Path) -> None:
        self._contract = contract
        self._path = path
        self._current: tuple[C, trio.Event] | None = None

    async def __call__(self, operation: Callable[[C], Awaitable[T]], /) -> T:
        """Run an operation; when the connection is lost under it, once more on a new one.

        Raises:
            Unavailable: the service can't be reached.
        """
        for attempt in (1, 2):
            proxy, dropped = await self._connected()
            try:
                return await operation(proxy)
            except (PeerGone, trio.ClosedResourceError) as error:
                # The latter where another operation has noticed first, and given it up.
                if self._current is not None and self._current[0] is proxy:
                    self._current = None
                dropped.set()
                if attempt == 2:
                    raise Unavailable(
                        f"the {self._contract.contract_name} service went away: {error}",
                        hint="`container system status` shows what runs",
                    ) from error
        raise AssertionError("unreachable")

    async def _connected(self) -> tuple[C, trio.Event]:
        # All that this process does at once may wait for the other side's start.
        async with self.exclusive("connection", waiters=WAITERS):
            if self._current is None:
                dropped = trio.Event()
                try:
                    with trio.fail_after(CONNECT_TIMEOUT):
                        proxy = await self.nursery.start(self._hold, dropped)
                except (PeerGone, trio.TooSlowError) as error:
                    raise Unavailable(
                        f"the {self._contract.contract_name} service can't be reached",
                        hint="`container system status` shows what runs",
                    ) from error
                self._current = (cast("C", proxy), dropped)
            return self._current

    async def _hold(self, dropped: trio.Event, *, task_status: trio.TaskStatus[C]) -> None:
        started = False
        try:
            async with self._contract.connect(str(self._path)) as proxy:
                started = True
                task_status.started(proxy)
                await dropped.wait()
        except Exception as error:
            # A connection that ends badly is no reason to end; the next call makes another one.
            if not started:
                raise single(error) from None
            if not all(isinstance(leaf, PeerGone) for leaf in leaves(error)):
                _log.exception("the connection to %s ended", self._path)
