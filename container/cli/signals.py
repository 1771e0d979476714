"""What a signal to the CLI means while it runs a container's process.

| while | INT, TERM, HUP, QUIT | USR1, USR2 | WINCH |
|---|---|---|---|
| nothing has been started | end; what was made is removed | nothing | nothing |
| being started | kept for the process; three INT or TERM in a row: end | kept | nothing |
| attached, terminal not raw | passed on; three INT or TERM in a row: end | passed on | new size |
| attached, terminal raw | end, terminal restored; its keys go on as bytes | passed on | new size |

When the CLI ends so, the container goes on.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
USER = (signal.SIGUSR1, signal.SIGUSR2)
TERMINAL = (signal.SIGWINCH, signal.SIGCONT)
IMPATIENCE = 3
"""So many INT or TERM in a row end the CLI."""
FORWARDING = 10.0
"""Seconds that passing a signal on may take."""


class SignalRelay:
    """Turns each signal into what it means at the moment."""

    def __init__(self, scope: trio.CancelScope) -> None:
        self._scope = scope
        self._kill: Callable[[str], Awaitable[None]] | None = None
        self._resize: Callable[[], Awaitable[None]] | None = None
        self._raw = False
        self._row = 0
        self._kept: list[signal.Signals] | None = None
        self._nursery: trio.Nursery | None = None
        self.ended_by: int | None = None
        """The signal that ended the CLI."""

    def starting(self) -> None:
        """Keep signals from now on: the process may run before we have heard that it does."""
        self._kept = []

    def attached(
        self,
        kill: Callable[[str], Awaitable[None]],
        resize: Callable[[], Awaitable[None]] | None,
        *,
        raw: bool,
    ) -> None:
        """Pass signals on from now on."""
        self._kill, self._resize, self._raw = kill, resize, raw
        kept, self._kept = self._kept or [], None
        if self._nursery is not None:
            for number in kept:
                self._mean(number, self._nursery)

    async def relay(self, signals: AsyncIterator[int]) -> None:
        """Handle signals for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            async for number in signals:
                self._handle(signal.Signals(number), nursery)

    def _handle(self, number: signal.Signals, nursery: trio.Nursery) -> None:
        if number in TERMINAL:
            if self._resize is not None:
                nursery.start_soon(_bounded, self._resize)
            return
        self._row = self._row + 1 if number in (signal.SIGINT, signal.SIGTERM) else 0
        if self._kept is not None and self._row < IMPATIENCE:
            self._kept.append(number)
        else:
            self._mean(number, nursery)

    def _mean(self, number: signal.Signals, nursery: trio.Nursery) -> None:
        ending = self._kill is None or self._raw or self._row >= IMPATIENCE
        if number in ENDING and ending:
            self.ended_by = number
            self._scope.cancel()
        elif self._kill is not None:
            kill = self._kill
            nursery.start_soon(_bounded, lambda: kill(number.name))


async def _bounded(action: Callable[[], Awaitable[None]]) -> None:
    from container.ipc import ContainerError

    # The process may have ended meanwhile; whoever waits for it notices a helper that is gone.
    with trio.move_on_after(FORWARDING):
        try:
            await action()
        except ContainerError:
            pass


@asynccontextmanager
async def relayed_signals() -> AsyncGenerator[SignalRelay]:
    """Catch signals while the block lasts.

    A signal that ends the CLI cancels the block, which then ends without an exception: `ended_by`
    tells.
    """
    with trio.open_signal_receiver(*ENDING, *USER, *TERMINAL) as signals:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                relay = SignalRelay(scope)
                nursery.start_soon(relay.relay, signals)
                yield relay
            nursery.cancel_scope.cancel()
