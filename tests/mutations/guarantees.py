"""Mutations: each takes away one line that gives a guarantee, and names the test that must fail.

`scripts/mutations` applies them one at a time to a copy of the package. One that no test notices is
a promise that nobody keeps watch over.
"""

from __future__ import annotations

from attrs import frozen


@frozen
class Mutation:
    """A change of one place.

    Args:
        guarantee: Which one the place gives.
        file: Below `container/ipc`.
        old: What stands there exactly once.
        new: What stands there instead.
        test: Below `tests/ipc`; a file, or one test of it.
    """

    guarantee: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = [
    # A handler never outlives its caller's scope.
    Mutation(
        "G1",
        "handling.py",
        '            self._tell("cancel", handling)\n        handling.cancel()\n',
        '            self._tell("cancel", handling)\n',
        "test_cancellation.py::test_a_cancelled_caller_leaves_no_handler_running_over_three_hops",
    ),
    Mutation(
        "G1",
        "handling.py",
        "        self._lost = True\n        for handling in tuple(self._running.values()):\n"
        "            handling.cancel()\n",
        "        for handling in tuple(self._running.values()):\n            pass\n",
        "test_cancellation.py::test_a_lost_connection_cancels_the_handlers_of_its_calls",
    ),
    # A deadline reaches the last hop.
    Mutation(
        "G2",
        "handling.py",
        "deadline = trio.current_time() + max(0, payload.timeout) / 1e9 + SLACK",
        "deadline = math.inf",
        "test_deadlines.py::"
        "test_the_remaining_time_travels_over_three_hops_a_millisecond_longer_at_each",
    ),
    Mutation(
        "G2",
        "calling.py",
        "        head = (path, timeout, int(grace * 1e9), tracing.current(), values)",
        "        head = (path, None, int(grace * 1e9), tracing.current(), values)",
        "test_deadlines.py::"
        "test_the_remaining_time_travels_over_three_hops_a_millisecond_longer_at_each",
    ),
    # Nothing is handled whose sender the policy did not admit.
    Mutation(
        "G3",
        "handling.py",
        "if not self._judge.admits_peer(peer, route):",
        "if False:",
        "test_senders.py",
    ),
    Mutation(
        "G3",
        "greeting.py",
        "elif not self._judge.admits(event.sender, None):",
        "elif False:",
        "test_senders.py",
    ),
    Mutation(
        "G3",
        "wire/machine.py",
        "        if call.sender != sender:\n"
        '            raise self._fault(f"call {number} was cancelled by another process',
        "        if False:\n"
        '            raise self._fault(f"call {number} was cancelled by another process',
        "wire/test_machine.py::test_a_cancel_by_another_than_the_caller_is_refused",
    ),
    # As many descriptors after as before.
    Mutation(
        "G4",
        "handling.py",
        "            if incoming is not NOTHING_IN:\n                incoming.close()\n",
        "            pass\n",
        "test_descriptors.py",
    ),
    Mutation(
        "G4",
        "calling.py",
        "        except BaseException:\n            incoming.close()\n            raise\n"
        "        incoming.close_unclaimed()\n        return result\n",
        "        except BaseException:\n            raise\n"
        "        incoming.close_unclaimed()\n        return result\n",
        "test_descriptors.py",
    ),
    Mutation(
        "G4",
        "wire/machine.py",
        "        left = list(self._descriptors)\n",
        "        left: list[int] = []\n",
        "wire/test_bytes.py",
    ),
    # Any bytes may arrive, and memory stays bounded.
    Mutation(
        "G6",
        "wire/framing.py",
        "        if length > self.limits.frame_bytes:\n",
        "        if False:\n",
        "wire/test_machine.py::test_a_frame_that_is_too_long_is_refused_before_its_payload_comes",
    ),
    Mutation(
        "G6",
        "wire/framing.py",
        "        if not self.budget.change(counted - self._accounted):\n",
        "        if False:\n",
        "wire/test_machine.py::test_partial_frames_of_all_connections_share_one_budget",
    ),
    Mutation(
        "G6",
        "wire/machine.py",
        "        if number <= self.last_incoming:\n",
        "        if False:\n",
        "wire/test_machine.py::test_an_id_that_does_not_grow_is_refused",
    ),
    # A flood of calls, a slow reader: bounded memory, fair progress.
    Mutation(
        "G7",
        "wire/machine.py",
        "        if len(self.incoming) >= self.limits.in_flight:\n",
        "        if False:\n",
        "wire/test_machine.py::test_one_unanswered_call_too_many_is_refused",
    ),
    Mutation(
        "G7",
        "handling.py",
        "            if self._load.running >= self._limits.handlers:\n",
        "            if False:\n",
        "test_overload.py",
    ),
    Mutation(
        "G7",
        "wire/channels.py",
        "        if channel.items <= 0 or channel.bytes <= 0:\n            raise ProtocolError(",
        "        if False:\n            raise ProtocolError(",
        "wire/test_channels.py",
    ),
    # The same over the memory pair, a socket and a process.
    Mutation(
        "G8",
        "transport.py",
        "        lane.chunks.append((bytes(data[:taken]), [os.dup(fd) for fd in descriptors]))\n",
        "        lane.chunks.append((bytes(data[:taken]), list(descriptors)))\n",
        "conformance/test_promises.py",
    ),
    Mutation(
        "G8",
        "transport.py",
        "            lane.chunks.appendleft((data[room:], []))\n",
        "            pass\n",
        "conformance/test_promises.py",
    ),
]
