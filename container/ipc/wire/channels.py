"""The channels of a connection's calls: who may send how much, and which frames are legal.

Rule 1: a channel belongs to one call, and ends with it at the latest. Rule 2: an item needs credit,
in items and in bytes; the last one may overdraw the bytes, so that a window smaller than an item
does not block for ever. Rule 3: frames of a call or a channel that has ended cross its end on the
way and are ignored; those of one that never was are a protocol error.

States of a channel at its writer:

    OPEN      END sent                ended
    OPEN      STOP received           STOPPED     (END is owed)
    STOPPED   END sent                ended
    any       the call ended          ended

States of a channel at its reader:

    OPEN      END received            ended
    OPEN      STOP sent               STOPPED     (items that cross it are dropped)
    STOPPED   END received            ended
    any       the call ended          ended
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import msgspec
from attrs import define, field

from container.ipc.wire.events import (
    CreditReceived,
    EndReceived,
    ItemDropped,
    ItemReceived,
    StopReceived,
)
from container.ipc.wire.frames import (
    FROM_CALLEE,
    HEADER,
    HEADER_BYTES,
    UNDECODABLE,
    ChannelEnd,
    ChannelEndPayload,
    CreditPayload,
    Gift,
    ItemPayload,
    Kind,
    ProtocolError,
    pack,
)

_NONE: list[Any] = []
"""What nearly every item comes with; never filled."""
MOST_CREDIT = 2**62
"""More is nobody's window."""

_decode_item = msgspec.msgpack.Decoder(ItemPayload).decode
_decode_credit = msgspec.msgpack.Decoder(CreditPayload).decode
_decode_end = msgspec.msgpack.Decoder(ChannelEndPayload).decode
_encode = msgspec.msgpack.Encoder().encode
_pack = HEADER.pack
_ITEM = int(Kind.ITEM)


@define(slots=True, eq=False)
class Channel:
    """One channel, from this side."""

    number: int
    writes: bool
    """This side has the writing end."""
    items: int
    """Items that may be sent, or with the reading end: that the peer may send."""
    bytes: int
    window_items: int
    """What the message that made it granted or, beside a reading end, suggested."""
    window_bytes: int
    prefix: bytes
    """What every item's payload begins with: an array of two, and the number."""
    stopped: bool = False
    """The reader wants no more."""
    end: Any = None
    """Who uses it on this side; not looked at here."""


@define(slots=True, eq=False)
class CallChannels:
    """The channels of one call that live, and how far numbers were given out."""

    made_here: bool
    """This side made the call."""
    sender: Hashable
    """Of a call of the peer's: who made it; later frames must come from there."""
    live: dict[int, Channel] = field(factory=dict[int, Channel])
    ours: int = 0
    """The greatest number that this side gave out."""
    theirs: int = 0

    def count(self, *, odd: bool) -> int:
        """Return how many live that one side made."""
        return sum(number % 2 == odd for number in self.live)

    def enter(self, gift: Gift, *, writes: bool) -> Channel:
        """Begin a channel. The reading side grants: beside a reading end is only a suggestion."""
        granted = gift.end is ChannelEnd.WRITING
        channel = Channel(
            gift.number,
            writes,
            gift.items if granted else 0,
            gift.bytes if granted else 0,
            gift.items,
            gift.bytes,
            b"\x92" + _encode(gift.number),
        )
        self.live[gift.number] = channel
        return channel


@define(eq=False)
class Channels:
    """The channels of one end of a connection.

    Args:
        most: Live channels of one call that the peer may make, as this side announced.
    """

    most: int
    peer_most: int = 0
    made: dict[int, CallChannels] = field(factory=dict[int, CallChannels])
    """By id, of calls that this side made; only those that have, or had, channels."""
    heard: dict[int, CallChannels] = field(factory=dict[int, CallChannels])
    """The same of calls that the peer made."""

    def of(self, made_here: bool, number: int) -> CallChannels | None:
        """Return a call's channels, if it has or had one."""
        return (self.made if made_here else self.heard).get(number)

    def forget(self, made_here: bool, number: int) -> None:
        """A call has ended: so have its channels."""
        (self.made if made_here else self.heard).pop(number, None)

    # --- giving ends away -------------------------------------------------------------------

    def numbers(self, made_here: bool, number: int, count: int) -> list[int]:
        """Return the numbers for `count` new channels of a call: the caller makes odd ones."""
        call = self.of(made_here, number)
        last = 0 if call is None else call.ours
        first = last + 2 if last else (1 if made_here else 2)
        return list(range(first, first + 2 * count, 2))

    def room(self, made_here: bool, number: int) -> int:
        """Return how many more channels of this side's the peer accepts in a call.

        Each side bounds what the other one makes: of its own that are under way it can't know.
        """
        call = self.of(made_here, number)
        return self.peer_most - (0 if call is None else call.count(odd=made_here))

    def give(
        self, made_here: bool, number: int, sender: Hashable, gifts: Sequence[Gift]
    ) -> list[Channel]:
        """Enter the ends that a message of this side's gives away; return ours of each."""
        call = self._call(made_here, number, sender)
        made = [call.enter(gift, writes=gift.end is ChannelEnd.READING) for gift in gifts]
        call.ours = gifts[-1].number
        return made

    def take(
        self, made_here: bool, number: int, sender: Hashable, gifts: Sequence[Gift]
    ) -> list[Channel]:
        """Enter the ends that a message of the peer's gives to this side.

        Raises:
            ProtocolError: a number is not the peer's to give, or not new; or there are too many.
        """
        call = self._call(made_here, number, sender)
        if call.count(odd=not made_here) + len(gifts) > self.most:
            raise ProtocolError(f"more than {self.most} channels of call {number}")
        made: list[Channel] = []
        for gift in gifts:
            if gift.number <= call.theirs or (gift.number % 2 == 1) is made_here:
                raise ProtocolError(f"channel {gift.number} of call {number} is not new")
            if not (0 <= gift.items <= MOST_CREDIT and 0 <= gift.bytes <= MOST_CREDIT):
                raise ProtocolError(f"channel {gift.number} of call {number} has no such window")
            made.append(call.enter(gift, writes=gift.end is ChannelEnd.WRITING))
            call.theirs = gift.number
        return made

    def _call(self, made_here: bool, number: int, sender: Hashable) -> CallChannels:
        calls = self.made if made_here else self.heard
        call = calls.get(number)
        if call is None:
            call = calls[number] = CallChannels(made_here, sender)
        return call

    # --- what is sent -----------------------------------------------------------------------

    def item(
        self,
        made_here: bool,
        number: int,
        channel: Channel,
        value: bytes,
        descriptors: int = 0,
        gifts: Sequence[Gift] = (),
    ) -> bytes:
        """Spend credit; return an item's frame."""
        assert channel.items > 0
        assert channel.bytes > 0
        channel.items -= 1
        channel.bytes -= len(value)
        flags = 0 if made_here else FROM_CALLEE
        if gifts:
            payload = b"\x93" + channel.prefix[1:] + value + _encode(gifts)
            return _pack(len(payload), _ITEM, flags, descriptors, number) + payload
        length = len(channel.prefix) + len(value)
        header = _pack(length, _ITEM, flags, descriptors, number)
        return b"".join((header, channel.prefix, value))

    def room_for_header(self, channel: Channel) -> bytearray:
        """Return what `large_item` wants before the item's value."""
        return bytearray(HEADER_BYTES) + channel.prefix

    def large_item(
        self, made_here: bool, number: int, channel: Channel, frame: bytearray
    ) -> bytearray:
        """Spend credit; complete an item's frame, whose value was encoded in place."""
        length = len(frame) - HEADER_BYTES
        channel.items -= 1
        channel.bytes -= length - len(channel.prefix)
        HEADER.pack_into(frame, 0, length, _ITEM, 0 if made_here else FROM_CALLEE, 0, number)
        return frame

    def restore(self, channel: Channel, size: int) -> None:
        """Take credit back for an item of which no byte was sent."""
        channel.items += 1
        channel.bytes += size

    def credit(
        self, made_here: bool, number: int, channel: Channel, items: int, size: int
    ) -> bytes:
        """Grant more; return the frame."""
        channel.items += items
        channel.bytes += size
        payload = _encode(CreditPayload(channel.number, items, size))
        return pack(Kind.CREDIT, number, payload, flags=0 if made_here else FROM_CALLEE)

    def end(
        self, made_here: bool, number: int, channel: Channel, error: dict[str, Any] | None = None
    ) -> bytes:
        """End a channel as its writer; return the frame."""
        call = self.of(made_here, number)
        if call is not None:
            call.live.pop(channel.number, None)
        payload = _encode(ChannelEndPayload(channel.number, error))
        return pack(Kind.END, number, payload, flags=0 if made_here else FROM_CALLEE)

    def stop(
        self, made_here: bool, number: int, channel: Channel, error: dict[str, Any] | None = None
    ) -> bytes:
        """Want no more items as the reader; return the frame."""
        channel.stopped = True
        payload = _encode(ChannelEndPayload(channel.number, error))
        return pack(Kind.STOP, number, payload, flags=0 if made_here else FROM_CALLEE)

    # --- what is received -------------------------------------------------------------------

    def plain_item(
        self, made_here: bool, number: int, payload: bytes | memoryview, sender: Hashable
    ) -> ItemReceived | None:
        """Take an item without descriptors that is all right; None if it needs a closer look."""
        call = (self.made if made_here else self.heard).get(number)
        if call is None or not (made_here or call.sender == sender):
            return None
        try:
            item = _decode_item(payload)
        except UNDECODABLE:
            return None
        channel = call.live.get(item.channel)
        if channel is None or channel.writes or channel.stopped or item.gifts:
            return None
        if channel.items <= 0 or channel.bytes <= 0:
            return None
        value = item.value
        size = len(value)
        channel.items -= 1
        channel.bytes -= size
        return ItemReceived(number, made_here, channel, value, size, _NONE, sender, _NONE)

    def item_received(
        self, call: CallChannels | None, number: int, payload: bytes | memoryview, sender: Hashable
    ) -> tuple[ItemReceived | ItemDropped, Sequence[Gift]]:
        """Take an item; its descriptors are put into the event by the machine."""
        try:
            item = _decode_item(payload)
        except UNDECODABLE:
            raise ProtocolError("an item that can't be read") from None
        channel = self._reading(call, number, item.channel, sender, writes=False)
        if channel is None:
            return ItemDropped(number, False, []), ()
        if channel.items <= 0 or channel.bytes <= 0:
            raise ProtocolError(f"an item of channel {item.channel} without credit")
        size = len(item.value)
        channel.items -= 1
        channel.bytes -= size
        assert call is not None
        if channel.stopped:
            return ItemDropped(number, call.made_here, []), item.gifts
        event = ItemReceived(number, call.made_here, channel, item.value, size, [], sender, [])
        return event, item.gifts

    def other_received(
        self,
        kind: Kind,
        call: CallChannels | None,
        number: int,
        payload: bytes | memoryview,
        sender: Hashable,
    ) -> CreditReceived | EndReceived | StopReceived | None:
        """Take a credit, an end or a stop."""
        try:
            body = _decode_credit(payload) if kind is Kind.CREDIT else _decode_end(payload)
        except UNDECODABLE:
            raise ProtocolError(f"a {kind.name.lower()} that can't be read") from None
        channel = self._reading(call, number, body.channel, sender, writes=kind is not Kind.END)
        if channel is None:
            return None
        assert call is not None
        if isinstance(body, CreditPayload):
            if body.items < 0 or body.bytes < 0:
                raise ProtocolError("a credit that takes back")
            channel.items += body.items
            channel.bytes += body.bytes
            if channel.items > MOST_CREDIT or channel.bytes > MOST_CREDIT:
                raise ProtocolError("more credit than a window has")
            return CreditReceived(number, call.made_here, channel)
        if kind is Kind.END:
            del call.live[channel.number]
            return EndReceived(number, call.made_here, channel, body.error, sender)
        if channel.stopped:
            raise ProtocolError(f"a second stop of channel {channel.number}")
        channel.stopped = True
        return StopReceived(number, call.made_here, channel, body.error, sender)

    def _reading(
        self,
        call: CallChannels | None,
        number: int,
        channel_number: int,
        sender: Hashable,
        *,
        writes: bool,
    ) -> Channel | None:
        """Return the channel that a frame is for; None if it has ended.

        Args:
            call: None if the call has ended, which the machine has checked.
            number: Of the call.
            channel_number: As the frame says.
            sender: Of the frame.
            writes: The frame is for a writing end.
        """
        if call is None:
            return None
        if not call.made_here and call.sender != sender:
            raise ProtocolError(f"a frame of call {number} from another process than its caller")
        channel = call.live.get(channel_number)
        if channel is None:
            caller_made = channel_number % 2 == 1
            last = call.ours if caller_made == call.made_here else call.theirs
            if not 0 < channel_number <= last:
                raise ProtocolError(f"call {number} has no channel {channel_number}")
            return None
        if channel.writes is not writes:
            raise ProtocolError(f"channel {channel_number} of call {number} goes the other way")
        return channel
