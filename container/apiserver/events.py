"""What happens to containers, told to whoever listens.

The last events are remembered, so that a subscriber may begin in the past. Each subscriber has a
bounded row of its own: one that reads too slowly loses its oldest events and is told how many, and
neither this server nor another subscriber waits for it.

Nothing here is on disk: what happened before this API server started is not remembered. Sequence
numbers begin with the time, so that they grow from one API server to the next.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import contextmanager
from datetime import datetime

import trio
from attrs import define, evolve, field

from container.contracts.apiserver import Container, Event, EventFilter, EventKind
from container.ipc import stream

REMEMBERED = 1024
"""Events that a subscriber may still ask for."""
WAITING = 1024
"""Events that may wait for one subscriber."""


@define(eq=False)
class Subscriber:
    """Who listens: what it wants, and what waits for it."""

    wanted: EventFilter
    left: float = math.inf
    """Seconds from its beginning to its end."""
    waiting: deque[Event] = field(factory=deque[Event])
    missed: int = 0
    woken: trio.Event = field(factory=trio.Event)

    def offer(self, event: Event) -> None:
        """Take an event if it is wanted; never waits."""
        if not _wants(self.wanted, event):
            return
        if len(self.waiting) == WAITING:
            self.waiting.popleft()
            self.missed += 1
        self.waiting.append(event)
        self.woken.set()

    @stream
    async def events(self) -> AsyncGenerator[Event]:
        """Stream what waits and what comes, until its time is over."""
        end = trio.current_time() + self.left
        while True:
            while self.waiting:
                event = self.waiting.popleft()
                missed, self.missed = self.missed, 0
                yield evolve(event, missed=missed) if missed else event
            self.woken = trio.Event()
            with trio.CancelScope(deadline=end) as bound:
                await self.woken.wait()
            if bound.cancelled_caught:
                return


class EventLog:
    """Remember events, and hand them to subscribers.

    Args:
        clock: Says the time.
    """

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._next = int(clock().timestamp() * 1_000_000)
        self._remembered: deque[Event] = deque(maxlen=REMEMBERED)
        self._subscribers: set[Subscriber] = set()

    @property
    def followed(self) -> bool:
        """Whether anybody listens."""
        return bool(self._subscribers)

    def publish(
        self,
        kind: EventKind,
        container: Container,
        time: datetime | None = None,
        **attributes: str,
    ) -> None:
        """Tell that something happened; `time` is when, None is now."""
        event = Event(
            sequence=self._next,
            time=time or self._clock(),
            kind=kind,
            container=container.id,
            name=container.name,
            image=container.image,
            attributes=attributes,
        )
        self._next += 1
        self._remembered.append(event)
        for subscriber in self._subscribers:
            subscriber.offer(event)

    @contextmanager
    def subscribed(self, wanted: EventFilter) -> Generator[Subscriber]:
        """Subscribe while the block runs: remembered events first, if wanted, then all new ones."""
        left = math.inf
        if wanted.until is not None:
            left = max(0.0, (wanted.until - self._clock()).total_seconds())
        subscriber = Subscriber(wanted, left)
        if wanted.since is not None or wanted.after is not None:
            for event in self._remembered:
                subscriber.offer(event)
        self._subscribers.add(subscriber)
        try:
            yield subscriber
        finally:
            self._subscribers.discard(subscriber)


def _wants(wanted: EventFilter, event: Event) -> bool:
    if wanted.kinds and event.kind not in wanted.kinds:
        return False
    if wanted.since is not None and event.time < wanted.since:
        return False
    if wanted.until is not None and event.time > wanted.until:
        return False
    if wanted.after is not None and event.sequence <= wanted.after:
        return False
    return not wanted.containers or any(
        named == event.name or (named and event.container.startswith(named))
        for named in wanted.containers
    )
