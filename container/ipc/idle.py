"""Idle exit: end a scope once nothing has been in flight for a while.

```python
idle = IdleTimer(300)
async with open_service(service, at=listener, idle=idle):
    await trio.sleep_forever()      # ended when idle; the next caller starts it again
```

A service's calls and scopes count by themselves; whatever else is work is done inside
`with idle.busy():`.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager

import trio
from attrs import frozen


@frozen
class IdleStatistics:
    """A look at an idle timer."""

    in_flight: int
    idle_seconds: float
    """How long nothing has been in flight; 0 while something is."""


class IdleTimer:
    """Know how long nothing has been in flight. Make it inside a Trio run.

    Args:
        seconds: How long that must last for `wait` to return.
    """

    def __init__(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"an idle time of {seconds} s is negative")
        self._seconds = seconds
        self._in_flight = 0
        self._since = trio.current_time()
        self._changed = trio.Event()

    @contextmanager
    def busy(self) -> Generator[None]:
        """Count the block as in flight. Blocks may overlap and nest."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def begin(self) -> None:
        """Count one thing more as in flight, until `end`."""
        self._in_flight += 1

    def end(self) -> None:
        """What began is in flight no more."""
        self._in_flight -= 1
        if not self._in_flight:
            self._since = trio.current_time()
            changed, self._changed = self._changed, trio.Event()
            changed.set()

    async def wait(self) -> None:
        """Wait until nothing has been in flight for the whole time.

        There is no checkpoint between the last look and the return: what the caller does before its
        next checkpoint happens while nothing is in flight.
        """
        await trio.lowlevel.checkpoint()
        while self._in_flight or trio.current_time() < self._since + self._seconds:
            until = math.inf if self._in_flight else self._since + self._seconds
            with trio.move_on_at(until):
                await self._changed.wait()

    def statistics(self) -> IdleStatistics:
        """Return a frozen look."""
        idle = 0.0 if self._in_flight else trio.current_time() - self._since
        return IdleStatistics(self._in_flight, idle)
