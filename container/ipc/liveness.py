"""Is the peer alive? Only a side that awaits an answer asks, so a stopped program is never cut off.

Any byte received is life. An expired ping counts only if this timer woke on time and the socket was
then read dry: otherwise it was this process that was frozen. Two in a row are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sized

import trio

LATE = 1.2
"""A timer that wakes after this many times its delay was frozen itself."""


class Liveness:
    """Ping a mute peer while something is awaited of it.

    Args:
        seconds: After this long without a byte the peer is lost.
        awaited: What is awaited of the peer; pings are sent while it is not empty.
        ping: Sends one.
        lose: Ends the connection.
        start: Called when something is awaited for the first time: `watch` is needed from then on.
    """

    def __init__(
        self,
        seconds: float,
        awaited: Sized,
        ping: Callable[[], None],
        lose: Callable[[str], None],
        start: Callable[[], None],
    ) -> None:
        self._seconds = seconds
        self._awaited = awaited
        self._ping = ping
        self._lose = lose
        self._start = start
        self._started = False
        self._idle = trio.lowlevel.ParkingLot()
        self.heard = False
        """Set by the reader at each read."""

    def begin(self) -> None:
        """Something is awaited now."""
        if self._idle:
            self._idle.unpark_all()
        elif not self._started:
            self._started = True
            self._start()

    @trio.lowlevel.enable_ki_protection
    async def watch(self) -> None:
        """Ping until the connection ends, or end it."""
        third = self._seconds / 3
        missed = 0
        pinged = False
        while True:
            if not self._awaited:
                missed, pinged = 0, False
                await self._idle.park()
                continue
            self.heard = False
            before = trio.current_time()
            await trio.sleep(third)
            late = trio.current_time() - before > third * LATE
            await trio.lowlevel.cancel_shielded_checkpoint()  # the reader reads what is there
            if self.heard or late:
                missed, pinged = 0, False
                continue
            if pinged:
                missed += 1
                if missed >= 2:
                    self._lose("unresponsive")
                    return
            self._ping()
            pinged = True
