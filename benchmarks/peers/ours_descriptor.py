"""This project: the same call with a descriptor and without."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from benchmarks.peers.ours import Item
from benchmarks.worker import Loop, Operations
from container.ipc import Actor, Contract, Fd, open_service

LOOP: Loop = "trio"


class Keeper(Contract, name="bench.keeper"):
    """One route."""

    @abstractmethod
    async def look(self, item: Item, fd: Fd | None) -> Item:
        """Return what came; the descriptor closes with the call."""
        ...


class KeeperService(Actor, Keeper):
    """The contract's service."""

    async def look(self, item: Item, fd: Fd | None) -> Item:
        """Return what came."""
        assert fd is None or fd.fileno() > 2
        return item


async def serve(folder: Path) -> None:
    """Serve until killed."""
    async with open_service(KeeperService(), at=folder / "s"):
        print("ready", flush=True)
        await trio.sleep_forever()


@asynccontextmanager
async def connect(folder: Path) -> AsyncGenerator[Operations]:
    """Hold a proxy and a descriptor that is lent to each call."""
    fd = Fd(os.open("/dev/null", os.O_RDWR))
    with fd:
        async with Keeper.connect(folder / "s") as keeper:

            async def without(i: int) -> None:
                item = await keeper.look(Item(id="abcdef", number=i), None)
                assert item.number == i

            async def lending(i: int) -> None:
                item = await keeper.look(Item(id="abcdef", number=i), Fd.borrow(fd))
                assert item.number == i

            yield {"without": without, "with": lending}
