"""The tables of scopes and of channels, line by line, and what is refused of them."""

from __future__ import annotations

import msgspec
import pytest

from container.ipc.wire.channels import MOST_CREDIT, Channel
from container.ipc.wire.events import (
    CallReceived,
    CancelReceived,
    CloseReceived,
    CreditReceived,
    EndReceived,
    Event,
    ItemDropped,
    ItemReceived,
    OpenedReceived,
    ReplyReceived,
    StopReceived,
)
from container.ipc.wire.frames import FROM_CALLEE, ChannelEnd, EndedBy, Gift, Kind, pack
from container.ipc.wire.limits import Limits
from container.ipc.wire.machine import Budget, Machine, Outgoing, ProtocolError, State

encode = msgspec.msgpack.encode
ERROR = {"code": "not-found", "message": "no"}
VALUE = encode(("value",))


class Pair:
    """Two machines that have said hello: `caller` calls, `callee` serves."""

    def __init__(self, **limits: int) -> None:
        self.caller = Machine(Limits(**limits), Budget(1 << 20))
        self.callee = Machine(Limits(**limits), Budget(1 << 20))
        for one, two in ((self.caller, self.callee), (self.callee, self.caller)):
            two.receive(one.hello({}, "it", "0"), (), "peer")

    def to_callee(self, data: bytes, descriptors: tuple[int, ...] = ()) -> Event:
        (event,) = self.callee.receive(data, descriptors, "caller")
        return event

    def to_caller(self, data: bytes, descriptors: tuple[int, ...] = ()) -> Event:
        (event,) = self.caller.receive(data, descriptors, "callee")
        return event

    def ignored(self, machine: Machine, data: bytes) -> None:
        assert machine.receive(data, (), "caller" if machine is self.callee else "callee") == []

    def refused(self, machine: Machine, data: bytes, match: str, sender: str | None = None) -> None:
        who = sender or ("caller" if machine is self.callee else "callee")
        with pytest.raises(ProtocolError, match=match):
            machine.receive(data, (), who)
        assert machine.state is State.CLOSED
        machine.abandon()
        assert not machine.scopes
        assert not machine.channels.made
        assert not machine.channels.heard

    def scope(self) -> int:
        """Open a scope up to the callee's knowledge of it."""
        number, data = self.caller.open_scope(call())
        event = self.to_callee(data)
        assert isinstance(event, CallReceived)
        assert event.scope
        return number

    def held(self) -> int:
        """Open a scope."""
        number = self.scope()
        event = self.to_caller(self.callee.opened(number, VALUE))
        assert isinstance(event, OpenedReceived)
        return number

    def read_by_caller(self, items: int = 2, size: int = 100) -> tuple[int, Channel, Channel]:
        """Hold a scope whose value is a reading end; return id, reader's and writer's channel."""
        number = self.scope()
        gift = Gift(2, ChannelEnd.READING, items, size)
        data = self.callee.opened(number, opened_payload(gift))
        (writer,) = self.callee.channels.give(False, number, "caller", [gift])
        event = self.to_caller(data)
        assert isinstance(event, OpenedReceived)
        (reader,) = event.channels
        return number, reader, writer

    def written_by_callee(self, items: int = 2, size: int = 100) -> tuple[int, Channel, Channel]:
        """Make a call that gives a writing end away; return id, reader's and writer's channel."""
        gift = Gift(1, ChannelEnd.WRITING, items, size)
        number, data = self.caller.call(call(gift))
        (reader,) = self.caller.channels.give(True, number, None, [gift])
        event = self.to_callee(data)
        assert isinstance(event, CallReceived)
        (writer,) = event.channels
        return number, reader, writer


@pytest.fixture
def pair() -> Pair:
    return Pair()


def call(*gifts: Gift) -> bytes:
    body = ["works/work", None, 5, None, {}]
    return encode([*body, gifts] if gifts else body)


def opened_payload(*gifts: Gift) -> bytes:
    return encode(["value", gifts])


# --- scopes, at their holder ------------------------------------------------------------------


def test_opening_held_closing_ended(pair: Pair) -> None:
    number = pair.held()
    assert pair.to_callee(pair.caller.close(number, False, 0)) == CloseReceived(
        number, False, 0, "caller"
    )
    event = pair.to_caller(pair.callee.reply(number, encode((None,))))
    assert isinstance(event, ReplyReceived)
    assert not pair.caller.scopes
    assert not pair.caller.outgoing
    assert not pair.callee.incoming


def test_a_failed_block_says_so_and_how_long_clean_up_may_take(pair: Pair) -> None:
    number = pair.held()
    assert pair.to_callee(pair.caller.close(number, True, 9)) == CloseReceived(
        number, True, 9, "caller"
    )


def test_an_opening_may_fail(pair: Pair) -> None:
    number = pair.scope()
    pair.to_caller(pair.callee.error(number, EndedBy.ITSELF, ERROR))
    assert not pair.caller.scopes


def test_a_cancel_may_follow_a_close(pair: Pair) -> None:
    number = pair.held()
    pair.to_callee(pair.caller.close(number, False, 0))
    assert pair.to_callee(pair.caller.cancel(number, 7)) == CancelReceived(number, 7, "caller")


def test_what_was_opened_after_the_cancel_is_dropped(pair: Pair) -> None:
    number = pair.scope()
    pair.caller.cancel(number, 7)
    event = pair.to_caller(pair.callee.opened(number, VALUE, 1), (8,))
    assert isinstance(event, OpenedReceived)
    assert event.dropped
    assert event.descriptors == [8]
    pair.to_caller(pair.callee.error(number, EndedBy.CANCEL, ERROR))


def test_the_callee_may_end_a_scope_that_is_held(pair: Pair) -> None:
    number = pair.held()
    late = pair.caller.close(number, False, 0)
    pair.to_caller(pair.callee.reply(number, encode((None,))))
    # The close crossed the terminal.
    pair.ignored(pair.callee, late)


def test_a_reply_without_opened_is_refused(pair: Pair) -> None:
    number = pair.scope()
    pair.refused(pair.caller, pair.callee.reply(number, VALUE), "not opened")


def test_opened_twice_or_for_a_call_is_refused(pair: Pair) -> None:
    number = pair.held()
    frame = pack(Kind.OPENED, number, VALUE, flags=FROM_CALLEE)
    pair.refused(pair.caller, frame, "opens no scope")
    other = Pair()
    number, _ = other.caller.call(call())
    frame = pack(Kind.OPENED, number, VALUE, flags=FROM_CALLEE)
    other.refused(other.caller, frame, "opens no scope")


def test_an_opened_that_can_t_be_read_is_told_apart(pair: Pair) -> None:
    number = pair.scope()
    event = pair.to_caller(pack(Kind.OPENED, number, b"\xc1", flags=FROM_CALLEE))
    assert isinstance(event, OpenedReceived)
    assert event.value is None


def test_an_abandoned_scope_keeps_its_id(pair: Pair) -> None:
    number = pair.held()
    pair.caller.cancel(number, 0)
    pair.caller.abandon_call(number)
    assert pair.caller.outgoing[number] is Outgoing.ABANDONED
    event = pair.to_caller(pair.callee.reply(number, encode((None,))))
    assert isinstance(event, ReplyReceived)
    assert event.abandoned
    assert not pair.caller.scopes


# --- scopes, at their callee ------------------------------------------------------------------


def close_frame(number: int, payload: bytes | None = None) -> bytes:
    return pack(Kind.CLOSE, number, encode((False, 0)) if payload is None else payload)


def test_a_close_of_what_is_not_open_is_refused(pair: Pair) -> None:
    pair.refused(pair.callee, close_frame(1), "never opened")
    opening = Pair()
    opening.refused(opening.callee, close_frame(opening.scope()), "no open scope")
    plain = Pair()
    number, data = plain.caller.call(call())
    plain.to_callee(data)
    plain.refused(plain.callee, close_frame(number), "no open scope")


def test_a_second_close_and_one_after_a_cancel_are_refused(pair: Pair) -> None:
    number = pair.held()
    pair.to_callee(close_frame(number))
    pair.refused(pair.callee, close_frame(number), "no open scope")
    other = Pair()
    number = other.held()
    other.to_callee(other.caller.cancel(number, 0))
    other.refused(other.callee, close_frame(number), "no open scope")


def test_a_close_that_can_t_be_read_is_refused(pair: Pair) -> None:
    pair.refused(pair.callee, close_frame(pair.held(), b"\xc1"), "can't be read")


def test_a_close_by_another_than_the_holder_is_refused(pair: Pair) -> None:
    number = pair.held()
    pair.refused(pair.callee, close_frame(number), "another process", sender="stranger")


# --- channels ---------------------------------------------------------------------------------


def test_credit_item_end(pair: Pair) -> None:
    number, reader, writer = pair.read_by_caller()
    assert (writer.items, writer.bytes) == (0, 0)
    credit = pair.caller.channels.credit(True, number, reader, 2, 100)
    assert pair.to_callee(credit) == CreditReceived(number, False, writer)
    assert (writer.items, writer.bytes) == (2, 100)
    item = encode("item")
    event = pair.to_caller(pair.callee.channels.item(False, number, writer, item))
    assert isinstance(event, ItemReceived)
    assert (bytes(event.value), event.size, event.channel) == (item, len(item), reader)
    assert (writer.items, writer.bytes) == (reader.items, reader.bytes) == (1, 100 - len(item))
    end = pair.callee.channels.end(False, number, writer, ERROR)
    assert pair.to_caller(end) == EndReceived(number, True, reader, ERROR, "callee")
    # A credit that crosses the end is ignored.
    pair.ignored(pair.callee, pair.caller.channels.credit(True, number, reader, 1, 1))


def test_the_maker_of_a_writing_end_grants_with_it(pair: Pair) -> None:
    number, reader, writer = pair.written_by_callee(3, 50)
    assert (writer.items, writer.bytes) == (reader.items, reader.bytes) == (3, 50)
    event = pair.to_caller(pair.callee.channels.item(False, number, writer, encode(1)))
    assert isinstance(event, ItemReceived)


def test_the_last_item_may_overdraw_the_bytes_and_no_other(pair: Pair) -> None:
    number, _, writer = pair.written_by_callee(3, 5)
    pair.to_caller(pair.callee.channels.item(False, number, writer, encode("x" * 100)))
    assert writer.bytes < 0
    writer.bytes = 1
    frame = pair.callee.channels.item(False, number, writer, encode(1))
    pair.refused(pair.caller, frame, "without credit")


def test_one_item_more_than_granted_is_refused(pair: Pair) -> None:
    number, _, writer = pair.written_by_callee(1, 100)
    pair.to_caller(pair.callee.channels.item(False, number, writer, encode(1)))
    writer.items = 1
    frame = pair.callee.channels.item(False, number, writer, encode(1))
    pair.refused(pair.caller, frame, "without credit")


def test_an_item_that_was_withdrawn_gives_its_credit_back(pair: Pair) -> None:
    number, _, writer = pair.written_by_callee(1, 100)
    pair.callee.channels.item(False, number, writer, encode("text"))
    pair.callee.channels.restore(writer, len(encode("text")))
    assert (writer.items, writer.bytes) == (1, 100)


def test_stop_is_answered_by_end_and_items_that_cross_it_are_dropped(pair: Pair) -> None:
    number, reader, writer = pair.written_by_callee()
    crossing = pair.callee.channels.item(False, number, writer, encode(1), 1)
    stop = pair.caller.channels.stop(True, number, reader)
    event = pair.to_caller(crossing, (8,))
    assert event == ItemDropped(number, True, [8])
    assert pair.to_callee(stop) == StopReceived(number, False, writer, None, "caller")
    assert isinstance(pair.to_caller(pair.callee.channels.end(False, number, writer)), EndReceived)
    assert not pair.caller.channels.made[number].live
    assert not pair.callee.channels.heard[number].live


def test_a_second_stop_is_refused(pair: Pair) -> None:
    number, reader, _ = pair.written_by_callee()
    pair.to_callee(pair.caller.channels.stop(True, number, reader))
    pair.refused(pair.callee, pair.caller.channels.stop(True, number, reader), "second stop")


def test_a_stop_that_crosses_the_end_is_ignored(pair: Pair) -> None:
    number, reader, writer = pair.written_by_callee()
    pair.callee.channels.end(False, number, writer)
    pair.ignored(pair.callee, pair.caller.channels.stop(True, number, reader))


def test_the_terminal_ends_the_channels_and_what_crosses_it_is_ignored(pair: Pair) -> None:
    number, reader, writer = pair.written_by_callee()
    late = pair.caller.channels.credit(True, number, reader, 1, 1)
    item = pair.callee.channels.item(False, number, writer, encode(1), 1)
    pair.to_caller(pair.callee.reply(number, VALUE))
    pair.ignored(pair.callee, late)
    assert pair.to_caller(item, (8,)) == ItemDropped(number, False, [8])


def test_frames_of_what_never_was_are_refused(pair: Pair) -> None:
    body = encode((1, 1, 1))
    pair.refused(pair.callee, pack(Kind.CREDIT, 1, body), "never made")
    other = Pair()
    number, data = other.caller.call(call())
    other.to_callee(data)
    other.refused(other.callee, pack(Kind.CREDIT, number, body), "has no channel")
    third = Pair()
    number, _, _ = third.written_by_callee()
    third.refused(third.callee, pack(Kind.CREDIT, number, encode((3, 1, 1))), "no channel 3")
    fourth = Pair()
    number, _, _ = fourth.written_by_callee()
    fourth.refused(fourth.callee, pack(Kind.CREDIT, number, encode((2, 1, 1))), "no channel 2")


def test_frames_that_go_the_wrong_way_are_refused(pair: Pair) -> None:
    number, _, _ = pair.written_by_callee()
    pair.refused(pair.callee, pack(Kind.ITEM, number, encode((1, 1))), "the other way")
    other = Pair()
    number, _, _ = other.written_by_callee()
    frame = pack(Kind.CREDIT, number, encode((1, 1, 1)), flags=FROM_CALLEE)
    other.refused(other.caller, frame, "the other way")


@pytest.mark.parametrize("kind", [Kind.ITEM, Kind.CREDIT, Kind.END, Kind.STOP])
def test_what_can_t_be_read_is_refused(kind: Kind) -> None:
    pair = Pair()
    number, _, _ = pair.written_by_callee()
    frame = pack(kind, number, b"\xc1", flags=FROM_CALLEE)
    pair.refused(pair.caller, frame, "can't be read")


@pytest.mark.parametrize(("items", "size"), [(-1, 1), (1, -1), (MOST_CREDIT, 1), (1, MOST_CREDIT)])
def test_credit_that_no_window_has_is_refused(items: int, size: int) -> None:
    pair = Pair()
    number, _, _ = pair.written_by_callee()
    frame = pack(Kind.CREDIT, number, encode((1, items, size)))
    pair.refused(pair.callee, frame, "credit")


def test_a_frame_of_another_sender_than_the_callers_is_refused(pair: Pair) -> None:
    number, reader, _ = pair.written_by_callee()
    frame = pair.caller.channels.credit(True, number, reader, 1, 1)
    pair.refused(pair.callee, frame, "another process", sender="stranger")


# --- gifts ------------------------------------------------------------------------------------


def test_numbers_are_odd_at_the_caller_and_even_at_the_callee(pair: Pair) -> None:
    number, _, _ = pair.written_by_callee()
    assert pair.caller.channels.numbers(True, number, 2) == [3, 5]
    assert pair.callee.channels.numbers(False, number, 2) == [2, 4]


def test_items_give_ends_away(pair: Pair) -> None:
    number, _, writer = pair.written_by_callee()
    gift = Gift(2, ChannelEnd.READING, 4, 5)
    frame = pair.callee.channels.item(False, number, writer, encode("x"), 0, [gift])
    (inner,) = pair.callee.channels.give(False, number, "caller", [gift])
    event = pair.to_caller(frame)
    assert isinstance(event, ItemReceived)
    (received,) = event.channels
    assert (received.number, received.writes, inner.writes) == (2, False, True)
    assert (received.window_items, received.window_bytes) == (4, 5)


@pytest.mark.parametrize(
    ("gifts", "match"),
    [
        ([Gift(2, ChannelEnd.READING, 1, 1)], "not new"),
        ([Gift(-1, ChannelEnd.READING, 1, 1)], "not new"),
        ([Gift(1, ChannelEnd.READING, 1, 1)] * 2, "not new"),
        ([Gift(1, ChannelEnd.WRITING, -1, 1)], "no such window"),
        ([Gift(1, ChannelEnd.WRITING, 1, MOST_CREDIT + 1)], "no such window"),
        ([Gift(1 + 2 * n, ChannelEnd.READING, 1, 1) for n in range(4)], "more than 3"),
    ],
)
def test_gifts_that_are_not_the_peers_to_give_are_refused(gifts: list[Gift], match: str) -> None:
    pair = Pair(channels=3)
    payload = call(*gifts)
    frame = pack(Kind.CALL, 1, payload, descriptors=1)
    with pytest.raises(ProtocolError, match=match):
        pair.callee.receive(frame, (8,), "caller")
    assert pair.callee.abandon() == [8]


def test_room_counts_what_lives_and_was_made_here(pair: Pair) -> None:
    number, reader, writer = pair.written_by_callee()
    assert pair.caller.channels.room(True, number) == 63
    assert pair.callee.channels.room(False, number) == 64
    pair.to_caller(pair.callee.channels.end(False, number, writer))
    assert reader.number not in pair.caller.channels.made[number].live
    assert pair.caller.channels.room(True, number) == 64


def test_a_peer_without_channels_leaves_no_room() -> None:
    machine = Machine(Limits(), Budget(1 << 20))
    old = Machine(Limits(channels=0), Budget(1 << 20))
    machine.receive(old.hello({}, "old", "0"), (), "peer")
    assert machine.channels.peer_most == 0
