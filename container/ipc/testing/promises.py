"""Promises: what holds over every transport, each a check that can fail, named by a sentence.

```python
@pytest.mark.parametrize("promise", PROMISES, ids=str)
async def test_over_my_transport(promise: Promise) -> None:
    await promise.check(over_pair(my_pair))
```

They need no pytest, and no clock: they run over a memory pair with a mock clock, and over a socket
to another process with a real one.
"""

from __future__ import annotations

import os
import unittest
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import cast

import trio
from attrs import frozen

from container.ipc.client import connect_contract
from container.ipc.descriptor import Fd
from container.ipc.nursery import ended_with_block
from container.ipc.server import Server
from container.ipc.testing.faults import FaultyTransport
from container.ipc.testing.leaks import no_leaks
from container.ipc.testing.subject import Subject, SubjectService
from container.ipc.transport import Transport
from container.ipc.wire.limits import Limits

Reach = Callable[[], AbstractAsyncContextManager[Transport]]
"""Connect to a served `SubjectService`: the block holds the transport."""
Pair = Callable[[], AbstractAsyncContextManager[tuple[Transport, Transport]]]
"""Connect two transports with each other for a block."""

SECONDS = 30.0
"""A promise that takes longer is broken."""

expecting = unittest.TestCase().assertRaises
"""`pytest.raises`, for those who have no pytest."""


@frozen
class Link:
    """What a promise is checked over."""

    reach: Reach

    @asynccontextmanager
    async def connect(self, limits: Limits | None = None) -> AsyncGenerator[Subject]:
        """Hold a proxy on a connection of its own."""
        async with self.reach() as transport:
            async with connect_contract(Subject, transport, limits=limits) as subject:
                yield subject

    @asynccontextmanager
    async def faulty(
        self, limits: Limits | None = None
    ) -> AsyncGenerator[tuple[Subject, FaultyTransport]]:
        """Hold a proxy whose end of the connection can be cut."""
        async with self.reach() as inner:
            transport = FaultyTransport(inner)
            async with connect_contract(Subject, transport, limits=limits) as subject:
                yield subject, transport


@frozen
class Promise:
    """One of them."""

    name: str
    keeps: Callable[[Link], Awaitable[None]]

    async def check(self, reach: Reach) -> None:
        """Check it over whatever is reached; nothing may be left open.

        Raises:
            AssertionError: it is not kept.
            trio.TooSlowError: it took more than 30 s.
        """
        async with no_leaks():
            with trio.fail_after(SECONDS):
                await self.keeps(Link(reach))

    def __str__(self) -> str:
        return self.name


PROMISES: list[Promise] = []
"""All of them; complete once `container.ipc.testing` is imported."""


def promise(keeps: Callable[[Link], Awaitable[None]]) -> Callable[[Link], Awaitable[None]]:
    """Make a function one of the promises, under its name."""
    PROMISES.append(Promise(keeps.__name__, keeps))
    return keeps


def over_pair(pair: Pair) -> Reach:
    """Serve the subject at one end of a pair, in the running loop."""

    @asynccontextmanager
    async def reach() -> AsyncGenerator[Transport]:
        async with SubjectService() as service, pair() as (ours, theirs):
            async with ended_with_block() as nursery:
                nursery.start_soon(Server((service,)).serve, theirs)
                yield ours

    return reach


class Witness:
    """The reading end of a pipe that a handler writes to; see `subject`."""

    def __init__(self, read: int, write: int) -> None:
        self._read = read
        self._write: int | None = write
        self._heard = b""
        self._over = False
        os.set_blocking(read, False)

    @property
    def fd(self) -> Fd:
        """The writing end, borrowed: what is sent of it is the receiver's own."""
        assert self._write is not None
        return Fd.borrow(self._write)

    @property
    def lines(self) -> list[str]:
        """What was heard until now."""
        self._hear()
        return self._heard.decode().splitlines()

    def _hear(self) -> None:
        while not self._over:
            try:
                data = os.read(self._read, 65536)
            except BlockingIOError:
                return
            self._heard += data
            self._over = not data

    async def hears(self, line: str) -> None:
        """Wait until a line was heard."""
        while line not in self.lines:
            if self._over:
                raise AssertionError(f"nobody will say {line!r} any more: {self.lines}")
            await trio.lowlevel.wait_readable(self._read)

    async def gone(self) -> None:
        """Wait until nobody else holds the writing end."""
        if self._write is not None:
            write, self._write = self._write, None
            os.close(write)
        while True:
            self._hear()
            if self._over:
                return
            await trio.lowlevel.wait_readable(self._read)

    def close(self) -> None:
        """Close what is still open."""
        for end in (self._read, self._write):
            if end is not None:
                os.close(end)


@contextmanager
def witness() -> Generator[Witness]:
    """Hold a pipe to watch a handler through."""
    it = Witness(*os.pipe())
    try:
        yield it
    finally:
        it.close()


@contextmanager
def pipe_with(data: bytes) -> Generator[Fd]:
    """Hold the reading end of a pipe that has `data` in it, and then its end."""
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    with Fd(read) as fd:
        yield fd


def leaves(error: BaseException) -> list[BaseException]:
    """Return the errors of a group, of groups in it too; of another error, itself."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    group = cast("BaseExceptionGroup[BaseException]", error)
    return [leaf for each in group.exceptions for leaf in leaves(each)]
