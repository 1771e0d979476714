"""Errors inside exception groups, which nurseries make of what several tasks raise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import trio


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Iterate over the errors of a group, however nested; another error is its own leaf."""
    if isinstance(error, BaseExceptionGroup):
        for inner in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from leaves(inner)
    else:
        yield error


def single(error: BaseException) -> BaseException:
    """Return the one error of a group, cancellations left out; the group if it has several."""
    found = [leaf for leaf in leaves(error) if not isinstance(leaf, trio.Cancelled)]
    return found[0] if len(found) == 1 else error
