"""Large frames are received into buffers that are used again, and mean the same."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container.ipc.buffers import BUFFER_BYTES, BUFFERS, Buffers
from container.ipc.wire.machine import Budget, CallReceived, Event, Machine, ProtocolError
from tests.ipc.wire.test_machine import ONE, call_frame, opened

LARGE = 100_000


def listening(buffers: Buffers) -> Machine:
    """Return an open machine that has buffers."""
    it = opened()
    it.budget = Budget(1 << 24, buffer=buffers.take)
    return it


def text_of(event: Event) -> str:
    """Return what a call says."""
    assert isinstance(event, CallReceived)
    assert event.payload is not None
    return msgspec.msgpack.decode(event.payload.arguments)["text"]


def feed(it: Machine, data: bytes, pieces: list[int]) -> list[Event]:
    """Give a machine bytes in pieces, into its buffer where it has one."""
    events: list[Event] = []
    position = 0
    for piece in [*pieces, len(data)]:
        while position < len(data):
            room = it.room
            step = min(piece, len(data) - position, len(room) if room is not None else piece)
            if room is None:
                events += it.receive(data[position : position + step], (), ONE)
            else:
                room[:step] = data[position : position + step]
                events += it.filled(step, (), ONE)
            position += step
            if piece != len(data):
                break
    return events


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 90_000), max_size=8))
def test_in_whatever_pieces_frames_come_they_mean_the_same(pieces: list[int]) -> None:
    frames = [
        call_frame(1, 0, {"text": "a" * LARGE}),
        call_frame(2, 0, {"text": "b"}),
        call_frame(3, 0, {"text": "c" * 3 * LARGE}),
    ]
    it = listening(Buffers())
    texts = [text_of(event) for event in feed(it, b"".join(frames), pieces)]
    assert texts == ["a" * LARGE, "b", "c" * 3 * LARGE]
    assert it.budget.used == 0
    assert it.room is None


def test_bytes_of_a_transport_without_buffers_go_the_same_way() -> None:
    it = listening(Buffers())
    data = call_frame(1, 0, {"text": "a" * LARGE}) + call_frame(2, 0, {"text": "b"})
    events = it.receive(data[:1000], (), ONE)
    assert it.room is not None
    events += it.receive(data[1000:], (), ONE)
    assert [text_of(event) for event in events] == ["a" * LARGE, "b"]


def test_a_buffer_is_not_used_again_while_its_frame_is_to_be_decoded() -> None:
    buffers = Buffers()
    it = listening(buffers)
    kept = [
        feed(it, call_frame(number, 0, {"text": chr(96 + number) * LARGE}), [500])[0]
        for number in range(1, BUFFERS + 3)  # the last two find no buffer
    ]
    assert [text_of(event)[:1] for event in kept] == list("abcdef")[: len(kept)]
    kept.clear()
    assert buffers.take(LARGE) is not None


def test_frames_that_are_begun_and_not_ended_hold_no_more_than_there_is() -> None:
    buffers = Buffers()
    frame = call_frame(1, 0, {"text": "a" * LARGE})
    stalled = [listening(buffers) for _ in range(BUFFERS + 1)]
    for it in stalled:
        it.receive(frame[:500], (), ONE)
    assert [it.room is not None for it in stalled] == [True] * BUFFERS + [False]
    for it in stalled:
        it.abandon()
    assert buffers.take(BUFFER_BYTES) is not None
    assert buffers.take(BUFFER_BYTES + 1) is None


def test_a_frame_of_two_senders_ends_the_connection() -> None:
    it = listening(Buffers())
    frame = call_frame(1, 0, {"text": "a" * LARGE})
    it.receive(frame[:500], (), ONE)
    room = it.room
    assert room is not None
    room[:100] = frame[500:600]
    with pytest.raises(ProtocolError, match="two senders"):
        it.filled(100, (), "another")


def test_too_many_descriptors_within_a_large_frame_end_the_connection() -> None:
    it = listening(Buffers())
    it.receive(call_frame(1, 0, {"text": "a" * LARGE})[:500], (), ONE)
    with pytest.raises(ProtocolError, match="descriptors"):
        it.filled(100, (5,), ONE)
    assert it.abandon() == [5]
