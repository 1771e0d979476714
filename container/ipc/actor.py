"""`Actor`: the owner of some state, as an async context manager with a nursery of its own.

An actor's state changes only inside its methods. Methods run concurrently, as Trio tasks, so a
`wait()` never blocks a `kill()`; what must be exclusive takes the actor's lock for that entity, by
name: `async with self.exclusive(container_id):`. An actor never sees a message.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Self

import trio
from attrs import define, field, frozen


@define
class _KeyLock:
    lock: trio.Lock = field(factory=trio.Lock)
    users: int = 0


@frozen
class ActorStatistics:
    """A look at a running actor."""

    tasks: int
    """Background tasks in the actor's nursery."""
    held_keys: tuple[str, ...]
    """Entities whose exclusive section is held or waited for."""


class Actor:
    """Base of services: start-up and tear-down are a scope, background tasks live in `nursery`.

    Override `lifespan` to hold resources: what is before its `yield` runs at start, what is after
    it at the end, when the nursery's tasks have been cancelled and have ended.
    """

    _nursery: trio.Nursery | None = None
    _stack: AsyncExitStack | None = None

    @property
    def is_open(self) -> bool:
        """True between the actor's start and its end."""
        return self._stack is not None

    @property
    def nursery(self) -> trio.Nursery:
        """Where this actor's background tasks live.

        Raises:
            RuntimeError: the actor is not open.
        """
        if self._nursery is None:
            raise RuntimeError(f"{type(self).__name__} is not open: use `async with`")
        return self._nursery

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        """Hold what the actor needs while it lives. The base holds nothing."""
        yield

    @asynccontextmanager
    async def exclusive(self, key: str) -> AsyncGenerator[None]:
        """Hold the section of one entity; sections of other keys are not delayed.

        Cancellation while waiting leaves nothing behind.
        """
        locks = self.__dict__.setdefault("_key_locks", {})
        entry: _KeyLock = locks.setdefault(key, _KeyLock())
        entry.users += 1
        try:
            async with entry.lock:
                yield
        finally:
            entry.users -= 1
            if entry.users == 0 and locks.get(key) is entry:
                del locks[key]

    def statistics(self) -> ActorStatistics:
        """Return a frozen look at tasks and locks."""
        locks = self.__dict__.get("_key_locks", {})
        tasks = len(self._nursery.child_tasks) if self._nursery is not None else 0
        return ActorStatistics(tasks=tasks, held_keys=tuple(sorted(locks)))

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.lifespan())
            self._nursery = await stack.enter_async_context(_cancelled_at_exit())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        stack, self._stack = self._stack, None
        assert stack is not None
        try:
            return await stack.__aexit__(kind, error, traceback)
        finally:
            self._nursery = None


@asynccontextmanager
async def _cancelled_at_exit() -> AsyncGenerator[trio.Nursery]:
    # What the block raises is carried around the nursery, which would wrap it in a group. A
    # cancellation is not: it may be the nursery's own.
    raised: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except trio.Cancelled:
            raise
        except BaseException as error:
            raised = error
        finally:
            nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised
