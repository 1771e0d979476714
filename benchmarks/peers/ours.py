"""This project: a typed contract over `container.ipc`, credentials checked on each message."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from attrs import frozen

from benchmarks.worker import Call, Loop
from container.ipc import Actor, Contract, open_service

LOOP: Loop = "trio"


@frozen
class Item:
    """What is echoed."""

    id: str
    number: int


class Echo(Contract, name="bench.echo"):
    """One route."""

    @abstractmethod
    async def echo(self, item: Item) -> Item:
        """Return what came."""
        ...


class EchoService(Actor, Echo):
    """The contract's service."""

    async def echo(self, item: Item) -> Item:
        """Return what came."""
        return Item(id=item.id, number=item.number)


async def serve(folder: Path) -> None:
    """Serve until killed."""
    async with open_service(EchoService(), at=folder / "s"):
        print("ready", flush=True)
        await trio.sleep_forever()


@asynccontextmanager
async def connect(folder: Path) -> AsyncGenerator[Call]:
    """Hold a proxy."""
    async with Echo.connect(folder / "s") as echo:

        async def call(i: int) -> None:
            item = await echo.echo(Item(id="abcdef", number=i))
            assert item.number == i

        yield call
