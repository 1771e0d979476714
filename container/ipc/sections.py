"""Exclusive sections by key: what must not overlap for one entity, and delays no other.

Waiters of a key are served in the order in which they came. Nobody waits without an end that can be
told: whoever would wait too long, or in too long a row, gets `Overloaded`, which says that nothing
was done, who holds the section, and for how long already.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio
from attrs import define, field, frozen

from container.ipc import context
from container.ipc.errors import Overloaded

WAITERS = 256
"""How many may wait for one key; the next one is refused."""
ANSWER_SECONDS = 0.1
"""So much of a caller's time is left for the answer that its wait was in vain; at most a tenth of
what it had."""


@frozen
class SectionStatistics:
    """A look at the section of one key."""

    key: str
    holder: str
    """The task that is in it, and for a call the process that made it; empty between two."""
    held_seconds: float
    waiting: int


@define(eq=False)
class _Section:
    lock: trio.Lock = field(factory=trio.Lock)
    waiting: int = 0
    holder: str = ""
    since: float = 0.0

    @property
    def held_seconds(self) -> float:
        return trio.current_time() - self.since if self.holder else 0.0


class Sections:
    """The exclusive sections of one owner; those that nobody holds or wants take no room."""

    def __init__(self) -> None:
        self._sections: dict[str, _Section] = {}

    @asynccontextmanager
    async def hold(
        self, key: str, *, within: float = math.inf, waiters: int = WAITERS
    ) -> AsyncGenerator[None]:
        """Be alone in the section of a key while the block runs.

        The wait is bounded by `within` and, in a call that is served, by its caller's deadline,
        less a moment for the answer. A nearer deadline of a scope of one's own cancels as
        everywhere else. Cancelled or refused, nothing was changed.

        Args:
            key: The entity.
            within: Seconds to wait at most.
            waiters: How many may wait already.

        Raises:
            Overloaded: the section did not become free in time, or too many wait for it. `details`
                has key, holder, held_seconds and waiting.
            RuntimeError: this very task holds it.
        """
        section = self._sections.get(key)
        if section is None:
            section = self._sections[key] = _Section()
        section.waiting += 1
        try:
            await _enter(key, section, within, waiters)
        except BaseException:
            section.waiting -= 1
            self._forget(key, section)
            raise
        section.waiting -= 1
        section.holder = _describe_task()
        section.since = trio.current_time()
        try:
            yield
        finally:
            section.holder = ""
            section.lock.release()
            self._forget(key, section)

    def statistics(self) -> tuple[SectionStatistics, ...]:
        """Return a frozen look at the sections that are held or waited for, by key."""
        return tuple(
            SectionStatistics(key, section.holder, section.held_seconds, section.waiting)
            for key, section in sorted(self._sections.items())
        )

    def _forget(self, key: str, section: _Section) -> None:
        if not section.waiting and not section.lock.locked():
            del self._sections[key]


async def _enter(key: str, section: _Section, within: float, waiters: int) -> None:
    if not section.lock.locked():
        await section.lock.acquire()  # does not wait, and is a checkpoint
        return
    await trio.lowlevel.checkpoint_if_cancelled()
    if section.waiting > waiters:
        raise _busy(key, section, f"and {section.waiting - 1} wait for it already")
    until = min(_answer_time(), trio.current_time() + within)
    with trio.move_on_at(until) as patience:
        await section.lock.acquire()
    if patience.cancelled_caught:
        raise _busy(key, section, "and did not become free in time")


def _answer_time() -> float:
    """Return when a wait must end so that the caller of this call still gets an answer."""
    try:
        deadline = context.current_call().deadline
    except LookupError:
        return math.inf
    # Another deadline that is in force here is a nearer one, which cancels by itself; or this task
    # is no part of the call: the call merely started it, or it is detached.
    if not math.isfinite(deadline) or trio.current_effective_deadline() != deadline:
        return math.inf
    return deadline - min(ANSWER_SECONDS, (deadline - trio.current_time()) / 10)


def _busy(key: str, section: _Section, why: str) -> Overloaded:
    held = section.held_seconds
    holder = section.holder or "whoever came next"
    return Overloaded(
        f"{key!r} is busy: held by {holder} for {held:.1f} s, {why}",
        hint="nothing was done: try again when that has ended",
        details={
            "key": key,
            "holder": holder,
            "held_seconds": held,
            "waiting": section.waiting - 1,
        },
    )


def _describe_task() -> str:
    name = trio.lowlevel.current_task().name
    try:
        call = context.current_call()
    except LookupError:
        return name
    # A task that a call started may have outlived it: then the call is not who holds this.
    return name if call.over else f"{name} of process {call.peer.pid}"
