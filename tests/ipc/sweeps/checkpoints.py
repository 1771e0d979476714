"""Run an operation again and again, cancelled at its first, second, ... last checkpoint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

MOST = 500
"""An operation with more checkpoints does not end."""


class _CancelAt(trio.abc.Instrument):
    """Cancel a scope when a task has taken so many steps: its next checkpoint is where it lands."""

    def __init__(self, task: trio.lowlevel.Task, steps: int, scope: trio.CancelScope) -> None:
        self._task = task
        self._left = steps
        self._scope = scope

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


async def at_every_checkpoint(
    operation: Callable[[], Awaitable[object]], check: Callable[[int], Awaitable[None]]
) -> int:
    """Cancel `operation` at each of its checkpoints in turn, and check what is left after each.

    Returns:
        How many checkpoints it has.
    """
    for number in range(1, MOST):
        with trio.CancelScope() as scope:
            instrument = _CancelAt(trio.lowlevel.current_task(), number, scope)
            trio.lowlevel.add_instrument(instrument)
            try:
                await operation()
            finally:
                trio.lowlevel.remove_instrument(instrument)
        await check(number)
        if not scope.cancel_called:
            return number
    raise AssertionError(f"more than {MOST} checkpoints")
