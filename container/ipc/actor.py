"""`Actor`: the owner of some state, as an async context manager with a nursery of its own.

An actor's state changes only inside its methods. Methods run concurrently, as Trio tasks, so a
`wait()` never blocks a `kill()`; what must be exclusive takes the actor's lock for that entity, by
name: `async with self.exclusive(container_id):`. An actor never sees a message.

What an actor is looked at with is a function, `actor_statistics(actor)`: the names of a service
belong to its contracts. The few that the base takes itself can't be routes.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, Self

import trio
from attrs import frozen

from container.ipc.contract import Contract, ContractError, contracts_of
from container.ipc.nursery import ended_with_block
from container.ipc.sections import WAITERS, Sections, SectionStatistics

_TAKEN = frozenset({"is_open", "nursery", "lifespan", "begin", "exclusive"})


@frozen
class ActorStatistics:
    """A look at an actor."""

    is_open: bool
    tasks: int
    """Background tasks in the actor's nursery."""
    sections: tuple[SectionStatistics, ...]
    """Entities whose exclusive section is held or waited for."""


class Actor:
    """Base of services: start-up and tear-down are a scope, background tasks live in `nursery`.

    Override `lifespan` to hold resources: what is before its `yield` runs at start, what is after
    it at the end, when the nursery's tasks have been cancelled and have ended. Override `begin` to
    start tasks.
    """

    _nursery: trio.Nursery | None = None
    _stack: AsyncExitStack | None = None

    def __init_subclass__(cls, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        for contract in contracts_of(cls) if issubclass(cls, Contract) else ():
            if hidden := _TAKEN & vars(contract).keys():
                raise ContractError(
                    f"{contract.contract_name}/{min(hidden)} can't be served by an actor: "
                    f"{cls.__name__}.{min(hidden)} is the actor's own"
                )

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

    async def begin(self) -> None:
        """Do what needs the nursery, last in the start-up. The base does nothing.

        If it fails or is cancelled, the actor ends as if its block had.
        """

    def exclusive(
        self, key: str, *, within: float = math.inf, waiters: int = WAITERS
    ) -> AbstractAsyncContextManager[None]:
        """Be alone in the section of one entity; sections of other keys are not delayed.

        The wait is bounded by `within` and, in a call that is served, by its caller's deadline,
        less a moment for the answer. Cancelled or refused, nothing was changed.

        Args:
            key: The entity.
            within: Seconds to wait at most.
            waiters: How many may wait already.

        Raises:
            Overloaded: the section did not become free in time, or too many wait for it; it says
                who holds it, and for how long.
        """
        return _sections_of(self).hold(key, within=within, waiters=waiters)

    async def __aenter__(self) -> Self:
        try:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(self.lifespan())
                self._nursery = await stack.enter_async_context(ended_with_block())
                await self.begin()
                self._stack = stack.pop_all()
        except BaseException:
            self._nursery = None
            raise
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


def actor_statistics(actor: Actor) -> ActorStatistics:
    """Return a frozen look at an actor: its tasks, and who holds and awaits its sections."""
    nursery = actor._nursery  # pyright: ignore[reportPrivateUsage]
    return ActorStatistics(
        is_open=actor.is_open,
        tasks=0 if nursery is None else len(nursery.child_tasks),
        sections=_sections_of(actor).statistics(),
    )


def _sections_of(actor: Actor) -> Sections:
    # Made when first used: subclasses have `__init__`s of their own, which need not call ours.
    return actor.__dict__.setdefault("_sections", Sections())
