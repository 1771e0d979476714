"""Do one thing to many containers or images: at once, told in the order of their names."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

AT_ONCE = 16
"""So many at a time."""


async def gather(
    names: Sequence[str], action: Callable[[str], Awaitable[T]]
) -> list[T | Exception]:
    """Return what the action returned for each name, or the error that it raised."""
    import trio

    from container.ipc import ContainerError

    limit = trio.CapacityLimiter(AT_ONCE)
    results: list[T | Exception] = [RuntimeError("not done")] * len(names)

    async def act(place: int, name: str) -> None:
        async with limit:
            try:
                results[place] = await action(name)
            except (ContainerError, trio.TooSlowError) as error:
                results[place] = error

    async with trio.open_nursery() as nursery:
        for place, name in enumerate(names):
            nursery.start_soon(act, place, name)
    return results


async def each(names: Sequence[str], action: Callable[[str], Awaitable[str]]) -> None:
    """Print what the action returns for each name; the errors are raised when all are done."""
    results = await gather(names, action)
    for result in results:
        if not isinstance(result, Exception):
            print(result)
    raise_errors(results)


def raise_errors(results: Sequence[object]) -> None:
    """Raise the errors among results, as one or as a group."""
    errors = [result for result in results if isinstance(result, Exception)]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup("some failed", errors)
