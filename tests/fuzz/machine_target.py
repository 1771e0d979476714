"""One machine, greeted or not, that is fed what a hostile peer might say.

An input is a plan of 16 bytes and a stream of frames. The plan says how the stream is cut into
reads, which descriptors and senders come beside them, and what this side does in between; of zeros,
it says that each frame comes whole, from one sender, with as many descriptors as its header claims.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import msgspec

from container.ipc.wire.events import (
    CallReceived,
    ErrorReceived,
    Event,
    ItemReceived,
    ReplyReceived,
)
from container.ipc.wire.frames import HEADER, HEADER_BYTES, EndedBy, Gift, ProtocolError
from container.ipc.wire.limits import Limits
from container.ipc.wire.machine import CARRIERS, Machine
from container.ipc.wire.states import Budget, Incoming, Outgoing, State

encode = msgspec.msgpack.encode
PLAN_BYTES = 16
LIMITS = Limits(
    frame_bytes=1 << 20, frame_descriptors=4, in_flight=64, channels=16, partial_free_bytes=64
)
GIFT = msgspec.convert([1, 0, 16, 65536], Gift)
ANSWER = msgspec.convert([2, 0, 16, 65536], Gift)
CALL = encode(("greeter/greet", None, 1, None, {}))


class Broken(Exception):
    """An invariant does not hold."""


class Session:
    """A machine, and the other half of the books: what it was given, what it gave out."""

    def __init__(self, kind: type[Machine], *, greeted: bool) -> None:
        self.budget = Budget(1 << 16)
        self.end = kind(LIMITS, self.budget)
        self.peer = Machine(LIMITS, Budget(1 << 16))
        self.fresh = itertools.count(100)
        self.given: list[int] = []
        self.got: list[int] = []
        self.ended: set[int] = set()
        self.opens = True
        self.asked = False
        if greeted:
            self.end.hello({"greeter": (1, "f")}, "fuzzed", "0")
            self.receive(self.peer.hello({"greeter": (1, "f")}, "peer", "0"), 0, 1)
            self.ask()

    def ask(self) -> None:
        """Make four calls, one of them cancelled, and two scopes, one with a channel; ping."""
        self.asked = True
        for _ in range(4):
            self.end.call(CALL)
        self.end.cancel(2, 5)
        number, _ = self.end.open_scope(CALL)
        self.end.channels.give(True, number, None, [GIFT])
        self.end.open_scope(CALL)
        self.end.ping()

    def receive(self, data: bytes, count: int, sender: int) -> bool:
        """Take one read; False once the connection has ended."""
        descriptors = list(itertools.islice(self.fresh, count))
        self.given += descriptors
        over = self.end.state is State.CLOSED
        try:
            events = self.end.receive(data, descriptors, sender)
        except ProtocolError:
            if self.end.state is not State.CLOSED:
                raise Broken("a fault leaves the machine open") from None
            return False
        if over and events:
            raise Broken("something was received after the end")
        for event in events:
            self.take(event)
        if self.end.descriptors_received - self.end.descriptors_delivered != len(self.given) - len(
            self.got
        ):
            raise Broken("the machine's count of descriptors is wrong")
        return not over

    def take(self, event: Event) -> None:
        """Check one event, and answer a scope that is to be opened."""
        if isinstance(event, CARRIERS):
            self.got += event.descriptors
        if isinstance(event, (ReplyReceived, ErrorReceived)) and event.id:
            if event.id in self.ended:
                raise Broken(f"a second terminal of call {event.id}")
            self.ended.add(event.id)
        if isinstance(event, ItemReceived) and event.channel.items < 0:
            raise Broken("an item without credit")
        if isinstance(event, CallReceived) and event.scope and self.opens:
            self.open_scope(event.id)

    def open_scope(self, number: int) -> None:
        """Say that a scope of the peer's is open, with a channel that this side writes."""
        call = self.end.incoming.get(number)
        if call is None or not call.scope or call.opened:
            return
        self.end.opened(number, encode((None, (ANSWER,))))
        self.end.channels.give(False, number, call.sender, [ANSWER])

    def act(self, what: int) -> None:
        """Do what a correct program may do between two reads."""
        end = self.end
        if not self.asked and end.state is State.OPEN:
            if not end._hello_sent:
                end.hello({"greeter": (1, "f")}, "fuzzed", "0")
            self.ask()
        if end.state not in (State.OPEN, State.DRAINING):
            return
        match what:
            case 1 | 2:
                for number, call in list(end.incoming.items())[:2]:
                    if what == 2:
                        end.error(number, EndedBy.ITSELF, {"code": "not-found", "message": ""})
                    elif not call.scope or (call.opened and call.state is Incoming.RUNNING):
                        end.reply(number, encode((None,)))
            case 3:
                for number in list(end.incoming):
                    self.open_scope(number)
            case 4 | 5:
                wanted = Outgoing.SENT if what == 4 else Outgoing.CANCELLING
                for number in [n for n, state in end.outgoing.items() if state is wanted][:2]:
                    if what == 4:
                        end.cancel(number, 5)
                    else:
                        end.abandon_call(number)
            case 6:
                end.goodbye(5)
            case 7:
                for number, scope in end.scopes.items():
                    sent = end.outgoing[number] is Outgoing.SENT
                    if scope.opened and not scope.closing and sent:
                        end.close(number, False, 0)
            case _:
                pass

    def finish(self) -> None:
        """End, and balance the books."""
        back = self.end.abandon()
        if self.end.receive(b"\0" * HEADER_BYTES, (), 1):
            raise Broken("something was received after the end")
        if sorted(self.got + back) != self.given:
            raise Broken("descriptors received are not those delivered and abandoned")
        if self.budget.used:
            raise Broken(f"{self.budget.used} bytes of the budget are kept after the end")


def reads(plan: bytes, stream: bytes) -> Iterator[tuple[bytes, int, int, int]]:
    """Cut a stream into reads: bytes, how many descriptors, sender, what is done afterwards."""
    position = 0
    for step in itertools.cycle(plan[1:]):
        if position >= len(stream):
            return
        size, count = len(stream) - position, 0
        if size >= HEADER_BYTES:
            length, _, _, count, _ = HEADER.unpack_from(stream, position)
            size = min(size, HEADER_BYTES + length)
        part, position = stream[position : position + size], position + size
        count, sender = min(count, 8), 2 if step & 8 else 1
        cut = {2: HEADER_BYTES, 3: len(part) // 2, 4: 1}.get(step & 7, 0)
        if step & 7 == 5 and position < len(stream):
            part, position = part + stream[position:], len(stream)
        count += {6: -1, 7: 1}.get(step & 7, 0)
        if 0 < cut < len(part):
            yield part[:cut], max(0, count), sender, 0
            yield part[cut:], 0, sender, step >> 4
        else:
            yield part, max(0, count), sender, step >> 4


def machine(data: bytes, kind: type[Machine] = Machine) -> None:
    """Feed one input to a machine.

    Raises:
        Broken: an invariant does not hold. Anything else that is raised is a finding as well.
    """
    if len(data) < PLAN_BYTES:
        return
    plan, stream = data[:PLAN_BYTES], data[PLAN_BYTES:]
    session = Session(kind, greeted=not plan[0] & 1)
    session.opens = not plan[0] & 2
    for part, count, sender, action in reads(plan, stream):
        if not session.receive(part, count, sender):
            break
        session.act(action)
    session.finish()
