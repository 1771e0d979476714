"""The tree that chaos is let loose on: a service whose every operation goes down to the last hop.

Run as `python -m tests.ipc.chaos.tree PATH [PATH OF THE NEXT HOP]`.
"""

from __future__ import annotations

import os
import sys
from abc import abstractmethod
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import trio
from attrs import frozen
from trio.abc import ReceiveChannel

from container.ipc import Actor, Contract, Fd, open_service, stream


@frozen
class Census:
    """What one process holds."""

    descriptors: int
    operations: int


class Hop(Contract, name="hop"):
    """One of each kind of operation."""

    @abstractmethod
    async def echo(self, number: int) -> int:
        """Return it, by way of the last hop."""

    @abstractmethod
    async def wait(self) -> None:
        """Never return."""

    @abstractmethod
    async def read(self, source: Fd) -> str:
        """Return what a descriptor gives to the last hop."""

    @abstractmethod
    def hold(self, key: str) -> AbstractAsyncContextManager[str]:
        """Hold something at each hop."""

    @abstractmethod
    def count(self, to: int) -> AbstractAsyncContextManager[ReceiveChannel[int]]:
        """Give the numbers below `to`."""

    @abstractmethod
    async def census(self) -> list[Census]:
        """Return what each process holds, this one first; this call is not counted."""


class HopService(Actor, Hop):
    """A hop; without a next one, the last."""

    def __init__(self, inner: Hop | None) -> None:
        self._inner = inner
        self._operations = 0

    async def echo(self, number: int) -> int:
        with self._one():
            return number if self._inner is None else await self._inner.echo(number)

    async def wait(self) -> None:
        with self._one():
            if self._inner is None:
                await trio.sleep_forever()
            else:
                await self._inner.wait()

    async def read(self, source: Fd) -> str:
        with self._one(), source:
            if self._inner is not None:
                return await self._inner.read(source)
            return os.pread(source.fileno(), 100, 0).decode()

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncGenerator[str]:
        with self._one():
            if self._inner is None:
                yield key
            else:
                async with self._inner.hold(key) as held:
                    yield held

    @stream
    async def count(self, to: int) -> AsyncGenerator[int]:
        with self._one():
            if self._inner is None:
                for number in range(to):
                    yield number
            else:
                async with self._inner.count(to) as numbers:
                    async for number in numbers:
                        yield number

    async def census(self) -> list[Census]:
        mine = Census(len(os.listdir("/proc/self/fd")), self._operations)
        return [mine, *([] if self._inner is None else await self._inner.census())]

    def _one(self) -> _Counted:
        return _Counted(self)


class _Counted:
    """Counts an operation while it runs."""

    def __init__(self, service: HopService) -> None:
        self._service = service

    def __enter__(self) -> None:
        self._service._operations += 1

    def __exit__(self, *_: object) -> None:
        self._service._operations -= 1


async def serve(path: str, inner: str | None) -> None:
    """Serve one hop until the process ends."""
    async with AsyncExitStack() as stack:
        proxy = None
        if inner is not None:
            proxy = await stack.enter_async_context(Hop.connect_named(inner))
        await stack.enter_async_context(open_service(HopService(proxy), at=path))
        os.write(1, b"ready")
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(serve, sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
