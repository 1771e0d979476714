"""Channels: `send`, `receive` and `async for` between processes, with credit, in Trio's interfaces.

`open_channel` makes two ends. One of them is put into an argument, a scope's value or an item, and
is given away by that; the other one stays. The reading end *is* the connection's queue: what it has
room for is the credit that was granted, so the connection's reader delivers without waiting, no
task pumps, and a slow reader stops its writer and nothing else. A channel ends with the call or
scope that it came with, at the latest.

Both operations are cancellation points each time. They let other tasks run each time they wait, and
at least once in `TURNS` times.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import msgspec
import trio
from attrs import define

from container.ipc.errors import InvalidArgument
from container.ipc.wirevalues import Incoming, ItemType, Outgoing, SentEnd

if TYPE_CHECKING:
    from container.ipc.channel_ends import Home
    from container.ipc.wire.events import ItemReceived

T = TypeVar("T")

CAPACITY = 64
"""Items that a channel holds unless told otherwise."""
BYTE_CAPACITY = 1024 * 1024
"""Encoded bytes that a channel holds unless told otherwise; one item may go beyond it."""
TURNS = 64
"""So many operations in a row may run without letting other tasks run."""


@define(slots=True, eq=False)
class Arrived:
    """An item with descriptors or ends that waits for its reader; a plain one waits as it came."""

    value: msgspec.Raw
    size: int
    incoming: Incoming


@define(slots=True, eq=False)
class _Local:
    """An item of a channel of which neither end was given away."""

    value: Any


class _End(SentEnd):
    """What both ends have in common: where they are, and how they end."""

    def __init__(self, capacity: int, byte_capacity: int) -> None:
        self.capacity = capacity
        self.byte_capacity = byte_capacity
        self.item: ItemType | None = None
        """How items are encoded; told by the contract when an end is given away."""
        self.home: Home | None = None
        """The call that the channel belongs to; None while both ends are here."""
        self._given = False
        self._closed = False
        self._waiting = trio.lowlevel.ParkingLot()
        self._turns = 0

    def check_given(self) -> None:
        """May this end be put into a message?

        Raises:
            ValueError: it is not ours to give.
        """
        if self._given:
            raise ValueError("this end of a channel was given away before")
        if self.home is not None:
            raise ValueError(
                "this end of a channel belongs to another call: relay its items instead"
            )
        if self._closed:
            raise ValueError("this end of a channel is closed")

    def give(self) -> None:
        """This end has left in a message."""
        self._given = True
        self._waiting.unpark_all()

    @property
    def was_closed(self) -> bool:
        """True once it was closed here."""
        return self._closed

    def _usable(self) -> None:
        if self._given:
            raise trio.ClosedResourceError("this end of the channel was given away")
        if self._closed:
            raise trio.ClosedResourceError("this end of the channel was closed here")


class SendingEnd(_End, trio.abc.SendChannel[T], Generic[T]):
    """The writing end of a channel. Made by `open_channel`, or received in a message."""

    reads = False

    def __init__(self, capacity: int, byte_capacity: int) -> None:
        super().__init__(capacity, byte_capacity)
        self.other: ReceivingEnd[T] | None = None
        """The reading end, while it is in this process."""
        self._broken: tuple[str, BaseException | None] | None = None

    async def send(self, value: T) -> None:
        """Send an item; waits while the reader has no room for it.

        Cancelled while it waits, nothing was sent; else the item was sent whole. What has been sent
        is received before the call's own end.

        Raises:
            InvalidArgument: the item is not of the channel's type, or too large.
            Overloaded: the kernel takes no more descriptors of this user now.
            trio.BrokenResourceError: the reader wants no more, the call has ended, or the
                connection was lost; `__cause__` says why.
            trio.ClosedResourceError: this end was closed or given away.
        """
        item = self.item
        if item is None or item.holds:
            await self._send_what_holds(value)
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
            while not self._may_send():
                await self._waiting.park()
            # An end learns its items' type when the other one is given away, or with its call.
            assert self.home is not None
            self.home.send_plain(item, value)
        self._turns += 1
        if self._turns >= TURNS:
            self._turns = 0
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def _send_what_holds(self, value: T) -> None:
        """Send an item that may hold descriptors: what it gives is closed however this ends."""
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            while not self._may_send():
                await self._waiting.park()
            if self.home is None:
                assert self.other is not None
                self.other.accept(_Local(value))
                return
        except BaseException:
            close_given(value)
            raise
        await self.home.send(self, value)

    def _may_send(self) -> bool:
        self._usable()
        if self._broken is not None:
            message, cause = self._broken
            raise trio.BrokenResourceError(message) from cause
        if self.home is not None:
            return self.home.channel.items > 0 and self.home.channel.bytes > 0
        return self.other is not None and self.other.has_room()

    def wake(self) -> None:
        """There may be room."""
        self._waiting.unpark_all()

    def claimed(self) -> None:
        """A message that brought this end has been read."""

    def break_off(self, message: str, cause: BaseException | None = None) -> None:
        """Nothing can be sent any more."""
        if self._broken is None:
            self._broken = (message, cause)
            self._waiting.unpark_all()

    async def aclose(self) -> None:
        """Send no more: the reader gets all items that were sent, then the end of the channel."""
        self.close()
        await trio.lowlevel.checkpoint()

    async def fail(self, error: Exception) -> None:
        """Send no more because of an error: the reader gets it after all items."""
        self.close(error)
        await trio.lowlevel.checkpoint()

    def close(self, error: Exception | None = None) -> None:
        """Do as `aclose`, or with an error as `fail`; does not wait."""
        if self._closed or self._given:
            return
        self._closed = True
        self._waiting.unpark_all()
        if self.home is not None:
            if self._broken is None:
                self.home.end(error)
        elif self.other is not None:
            self.other.end(error)


class ReceivingEnd(_End, trio.abc.ReceiveChannel[T], Generic[T]):
    """The reading end of a channel. Made by `open_channel`, or received in a message."""

    reads = True

    def __init__(self, capacity: int, byte_capacity: int) -> None:
        super().__init__(capacity, byte_capacity)
        self.other: SendingEnd[T] | None = None
        """The writing end, while it is in this process."""
        self._queue: deque[ItemReceived | Arrived | _Local] = deque()
        self._used = False
        """Somebody receives here; a local writer waits for that, as a remote one does."""
        self._ended = False
        self._cause: tuple[str, BaseException] | None = None
        self._spent_items = 0
        self._spent_bytes = 0

    async def receive(self) -> T:
        """Return the next item, in order; waits for it.

        Cancelled, no item is lost. An item's descriptors belong to whoever received it.

        Raises:
            trio.EndOfChannel: the writer has closed its end, or the call has ended.
            trio.BrokenResourceError: the writer failed, or the connection was lost; `__cause__`
                says why. What had arrived before was received first.
            Incompatible: the item is not what the contract says; the next one may be.
            trio.ClosedResourceError: this end was closed or given away.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._queue:
            self._usable()
            if self._cause is not None:
                message, cause = self._cause
                raise trio.BrokenResourceError(message) from cause
            if self._ended:
                raise trio.EndOfChannel
            if self.home is None and not self._used:
                self._used = True
                if self.other is not None:
                    self.other.wake()
            await self._waiting.park()
        self._usable()
        # From here on the item is this task's: no checkpoint that could be cancelled.
        entry = self._queue.popleft()
        self._turns += 1
        if self._turns >= TURNS:
            self._turns = 0
            await trio.lowlevel.cancel_shielded_checkpoint()
        if isinstance(entry, _Local):
            if self.other is not None:
                self.other.wake()
            return cast("T", entry.value)
        home = self.home
        assert home is not None
        self._spent_items += 1
        self._spent_bytes += entry.size
        if 2 * self._spent_items >= self.capacity or 2 * self._spent_bytes >= self.byte_capacity:
            home.grant(self._spent_items, self._spent_bytes)
            self._spent_items = self._spent_bytes = 0
        assert self.item is not None
        return await home.decode(self.item, entry)

    def check_given(self) -> None:
        super().check_given()
        if self._queue:
            raise ValueError("items wait in this end of a channel already")

    def claimed(self) -> None:
        """A message that brought this end has been read: its reader is here."""
        assert self.home is not None
        self.home.grant(self.capacity, self.byte_capacity)

    def has_room(self) -> bool:
        """Would a local item be taken? Not before somebody reads, as over a connection."""
        return self._used and len(self._queue) < self.capacity

    def accept(self, entry: ItemReceived | Arrived | _Local) -> None:
        """Queue an item that has come."""
        self._queue.append(entry)
        if self._waiting:
            self._waiting.unpark()

    def end(self, error: BaseException | None = None, message: str = "the writer failed") -> None:
        """No more items will come; those that came can still be read."""
        if self._ended:
            return
        self._ended = True
        if error is not None:
            self._cause = (message, error)
        self._waiting.unpark_all()

    async def aclose(self) -> None:
        """Want no more: the writer's next `send` breaks, what had arrived is dropped."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Do as `aclose`; does not wait."""
        if self._closed or self._given:
            return
        self._closed = True
        self._waiting.unpark_all()
        if self.home is not None:
            self.drop_queue()
            if not self._ended:
                self.home.stop()
        else:
            self._queue.clear()
            if self.other is not None:
                self.other.break_off("the reader has closed its end of the channel")

    def drop_queue(self) -> None:
        """Close the descriptors and ends of items that nobody received."""
        while self._queue:
            entry = self._queue.popleft()
            if isinstance(entry, Arrived):
                entry.incoming.close()

    def __del__(self) -> None:
        self.drop_queue()


def close_given(value: object) -> None:
    """Close what a value that was not sent would have given away."""
    from container.ipc.strict import replies

    outgoing = Outgoing()
    with suppress(Exception):
        msgspec.msgpack.encode(replies.unstructure(value), enc_hook=outgoing.hook)
    outgoing.sent(result=False)


def open_channel(
    item: type[T], *, capacity: int = CAPACITY, byte_capacity: int = BYTE_CAPACITY
) -> tuple[SendingEnd[T], ReceivingEnd[T]]:
    """Make a channel; give one end away in a message, and use the other.

    The item's type is that of the contract's field that the end is put into; `item` tells it to a
    type checker. Nothing can be sent before the reading end is in use: by a `receive` here, or by
    the process that it was given to.

    Args:
        item: Type of the items.
        capacity: How many items may wait for the reader, at least 1.
        byte_capacity: How many encoded bytes may wait for it, at least 1; one item may go beyond.
    """
    if capacity < 1 or byte_capacity < 1:
        raise InvalidArgument(
            f"a channel of {capacity} items and {byte_capacity} bytes has no room"
        )
    sending: SendingEnd[T] = SendingEnd(capacity, byte_capacity)
    receiving: ReceivingEnd[T] = ReceivingEnd(capacity, byte_capacity)
    sending.other, receiving.other = receiving, sending
    return sending, receiving


@asynccontextmanager
async def collecting(channel: trio.abc.ReceiveChannel[T]) -> AsyncGenerator[list[T]]:
    """Receive everything into a list while the block runs.

    For a block that awaits a call which writes to the channel: reading only afterwards would get at
    most a window of items, and with more of them the call could never end. The list is complete
    once the block has been left; leaving it waits for the end of the channel.
    """
    items: list[T] = []

    async def collect() -> None:
        async with channel:
            async for item in channel:
                items.append(item)  # noqa: PERF401 (what came before a failure is kept)

    raised: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect)
        try:
            yield items
        except trio.Cancelled:
            raise
        except BaseException as error:
            raised = error
            nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised


async def relay(source: trio.abc.ReceiveChannel[T], sink: trio.abc.SendChannel[T]) -> None:
    """Pass items on until the source ends; then both are closed.

    How a process passes a channel of its own call on to a third one. That the sink's reader wants
    no more ends it too, and is no error: the source's writer is told by its own next `send`.

    Raises:
        trio.BrokenResourceError: the source failed; the sink's reader hears of it after all items.
    """
    async with source, sink:
        while True:
            try:
                item = await source.receive()
            except trio.EndOfChannel:
                return
            except trio.BrokenResourceError as error:
                if isinstance(sink, SendingEnd):
                    cause = error.__cause__
                    await sink.fail(cause if isinstance(cause, Exception) else error)
                raise
            try:
                await sink.send(item)
            except trio.BrokenResourceError:
                return
