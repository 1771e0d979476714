"""The kernel takes no more descriptors of a user: that call is refused, and nothing else."""

from __future__ import annotations

import errno
import os
from abc import abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from container.ipc import Actor, Contract, Fd, Overloaded, connection_of
from container.ipc.client import connect_contract
from container.ipc.server import Server
from container.ipc.transport import READ_BYTES, MemoryTransport, Transport, memory_pair


class Files(Contract, name="files"):
    @abstractmethod
    async def size(self, note: bytes, source: Fd | None = None) -> int: ...

    @abstractmethod
    async def open(self, size: int) -> tuple[Fd, bytes]: ...

    @abstractmethod
    async def look(self) -> int: ...


class FilesService(Actor, Files):
    async def size(self, note: bytes, source: Fd | None = None) -> int:
        return len(note)

    async def open(self, size: int) -> tuple[Fd, bytes]:
        return Fd(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)), b"x" * size

    async def look(self) -> int:
        return 1


class Crowded(Transport):
    """A transport whose kernel takes no descriptors while `full` is set."""

    pings = False

    def __init__(self, inner: MemoryTransport) -> None:
        self.inner = inner
        self.full = True

    def send(self, data: bytes | memoryview, descriptors: Sequence[int]) -> int:
        if descriptors and self.full:
            raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
        return self.inner.send(memoryview(data), descriptors)

    def receive(self, room: int = READ_BYTES, /) -> Any:
        return self.inner.receive(room)

    async def wait_readable(self) -> None:
        await self.inner.wait_readable()

    async def wait_writable(self) -> None:
        await self.inner.wait_writable()

    def admit_descriptors(self) -> None:
        self.inner.admit_descriptors()

    def close(self) -> None:
        self.inner.close()


@asynccontextmanager
async def crowded_pair(side: str, room: int) -> AsyncGenerator[tuple[Any, Crowded]]:
    theirs, ours = memory_pair(room)
    crowded = Crowded(ours if side == "client" else theirs)
    async with trio.open_nursery() as nursery:
        server = crowded if side == "server" else theirs
        nursery.start_soon(Server((FilesService(),)).serve, server)
        client = crowded if side == "client" else ours
        async with connect_contract(Files, client) as files:
            yield files, crowded
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("room", [212_992, 512])
async def test_a_call_with_descriptors_is_overloaded_and_the_connection_lives(room: int) -> None:
    """At once, and (in a small room) when it has waited behind another frame."""
    before = len(os.listdir("/proc/self/fd"))
    async with crowded_pair("client", room) as (files, crowded):
        seen: list[Any] = []

        async def call(note: bytes, source: Fd | None) -> None:
            try:
                seen.append(await files.size(note, source))
            except Overloaded as error:
                seen.append(error.code.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, b"x" * 5000, None)
            await trio.lowlevel.checkpoint()
            null = os.open("/dev/null", os.O_RDONLY)
            nursery.start_soon(call, b"", Fd.give(null))
        assert sorted(map(str, seen)) == ["5000", "overloaded"]
        assert await files.look() == 1
        assert connection_of(files).statistics().pending == 0
        crowded.full = False
        assert await files.size(b"xyz", Fd.give(os.open("/dev/null", os.O_RDONLY))) == 3
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("room", [212_992, 512])
async def test_a_reply_with_descriptors_that_can_not_leave_is_overloaded(room: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with crowded_pair("server", room) as (files, crowded):
        seen: list[Any] = []

        async def call(size: int) -> None:
            try:
                fd, _ = await files.open(size)
                fd.close()
            except Overloaded as error:
                seen.append(error.code.value)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(call, 3000)
        assert seen == ["overloaded"] * 3
        assert await files.look() == 1
        crowded.full = False
        fd, data = await files.open(7)
        fd.close()
        assert data == b"x" * 7
    assert len(os.listdir("/proc/self/fd")) == before
