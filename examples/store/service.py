"""Serve the store: `python service.py SOCKET`."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio
from attrs import define, field
from contract import Change, Store

from container.ipc import (
    Actor,
    AlreadyExists,
    InvalidState,
    NotFound,
    Overloaded,
    open_service,
    stream,
)

MOST_KEYS = 100_000


@define(eq=False)
class Watcher:
    """Keys that one reader was not told of yet: at most all there are, however slow it is."""

    prefix: str
    changed: dict[str, None] = field(factory=dict)
    wake: trio.Event = field(factory=trio.Event)

    def tell(self, key: str) -> None:
        """Note a change."""
        if key.startswith(self.prefix):
            self.changed[key] = None
            self.wake.set()


class StoreService(Actor, Store):
    """The one owner of the values."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._leased: set[str] = set()
        self._watchers: set[Watcher] = set()

    async def get(self, key: str) -> bytes:
        if key not in self._values:
            raise NotFound(f"no key {key!r}")
        return self._values[key]

    async def put(self, key: str, value: bytes) -> None:
        if key in self._leased:
            raise InvalidState(f"{key!r} is leased")
        self._set(key, value)

    @asynccontextmanager
    async def lease(self, key: str, value: bytes) -> AsyncGenerator[None]:
        if key in self._values:
            raise AlreadyExists(f"{key!r} is taken")
        self._set(key, value)
        self._leased.add(key)
        try:
            yield
        finally:  # the holder left its block, failed, was cancelled, or is dead
            self._leased.remove(key)
            del self._values[key]
            self._tell(key)

    @stream
    async def watch(self, prefix: str) -> AsyncGenerator[Change]:
        watcher = Watcher(prefix)
        for key in self._values:
            watcher.tell(key)
        self._watchers.add(watcher)
        try:
            while True:
                while watcher.changed:
                    key = next(iter(watcher.changed))
                    del watcher.changed[key]
                    yield Change(key, self._values.get(key))
                watcher.wake = trio.Event()
                await watcher.wake.wait()
        finally:
            self._watchers.remove(watcher)

    def _set(self, key: str, value: bytes) -> None:
        if key not in self._values and len(self._values) == MOST_KEYS:
            raise Overloaded(f"there are {MOST_KEYS} keys already")
        self._values[key] = value
        self._tell(key)

    def _tell(self, key: str) -> None:
        for watcher in self._watchers:
            watcher.tell(key)


async def main(path: str) -> None:
    """Serve until interrupted."""
    async with open_service(StoreService(), at=path):
        print("serving", flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    try:
        trio.run(main, sys.argv[1])
    except KeyboardInterrupt:
        print("interrupted", flush=True)
