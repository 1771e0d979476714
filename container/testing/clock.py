"""Hold the autojump clock while something is awaited that is outside the event loop.

Trio's `MockClock` with an autojump threshold jumps to the next deadline whenever no task can run. A
worker thread that reads a file is outside the loop: while it works nothing can run, and every
timeout would fire at once. Inside `hold_autojump_clock()` the clock does not jump while a worker
thread is active, so services that do their file work in threads can be tested as they are. Pipes
and sockets between tasks of one process need no such care: the kernel makes them readable before
the loop is idle.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager

import trio
import trio.testing


class _Hold(trio.abc.Instrument):
    """Set the threshold after each step of each task: threads begin and end only there."""

    def __init__(self, clock: trio.testing.MockClock) -> None:
        self._clock = clock
        self._threshold = clock.autojump_threshold
        self._held = False

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._set(trio.testing.active_thread_count() > 0)

    def _set(self, held: bool) -> None:
        if held != self._held:
            self._held = held
            self._clock.autojump_threshold = math.inf if held else self._threshold

    def release(self) -> None:
        self._set(False)


@contextmanager
def hold_autojump_clock() -> Generator[None]:
    """Keep an autojump clock from jumping while a worker thread is active.

    Does nothing under another clock, and may be nested.
    """
    clock = trio.lowlevel.current_clock()
    if not isinstance(clock, trio.testing.MockClock) or clock.autojump_threshold == math.inf:
        yield
        return
    hold = _Hold(clock)
    trio.lowlevel.add_instrument(hold)
    try:
        yield
    finally:
        trio.lowlevel.remove_instrument(hold)
        hold.release()
