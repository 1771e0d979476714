"""The timers of one connection, in one task: what nearly always comes too late costs no task.

A cancelled call bounds the wait for its acknowledgement, at both ends, by the grace. The
acknowledgement comes at once, nearly always, and the timer is dropped.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable

import trio
from attrs import define

PURGED = 64
"""More dropped timers than this, and than half of all, are cleared away at once."""


@define(slots=True, eq=False)
class Timer:
    """Something to be called at its time, unless it is dropped before."""

    function: Callable[[], None] | None
    timers: Timers

    def drop(self) -> None:
        """Do not call it; what it would have used is free from now on."""
        if self.function is not None:
            self.function = None
            self.timers.dropped()


class Timers:
    """Call functions at their time.

    Args:
        start: Called when there is a timer for the first time: `run` is needed from then on.
    """

    def __init__(self, start: Callable[[], None]) -> None:
        self._start = start
        self._started = False
        self._due: list[tuple[float, int, Timer]] = []
        self._dropped = 0
        self._order = itertools.count()
        self._until = -math.inf
        """When the task wakes next; it looks again at once before it first waits."""
        self._changed = trio.Event()

    def __len__(self) -> int:
        return len(self._due)

    def after(self, seconds: float, function: Callable[[], None]) -> Timer:
        """Call a function in so many seconds; it must neither wait nor raise."""
        deadline = trio.current_time() + seconds
        timer = Timer(function, self)
        heapq.heappush(self._due, (deadline, next(self._order), timer))
        if not self._started:
            self._started = True
            self._start()
        elif deadline < self._until:
            self._changed.set()
        return timer

    def dropped(self) -> None:
        """One of them was dropped."""
        self._dropped += 1
        if self._dropped > PURGED and 2 * self._dropped > len(self._due):
            self._due = [entry for entry in self._due if entry[2].function is not None]
            heapq.heapify(self._due)
            self._dropped = 0

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Call what is due until cancelled."""
        while True:
            now = trio.current_time()
            while self._due and self._due[0][0] <= now:
                timer = heapq.heappop(self._due)[2]
                function, timer.function = timer.function, None
                if function is None:
                    self._dropped -= 1
                else:
                    function()
            self._until = self._due[0][0] if self._due else math.inf
            self._changed = trio.Event()
            with trio.move_on_at(self._until):
                await self._changed.wait()
