"""Work that takes a while, bounded in all and for each client, and fair between them.

A client that asks for much waits for itself: whenever work ends, the next is that of the client
with the least under way, and among those the one whose last turn is the longest ago.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable

import trio
from attrs import define, field

_log = logging.getLogger(__name__)

Work = Callable[[], Awaitable[None]]


@define
class _Line:
    active: int = 0
    last: int = 0
    """Number of its last turn."""
    waiting: deque[Work] = field(factory=deque[Work])


class Turns:
    """Starts work in a nursery of the caller's.

    Args:
        nursery: Where the work runs; what it raises is logged and ends nothing.
        most: Pieces of work under way.
        most_each: Of one client.
        most_waiting: Of one client, beside those.
    """

    def __init__(
        self, nursery: trio.Nursery, *, most: int, most_each: int, most_waiting: int
    ) -> None:
        self._nursery = nursery
        self._most = most
        self._most_each = most_each
        self._most_waiting = most_waiting
        self._lines: dict[str, _Line] = {}
        self._hungry: dict[str, _Line] = {}
        self._turn = 0
        self.active = 0
        """Pieces of work under way."""

    @property
    def waiting(self) -> int:
        """Pieces of work that wait."""
        return sum(len(line.waiting) for line in self._hungry.values())

    def offer(self, client: str, work: Work) -> bool:
        """Start work when it is its turn; False if too much of the client's waits already."""
        line = self._lines.setdefault(client, _Line())
        if len(line.waiting) >= self._most_waiting:
            return False
        line.waiting.append(work)
        self._hungry[client] = line
        self._fill()
        return True

    def _fill(self) -> None:
        while self.active < self._most:
            ready = [
                (line.active, line.last, client)
                for client, line in self._hungry.items()
                if line.active < self._most_each
            ]
            if not ready:
                return
            client = min(ready)[2]
            line = self._hungry[client]
            work = line.waiting.popleft()
            if not line.waiting:
                del self._hungry[client]
            self._turn += 1
            line.last = self._turn
            line.active += 1
            self.active += 1
            self._nursery.start_soon(self._run, client, line, work)

    async def _run(self, client: str, line: _Line, work: Work) -> None:
        try:
            await work()
        except Exception:
            _log.exception("could not answer a query")
        finally:
            line.active -= 1
            self.active -= 1
            if not line.active and not line.waiting:
                self._lines.pop(client, None)
            self._fill()
