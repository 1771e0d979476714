"""Where a connection and its calls stand; the table of what leads where is in `machine`."""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable

from attrs import define


class State(enum.Enum):
    """The life of a connection."""

    OPENING = "opening"
    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"


class Outgoing(enum.Enum):
    """A call that this side made."""

    SENT = "sent"
    CANCELLING = "cancelling"
    ABANDONED = "abandoned"


@define(slots=True, eq=False)
class OutgoingScope:
    """What a scope that this side opened has beyond its state as a call."""

    opened: bool = False
    closing: bool = False


class Incoming(enum.Enum):
    """A call that the peer made."""

    RUNNING = "running"
    CANCELLED = "cancelled"


@define(slots=True, eq=False)
class IncomingCall:
    """A call that the peer made and that has no terminal yet."""

    state: Incoming
    sender: Hashable
    scope: bool = False
    opened: bool = False
    closing: bool = False


def no_buffer(size: int) -> memoryview | None:
    """Return none: the parts of each frame are joined."""


@define
class Budget:
    """Bytes of partly received frames that several connections share."""

    limit: int
    used: int = 0
    buffer: Callable[[int], memoryview | None] = no_buffer
    """Returns room for a large frame of so many bytes, if there is some ready."""

    def change(self, by: int) -> bool:
        """Take or give back bytes; False when there are not enough."""
        if by > 0 and self.used + by > self.limit:
            return False
        self.used += by
        return True
