"""What tests of descriptors count and hold."""

from __future__ import annotations

import os
import resource
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio.testing

from container.ipc import Fd


def count() -> int:
    """Return how many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


@asynccontextmanager
async def same_count() -> AsyncGenerator[None]:
    """Expect as many descriptors after as before, once all has come to rest.

    A caller may have its reply a step before the handler, whose reply it is, has closed its own.
    """
    before = count()
    yield
    await trio.testing.wait_all_tasks_blocked()
    assert count() == before


@contextmanager
def pipe_with(data: bytes) -> Iterator[Fd]:
    """Hold the reading end of a pipe that has `data` in it."""
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    with Fd(read) as fd:
        yield fd


@contextmanager
def few_descriptors(more: int) -> Iterator[None]:
    """Allow this process `more` descriptors than it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(number) for number in os.listdir("/proc/self/fd"))
    fillers = [os.open("/dev/null", os.O_RDONLY)]
    while fillers[-1] < highest:
        fillers.append(os.open("/dev/null", os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1 + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)
