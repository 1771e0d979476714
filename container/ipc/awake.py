"""Stay awake for a moment where messages have been coming faster than a sleeping core wakes.

To wake a core that sleeps costs its waker a system call of tens of microseconds, and the sleeper as
much again before its first instruction; in a virtual machine it is an exit to the host on each
side. Of a small call between two idle cores that is nearly half. So a loop that has nothing to
do, and whose last few waits were all short, first looks again and again whether a message is there,
and sleeps only after that. The kernel's own `haltpoll` decides in the same way, for the same time.

What it costs is bounded: it looks for at most 200 µs at a time (`stay_awake` sets another time, or
none), it lets any other process of the core run between two looks, and each time that nothing came
in time doubles how many short waits it must see before it tries again. A service that is called now
and then never does it, and neither does a process that has one core: there the peer can't run
meanwhile.

Trio's own order of things stays as it is: it happens inside Trio's wait for I/O, when no task can
run, and no deadline passes meanwhile.
"""

from __future__ import annotations

import os
import select
import time

import trio

SHORT_WAITS = 3
"""So many short waits in a row, and the next may be spent awake."""
MOST_SHORT_WAITS = 1024
"""So many when waiting awake was in vain again and again."""
_nanoseconds = 200_000


class StayAwake(trio.abc.Instrument):
    """Waits awake, for one Trio run.

    Args:
        nanoseconds: What is a short wait, and the longest that is waited awake.
    """

    def __init__(self, nanoseconds: int) -> None:
        self._short = nanoseconds
        self._epoll = select.epoll()
        self._connections = 0
        self._row = 0
        self._needed = SHORT_WAITS
        self._began = 0
        self._awake = False

    def add(self, descriptor: int) -> None:
        """Look at one more connection's socket; the first begins it all."""
        self._epoll.register(descriptor, select.EPOLLIN)
        if not self._connections:
            trio.lowlevel.add_instrument(self)
        self._connections += 1

    def remove(self, descriptor: int) -> bool:
        """Look at a socket no more, which must still be open; True if it was the last one."""
        self._epoll.unregister(descriptor)
        self._connections -= 1
        if not self._connections:
            trio.lowlevel.remove_instrument(self)
            self._epoll.close()
        return not self._connections

    def before_io_wait(self, timeout: float) -> None:
        """Wait awake, if that is likely to be worth it. Source: Trio's `Instrument`."""
        if timeout <= 0:
            self._began = 0
            return
        now = time.perf_counter_ns
        began = self._began = now()
        self._awake = self._row >= self._needed
        if not self._awake:
            return
        end = began + min(self._short, int(min(timeout, 1.0) * 1e9))
        look, let_others_run = self._epoll.poll, os.sched_yield
        while not look(0, 1) and now() < end:
            let_others_run()

    def after_io_wait(self, timeout: float) -> None:
        """Learn from how long the wait was. Source: Trio's `Instrument`."""
        if not self._began:
            return
        if time.perf_counter_ns() - self._began < self._short:
            self._row += 1
            if self._awake and self._needed > SHORT_WAITS:
                self._needed //= 2
        else:
            self._row = 0
            if self._awake:
                self._needed = min(2 * self._needed, MOST_SHORT_WAITS)


of_run = trio.lowlevel.RunVar[StayAwake | None]("container.ipc.awake", default=None)
"""What a Trio run waits awake with, while it has connections."""


def stay_awake(seconds: float) -> None:
    """Set how long loops of this process wait awake for the next message, before they sleep.

    It is done only where the last few waits were shorter than that, and never in a process that may
    use one core only. Trio runs that have a connection already keep what they have.

    Args:
        seconds: At most so long at a time; 0 for never. At first 0.0002.
    """
    global _nanoseconds
    _nanoseconds = int(seconds * 1e9)


def add(descriptor: int | None) -> StayAwake | None:
    """Let this Trio run wait awake for the messages of one connection more.

    Args:
        descriptor: The connection's socket; None if it has none.

    Returns:
        What is to be told before the socket is closed; None if nothing is.
    """
    if descriptor is None or _nanoseconds <= 0 or len(os.sched_getaffinity(0)) < 2:
        return None
    awake = of_run.get()
    if awake is None:
        awake = StayAwake(_nanoseconds)
        of_run.set(awake)
    awake.add(descriptor)
    return awake


def remove(awake: StayAwake | None, descriptor: int | None) -> None:
    """Take back one `add`; the socket must still be open."""
    if awake is not None and descriptor is not None and awake.remove(descriptor):
        of_run.set(None)
