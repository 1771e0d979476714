"""This project: streams of small items and of bytes, with credit."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import trio
from trio.abc import ReceiveChannel

from benchmarks.peers.ours import Item
from benchmarks.worker import Loop, Operations
from container.ipc import Actor, Contract, open_service, stream

LOOP: Loop = "trio"
PIECE = 1 << 20


class Source(Contract, name="bench.source"):
    """Two streams."""

    @abstractmethod
    def items(self, count: int) -> AbstractAsyncContextManager[ReceiveChannel[Item]]:
        """Send so many items."""
        ...

    @abstractmethod
    def pieces(self, count: int) -> AbstractAsyncContextManager[ReceiveChannel[bytes]]:
        """Send so many MiB."""
        ...


class SourceService(Actor, Source):
    """The contract's service."""

    @stream
    async def items(self, count: int) -> AsyncGenerator[Item]:
        """Send items."""
        for number in range(count):
            yield Item(id="abcdef", number=number)

    @stream
    async def pieces(self, count: int) -> AsyncGenerator[bytes]:
        """Send bytes."""
        piece = b"x" * PIECE
        for _ in range(count):
            yield piece


async def serve(folder: Path) -> None:
    """Serve until killed."""
    async with open_service(SourceService(), at=folder / "s"):
        print("ready", flush=True)
        await trio.sleep_forever()


@asynccontextmanager
async def connect(folder: Path) -> AsyncGenerator[Operations]:
    """Hold a proxy."""
    async with Source.connect(folder / "s") as source:

        async def items(count: int) -> None:
            expected = 0
            async with source.items(count) as channel:
                async for item in channel:
                    assert item.number == expected
                    expected += 1
            assert expected == count

        async def pieces(count: int) -> None:
            received = 0
            async with source.pieces(count) as channel:
                async for piece in channel:
                    received += len(piece)
            assert received == count * PIECE

        yield {"items": items, "bytes": pieces}
