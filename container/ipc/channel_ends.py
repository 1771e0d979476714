"""The ends of channels on one connection: frames come to them, and leave from them.

`ChannelEnds` belongs to the connection. It knows which end belongs to which channel of which call;
the machine says what is legal. Nothing here waits, but the sender of an item with descriptors whose
frame the kernel has not taken yet.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, cast

import trio
from attrs import define

from container.ipc.channel import Arrived, ReceivingEnd, SendingEnd
from container.ipc.errors import Incompatible, InvalidArgument, Overloaded, Unsupported
from container.ipc.wire.channels import Channel
from container.ipc.wire.events import (
    CreditReceived,
    EndReceived,
    ItemDropped,
    ItemReceived,
    OpenedReceived,
    StopReceived,
)
from container.ipc.wire.frames import HEADER_BYTES, ChannelEnd, Gift
from container.ipc.wire_errors import from_wire, to_wire
from container.ipc.wirevalues import NOTHING_IN, Incoming, ItemType, Outgoing, SentEnd
from container.ipc.writing import TOO_MANY_DESCRIPTORS, Writer

if TYPE_CHECKING:
    from container.ipc.wire.machine import Machine

MOST_ITEMS = 65536
"""No larger window is granted to a writer, whatever it suggests."""
MOST_BYTES = 16 * 1024 * 1024
BATCHED = 16384
"""Smaller items may wait for the end of the running step, and leave with others."""

End = SendingEnd[Any] | ReceivingEnd[Any]


@define(slots=True, eq=False)
class Home:
    """Where an end belongs: one channel of one call of one connection."""

    ends: ChannelEnds
    made_here: bool
    """This side made the call."""
    call: int
    channel: Channel

    def send_plain(self, item: ItemType, value: Any) -> None:
        """Send an item for which there is credit, and whose type can hold no descriptor."""
        ends, channel = self.ends, self.channel
        wire = ends.machine.channels
        if type(value) is bytes and len(value) > BATCHED:
            # Encoded in its frame: a large value is copied once.
            frame = wire.room_for_header(channel)
            item.encode_into(value, frame)
            ends.check_size(len(frame) - HEADER_BYTES, 0)
            ends.writer.transmit(wire.large_item(self.made_here, self.call, channel, frame), ())
            return
        encoded = item.encode(value, None)
        if len(encoded) > BATCHED:
            ends.check_size(len(encoded), 0)
            data = wire.item(self.made_here, self.call, channel, encoded)
            ends.writer.transmit(data, ())
        else:
            data = wire.item(self.made_here, self.call, channel, encoded)
            ends.writer.batch(data)

    async def send(self, end: SendingEnd[Any], value: Any) -> None:
        """Send an item for which there is credit, with what it holds."""
        item = end.item
        assert item is not None
        ends, channel = self.ends, self.channel
        wire = ends.machine.channels
        outgoing = Outgoing()
        try:
            encoded = item.encode(value, outgoing)
            ends.check_size(len(encoded), len(outgoing.descriptors))
            gifts = ends.gifts(self.made_here, self.call, outgoing.channels)
            descriptors = outgoing.filenos()
            data = wire.item(self.made_here, self.call, channel, encoded, len(descriptors), gifts)
            try:
                frame = ends.writer.transmit(data, descriptors)
            except OSError as error:
                wire.restore(channel, len(encoded))
                if error.errno in TOO_MANY_DESCRIPTORS:
                    raise Overloaded(
                        "an item was not sent: too many descriptors of this user are in flight"
                    ) from error
                raise
            sender = wire.of(self.made_here, self.call)
            assert sender is not None
            ends.give(self.made_here, self.call, sender.sender, outgoing.channels, gifts)
            if frame is None or not descriptors:
                return
            refused = False

            def refuse() -> None:
                nonlocal refused
                refused = True

            frame.refused = refuse
            frame.written = trio.Event()
            try:
                await frame.written.wait()
            except trio.Cancelled:
                if ends.writer.withdraw(frame):
                    wire.restore(channel, len(encoded))
                    ends.retract(self.made_here, self.call, gifts)
                    raise
                # Begun: the connection finishes it, and it counts as sent.
                with trio.CancelScope(shield=True):
                    await frame.written.wait()
            if refused:
                wire.restore(channel, len(encoded))
                ends.retract(self.made_here, self.call, gifts)
                raise Overloaded(
                    "an item was not sent: too many descriptors of this user are in flight"
                )
        finally:
            outgoing.sent(result=False)

    def end(self, error: Exception | None) -> None:
        """Say that the writer sends no more."""
        body = None if error is None else to_wire(error, "channel")
        ends = self.ends
        data = ends.machine.channels.end(self.made_here, self.call, self.channel, body)
        # After the items, which are no control frames.
        ends.writer.transmit(data, ())
        ends.remove(self)

    def stop(self) -> None:
        """Say that the reader wants no more."""
        data = self.ends.machine.channels.stop(self.made_here, self.call, self.channel)
        # No control frame: it must not overtake the message that made the channel.
        self.ends.writer.transmit(data, ())

    def grant(self, items: int, size: int) -> None:
        """Say that the reader has room again."""
        if self.ends.lost or self.ends.find(self.made_here, self.call, self.channel) is None:
            return
        data = self.ends.machine.channels.credit(
            self.made_here, self.call, self.channel, items, size
        )
        self.ends.writer.send_control(data)

    async def decode(self, item: ItemType, arrived: Arrived | ItemReceived) -> Any:
        """Return the value of an item; its descriptors are its receiver's."""
        incoming = arrived.incoming if isinstance(arrived, Arrived) else NOTHING_IN
        try:
            if arrived.size <= self.ends.inline_bytes or item.is_flat:
                value = item.decode(arrived.value, incoming)
            else:
                value = await self._decode_aside(item, arrived.value, incoming)
        except Exception as error:
            incoming.close()
            raise Incompatible(f"an item of a channel can't be read: {error}") from error
        if incoming is not NOTHING_IN:
            incoming.close_unclaimed()
        return value

    async def _decode_aside(self, item: ItemType, value: Any, incoming: Incoming) -> Any:
        # A large one is decoded in a thread; it must not be lost to a cancellation.
        with trio.CancelScope(shield=True):
            return await trio.to_thread.run_sync(item.decode, value, incoming)


class ChannelEnds:
    """The ends of one connection's channels.

    Args:
        machine: The connection's.
        writer: Where frames go.
        inline_bytes: Larger items are decoded in a worker thread.
    """

    def __init__(self, machine: Machine, writer: Writer, inline_bytes: int) -> None:
        self.machine = machine
        self.writer = writer
        self.inline_bytes = inline_bytes
        self.lost = False
        self._made: dict[int, dict[int, End]] = {}
        self._heard: dict[int, dict[int, End]] = {}

    def __bool__(self) -> bool:
        return bool(self._made or self._heard)

    def _of(self, made_here: bool) -> dict[int, dict[int, End]]:
        return self._made if made_here else self._heard

    # --- giving and taking ends -------------------------------------------------------------

    def gifts(self, made_here: bool, call: int, given: Sequence[SentEnd]) -> tuple[Gift, ...]:
        """Return what a message says of the ends that it gives away.

        Args:
            made_here: This side made, or is about to make, the call.
            call: Its id; 0 if it has none yet.
            given: Ends, in the order of the message.

        Raises:
            Unsupported: the peer speaks no channels.
            InvalidArgument: the call would have too many of them.
        """
        if not given:
            return ()
        wire = self.machine.channels
        if wire.peer_most == 0:
            raise Unsupported("the other side speaks no channels")
        if len(given) > wire.room(made_here, call):
            raise InvalidArgument(f"a call has at most {wire.peer_most} channels at once")
        numbers = wire.numbers(made_here, call, len(given))
        made: list[Gift] = []
        for number, end in zip(numbers, given, strict=True):
            assert isinstance(end, (SendingEnd, ReceivingEnd))
            which = ChannelEnd.READING if isinstance(end, ReceivingEnd) else ChannelEnd.WRITING
            made.append(Gift(number, which, end.capacity, end.byte_capacity))
        return tuple(made)

    def give(
        self,
        made_here: bool,
        call: int,
        sender: Hashable,
        given: Sequence[SentEnd],
        gifts: Sequence[Gift],
    ) -> None:
        """The message with these ends has been handed over: use the other ends here."""
        if not gifts:
            return
        channels = self.machine.channels.give(made_here, call, sender, gifts)
        table = self._of(made_here).setdefault(call, {})
        for end, channel in zip(given, channels, strict=True):
            assert isinstance(end, (SendingEnd, ReceivingEnd))
            ours = cast("End | None", cast("Any", end).other)
            assert ours is not None
            ours.other, end.other = None, None
            end.give()
            ours.item = end.item
            table[channel.number] = channel.end = ours
            ours.home = Home(self, made_here, call, channel)
            if not ours.was_closed:
                continue
            if isinstance(ours, SendingEnd):
                ours.home.end(None)
            else:
                ours.home.stop()

    def retract(self, made_here: bool, call: int, gifts: Sequence[Gift]) -> None:
        """The message with these ends was not sent after all: nobody has them."""
        wire = self.machine.channels.of(made_here, call)
        table = self._of(made_here).get(call, {})
        for gift in gifts:
            end = table.pop(gift.number, None)
            if wire is not None:
                wire.live.pop(gift.number, None)
            if isinstance(end, SendingEnd):
                end.break_off("the message that was to give the other end away was not sent")
            elif end is not None:
                end.end()

    def take(self, made_here: bool, call: int, channels: Sequence[Channel]) -> list[SentEnd]:
        """Make the ends that a message of the peer's gives to this side."""
        table = self._of(made_here).setdefault(call, {})
        made: list[SentEnd] = []
        for channel in channels:
            end: End
            if channel.writes:
                end = SendingEnd(channel.window_items, channel.window_bytes)
            else:
                end = ReceivingEnd(
                    max(1, min(channel.window_items, MOST_ITEMS)),
                    max(1, min(channel.window_bytes, MOST_BYTES)),
                )
            end.home = Home(self, made_here, call, channel)
            table[channel.number] = channel.end = end
            made.append(end)
        return made

    def incoming(self, event: ItemReceived | ItemDropped | OpenedReceived) -> Incoming:
        """Own what came with a message; on receipt, since frames of its channels may follow."""
        made_here = True if isinstance(event, OpenedReceived) else event.made_here
        return self.owned(made_here, event.id, event.descriptors, event.channels)

    def owned(
        self, made_here: bool, call: int, descriptors: Sequence[int], channels: Sequence[Channel]
    ) -> Incoming:
        """Own descriptors and channel ends that came with a message."""
        if not descriptors and not channels:
            return NOTHING_IN
        incoming = Incoming.of(descriptors)
        if channels:
            incoming.ends = self.take(made_here, call, channels)
        return incoming

    def check_size(self, size: int, descriptors: int) -> None:
        """Refuse an item that the peer would not accept."""
        machine = self.machine
        if size + 64 > machine.peer_frame_bytes:
            raise InvalidArgument(
                f"an item has {size} bytes, {machine.peer_frame_bytes} are allowed",
                hint="pass a descriptor (a pipe, a file, a memfd) instead of the bytes",
            )
        if descriptors > machine.peer_frame_descriptors:
            raise InvalidArgument(
                f"an item has {descriptors} descriptors, "
                f"{machine.peer_frame_descriptors} are allowed"
            )

    # --- what comes --------------------------------------------------------------------------

    def find(self, made_here: bool, call: int, channel: Channel) -> End | None:
        """Return the end of a channel that lives."""
        table = self._of(made_here).get(call)
        return None if table is None else table.get(channel.number)

    def item(self, event: ItemReceived) -> None:
        """Queue an item at its reader."""
        end = event.channel.end
        if end is None or end.was_closed:
            self.incoming(event).close()
        elif event.descriptors or event.channels:
            end.accept(Arrived(event.value, event.size, self.incoming(event)))
        else:
            end.accept(event)

    def dropped(self, event: ItemDropped) -> None:
        """Close what came with an item that crossed the end of its channel."""
        self.incoming(event).close()

    def credit(self, event: CreditReceived) -> None:
        """Wake a writer."""
        end = self.find(event.made_here, event.id, event.channel)
        if isinstance(end, SendingEnd):
            end.wake()

    def ended(self, event: EndReceived) -> None:
        """The writer of a channel has ended it."""
        end = self._of(event.made_here).get(event.id, {}).pop(event.channel.number, None)
        event.channel.end = None
        if isinstance(end, ReceivingEnd):
            end.end(None if event.error is None else from_wire(event.error))

    def stopped(self, event: StopReceived) -> None:
        """The reader of a channel wants no more: its writer breaks, and says its end."""
        end = self.find(event.made_here, event.id, event.channel)
        if isinstance(end, SendingEnd):
            cause = None if event.error is None else from_wire(event.error)
            end.break_off("the reader has closed its end of the channel", cause)
            assert end.home is not None
            end.home.end(None)

    # --- ends --------------------------------------------------------------------------------

    def remove(self, home: Home) -> None:
        """A channel has ended from this side."""
        home.channel.end = None
        self._of(home.made_here).get(home.call, {}).pop(home.channel.number, None)

    def finish(
        self, made_here: bool, call: int, cause: BaseException | None = None, why: str = ""
    ) -> bool:
        """A call has ended, and its channels with it; return whether it had any.

        Args:
            made_here: This side made the call.
            call: Its id.
            cause: What ended it, if it did not end well; its readers hear of it after the items.
            why: The same in words.
        """
        table = self._of(made_here).pop(call, None)
        if table is None:
            return False
        for end in table.values():
            if end.home is not None:
                end.home.channel.end = None  # an end that nobody holds is to go at once
            if isinstance(end, SendingEnd):
                end.break_off("the call that the channel belongs to has ended", cause)
            else:
                end.end(cause, why)
        return True

    def lose(self, cause: BaseException) -> None:
        """The connection has ended."""
        self.lost = True
        for made_here in (True, False):
            for call in list(self._of(made_here)):
                self.finish(made_here, call, cause, "the connection was lost")
