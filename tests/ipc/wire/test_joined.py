"""Two machines, joined by what a socket may do to their frames: any order of events at both ends.

Held at every step: descriptors sent are those delivered, given back, held or under way; each call
has at most one terminal; two machines that keep the rules never accuse each other. Held at the end:
nothing is left.
"""

from __future__ import annotations

import itertools

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from container.ipc.wire.frames import EndedBy
from container.ipc.wire.limits import Limits
from container.ipc.wire.machine import (
    Budget,
    CallDropped,
    CallReceived,
    ErrorReceived,
    Event,
    GoodbyeReceived,
    HelloReceived,
    Machine,
    Outgoing,
    PingReceived,
    ReplyReceived,
    State,
)
from tests.ipc.wire.pipes import Pipe

encode = msgspec.msgpack.encode
SIDES = st.sampled_from([0, 1])
COUNTS = st.sampled_from([0, 0, 1, 3])
BODY = st.sampled_from(["", "x" * 20, "x" * 300])


class JoinedMachines(RuleBasedStateMachine):
    """Both ends of one connection, and what a correct pair of programs may do with it."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = Budget(1 << 20)
        self.ends = [
            Machine(Limits(in_flight=6, partial_free_bytes=0), self.budget) for _ in range(2)
        ]
        self.pipes = [Pipe(), Pipe()]
        """By the side that writes."""
        self.fresh = itertools.count(100)
        self.sent: set[int] = set()
        self.delivered: list[int] = []
        self.given_back: list[int] = []
        self.terminals: dict[tuple[int, int], int] = {}
        """Calls by side and id: how many terminals came."""
        self.not_started: set[tuple[int, int]] = set()
        self.started: set[tuple[int, int]] = set()
        self.over = False

    # --- the plumbing ---

    def descriptors(self, count: int) -> list[int]:
        made = [next(self.fresh) for _ in range(count)]
        self.sent.update(made)
        return made

    def take(self, side: int, event: Event) -> None:
        if isinstance(event, (CallReceived, CallDropped, ReplyReceived)):
            self.delivered += event.descriptors
        if isinstance(event, CallReceived):
            assert (1 - side, event.id) not in self.started
            self.started.add((1 - side, event.id))
        if isinstance(event, (ReplyReceived, ErrorReceived)):
            key = (side, event.id)
            assert key not in self.not_started
            self.terminals[key] += 1
            assert self.terminals[key] == 1
        if isinstance(event, GoodbyeReceived):
            later = {key for key in self.terminals if key[0] == side and key[1] > event.last}
            assert not later & self.started
            assert not any(self.terminals[key] for key in later)
            self.not_started |= later
        if isinstance(event, PingReceived):
            self.pipes[side].send(self.ends[side].pong(event.token))

    def deliver_some(self, side: int, most: int) -> None:
        data, descriptors = self.pipes[1 - side].read(most)
        if data:
            for event in self.ends[side].receive(data, descriptors, f"sender {1 - side}"):
                self.take(side, event)

    def deliver_all(self) -> None:
        while self.pipes[0].buffers or self.pipes[1].buffers:
            self.deliver_some(0, 65536)
            self.deliver_some(1, 65536)

    # --- what may happen ---

    @initialize(most=st.integers(1, 200))
    def greet(self, most: int) -> None:
        client, server = self.ends
        self.pipes[0].send(client.hello({"greeter": (1, "f")}, "client", "0"))
        while server.state is State.OPENING:
            data, _ = self.pipes[0].read(most)
            for event in server.receive(data, (), "sender 0"):
                assert isinstance(event, HelloReceived)
        self.pipes[1].send(server.hello({"greeter": (1, "f")}, "server", "0"))
        while client.state is State.OPENING:
            client.receive(self.pipes[1].read(most)[0], (), "sender 1")

    @precondition(lambda self: not self.over)
    @rule(side=SIDES, count=COUNTS, body=BODY, withdrawn=st.booleans())
    def call(self, side: int, count: int, body: str, withdrawn: bool) -> None:
        end = self.ends[side]
        if end.state is not State.OPEN or len(end.outgoing) >= end.peer_in_flight:
            return
        number, data = end.call(encode(("a/b", None, 1, None, {"body": body})), count)
        if withdrawn and not count:
            end.withdraw(number)
            return
        self.terminals[side, number] = 0
        descriptors = self.descriptors(count)
        if body:
            # The kernel took a part: the rest goes out without the descriptors.
            self.pipes[side].send(data[:20], descriptors)
            self.pipes[side].send(data[20:])
        else:
            self.pipes[side].send(data, descriptors)

    @precondition(lambda self: not self.over)
    @rule(side=SIDES, pick=st.randoms(use_true_random=False))
    def cancel(self, side: int, pick: object) -> None:
        end = self.ends[side]
        sent = [number for number, state in end.outgoing.items() if state is Outgoing.SENT]
        if sent:
            self.pipes[side].send(end.cancel(pick.choice(sent), 5))  # type: ignore[attr-defined]

    @precondition(lambda self: not self.over)
    @rule(side=SIDES)
    def abandon_calls(self, side: int) -> None:
        end = self.ends[side]
        for number, state in list(end.outgoing.items()):
            if state is Outgoing.CANCELLING:
                end.abandon_call(number)

    @precondition(lambda self: not self.over)
    @rule(side=SIDES, count=COUNTS, fails=st.booleans(), pick=st.randoms(use_true_random=False))
    def answer(self, side: int, count: int, fails: bool, pick: object) -> None:
        end = self.ends[side]
        if not end.incoming:
            return
        number = pick.choice(list(end.incoming))  # type: ignore[attr-defined]
        if fails:
            error = {"code": "not-found", "message": "no"}
            self.pipes[side].send(end.error(number, EndedBy.ITSELF, error))
        else:
            descriptors = self.descriptors(count)
            self.pipes[side].send(end.reply(number, encode(("v",)), count), descriptors)

    @precondition(lambda self: not self.over)
    @rule(side=SIDES)
    def ping(self, side: int) -> None:
        self.pipes[side].send(self.ends[side].ping())

    @precondition(lambda self: not self.over)
    @rule(side=SIDES, often=st.integers(0, 4))
    def goodbye(self, side: int, often: int) -> None:
        if often == 0:
            self.pipes[side].send(self.ends[side].goodbye(0))

    @precondition(lambda self: not self.over)
    @rule(side=SIDES, most=st.integers(1, 30) | st.integers(1, 2000))
    def deliver(self, side: int, most: int) -> None:
        self.deliver_some(side, most)

    @precondition(lambda self: not self.over)
    @rule(side=SIDES, rare=st.integers(0, 15))
    def lose(self, side: int, rare: int) -> None:
        if rare:
            return
        self.over = True
        for end in self.ends:
            end.end()
            self.given_back += end.abandon()
        for pipe in self.pipes:
            self.given_back += pipe.in_flight
            pipe.buffers.clear()
        assert self.ends[side].receive(b"late", (), "anybody") == []

    @precondition(lambda self: self.over)
    @rule(side=SIDES)
    def hear_nothing_after_the_end(self, side: int) -> None:
        assert self.ends[side].receive(self.ends[side].ping(), (), "anybody") == []
        assert self.ends[side].abandon() == []

    # --- what always holds ---

    @invariant()
    def no_descriptor_is_lost_or_doubled(self) -> None:
        gone = self.delivered + self.given_back
        assert len(gone) == len(set(gone))
        assert set(gone) <= self.sent
        held = sum(end.descriptors_received - end.descriptors_delivered for end in self.ends)
        under_way = sum(len(pipe.in_flight) for pipe in self.pipes)
        if not self.over:
            assert len(self.sent) == len(gone) + held + under_way

    @invariant()
    def the_budget_is_what_is_held(self) -> None:
        assert self.over or 0 <= self.budget.used <= 2 * 65536

    def teardown(self) -> None:
        if not self.over and self.ends[0].state is not State.OPENING:
            self.deliver_all()
            for side, end in enumerate(self.ends):
                for number in list(end.incoming):
                    self.pipes[side].send(end.reply(number, encode((None,))))
            self.deliver_all()
            for end in self.ends:
                assert end.outgoing == {}
                assert end.incoming == {}
            for key, count in self.terminals.items():
                assert count == (0 if key in self.not_started else 1)
        for end in self.ends:
            self.given_back += end.abandon()
            assert end.outgoing == {}
            assert end.incoming == {}
        assert self.budget.used == 0
        assert set(self.delivered) | set(self.given_back) == self.sent


TestJoinedMachines = JoinedMachines.TestCase
TestJoinedMachines.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
