"""The timers of one connection, in one task: what nearly always comes too late costs no task.

A cancelled call bounds the wait for its acknowledgement, at both ends, by the grace. The
acknowledgement comes at once, nearly always, and the timer has nothing to do when its time comes.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable

import trio


class Timers:
    """Call functions at their time.

    Args:
        start: Called when there is a timer for the first time: `run` is needed from then on.
    """

    def __init__(self, start: Callable[[], None]) -> None:
        self._start = start
        self._started = False
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._until = -math.inf
        """When the task wakes next; it looks again at once before it first waits."""
        self._changed = trio.Event()

    def __len__(self) -> int:
        return len(self._due)

    def after(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a function in so many seconds; it must neither wait nor raise."""
        deadline = trio.current_time() + seconds
        heapq.heappush(self._due, (deadline, next(self._order), function))
        if not self._started:
            self._started = True
            self._start()
        elif deadline < self._until:
            self._changed.set()

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Call what is due until cancelled."""
        while True:
            now = trio.current_time()
            while self._due and self._due[0][0] <= now:
                heapq.heappop(self._due)[2]()
            self._until = self._due[0][0] if self._due else math.inf
            self._changed = trio.Event()
            with trio.move_on_at(self._until):
                await self._changed.wait()
