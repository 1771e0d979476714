"""What the machine says of what came: one class per thing that a connection must act on.

Descriptors in an event belong to whoever took the event.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from attrs import define

from container.ipc.wire.frames import CallPayload, EndedBy, HelloPayload

if TYPE_CHECKING:
    from container.ipc.wire.channels import Channel


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
    scope: bool = False
    """It opens a scope."""
    channels: Sequence[Channel] = ()
    """Those whose ends it gives to this side, in order."""


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
class OpenedReceived:
    """A scope that this side opened is open; `value` is None when the body is no value."""

    id: int
    value: msgspec.Raw | None
    descriptors: list[int]
    sender: Hashable
    dropped: bool
    """It was cancelled meanwhile: close what came, and wait for the terminal."""
    channels: Sequence[Channel] = ()


@define(slots=True)
class CloseReceived:
    """The holder of a scope leaves it; `failed` when its block raised."""

    id: int
    failed: bool
    grace: int
    sender: Hashable


@define(slots=True)
class ItemReceived:
    """An item of a channel that this side reads."""

    id: int
    made_here: bool
    channel: Channel
    value: msgspec.Raw
    size: int
    """What it cost of the credit in bytes."""
    descriptors: list[int]
    sender: Hashable
    channels: Sequence[Channel]


@define(slots=True)
class ItemDropped:
    """An item that crossed the end of its channel: close these, and the channels' ends."""

    id: int
    made_here: bool
    descriptors: list[int]
    channels: Sequence[Channel] = ()


@define(slots=True)
class CreditReceived:
    """More may be sent; the channel has it already."""

    id: int
    made_here: bool
    channel: Channel


@define(slots=True)
class EndReceived:
    """The writer of a channel has ended it: with an error, or naturally."""

    id: int
    made_here: bool
    channel: Channel
    error: dict[str, Any] | None
    sender: Hashable


@define(slots=True)
class StopReceived:
    """The reader of a channel wants no more: an end is owed."""

    id: int
    made_here: bool
    channel: Channel
    error: dict[str, Any] | None
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
    | OpenedReceived
    | CloseReceived
    | ItemReceived
    | ItemDropped
    | CreditReceived
    | EndReceived
    | StopReceived
    | PingReceived
    | PongReceived
    | GoodbyeReceived
)
