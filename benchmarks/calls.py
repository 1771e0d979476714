"""The call rows: ours beside each peer, all measured in the same rounds."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from attrs import frozen

from benchmarks.figures import Figure, Goal
from benchmarks.worker import Peer, PeerUnavailable, open_peer

CALLS = 600
"""Calls a round, one after another: well above a scheduler's tick."""
CONCURRENT_CALLS = 2000
CALLERS = 64


@frozen
class CallRow:
    """One row: which peer, and what is wanted of the ratio to it."""

    name: str
    module: str
    """In `benchmarks.peers`."""
    peer: str
    goal: Goal
    limit: float


SEQUENTIAL = (
    CallRow("ipc.call.sequential", "raw", "64 B ping-pong, trio.socket", Goal.AT_MOST, 2.2),
    CallRow("ipc.call.sequential.dbus-fast", "dbus_fast_aio", "dbus-fast", Goal.LESS_THAN, 1),
    CallRow("ipc.call.sequential.jeepney", "jeepney_trio", "jeepney on Trio", Goal.LESS_THAN, 1),
    CallRow("ipc.call.sequential.pycapnp", "capnp_rpc", "pycapnp", Goal.LESS_THAN, 1),
    CallRow("ipc.call.sequential.grpc", "grpc_aio", "grpc.aio", Goal.LESS_THAN, 1),
)
CONCURRENT = (CallRow("ipc.call.concurrent64", "grpc_aio", "grpc.aio", Goal.AT_LEAST, 4),)


def measure_sequential(rows: Sequence[CallRow], rounds: int) -> list[Figure]:
    """Return microseconds a call, ours and each peer's."""
    return _measure(rows, rounds, "µs", lambda peer: peer.sequential(CALLS))


def measure_concurrent(rows: Sequence[CallRow], rounds: int) -> list[Figure]:
    """Return calls a second of 64 callers on one connection."""
    return _measure(rows, rounds, "/s", lambda peer: peer.concurrent(CONCURRENT_CALLS, CALLERS))


def _measure(
    rows: Sequence[CallRow], rounds: int, unit: str, measure: Callable[[Peer], float]
) -> list[Figure]:
    values: dict[str, list[float]] = {}
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        peers: dict[str, Peer] = {}
        for module in ("ours", *(row.module for row in rows)):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
            try:
                peers[module] = stack.enter_context(open_peer(module, folder))
                values[module] = []
            except PeerUnavailable as error:
                missing[module] = str(error)
        if "ours" in peers:
            for number in range(rounds):
                # Each round begins with another one: nobody always follows the same neighbour.
                first = number % len(peers)
                order = [*peers, *peers][first : first + len(peers)]
                for module in order:
                    values[module].append(measure(peers[module]))
    return [
        Figure(
            name=row.name,
            peer=row.peer,
            unit=unit,
            ours=tuple(values.get("ours", ())),
            theirs=tuple(values.get(row.module, ())),
            goal=row.goal,
            limit=row.limit,
            note=missing.get("ours") or missing.get(row.module) or "",
        )
        for row in rows
    ]
