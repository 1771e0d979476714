"""What the store says: values by key, leases that end with their holder, a stream of changes."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractAsyncContextManager

from attrs import frozen
from trio.abc import ReceiveChannel

from container.ipc import Contract, idempotent


@frozen
class Change:
    """What a key has become."""

    key: str
    value: bytes | None
    """None: it is gone."""


class Store(Contract, name="store"):
    """Values by key."""

    @abstractmethod
    @idempotent
    async def get(self, key: str) -> bytes:
        """Return a value; NotFound if there is none."""

    @abstractmethod
    @idempotent
    async def put(self, key: str, value: bytes) -> None:
        """Set a value for good; InvalidState if the key is leased."""

    @abstractmethod
    def lease(self, key: str, value: bytes) -> AbstractAsyncContextManager[None]:
        """Have the key for the block: it is gone with its holder. AlreadyExists if it is taken."""

    @abstractmethod
    def watch(self, prefix: str) -> AbstractAsyncContextManager[ReceiveChannel[Change]]:
        """Stream what is there, then each change. Who reads slowly sees the last value of a key."""
