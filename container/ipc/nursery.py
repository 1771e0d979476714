"""Nurseries whose failures are not wrapped: one that ends with its block, and steps together."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from container.ipc.error_groups import single


@asynccontextmanager
async def ended_with_block() -> AsyncGenerator[trio.Nursery]:
    """Hold a nursery whose tasks are cancelled when the block ends, however it ends.

    Raises:
        BaseExceptionGroup: what its tasks raised; what the block raised with it, if it did. What
            the block alone raised is raised as it is.
    """
    # Carried around the nursery, which would wrap it in a group. A cancellation is not: it may be
    # the nursery's own.
    raised: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except trio.Cancelled:
                raise
            except BaseException as error:
                raised = error
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if raised is None:
            raise
        raise BaseExceptionGroup(group.message, [raised, *group.exceptions]) from None
    if raised is not None:
        raise raised


async def together(*steps: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Run steps beside each other and return their results in order.

    The first failure cancels the rest and is raised as it is, not in a group.
    """
    results: list[Any] = [None] * len(steps)

    async def run(index: int, step: Callable[[], Awaitable[Any]]) -> None:
        results[index] = await step()

    try:
        async with trio.open_nursery() as nursery:
            for index, step in enumerate(steps):
                nursery.start_soon(run, index, step)
    except BaseExceptionGroup as group:
        raise single(group) from None
    return results
