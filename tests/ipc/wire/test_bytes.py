"""Bytes in any pieces, descriptors in any number, and bytes that mean nothing."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container.ipc.wire.frames import HEADER, Kind, pack
from container.ipc.wire.limits import Limits
from container.ipc.wire.machine import (
    Budget,
    CallReceived,
    Event,
    Machine,
    ProtocolError,
    ReplyReceived,
    State,
)
from tests.ipc.wire.pipes import Pipe
from tests.ipc.wire.test_machine import (
    ONE,
    call_frame,
    cancel_frame,
    error_frame,
    goodbye_frame,
    hello_frame,
    opened,
    refused,
    reply_frame,
)

CONVERSATION = [
    (call_frame(1), []),
    (call_frame(2, 2), [10, 11]),
    (reply_frame(1), []),
    (call_frame(3, 1, {"text": "x" * 50}), [12]),
    (cancel_frame(2), []),
    (reply_frame(2, 3), [13, 14, 15]),
    (error_frame(3), []),
    (pack(Kind.PING, 5, b""), []),
    (goodbye_frame(3), []),
]


def listening() -> Machine:
    """Return a machine with three open calls."""
    it = opened()
    for _ in range(3):
        it.call(b"")
    return it


def in_one_go() -> list[Event]:
    """Return what the conversation means, frame by frame."""
    it = listening()
    return [event for data, fds in CONVERSATION for event in it.receive(data, fds, ONE)]


@pytest.mark.parametrize("most", [1, 2, 3, 7, 15, 16, 17, 40, 65536])
def test_however_many_bytes_a_read_gives_the_events_are_the_same(most: int) -> None:
    pipe, it = Pipe(), listening()
    for data, descriptors in CONVERSATION:
        pipe.send(data, descriptors)
    events: list[Event] = []
    while pipe.buffers:
        data, descriptors = pipe.read(most)
        events += it.receive(data, descriptors, ONE)
    assert events == in_one_go()
    assert it.budget.used == 0
    assert it.descriptors_received == it.descriptors_delivered == 6


def test_a_split_at_every_byte_gives_the_same_events() -> None:
    whole = b"".join(data for data, _ in CONVERSATION if data)
    expected = in_one_go()
    for cut in range(1, len(whole)):
        pipe, it = Pipe(), listening()
        for data, descriptors in CONVERSATION:
            pipe.send(data, descriptors)
        events: list[Event] = []
        left = cut
        while left:
            data, descriptors = pipe.read(left)
            left -= len(data)
            events += it.receive(data, descriptors, ONE)
        while pipe.buffers:
            events += it.receive(*pipe.read(65536), ONE)
        assert events == expected


def test_a_hello_may_come_byte_by_byte() -> None:
    it = Machine(Limits(), Budget(1 << 20))
    frame = hello_frame()
    for index in range(len(frame) - 1):
        assert it.receive(frame[index : index + 1], (), ONE) == []
        assert it.state is State.OPENING
    it.receive(frame[-1:], (), ONE)
    assert it.state is State.OPEN


# --- descriptors ------------------------------------------------------------------------------


def test_one_descriptor_comes_with_its_frame() -> None:
    (event,) = opened().receive(call_frame(1, 1), (5,), ONE)
    assert isinstance(event, CallReceived)
    assert event.descriptors == [5]


def test_several_descriptors_come_in_order() -> None:
    (event,) = opened().receive(call_frame(1, 3), (5, 3, 4), ONE)
    assert isinstance(event, CallReceived)
    assert event.descriptors == [5, 3, 4]


def test_descriptors_go_both_ways() -> None:
    it = opened()
    number, _ = it.call(b"")
    events = it.receive(reply_frame(number, 1), (5,), ONE)
    events += it.receive(call_frame(1, 1), (6,), ONE)
    assert [e.descriptors for e in events if isinstance(e, (ReplyReceived, CallReceived))] == [
        [5],
        [6],
    ]


def test_descriptors_that_come_early_wait_for_their_frame() -> None:
    it = opened()
    frame = call_frame(2, 1)
    first, second = it.receive(call_frame(1) + frame[:3], (8,), ONE), []
    assert [e.descriptors for e in first if isinstance(e, CallReceived)] == [[]]
    second = it.receive(frame[3:], (), ONE)
    assert [e.descriptors for e in second if isinstance(e, CallReceived)] == [[8]]


def test_descriptors_of_a_frame_that_needs_many_reads_wait_for_its_end() -> None:
    it = opened()
    frame = call_frame(1, 2, {"text": "x" * 1000})
    assert it.receive(frame[:500], (7, 8), ONE) == []
    (event,) = it.receive(frame[500:], (), ONE)
    assert isinstance(event, CallReceived)
    assert event.descriptors == [7, 8]


def test_no_descriptor_where_one_was_said_is_refused() -> None:
    refused(opened(), call_frame(1, 1), match="fewer descriptors")


def test_one_too_few_is_refused_and_what_came_is_given_back() -> None:
    refused(opened(), call_frame(1, 3), (5, 6), match="fewer descriptors")


def test_a_descriptor_where_none_was_said_is_refused() -> None:
    refused(opened(), call_frame(1), (5,), match="more descriptors")


def test_one_too_many_is_refused() -> None:
    refused(opened(), call_frame(1, 1), (5, 6), match="more descriptors")


def test_one_too_many_is_refused_as_soon_as_the_header_is_there() -> None:
    refused(opened(), call_frame(1, 1)[:16], (5, 6), match="more descriptors")


def test_more_than_a_frame_may_have_are_refused_before_the_header_is_there() -> None:
    refused(opened(), call_frame(1, 33)[:8], tuple(range(5, 38)), match="more descriptors")


def test_more_than_announced_are_refused() -> None:
    refused(opened(), call_frame(1, 33), tuple(range(5, 38)), match="33 descriptors")


def test_descriptors_on_a_frame_that_carries_none_are_refused() -> None:
    it = opened()
    it.receive(call_frame(1), (), ONE)
    frame = cancel_frame(1)
    refused(it, frame[:6] + struct.pack("<H", 1) + frame[8:], (5,), match="carry no descriptors")


def test_descriptors_before_our_hello_are_refused_and_given_back() -> None:
    it = Machine(Limits(), Budget(1 << 20))
    refused(it, hello_frame(), (5,), match="more descriptors")
    it = Machine(Limits(), Budget(1 << 20))
    refused(it, hello_frame()[:4], (5,), match="more descriptors")


def test_descriptors_of_events_that_a_fault_swallowed_are_given_back() -> None:
    it = opened()
    with pytest.raises(ProtocolError):
        it.receive(call_frame(1, 2) + b"\xff" * 16, (5, 6), ONE)
    assert it.descriptors_delivered == 0
    assert sorted(it.abandon()) == [5, 6]


def test_descriptors_that_come_after_the_end_are_given_back() -> None:
    it = opened()
    it.end()
    assert it.receive(call_frame(1, 1), (5,), ONE) == []
    assert it.abandon() == [5]


# --- bytes that mean nothing ------------------------------------------------------------------

HEADERS = st.builds(
    HEADER.pack,
    st.integers(0, 200) | st.integers(0, 2**32 - 1),
    st.integers(0, 20),
    st.sampled_from([0, 1, 2, 255]),
    st.sampled_from([0, 0, 0, 1, 40]),
    st.integers(0, 5) | st.integers(0, 2**64 - 1),
)
FRAMES = st.builds(
    lambda kind, flags, number, payload: pack(kind, number, payload, flags=flags),
    st.sampled_from(list(Kind)),
    st.sampled_from([0, 1]),
    st.integers(0, 6),
    st.binary(max_size=30),
)
PIECES = st.lists(
    st.binary(max_size=60) | HEADERS | FRAMES | st.sampled_from([d for d, _ in CONVERSATION]),
    max_size=20,
)


@given(PIECES, st.lists(st.integers(3, 1000), max_size=4), st.booleans(), st.integers(1, 64))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_events_or_a_protocol_error_and_memory_stays_bounded(
    pieces: list[bytes], descriptors: list[int], begun: bool, step: int
) -> None:
    budget = Budget(1 << 20)
    it = Machine(Limits(frame_bytes=4096, in_flight=4, partial_free_bytes=0), budget)
    it.hello({}, "us", "0")
    if begun:
        it.receive(hello_frame(), (), ONE)
        it.call(b"")
    data = b"".join(pieces)
    handed = 0
    delivered: list[int] = []
    try:
        for start in range(0, len(data), step):
            some = descriptors[handed : handed + 1]
            handed += len(some)
            for event in it.receive(data[start : start + step], some, ONE):
                delivered += getattr(event, "descriptors", [])
            assert budget.used <= 4096 + 16
            assert len(it.incoming) <= 4
    except ProtocolError:
        assert it.state is State.CLOSED
        assert it.receive(b"more", (), ONE) == []
    assert sorted(delivered + it.abandon()) == sorted(descriptors[:handed])
    assert budget.used == 0
