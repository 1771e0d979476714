"""A service in a process of its own, for the verbs of `container ipc`; argument 1 is its socket."""

from __future__ import annotations

import enum
import logging
import os
import sys
import uuid
from abc import abstractmethod
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime

import trio
from attrs import frozen

from container.ipc import (
    Actor,
    AlreadyExists,
    Contract,
    Fd,
    cleanup,
    open_service,
    set_process_name,
    stream,
)


class Mode(enum.Enum):
    SHARED = "shared"
    EXCLUSIVE = "exclusive"


@frozen
class Lease:
    """A right to use a key."""

    key: str
    """What it is for."""
    since: datetime
    mode: Mode = Mode.SHARED


class LeaseTaken(AlreadyExists, name="tests.lease-taken"):
    pass


class Leases(Contract, name="leases"):
    """Keys that one holder has at a time."""

    @abstractmethod
    def lease(self, key: str, mode: Mode = Mode.SHARED) -> AbstractAsyncContextManager[Lease]:
        """Hold a key while the block runs."""

    @abstractmethod
    def ticks(self, most: int) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[int]]: ...

    @abstractmethod
    async def held(self) -> tuple[Lease, ...]: ...

    @abstractmethod
    async def size(self, source: Fd) -> int: ...

    @abstractmethod
    async def divide(self, one: int, by: float = 1.0) -> float: ...

    @abstractmethod
    async def sleep(self) -> None: ...

    @abstractmethod
    async def all(
        self,
        lease: Lease | None,
        data: bytes,
        numbers: list[int],
        table: dict[str, bool],
        number: uuid.UUID,
        pair: tuple[int, str],
    ) -> dict[str, str]: ...


class LeasesService(Actor, Leases):
    def __init__(self) -> None:
        self.leases: dict[str, Lease] = {}

    @asynccontextmanager
    async def lease(self, key: str, mode: Mode = Mode.SHARED) -> AsyncGenerator[Lease]:
        if key in self.leases:
            raise LeaseTaken(f"{key} is held already")
        self.leases[key] = Lease(key, datetime.now(UTC), mode)
        try:
            yield self.leases[key]
        finally:
            with cleanup():
                await trio.sleep(0.01)
                del self.leases[key]

    @stream
    async def ticks(self, most: int) -> AsyncGenerator[int]:
        for number in range(most):
            yield number

    async def held(self) -> tuple[Lease, ...]:
        return tuple(self.leases.values())

    async def size(self, source: Fd) -> int:
        return os.fstat(source.fileno()).st_size

    async def divide(self, one: int, by: float = 1.0) -> float:
        return one / by

    async def sleep(self) -> None:
        await trio.sleep_forever()

    async def all(
        self,
        lease: Lease | None,
        data: bytes,
        numbers: list[int],
        table: dict[str, bool],
        number: uuid.UUID,
        pair: tuple[int, str],
    ) -> dict[str, str]:
        values = locals()
        return {name: str(values[name]) for name in values if name != "self"}


async def main() -> None:
    set_process_name("leases")
    async with open_service(LeasesService(), at=sys.argv[1]):
        print("ready", flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    trio.run(main)
