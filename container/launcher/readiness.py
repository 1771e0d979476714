"""One life of a service: is it ready, what does it say of itself, by when must it say more.

| phase | begins | must say | within |
|---|---|---|---|
| starting | its process runs, and the unit says `Ready.NOTIFY` | `READY=1` | `start_timeout` |
| ready | `READY=1`; for `Ready.STARTED` at once | `WATCHDOG=1`, again and again | `watchdog` |
| stopping | `STOPPING=1` | nothing more, and end | `stop_timeout` |

`EXTEND_TIMEOUT_USEC` moves the end of the first and the last. What is not said in time is a reason
to kill the process; who does so is the supervision. Nothing here knows processes.

Source: sd_notify(3), systemd.service(5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import trio
from attrs import define, field

from container.contracts.launcher import Ready, ServiceUnit
from container.ipc import ContainerError

LATE = 1.0
"""Seconds after which a timer that wakes late says that this process was frozen itself."""
EXTENSION_BOUND = 3600.0
SAID_BOUND = 200
"""Characters of a status that are kept."""


@define(eq=False)
class Life:
    """What one process of a service has said; made before there is the process."""

    unit: ServiceUnit
    ready: bool = False
    stopping: bool = False
    said: str = ""
    """Its own word on what it does (`STATUS=`)."""
    decided: trio.Event = field(factory=trio.Event)
    """Set once it is ready, or will not be."""
    problem: ContainerError | None = None
    """Why it did not become ready."""
    verdict: str | None = None
    """Why its process was killed, if it was."""
    _ready_since: float = math.inf
    _due: float = math.inf
    _moved: trio.Event = field(factory=trio.Event)
    _triggered: bool = False

    @property
    def served(self) -> float:
        """Seconds since it became ready; 0 before."""
        return max(0.0, trio.current_time() - self._ready_since)

    def begin(self, *, ready: bool = False) -> None:
        """Its process runs; `ready` for one that was found running."""
        if ready or self.unit.ready is Ready.STARTED:
            self._become_ready()
        else:
            self._move(self.unit.start_timeout)

    def fail(self, problem: ContainerError) -> None:
        """It will not be ready, if it was not."""
        if not self.decided.is_set():
            self.problem = problem
            self.decided.set()

    def hear(self, fields: Mapping[str, str]) -> None:
        """Take what its process says. Fields that are not known here count for nothing."""
        if "STATUS" in fields:
            text = fields["STATUS"][:SAID_BOUND]
            self.said = "".join(c if c.isprintable() else " " for c in text)
        if fields.get("READY") == "1" and not self.ready:
            self._become_ready()
        if fields.get("STOPPING") == "1" and not self.stopping:
            self.stopping = True
            self._move(self.unit.stop_timeout)
        if fields.get("WATCHDOG") == "1" and self.ready and not self.stopping:
            self._move(self.unit.watchdog)
        if fields.get("WATCHDOG") == "trigger":
            self._triggered = True
            self._move(0)
        extension = fields.get("EXTEND_TIMEOUT_USEC", "")
        if extension.isascii() and extension.isdigit() and (self.stopping or not self.ready):
            until = trio.current_time() + min(int(extension) / 1e6, EXTENSION_BOUND)
            self._due = max(self._due, until)

    async def until_overdue(self) -> str:
        """Return the reason once something was not said in time."""
        while True:
            until, moved = self._due, self._moved
            with trio.move_on_at(until):
                await moved.wait()
                continue
            now = trio.current_time()
            if self._due > now:
                continue
            if now - until > LATE:
                # What it said meanwhile waits unread: it gets its time once more.
                self._move(self._span())
                continue
            return self._reason()

    def _become_ready(self) -> None:
        self.ready = True
        self._ready_since = trio.current_time()
        self.decided.set()
        self._move(self.unit.watchdog)

    def _move(self, seconds: float | None) -> None:
        """Set when something is due; without a number nothing is."""
        due = math.inf if seconds is None else trio.current_time() + seconds
        sooner, self._due = due < self._due, due
        if sooner:
            moved, self._moved = self._moved, trio.Event()
            moved.set()

    def _span(self) -> float | None:
        if self.stopping:
            return self.unit.stop_timeout
        return self.unit.watchdog if self.ready else self.unit.start_timeout

    def _reason(self) -> str:
        if self._triggered:
            return "it said itself that it hangs"
        if self.stopping:
            return f"it said that it stops and did not end within {self.unit.stop_timeout:g} s"
        if self.ready:
            return f"it gave no sign of life for {self.unit.watchdog:g} s"
        return f"it was not ready within {self.unit.start_timeout:g} s"
