"""A nursery whose tasks end with its block, and whose block may fail without being wrapped."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio


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
