"""Byte streams: passed sockets that are Trio's own streams at both ends."""

from __future__ import annotations

import os
import socket
from abc import abstractmethod
from typing import Annotated, Any

import pytest
import trio

from container.ipc import Actor, Contract, Fd, FdKind, InvalidArgument, byte_stream, stream_of

from .open_files import same_count


class Store(Contract, name="store"):
    @abstractmethod
    async def upload(self, source: Annotated[Fd, FdKind.SOCKET]) -> int: ...


class StoreService(Actor, Store):
    async def upload(self, source: Fd) -> int:
        total = 0
        async with stream_of(source) as stream:
            async for chunk in stream:
                total += len(chunk)
            await stream.send_all(b"thanks")
        return total


async def test_bytes_go_both_ways_and_each_direction_ends_by_itself(link: Any) -> None:
    async with link(StoreService()) as store, same_count():
        stream, theirs = byte_stream()
        totals: list[int] = []

        async def call() -> None:
            totals.append(await store.upload(theirs))

        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(call)
            for _ in range(20):
                await stream.send_all(b"x" * 100_000)
            await stream.send_eof()
            assert await stream.receive_some() == b"thanks"
            assert await stream.receive_some() == b""
        assert totals == [2_000_000]
        assert theirs.closed


async def test_a_holder_that_is_gone_breaks_the_stream(link: Any) -> None:
    async with link(StoreService()) as store, same_count():
        stream, theirs = byte_stream()
        async with stream:
            with trio.move_on_after(0.01):
                await store.upload(theirs)
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await stream.send_all(b"x" * 100_000)


async def test_what_is_no_stream_is_refused_and_stays_its_owners(link: Any) -> None:
    async with same_count():
        datagrams = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for number in (*(end.detach() for end in datagrams), os.open("/dev/null", os.O_RDWR)):
            with Fd(number) as fd:
                with pytest.raises(ValueError, match="socket"):
                    stream_of(fd)
                assert not fd.closed
    async with link(StoreService()) as store, same_count():
        with pytest.raises(InvalidArgument, match="expected a socket"):
            await store.upload(Fd.give(os.open("/dev/null", os.O_RDWR)))
