"""The tables of the machine, line by line, and what it refuses."""

from __future__ import annotations

import msgspec
import pytest

from container.ipc.wire.frames import (
    FROM_CALLEE,
    HEADER,
    MAGIC,
    CallPayload,
    EndedBy,
    Kind,
    pack,
)
from container.ipc.wire.limits import Limits
from container.ipc.wire.machine import (
    Budget,
    CallDropped,
    CallReceived,
    CancelReceived,
    ErrorReceived,
    Event,
    GoodbyeReceived,
    HelloReceived,
    Incoming,
    Machine,
    Outgoing,
    PingReceived,
    PongReceived,
    ProtocolError,
    ReplyReceived,
    State,
)

encode = msgspec.msgpack.encode
ONE = "sender one"
TWO = "sender two"


def machine(**limits: int) -> Machine:
    """Return a machine that has said nothing and heard nothing."""
    return Machine(Limits(partial_free_bytes=0, **limits), Budget(1 << 20))


def hello_frame(
    lowest: int = 1, highest: int = 1, limits: dict[str, int] | None = None, more: tuple = ()
) -> bytes:
    """Return a hello of somebody who may be newer."""
    announced = {"frame_bytes": 1 << 20, "frame_descriptors": 32, "in_flight": 8}
    payload = (lowest, highest, announced if limits is None else limits, {}, "peer", "0", *more)
    return pack(Kind.HELLO, MAGIC, encode(payload))


def opened(**limits: int) -> Machine:
    """Return a machine in state OPEN."""
    it = machine(**limits)
    it.hello({}, "us", "0")
    it.receive(hello_frame(), (), ONE)
    return it


def call_frame(number: int, descriptors: int = 0, arguments: object = None) -> bytes:
    """Return a call."""
    payload = encode(("greeter/greet", None, 5, None, arguments or {}))
    return pack(Kind.CALL, number, payload, descriptors=descriptors)


def reply_frame(number: int, descriptors: int = 0) -> bytes:
    """Return a reply."""
    payload = encode(("value",))
    return pack(Kind.REPLY, number, payload, flags=FROM_CALLEE, descriptors=descriptors)


def error_frame(number: int, ended_by: int = 0) -> bytes:
    """Return a terminal error."""
    payload = encode((ended_by, {"code": "not-found", "message": "no"}))
    return pack(Kind.ERROR, number, payload, flags=FROM_CALLEE)


def cancel_frame(number: int, grace: int = 7) -> bytes:
    """Return a cancel."""
    return pack(Kind.CANCEL, number, encode((grace,)))


def goodbye_frame(last: int, within: int = 0) -> bytes:
    """Return a goodbye."""
    return pack(Kind.GOODBYE, 0, encode((last, within)))


def only(events: list[Event]) -> Event:
    """Return the one event there is."""
    (event,) = events
    return event


def refused(it: Machine, data: bytes, descriptors: tuple[int, ...] = (), match: str = "") -> None:
    """Check that bytes end the connection, once, and that its descriptors come back."""
    held = it.descriptors_received - it.descriptors_delivered
    with pytest.raises(ProtocolError, match=match):
        it.receive(data, descriptors, ONE)
    assert it.state is State.CLOSED
    assert it.receive(call_frame(99), (), ONE) == []
    assert len(it.abandon()) == held + len(descriptors)
    assert it.budget.used == 0
    assert it.incoming == {}
    assert it.outgoing == {}


# --- the connection ---------------------------------------------------------------------------


def test_a_hello_opens_the_connection() -> None:
    it = machine()
    event = only(it.receive(hello_frame(), (), ONE))
    assert isinstance(event, HelloReceived)
    assert event.compatible
    assert event.payload.process == "peer"
    assert it.state is State.OPEN


def test_a_hello_of_another_version_closes_and_is_told_apart() -> None:
    it = machine()
    event = only(it.receive(hello_frame(2, 3), (), ONE))
    assert isinstance(event, HelloReceived)
    assert not event.compatible
    assert it.state is State.CLOSED
    assert it.error(0, EndedBy.ITSELF, {"code": "incompatible", "message": "1 to 1"})


def test_a_newer_hello_may_say_more_and_speak_more_versions() -> None:
    it = machine()
    event = only(it.receive(hello_frame(1, 9, more=("features", 3)), (), ONE))
    assert isinstance(event, HelloReceived)
    assert event.compatible


def test_limits_that_a_hello_leaves_out_are_the_least_ones() -> None:
    it = machine()
    it.receive(hello_frame(limits={}), (), ONE)
    assert (it.peer_in_flight, it.peer_frame_bytes, it.peer_frame_descriptors) == (1, 65536, 0)


@pytest.mark.parametrize("limit", ["frame_bytes", "in_flight"])
def test_limits_that_allow_nothing_are_refused(limit: str) -> None:
    refused(machine(), hello_frame(limits={limit: 0}), match="allow nothing")


def test_another_frame_before_hello_is_refused() -> None:
    refused(machine(), call_frame(1), match="no hello")


def test_a_hello_without_the_magic_is_refused() -> None:
    refused(machine(), pack(Kind.HELLO, 1, encode((1, 1, {}, {}, "", ""))), match="no hello")


def test_bytes_of_another_protocol_are_refused_at_their_first_sixteen() -> None:
    refused(machine(), b"GET / HTTP/1.1\r\nHost: x\r\n", match="no hello")


def test_a_hello_that_is_too_long_is_refused_at_its_header() -> None:
    refused(machine(), HEADER.pack(65537, Kind.HELLO, 0, 0, MAGIC), match="65537")


def test_a_hello_that_cannot_be_read_is_refused() -> None:
    refused(machine(), pack(Kind.HELLO, MAGIC, encode(("x",))), match="can't be read")


def test_a_second_hello_is_refused() -> None:
    refused(opened(), hello_frame(), match="second hello")


def test_a_frame_before_the_accepting_side_has_said_hello_is_refused() -> None:
    it = machine()
    it.receive(hello_frame(), (), ONE)
    refused(it, call_frame(1), match="before our hello")


def test_an_error_may_come_instead_of_a_hello() -> None:
    it = machine()
    it.hello({}, "us", "0")
    event = only(it.receive(error_frame(0), (), ONE))
    assert isinstance(event, ErrorReceived)
    assert event.id == 0
    assert it.state is State.CLOSED


def test_an_error_with_id_zero_ends_the_connection_and_what_is_glued_to_it() -> None:
    it = opened()
    events = it.receive(error_frame(0) + call_frame(1, 1), (5,), ONE)
    assert isinstance(only(events), ErrorReceived)
    assert it.abandon() == [5]


def test_goodbye_drains() -> None:
    it = opened()
    number, _ = it.call(b"")
    event = only(it.receive(goodbye_frame(number, 9), (), ONE))
    assert event == GoodbyeReceived(number, 9)
    assert it.state is State.DRAINING
    assert it.outgoing == {number: Outgoing.SENT}
    assert isinstance(only(it.receive(reply_frame(number), (), ONE)), ReplyReceived)


def test_calls_after_a_goodbye_s_last_id_have_ended() -> None:
    it = opened()
    first, _ = it.call(b"")
    second, _ = it.call(b"")
    it.receive(goodbye_frame(first), (), ONE)
    assert it.outgoing == {first: Outgoing.SENT}
    refused(it, reply_frame(second), match="not open")


def test_a_goodbye_may_be_repeated_but_not_take_back_its_word() -> None:
    it = opened()
    for _ in range(3):
        it.call(b"")
    it.receive(goodbye_frame(2), (), ONE)
    it.receive(goodbye_frame(1), (), ONE)
    refused(it, goodbye_frame(2), match="goodbye")


def test_a_goodbye_for_a_call_that_was_never_made_is_refused() -> None:
    refused(opened(), goodbye_frame(1), match="goodbye")


def test_a_call_after_our_goodbye_is_dropped_and_gives_its_descriptors_back() -> None:
    it = opened()
    it.receive(call_frame(1), (), ONE)
    last = only(_peer_of(it).receive(it.goodbye(0), (), ONE))
    assert last == GoodbyeReceived(1, 0)
    assert only(it.receive(call_frame(2, 1), (7,), ONE)) == CallDropped(2, [7])
    assert it.receive(cancel_frame(2), (), ONE) == []
    assert only(_peer_of(it).receive(it.goodbye(0), (), ONE)) == GoodbyeReceived(1, 0)


def _peer_of(it: Machine) -> Machine:
    peer = opened()
    peer.call(b"")
    return peer


def test_the_end_in_the_middle_of_a_frame_closes() -> None:
    it = opened()
    it.receive(call_frame(1)[:20], (), ONE)
    assert it.budget.used == 20
    it.end()
    assert it.state is State.CLOSED
    assert it.abandon() == []
    assert it.budget.used == 0


def test_pings_are_answered_and_pongs_need_their_ping() -> None:
    it, peer = opened(), opened()
    assert only(peer.receive(it.ping(), (), ONE)) == PingReceived(1)
    assert only(it.receive(peer.pong(1), (), ONE)) == PongReceived(1)
    refused(it, peer.pong(2), match="pong")


def test_an_unknown_kind_is_refused() -> None:
    refused(opened(), HEADER.pack(0, 77, 0, 0, 1), match="unknown frame kind 77")


@pytest.mark.parametrize(
    ("frame", "flags"),
    [
        (call_frame(1), FROM_CALLEE),
        (call_frame(1), 4),
        (call_frame(1), 3),
        (cancel_frame(1), FROM_CALLEE),
        (reply_frame(1), 0),
        (error_frame(1), 0),
        (goodbye_frame(0), 128),
    ],
)
def test_flags_that_a_kind_does_not_have_are_refused(frame: bytes, flags: int) -> None:
    refused(opened(), frame[:5] + bytes([flags]) + frame[6:], match="flags")


# --- a call of ours ---------------------------------------------------------------------------


def test_ids_grow_from_one() -> None:
    it = opened()
    assert [it.call(b"")[0] for _ in range(3)] == [1, 2, 3]


def test_sent_reply_ends() -> None:
    it = opened()
    number, _ = it.call(b"")
    event = only(it.receive(reply_frame(number), (), ONE))
    assert isinstance(event, ReplyReceived)
    assert event.value is not None
    assert not event.abandoned
    assert it.outgoing == {}


def test_sent_error_ends() -> None:
    it = opened()
    number, _ = it.call(b"")
    event = only(it.receive(error_frame(number, 2), (), ONE))
    assert isinstance(event, ErrorReceived)
    assert event.ended_by is EndedBy.DEADLINE
    assert event.error["code"] == "not-found"
    assert it.outgoing == {}


def test_sent_withdrawn_skips_its_id() -> None:
    it = opened()
    number, _ = it.call(b"")
    it.withdraw(number)
    assert it.call(b"")[0] == number + 1
    refused(it, reply_frame(number), match="not open")


@pytest.mark.parametrize("terminal", [reply_frame, error_frame])
def test_cancelling_ends_by_either_terminal(terminal: object) -> None:
    it = opened()
    number, _ = it.call(b"")
    it.cancel(number, 5)
    assert it.outgoing == {number: Outgoing.CANCELLING}
    event = only(it.receive(terminal(number), (), ONE))  # type: ignore[operator]
    assert not event.abandoned
    assert it.outgoing == {}


@pytest.mark.parametrize("terminal", [reply_frame, error_frame])
def test_abandoned_keeps_its_id_until_the_late_terminal(terminal: object) -> None:
    it = opened()
    number, _ = it.call(b"")
    it.cancel(number, 5)
    it.abandon_call(number)
    assert it.outgoing == {number: Outgoing.ABANDONED}
    assert only(it.receive(terminal(number), (), ONE)).abandoned  # type: ignore[operator]
    assert it.outgoing == {}


@pytest.mark.parametrize("terminal", [reply_frame, error_frame])
def test_a_terminal_for_a_call_that_is_not_open_is_refused(terminal: object) -> None:
    it = opened()
    number, _ = it.call(b"")
    it.receive(reply_frame(number), (), ONE)
    refused(it, terminal(number), match="not open")  # type: ignore[operator]


def test_a_reply_whose_body_is_no_value_still_ends_its_call() -> None:
    it = opened()
    number, _ = it.call(b"")
    frame = pack(Kind.REPLY, number, b"\xc1", flags=FROM_CALLEE, descriptors=1)
    event = only(it.receive(frame, (9,), ONE))
    assert event == ReplyReceived(number, None, [9], ONE, abandoned=False)


def test_an_error_that_cannot_be_read_still_ends_its_call() -> None:
    it = opened()
    number, _ = it.call(b"")
    event = only(it.receive(pack(Kind.ERROR, number, b"\xc1", flags=FROM_CALLEE), (), ONE))
    assert isinstance(event, ErrorReceived)
    assert event.error["code"] == "incompatible"


def test_a_reason_of_a_newer_peer_leaves_the_error_as_it_is() -> None:
    it = opened()
    number, _ = it.call(b"")
    event = only(it.receive(error_frame(number, 7), (), ONE))
    assert isinstance(event, ErrorReceived)
    assert event.ended_by is EndedBy.ITSELF
    assert event.error["code"] == "not-found"


def test_an_error_larger_than_the_peer_s_frames_is_cut_to_its_sentence() -> None:
    it = machine()
    it.hello({}, "us", "0")
    it.receive(hello_frame(limits={"frame_bytes": 1000}), (), ONE)
    it.receive(call_frame(1), (), ONE)
    error = {"code": "internal", "message": "m" * 5000, "details": {"d": "x" * 5000}}
    frame = it.error(1, EndedBy.ITSELF, error)
    assert len(frame) < 1000
    peer = opened()
    peer.call(b"")
    event = only(peer.receive(frame, (), ONE))
    assert isinstance(event, ErrorReceived)
    assert event.error["code"] == "internal"


# --- a call of the peer's ---------------------------------------------------------------------


def test_running_cancelled_ended() -> None:
    it = opened()
    event = only(it.receive(call_frame(1), (), ONE))
    assert isinstance(event, CallReceived)
    assert isinstance(event.payload, CallPayload)
    assert it.incoming[1].state is Incoming.RUNNING
    assert only(it.receive(cancel_frame(1), (), ONE)) == CancelReceived(1, 7, ONE)
    assert it.incoming[1].state is Incoming.CANCELLED
    it.reply(1, encode((None,)))
    assert it.incoming == {}


def test_running_ends_by_an_error() -> None:
    it = opened()
    it.receive(call_frame(1), (), ONE)
    it.error(1, EndedBy.ITSELF, {"code": "not-found", "message": "no"})
    assert it.incoming == {}


def test_a_cancel_after_the_terminal_is_ignored() -> None:
    it = opened()
    it.receive(call_frame(1), (), ONE)
    it.reply(1, encode((None,)))
    assert it.receive(cancel_frame(1), (), ONE) == []
    assert it.state is State.OPEN


def test_a_second_cancel_is_refused() -> None:
    it = opened()
    it.receive(call_frame(1) + cancel_frame(1), (), ONE)
    refused(it, cancel_frame(1), match="second cancel")


@pytest.mark.parametrize("number", [0, 2])
def test_a_cancel_of_a_call_never_made_is_refused(number: int) -> None:
    it = opened()
    it.receive(call_frame(1), (), ONE)
    refused(it, cancel_frame(number), match="never made")


def test_a_cancel_that_cannot_be_read_is_refused() -> None:
    it = opened()
    it.receive(call_frame(1), (), ONE)
    refused(it, pack(Kind.CANCEL, 1, b"\xa1x"), match="can't be read")


def test_a_negative_grace_is_none() -> None:
    it = opened()
    it.receive(call_frame(1), (), ONE)
    assert only(it.receive(cancel_frame(1, -5), (), ONE)) == CancelReceived(1, 0, ONE)


@pytest.mark.parametrize("number", [0, 3, 4])
def test_an_id_that_does_not_grow_is_refused(number: int) -> None:
    it = opened()
    it.receive(call_frame(4), (), ONE)
    refused(it, call_frame(number), match="does not grow")


def test_one_unanswered_call_too_many_is_refused() -> None:
    it = opened(in_flight=2)
    it.receive(call_frame(1) + call_frame(2) + cancel_frame(2), (), ONE)
    refused(it, call_frame(3), match="more than 2 unanswered")


def test_an_answered_call_makes_room() -> None:
    it = opened(in_flight=1)
    it.receive(call_frame(1), (), ONE)
    it.reply(1, encode((None,)))
    assert isinstance(only(it.receive(call_frame(2), (), ONE)), CallReceived)


def test_a_body_that_is_no_call_is_a_call_to_be_refused() -> None:
    it = opened()
    event = only(it.receive(pack(Kind.CALL, 1, b"\xc1", descriptors=1), (4,), ONE))
    assert event == CallReceived(1, None, [4], ONE)
    assert it.error(1, EndedBy.ITSELF, {"code": "invalid-argument", "message": "no message"})


def test_a_newer_caller_may_say_more() -> None:
    payload = encode(("greeter/greet", 5, 6, None, {}, (), "something new"))
    event = only(opened().receive(pack(Kind.CALL, 1, payload), (), ONE))
    assert isinstance(event, CallReceived)
    assert event.payload is not None
    assert (event.payload.timeout, event.payload.grace) == (5, 6)


# --- senders ----------------------------------------------------------------------------------


def test_one_frame_of_two_senders_is_refused() -> None:
    it = opened()
    it.receive(call_frame(1)[:5], (), TWO)
    refused(it, call_frame(1)[5:], match="two senders")


def test_whole_frames_of_two_senders_are_theirs() -> None:
    it = opened()
    senders = []
    for number, sender in ((1, ONE), (2, TWO)):
        event = only(it.receive(call_frame(number), (), sender))
        assert isinstance(event, CallReceived)
        senders.append(event.sender)
    assert senders == [ONE, TWO]


def test_a_cancel_by_another_than_the_caller_is_refused() -> None:
    it = opened()
    it.receive(call_frame(1), (), TWO)
    refused(it, cancel_frame(1), match="another process")


# --- sizes ------------------------------------------------------------------------------------


def test_a_frame_that_is_too_long_is_refused_before_its_payload_comes() -> None:
    it = opened(frame_bytes=100)
    refused(it, HEADER.pack(101, Kind.CALL, 0, 0, 1), match="101 bytes")


def test_a_whole_frame_that_is_too_long_is_refused() -> None:
    refused(opened(frame_bytes=100), call_frame(1, arguments={"x": "y" * 100}), match="100 are")


def test_a_part_of_a_frame_is_given_back_once() -> None:
    it = opened()
    it.receive(call_frame(1)[:20], (), ONE)
    it.abandon()
    it.abandon()
    assert it.budget.used == 0


def test_a_length_that_lies_takes_no_memory() -> None:
    it = opened()
    it.receive(HEADER.pack(16 << 20, Kind.CALL, 0, 0, 1) + b"x" * 10, (), ONE)
    assert it.budget.used == 26


def test_partial_frames_of_all_connections_share_one_budget() -> None:
    budget = Budget(100)
    machines = [Machine(Limits(partial_free_bytes=0), budget) for _ in range(2)]
    for it in machines:
        it.hello({}, "us", "0")
        it.receive(hello_frame(), (), ONE)
    header = HEADER.pack(1000, Kind.CALL, 0, 0, 1)
    machines[0].receive(header + b"x" * 50, (), ONE)
    with pytest.raises(ProtocolError, match="partly received"):
        machines[1].receive(header + b"x" * 50, (), ONE)
    machines[1].abandon()
    assert budget.used == 66
    machines[0].abandon()
    assert budget.used == 0


def test_small_parts_are_received_whatever_other_connections_hold() -> None:
    it = Machine(Limits(), Budget(0))
    it.hello({}, "us", "0")
    it.receive(hello_frame(), (), ONE)
    frame = call_frame(1, arguments={"text": "x" * 70000})
    assert it.receive(frame[:65536], (), ONE) == []
    assert it.budget.used == 0
    refused(it, frame[65536:65537], match="partly received")


def test_a_whole_frame_gives_its_share_of_the_budget_back() -> None:
    it = opened()
    frame = call_frame(1, arguments={"text": "x" * 1000})
    it.receive(frame[:500], (), ONE)
    assert it.budget.used == 500
    it.receive(frame[500:] + frame[:3], (), ONE)
    assert it.budget.used == 3
