"""The child of `spawn`: makes a service, serves it to its parent, and ends with it.

Run as `python -m container.ipc.spawning.child`, or forked from a zygote. Until its keeper has
forked it, it *is* the keeper; see there. Its parent's end of the socket on which `Life` is served
is its lifeline: at the end of file the service is cancelled. SIGTERM cancels it too.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, cast

import trio

from container.ipc.actor import Actor
from container.ipc.contract import Contract
from container.ipc.descriptor import Fd
from container.ipc.error_groups import leaves
from container.ipc.errors import Unavailable
from container.ipc.server import Server
from container.ipc.spawning import offspring, orders
from container.ipc.spawning.keeper import keep
from container.ipc.spawning.references import Maker, making, resolve
from container.ipc.transport import SocketTransport, socket_pair
from container.ipc.wire_errors import set_process_name


@functools.cache
def served(maker: Maker) -> type[Any]:
    """Return the class that implements `making(maker)` by a function; a zygote does so before."""

    def keep_function(self: Any, function: Callable[..., Awaitable[Fd]]) -> None:
        self.function = function

    async def make(self: Any, *args: Any, **kwargs: Any) -> Fd:
        return await self.function(*args, **kwargs)

    return type("Maker", (making(maker),), {"__init__": keep_function, "make": make})


class LifeService(orders.Life):
    """Load, make, serve and end one service."""

    def __init__(self, order: orders.Order) -> None:
        self._order = order
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()
        self._ended = trio.Event()
        self._failure: Exception | None = None
        self._nursery: trio.Nursery | None = None
        self._problem: Exception | None = None
        self._maker: Maker | None = None
        self._making: Contract | None = None
        """Serves the call that makes the service, if it could be loaded."""
        try:
            sys.path[:] = order.path
            self._maker = maker = resolve(order.service)
            self._making = served(maker)(self._make)
        except Exception as error:
            self._problem = error

    async def load(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._problem is not None:
            raise self._problem

    async def live(self) -> None:
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure

    async def stop(self) -> None:
        await trio.lowlevel.checkpoint()
        self.end()

    def end(self) -> None:
        """Have the service end; it is cancelled if its clean-up takes longer than the bound.

        From now on SIGTERM ends this process at once.
        """
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if not self._stopped.is_set():
            self._stopped.set()
            self._scope.deadline = trio.current_time() + self._order.bounds.cleanup

    async def run(self, sock: socket.socket) -> None:
        """Serve the parent until it is gone, then end the service if it has not ended yet."""
        services: list[Contract] = [self] if self._making is None else [self, self._making]
        server = Server(tuple(services), limits=self._order.limits)
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._heed, signals)
                await server.serve(SocketTransport(sock))
                self.end()
                if self._begun:
                    await self._ended.wait()
                nursery.cancel_scope.cancel()

    async def _heed(self, signals: AsyncIterator[int]) -> None:
        async for _ in signals:
            self.end()

    _begun = False

    async def _make(self, *args: Any, **kwargs: Any) -> Fd:
        assert self._nursery is not None
        return await self._nursery.start(self._live, args, kwargs)

    async def _live(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], task_status: trio.TaskStatus[Fd]
    ) -> None:
        """Live the service's life. What ends it is told by `live`, or `make` if it never began."""
        try:
            with self._scope:
                async with AsyncExitStack() as stack:
                    assert self._maker is not None
                    service = self._maker(*args, **kwargs)
                    if isinstance(service, Actor) and not service.is_open:
                        await stack.enter_async_context(service)
                    server = Server((service,), limits=self._order.limits)
                    theirs, ours = socket_pair()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(server.serve, SocketTransport(ours))
                        self._begun = True
                        task_status.started(Fd(theirs.detach()))
                        await self._stopped.wait()
                        nursery.cancel_scope.cancel()
            if not self._begun:
                raise Unavailable("the service was stopped before it had begun")
        except (Exception, BaseExceptionGroup) as error:
            failure = _without_cancellations(error)
            if not self._begun or failure is None:
                raise
            self._failure = failure
        finally:
            if self._begun:
                self._ended.set()


def _without_cancellations(error: BaseException) -> Exception | None:
    """Return what is left of an error that can be told to the parent; None if it ends us."""
    rest = error
    if isinstance(error, BaseExceptionGroup):
        rest = cast("BaseExceptionGroup[BaseException]", error).split(trio.Cancelled)[1]
    return rest if isinstance(rest, Exception) else None


def main() -> int:
    """Become the keeper, and return only in the child, at its end."""
    control = socket.socket(fileno=orders.KEEPER)
    os.set_inheritable(orders.CHILD, False)
    os.set_inheritable(orders.KEEPER, False)
    try:
        order = orders.read_order(control)
    except EOFError:
        return 0  # the parent changed its mind
    if os.getsid(0) != os.getpid():
        os.setsid()
    keep(control, order)
    set_process_name(order.name)
    try:
        trio.run(_serve, order)
    except BaseExceptionGroup as group:
        for leaf in leaves(group):
            if isinstance(leaf, SystemExit):  # a service may end its process
                raise leaf from None
        raise
    return 0


async def _serve(order: orders.Order) -> None:
    sock = socket.socket(fileno=orders.KEEPER)
    await LifeService(order).run(sock)


if __name__ == "__main__":
    offspring.leave(offspring.run_entry("container.ipc.spawning.child:main", sys.argv))
