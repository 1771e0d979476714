"""A rehearsal in a zygote: do once, to the end, what every child will do first.

The interpreter rewrites bytecode when it runs, and fills caches. Done in the zygote, before it
forks, the pages of all that are shared by its children; done in each of them, they are copied.
Trio's run has ended when this returns, no thread was started, and none of a user's code has run:
a fork inside a run, or beside a thread, is what a zygote must never do.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
from abc import abstractmethod

import trio

from container.ipc.actor import Actor
from container.ipc.client import connect, connect_contract, connection_proxy
from container.ipc.contract import Contract
from container.ipc.descriptor import Fd
from container.ipc.spawning.child import LifeService
from container.ipc.spawning.ending import StopBounds
from container.ipc.spawning.orders import Life, Order
from container.ipc.spawning.references import making, reference
from container.ipc.transport import SocketTransport, socket_pair
from container.ipc.wire.limits import Limits

ROUNDS, CALLS = 10, 10
"""The interpreter specialises code that has run about eight times."""
BOUND = 10.0


class Echo(Contract, name="container.rehearsal"):
    """One call, for nobody."""

    @abstractmethod
    async def echo(self, word: str) -> str:
        """Return the word."""


class EchoService(Actor, Echo):
    """The service of the rehearsal."""

    def __init__(self, word: str) -> None:
        self._word = word

    async def echo(self, word: str) -> str:
        await trio.lowlevel.checkpoint()
        return word


def rehearse() -> None:
    """Live a few short lives of children in this process."""
    wake = signal.set_wakeup_fd(-1)
    try:
        trio.run(_rehearse)
    finally:
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    assert threading.active_count() == 1


async def _rehearse() -> None:
    with trio.fail_after(BOUND):
        for _ in range(ROUNDS):
            await _live()


async def _live() -> None:
    order = Order(
        service=reference(EchoService),
        name="rehearsal",
        path=tuple(sys.path),
        bounds=StopBounds(),
        limits=Limits(),
    )
    theirs, ours = socket_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(LifeService(order).run, theirs)
        async with connect(SocketTransport(ours), Life) as connection:
            life = connection_proxy(connection, Life)
            await life.load()
            maker = connection_proxy(connection, making(EchoService))
            fd: Fd = await getattr(maker, "make")("word")  # noqa: B009 (made at run time)
            sock = socket.socket(fileno=fd.take())
            async with connect_contract(Echo, SocketTransport(sock)) as echo:
                for _ in range(CALLS):
                    await echo.echo("word")
            await life.stop()
            await life.live()
