"""Two joined machines with scopes and channels: any order of openings, items, credits and losses.

Beside what holds of calls: items of a channel come once, in order and without a gap; none comes
without credit (two machines that keep the rules never accuse each other); channels end with their
call; and nothing is left after the end.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from container.ipc.wire.channels import Channel
from container.ipc.wire.events import (
    CloseReceived,
    EndReceived,
    Event,
    ItemDropped,
    ItemReceived,
    OpenedReceived,
    StopReceived,
)
from container.ipc.wire.frames import ChannelEnd, EndedBy, Gift
from container.ipc.wire.limits import Limits
from container.ipc.wire.machine import Machine, Outgoing, State
from tests.ipc.wire.test_joined import COUNTS, SIDES, JoinedMachines, encode

GIVEN = st.lists(
    st.tuples(st.sampled_from(list(ChannelEnd)), st.integers(1, 4), st.integers(1, 60)), max_size=2
)
PICK = st.randoms(use_true_random=False)


def living(end: Machine) -> Iterator[tuple[bool, int, Channel]]:
    """Give each channel that lives at one end: who made its call, the call, the channel."""
    for made_here, calls in ((True, end.channels.made), (False, end.channels.heard)):
        for number, call in calls.items():
            for channel in call.live.values():
                yield made_here, number, channel


class JoinedScopes(JoinedMachines):
    """Both ends of one connection, and what correct programs may do with scopes and channels."""

    def __init__(self) -> None:
        super().__init__()
        limits = Limits(in_flight=6, partial_free_bytes=0, channels=2)
        self.ends = [Machine(limits, self.budget) for _ in range(2)]
        self.items_sent: dict[tuple[int, int, int], int] = {}
        """By side that made the call, call and channel."""
        self.items_received: dict[tuple[int, int, int], int] = {}
        self.stopped: set[tuple[int, int, int]] = set()

    def key(self, side: int, made_here: bool, number: int, channel: int) -> tuple[int, int, int]:
        return (side if made_here else 1 - side, number, channel)

    def take(self, side: int, event: Event) -> None:
        super().take(side, event)
        if isinstance(event, (OpenedReceived, ItemReceived, ItemDropped)):
            self.delivered += event.descriptors
        if isinstance(event, ItemReceived):
            key = self.key(side, event.made_here, event.id, event.channel.number)
            assert key not in self.stopped
            expected = self.items_received.get(key, 0)
            assert bytes(event.value) == encode(expected)
            self.items_received[key] = expected + 1
        if isinstance(event, EndReceived):
            key = self.key(side, event.made_here, event.id, event.channel.number)
            if key not in self.stopped:
                assert self.items_received.get(key, 0) == self.items_sent.get(key, 0)
        if isinstance(event, StopReceived):
            # A correct writer answers at once.
            end = self.ends[side]
            frame = end.channels.end(event.made_here, event.id, event.channel)
            self.pipes[side].send(frame)
        if isinstance(event, CloseReceived):
            assert self.ends[side].incoming[event.id].opened

    def gifts(self, side: int, made_here: bool, number: int, given: list[tuple]) -> list[Gift]:
        channels = self.ends[side].channels
        given = given[: max(0, channels.room(made_here, number))]
        numbers = channels.numbers(made_here, number, len(given))
        return [
            Gift(n, which, items, size)
            for n, (which, items, size) in zip(numbers, given, strict=True)
        ]

    # --- what may happen ---

    @precondition(lambda self: not self.over)
    @rule(side=SIDES, count=COUNTS, given=GIVEN, scope=st.booleans())
    def open_scope(self, side: int, count: int, given: list[tuple], scope: bool) -> None:
        end = self.ends[side]
        if end.state is not State.OPEN or len(end.outgoing) >= end.peer_in_flight:
            return
        gifts = self.gifts(side, True, 0, given)
        payload = encode(["a/b", None, 1, None, {}, gifts])
        number, data = (end.open_scope if scope else end.call)(payload, count)
        if gifts:
            end.channels.give(True, number, None, gifts)
        self.terminals[side, number] = 0
        self.pipes[side].send(data, self.descriptors(count))

    @precondition(lambda self: not self.over)
    @rule(side=SIDES, count=COUNTS, given=GIVEN, pick=PICK)
    def opened(self, side: int, count: int, given: list[tuple], pick: random.Random) -> None:
        end = self.ends[side]
        opening = [n for n, call in end.incoming.items() if call.scope and not call.opened]
        if not opening:
            return
        number = pick.choice(opening)
        gifts = self.gifts(side, False, number, given)
        data = end.opened(number, encode(["v", gifts]), count)
        if gifts:
            end.channels.give(False, number, end.incoming[number].sender, gifts)
        self.pipes[side].send(data, self.descriptors(count))

    @precondition(lambda self: not self.over)
    @rule(side=SIDES, failed=st.booleans(), pick=PICK)
    def close(self, side: int, failed: bool, pick: random.Random) -> None:
        end = self.ends[side]
        held = [
            number
            for number, scope in end.scopes.items()
            if scope.opened and not scope.closing and end.outgoing[number] is Outgoing.SENT
        ]
        if held:
            self.pipes[side].send(end.close(pick.choice(held), failed, 5))

    @precondition(lambda self: not self.over)
    @rule(side=SIDES, count=COUNTS, given=GIVEN, pick=PICK)
    def item(self, side: int, count: int, given: list[tuple], pick: random.Random) -> None:
        end = self.ends[side]
        ready = [
            entry
            for entry in living(end)
            if entry[2].writes and not entry[2].stopped and min(entry[2].items, entry[2].bytes) > 0
        ]
        if not ready:
            return
        made_here, number, channel = pick.choice(ready)
        key = self.key(side, made_here, number, channel.number)
        sent = self.items_sent.get(key, 0)
        self.items_sent[key] = sent + 1
        gifts = self.gifts(side, made_here, number, given)
        data = end.channels.item(made_here, number, channel, encode(sent), count, gifts)
        if gifts:
            sender = end.channels.of(made_here, number)
            assert sender is not None
            end.channels.give(made_here, number, sender.sender, gifts)
        self.pipes[side].send(data, self.descriptors(count))

    @precondition(lambda self: not self.over)
    @rule(side=SIDES, items=st.integers(1, 4), size=st.integers(1, 60), pick=PICK)
    def credit(self, side: int, items: int, size: int, pick: random.Random) -> None:
        end = self.ends[side]
        reading = [e for e in living(end) if not e[2].writes and not e[2].stopped]
        if reading:
            made_here, number, channel = pick.choice(reading)
            frame = end.channels.credit(made_here, number, channel, items, size)
            self.pipes[side].send(frame)

    @precondition(lambda self: not self.over)
    @rule(side=SIDES, pick=PICK, failed=st.booleans())
    def end_channel(self, side: int, pick: random.Random, failed: bool) -> None:
        end = self.ends[side]
        writing = [entry for entry in living(end) if entry[2].writes]
        if writing:
            made_here, number, channel = pick.choice(writing)
            error = {"code": "data-loss", "message": "torn"} if failed else None
            self.pipes[side].send(end.channels.end(made_here, number, channel, error))

    @precondition(lambda self: not self.over)
    @rule(side=SIDES, pick=PICK)
    def stop_channel(self, side: int, pick: random.Random) -> None:
        end = self.ends[side]
        reading = [e for e in living(end) if not e[2].writes and not e[2].stopped]
        if reading:
            made_here, number, channel = pick.choice(reading)
            self.stopped.add(self.key(side, made_here, number, channel.number))
            self.pipes[side].send(end.channels.stop(made_here, number, channel))

    @precondition(lambda self: not self.over)
    @rule(side=SIDES, count=COUNTS, fails=st.booleans(), pick=PICK)
    def answer(self, side: int, count: int, fails: bool, pick: random.Random) -> None:
        end = self.ends[side]
        if not end.incoming:
            return
        number = pick.choice(list(end.incoming))
        call = end.incoming[number]
        if fails or (call.scope and not call.opened):
            error = {"code": "not-found", "message": "no"}
            self.pipes[side].send(end.error(number, EndedBy.ITSELF, error))
        else:
            descriptors = self.descriptors(count)
            self.pipes[side].send(end.reply(number, encode(("v",)), count), descriptors)

    def teardown(self) -> None:
        if not self.over and self.ends[0].state is not State.OPENING:
            self.deliver_all()
            for side, end in enumerate(self.ends):
                for number in [n for n, c in end.incoming.items() if c.scope and not c.opened]:
                    error = {"code": "not-found", "message": "no"}
                    self.pipes[side].send(end.error(number, EndedBy.ITSELF, error))
        super().teardown()
        for end in self.ends:
            assert not end.scopes
            assert not list(living(end))
            assert not end.channels.made
            assert not end.channels.heard


TestJoinedScopes = JoinedScopes.TestCase
TestJoinedScopes.settings = settings(max_examples=120, stateful_step_count=60, deadline=None)
