"""Where a call stands, seen from its caller, and what ends it.

stage       on                            becomes
SENT        reply / error                 ended: the value, the error
SENT        withdrawn (no byte was sent)  ended: cancellation
SENT        scope cancelled               CANCELLING; a cancel frame goes out
SENT        deadline terminal             HELD until the caller's own scope fires
HELD        scope cancelled               ended: cancellation
HELD        grace over                    ended: the deadline error
CANCELLING  reply                         ended: the value, the work was done
CANCELLING  ended by our cancel           ended: cancellation
CANCELLING  another error                 ended: that error
CANCELLING  grace over                    ended, abandoned: cancellation
any         connection lost               ended: `PeerGone`, or cancellation if CANCELLING
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio
from attrs import define

from container.ipc.timers import Timer
from container.ipc.wire.events import ErrorReceived
from container.ipc.writing import Frame

if TYPE_CHECKING:
    from container.ipc.calling import Calls
    from container.ipc.scope import RemoteScope


class Stage(enum.Enum):
    """Where a call stands."""

    SENT = "sent"
    """Or waiting to be written: its frame knows."""
    HELD = "held"
    """A deadline terminal came before the caller's own deadline."""
    CANCELLING = "cancelling"


@define(slots=True, eq=False)
class Call:
    """A call that waits for its terminal frame."""

    calls: Calls
    """What it was made by."""
    id: int
    route: str
    task: trio.lowlevel.Task
    frame: Frame | None
    """What waits, or waited, to be written; None if all of it left at once."""
    grace: float
    """Seconds that its caller waits for its end after a cancellation."""
    stage: Stage = Stage.SENT
    raise_cancel: Callable[[], Any] | None = None
    """Raises the caller's cancellation, or its Ctrl-C; called once, last."""
    held: ErrorReceived | None = None
    scope: RemoteScope | None = None
    """What it opens."""
    timer: Timer | None = None
    """What ends the wait after a cancellation."""

    def abort(self, raise_cancel: Callable[[], Any]) -> trio.lowlevel.Abort:
        """End the wait for the terminal: the caller is cancelled."""
        return self.calls.abort(self, raise_cancel)
