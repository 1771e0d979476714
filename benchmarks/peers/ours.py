"""This project: a typed contract over `container.ipc`, credentials checked on each message."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from attrs import frozen

from benchmarks.worker import Loop, Operations
from container.ipc import Actor, Contract, Limits, open_service

LOOP: Loop = "trio"
LIMITS = Limits(connections_per_user=100_000)
"""One user opens all of the idle connections that are measured."""


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
    async with open_service(EchoService(), at=folder / "s", limits=LIMITS):
        print("ready", flush=True)
        await trio.sleep_forever()


@asynccontextmanager
async def connect(folder: Path) -> AsyncGenerator[Operations]:
    """Hold a proxy."""
    async with trio.open_nursery() as idling, Echo.connect(folder / "s") as echo:

        async def call(i: int) -> None:
            item = await echo.echo(Item(id="abcdef", number=i))
            assert item.number == i

        async def idle(connections: int) -> int:
            served = 0

            async def hold(i: int, *, task_status: trio.TaskStatus[bool]) -> None:
                async with Echo.connect(folder / "s") as another:
                    item = await another.echo(Item(id="abcdef", number=i))
                    task_status.started(item.number == i)
                    await trio.sleep_forever()

            # A task each: blocks inside each other would make every deadline a walk through all.
            for i in range(connections):
                served += await idling.start(hold, i)
            return served

        yield {"call": call, "idle": idle}
