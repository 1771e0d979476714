"""This project: calls of three kinds, and what both processes hold after them."""

from __future__ import annotations

import gc
import os
import tracemalloc
from abc import abstractmethod
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio
from attrs import frozen

from benchmarks.peers.ours import Item
from benchmarks.worker import Loop, Operations
from container.ipc import Actor, Contract, Fd, open_service

LOOP: Loop = "trio"
CALLERS = 8


@frozen
class Sample:
    """What a process holds."""

    traced: int
    """Bytes of Python's objects."""
    resident: int
    """Bytes of its memory. Source: proc_pid_statm(5)."""
    descriptors: int

    @classmethod
    def taken(cls) -> Sample:
        """Look at this process."""
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(
            traced=tracemalloc.get_traced_memory()[0],
            resident=pages * os.sysconf("SC_PAGESIZE"),
            descriptors=len(os.listdir("/proc/self/fd")),
        )


class Worked(Contract, name="bench.worked"):
    """A route for each kind of call."""

    @abstractmethod
    async def echo(self, item: Item) -> Item:
        """Return what came."""
        ...

    @abstractmethod
    async def hang(self) -> None:
        """Wait for a cancellation."""
        ...

    @abstractmethod
    async def look(self, fd: Fd) -> int:
        """Return the number of a descriptor, which closes with the call."""
        ...

    @abstractmethod
    async def sample(self) -> Sample:
        """Say what the callee holds."""
        ...


class WorkedService(Actor, Worked):
    """The contract's service."""

    async def echo(self, item: Item) -> Item:
        """Return what came."""
        return item

    async def hang(self) -> None:
        """Wait."""
        await trio.sleep_forever()

    async def look(self, fd: Fd) -> int:
        """Look at it."""
        return fd.fileno()

    async def sample(self) -> Sample:
        """Look at this process."""
        return Sample.taken()


async def serve(folder: Path) -> None:
    """Serve until killed."""
    tracemalloc.start()
    async with open_service(WorkedService(), at=folder / "s"):
        print("ready", flush=True)
        await trio.sleep_forever()


@asynccontextmanager
async def connect(folder: Path) -> AsyncGenerator[Operations]:
    """Hold a proxy and a descriptor that is lent."""
    tracemalloc.start()
    with Fd(os.open("/dev/null", os.O_RDWR)) as fd:
        async with Worked.connect(folder / "s") as worked:

            async def plain(i: int) -> None:
                assert (await worked.echo(Item(id="abcdef", number=i))).number == i

            async def one(i: int) -> None:
                match i % 12:
                    case 10:
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(worked.hang)
                            # Answered after the frame before it was: the other one is handled.
                            await plain(i)
                            nursery.cancel_scope.cancel()
                    case 11:
                        await worked.look(Fd.borrow(fd))
                    case _:
                        await plain(i)

            async def mixed(count: int) -> None:
                numbers = iter(range(count))

                async def caller() -> None:
                    for i in numbers:
                        await one(i)

                async with trio.open_nursery() as nursery:
                    for _ in range(CALLERS):
                        nursery.start_soon(caller)

            async def sample(_: int) -> dict[str, dict[str, int]]:
                there = await worked.sample()
                return {"client": attrs.asdict(Sample.taken()), "server": attrs.asdict(there)}

            yield {"call": plain, "mixed": mixed, "sample": sample}
