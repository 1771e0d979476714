"""What a handler may ask about the call that it serves, and how it may outlive it.

`current_call()` is the call that the running task serves; tasks that it starts are part of it.
"""

from __future__ import annotations

import contextvars
import math
from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager
from types import TracebackType

import trio
from attrs import define

from container.ipc.peer import Peer
from container.ipc.timers import Timer


@define(slots=True, eq=False)
class Handling:
    """One call that this process serves."""

    id: int
    route: str
    sender: Hashable
    peer: Peer
    """Who sent the call, from the kernel."""
    grace: float
    """Seconds that its caller waits for its end after a cancellation."""
    scope: trio.CancelScope
    """Holds the caller's deadline; once the call has ended, one that ends nothing."""
    at_end: set[Callable[[], None]]
    """Called once when the connection that the call came on ends; must not block or raise."""
    detached: set[trio.CancelScope] | None = None
    """The scopes of its detached blocks, once it has one."""
    began: float = 0.0
    """Trio time at which it arrived; taken only while somebody watches."""
    cancelled: bool = False
    """The caller has sent a cancel."""
    overstayed: bool = False
    closing: trio.Event | None = None
    """Of a scope: set when its holder leaves."""
    failed: float | None = None
    """Of a scope whose holder's block failed: how many seconds its clean-up may take."""
    timer: Timer | None = None
    """What notes that it overstays its caller's grace."""
    over: bool = False
    """Nothing may go on: cancelled, its connection ended, or the server stops."""

    @property
    def deadline(self) -> float:
        """Trio time by which the caller wants the answer; infinite if it has no deadline."""
        return self.scope.deadline

    def cancel(self) -> None:
        """End the handler, detached blocks included."""
        self.scope.cancel()
        self.cancel_detached()

    def cancel_detached(self) -> None:
        """End the detached blocks; those that begin later end at once."""
        self.over = True
        for scope in tuple(self.detached or ()):
            scope.cancel()


ENDED = trio.CancelScope()
"""The scope of a call that has ended: its own may be another call's by then."""


class Turn:
    """The scope of the calls that one task serves, one after the other.

    Entering a cancel scope and leaving it costs several microseconds a call. A scope that was
    not cancelled while a call ran in it is as good as new: it stays entered for the next call. An
    error is let out through it, as through any scope, and the next call gets another.
    """

    __slots__ = ("_entered", "_scope")

    def __init__(self) -> None:
        self._entered = False
        self._scope = trio.CancelScope()

    def until(self, deadline: float) -> trio.CancelScope:
        """Return the scope of the next call."""
        if not self._entered:
            self._scope = trio.CancelScope(deadline=deadline)
        elif deadline != math.inf:
            self._scope.deadline = deadline
        return self._scope

    @trio.lowlevel.enable_ki_protection
    def __enter__(self) -> None:
        if not self._entered:
            self._scope.__enter__()
            self._entered = True

    @trio.lowlevel.enable_ki_protection
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        scope = self._scope
        if error is None and not scope.cancel_called:
            if scope.deadline != math.inf:
                scope.deadline = math.inf
            return None
        self._entered = False
        return scope.__exit__(kind, error, traceback)

    def close(self) -> None:
        """Leave the scope that is kept, in the task that entered it, which has no call now."""
        if self._entered:
            self._entered = False
            self._scope.__exit__(None, None, None)


_handling: contextvars.ContextVar[Handling | None] = contextvars.ContextVar(
    "handling", default=None
)

HOP_SHARE = 0.8
"""Each hop passes on this share of the grace that it got, so that the far end gives up first."""


def current_call() -> Handling:
    """Return the call that the running task serves.

    Raises:
        LookupError: the task serves none.
    """
    handling = _handling.get()
    if handling is None:
        raise LookupError("this task serves no call")
    return handling


def enter(handling: Handling) -> None:
    """Make a call the running task's own."""
    _handling.set(handling)


def grace_of_task(default: float) -> float:
    """Return how many seconds a call made by this task waits after its cancellation."""
    handling = _handling.get()
    return default if handling is None else min(default, handling.grace * HOP_SHARE)


@contextmanager
def detached(deadline: float) -> Generator[trio.CancelScope]:
    """Let a block of a handler go on when its caller's deadline passes.

    It ends at its own deadline, and at once by an explicit cancel, the connection's end or the
    server's shutdown. Outside a handler it is a shielded scope.

    Args:
        deadline: Seconds from now.
    """
    if not math.isfinite(deadline):
        raise ValueError("a detached block needs a finite deadline")
    handling = _handling.get()
    with trio.CancelScope(shield=True, deadline=trio.current_time() + deadline) as scope:
        if handling is None:
            yield scope
            return
        scopes = handling.detached = handling.detached or set[trio.CancelScope]()
        scopes.add(scope)
        if handling.over:
            scope.cancel()
        try:
            yield scope
        finally:
            scopes.discard(scope)
