"""What the machine says of what came: one class per thing that a connection must act on.

Descriptors in an event belong to whoever took the event.
"""

from __future__ import annotations

from collections.abc import Hashable

import msgspec
from attrs import define

from container.ipc.wire.frames import CallPayload, EndedBy, HelloPayload


@define(slots=True)
class HelloReceived:
    """The peer introduced itself; `compatible` is False when no common version exists."""

    payload: HelloPayload
    sender: Hashable
    compatible: bool


@define(slots=True)
class CallReceived:
    """The peer calls. `payload` is None when the body is no call: answer it with an error."""

    id: int
    payload: CallPayload | None
    descriptors: list[int]
    sender: Hashable


@define(slots=True)
class CallDropped:
    """The peer called after our goodbye: it is not started and not answered; close these."""

    id: int
    descriptors: list[int]


@define(slots=True)
class ReplyReceived:
    """A terminal with a value; `value` is None when the body is no value."""

    id: int
    value: msgspec.Raw | None
    descriptors: list[int]
    sender: Hashable
    abandoned: bool


@define(slots=True)
class ErrorReceived:
    """A terminal with an error; id 0 speaks of the connection."""

    id: int
    ended_by: EndedBy
    error: dict[str, object]
    sender: Hashable
    abandoned: bool


@define(slots=True)
class CancelReceived:
    """The caller no longer wants the answer of a running call."""

    id: int
    grace: int
    sender: Hashable


@define(slots=True)
class PingReceived:
    """Answer with `pong(token)`."""

    token: int


@define(slots=True)
class PongReceived:
    """The peer lives."""

    token: int


@define(slots=True)
class GoodbyeReceived:
    """The peer has not started and will not start a call of ours with an id after `last`."""

    last: int
    within: int


Event = (
    HelloReceived
    | CallReceived
    | CallDropped
    | ReplyReceived
    | ErrorReceived
    | CancelReceived
    | PingReceived
    | PongReceived
    | GoodbyeReceived
)
