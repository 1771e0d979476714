"""This project: a chain of three services, and a call through all of them that is cancelled."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio

from benchmarks.peers.ours import Item
from benchmarks.worker import Loop, Operations
from container.ipc import Actor, Contract, open_service

LOOP: Loop = "trio"


class Chain(Contract, name="bench.chain"):
    """A link passes `hang` on to the next one; the last one hangs."""

    @abstractmethod
    async def echo(self, item: Item) -> Item:
        """Return what came, from this link."""
        ...

    @abstractmethod
    async def hang(self) -> None:
        """Wait for a cancellation at the last link."""
        ...

    @abstractmethod
    async def hanging(self, wanted: bool) -> None:
        """Return as soon as there is, or is no more, a call that hangs at this link."""
        ...


class Link(Actor, Chain):
    """A link of the chain.

    Args:
        after: The next one; None for the last.
    """

    def __init__(self, after: Chain | None) -> None:
        self._after = after
        self._hangs = {True: trio.Event(), False: trio.Event()}
        self._tell(False)

    def _tell(self, hangs: bool) -> None:
        self._hangs[not hangs] = trio.Event()
        self._hangs[hangs].set()

    async def echo(self, item: Item) -> Item:
        """Return what came."""
        return Item(id=item.id, number=item.number)

    async def hang(self) -> None:
        """Pass it on, or hang."""
        if self._after is not None:
            await self._after.hang()
            return
        self._tell(True)
        try:
            await trio.sleep_forever()
        finally:
            self._tell(False)

    async def hanging(self, wanted: bool) -> None:
        """Wait for a call that hangs, or for its end."""
        await self._hangs[wanted].wait()


async def _serve(folder: Path, name: str, after: str | None) -> None:
    async with AsyncExitStack() as stack:
        following = None
        if after is not None:
            following = await stack.enter_async_context(Chain.connect(folder / after))
        await stack.enter_async_context(open_service(Link(following), at=folder / name))
        print("ready", flush=True)
        await trio.sleep_forever()


async def third(folder: Path) -> None:
    """Serve the last link until killed."""
    await _serve(folder, "3", None)


async def second(folder: Path) -> None:
    """Serve the link before the last until killed."""
    await _serve(folder, "2", "3")


async def first(folder: Path) -> None:
    """Serve the first link until killed."""
    await _serve(folder, "1", "2")


@asynccontextmanager
async def connect(folder: Path) -> AsyncGenerator[Operations]:
    """Hold proxies of the first link, which is measured, and of the last, which is asked."""
    async with Chain.connect(folder / "1") as chain, Chain.connect(folder / "3") as last:

        async def call(i: int) -> None:
            item = await chain.echo(Item(id="abcdef", number=i))
            assert item.number == i

        async def cancel(count: int) -> float:
            taken = 0.0
            for _ in range(count):
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(chain.hang)
                        await last.hanging(True)
                        started = time.perf_counter()
                        scope.cancel()
                # The nursery has ended: the handler at the other end of the chain has, before it.
                taken += time.perf_counter() - started
                await last.hanging(False)
            return taken

        yield {"call": call, "cancel": cancel}
