"""The promises find what a broken transport, or a leak, does."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio

from container.ipc.testing import PROMISES, LeakFound, Pair, no_leaks, over_pair
from container.ipc.transport import MemoryTransport, Received, Transport, memory_pair


class _Broken(MemoryTransport):
    @classmethod
    @asynccontextmanager
    async def pair(cls) -> AsyncGenerator[tuple[Transport, Transport]]:
        pair = memory_pair()
        for end in pair:
            end.__class__ = cls
        yield pair


class LosesDescriptors(_Broken):
    """Sends bytes alone."""

    def send(self, data: bytes | bytearray | memoryview, descriptors: Sequence[int]) -> int:
        return super().send(data, ())


class KeepsDescriptors(_Broken):
    """Holds on to a copy of what it has sent."""

    def send(self, data: bytes | bytearray | memoryview, descriptors: Sequence[int]) -> int:
        for descriptor in descriptors:
            os.dup(descriptor)
        return super().send(data, descriptors)


class LosesBytes(_Broken):
    """Has a read that gives less than it took."""

    def receive(self, room: int = 65536, /) -> Received:
        data, descriptors, sender = super().receive(room)
        return Received(data[: max(1, len(data) - 1)], descriptors, sender)


class NeverEnds(_Broken):
    """Does not tell its peer of its end."""

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("broken", "name"),
    [
        (LosesDescriptors.pair, "a_descriptor_arrives_and_closes_with_its_call"),
        (KeepsDescriptors.pair, "a_descriptor_arrives_and_closes_with_its_call"),
        (LosesBytes.pair, "a_reply_is_the_value"),
        (NeverEnds.pair, "a_lost_connection_ends_a_scope_and_its_holders_block"),
    ],
)
async def test_a_broken_transport_does_not_keep_its_promises(
    broken: Pair, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("container.ipc.testing.promises.SECONDS", 1.0)
    (promise,) = [promise for promise in PROMISES if promise.name == name]
    before = set(os.listdir("/proc/self/fd"))
    try:
        with pytest.raises(BaseException) as caught:
            await promise.check(over_pair(broken))
        assert not isinstance(caught.value, trio.Cancelled)
    finally:
        for leaked in set(os.listdir("/proc/self/fd")) - before:
            try:
                os.close(int(leaked))
            except OSError:
                pass  # that of the listing itself


async def test_a_leaked_descriptor_is_named() -> None:
    with pytest.raises(LeakFound, match=r"descriptor \d+ \(/dev/null\)"):
        async with no_leaks(within=0):
            null = os.open("/dev/null", os.O_RDONLY)
    os.close(null)


async def test_a_leaked_task_is_named() -> None:
    async with trio.open_nursery() as nursery:
        with pytest.raises(LeakFound, match=r"task trio\.sleep_forever"):
            async with no_leaks(within=0):
                nursery.start_soon(trio.sleep_forever, name="trio.sleep_forever")
        nursery.cancel_scope.cancel()


def test_a_leaked_process_is_named() -> None:
    with pytest.raises(LeakFound, match=r"process \d+ \(sleep"):
        with no_leaks(within=0):
            process = subprocess.Popen(["sleep", "60"])
    process.kill()
    process.wait()


async def test_what_ends_a_moment_later_is_no_leak() -> None:
    async with trio.open_nursery() as nursery:
        async with no_leaks():
            nursery.start_soon(trio.sleep, 0.02)


async def test_less_than_before_is_no_leak() -> None:
    read, write = os.pipe()
    async with no_leaks(within=0):
        os.close(read)
        os.close(write)


async def test_the_block_s_own_error_is_what_is_raised() -> None:
    with pytest.raises(KeyError):
        async with no_leaks(within=0):
            null = os.open("/dev/null", os.O_RDONLY)
            raise KeyError
    os.close(null)
