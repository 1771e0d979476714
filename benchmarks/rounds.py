"""Rounds in which every side has its turn, so that each meets the same moods of the machine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from attrs import evolve, frozen

from benchmarks.figures import Comparison, Figure, Goal
from benchmarks.worker import Peer, PeerUnavailable, open_peer

PINNED = min(os.sched_getaffinity(0))
"""The one processor of sides whose processes share one."""
WARM_UP = 1
"""Rounds that are not counted."""


@frozen
class Side:
    """What one side does in a round, and what is taken of it."""

    module: str
    """In `benchmarks.peers`."""
    how: Literal["sequential", "concurrent", "rate", "each"]
    """Microseconds a call of one caller, or calls a second of several; what a single order to do it
    `number` times makes: how many a second, or, by the operation's own clock, microseconds each."""
    number: int
    operation: str = "call"
    callers: int = 1
    cpu: int | None = None
    servers: tuple[str, ...] = ("serve",)

    def measure(self, peer: Peer) -> float:
        """Take one value."""
        match self.how:
            case "sequential":
                return peer.sequential(self.number, self.operation)
            case "concurrent":
                return peer.concurrent(self.number, self.callers, self.operation)
            case "rate":
                return self.number / peer.once(self.operation, self.number)
            case "each":
                return peer.once(self.operation, self.number) / self.number * 1e6


@frozen
class Row:
    """One row of the table, still to be measured."""

    name: str
    ours: Side
    theirs: Side
    peer: str
    """In words."""
    unit: str
    goal: Goal
    limit: float
    comparison: Comparison = Comparison.RATIO

    def shortened(self, fewer: int) -> Row:
        """Return the same row with rounds of so many times fewer calls."""
        ours, theirs = (evolve(s, number=s.number // fewer) for s in (self.ours, self.theirs))
        return evolve(self, ours=ours, theirs=theirs)


def measure_rows(rows: Sequence[Row], rounds: int) -> list[Figure]:
    """Measure rows in the same rounds, each side that they share only once a round."""
    sides = list(dict.fromkeys(side for row in rows for side in (row.ours, row.theirs)))
    missing: dict[Side, str] = {}
    with ExitStack() as stack:
        measures: dict[Side, Callable[[], float]] = {}
        peers: dict[object, Peer | str] = {}
        for side in sides:
            key = (side.module, side.cpu, side.servers)
            if key not in peers:
                peers[key] = _opened(stack, side)
            peer = peers[key]
            if isinstance(peer, str):
                missing[side] = peer
            else:
                measures[side] = lambda side=side, peer=peer: side.measure(peer)
        values = _take(measures, rounds, missing)
    return [
        Figure(
            name=row.name,
            peer=row.peer,
            unit=row.unit,
            ours=tuple(values.get(row.ours, ())),
            theirs=tuple(values.get(row.theirs, ())),
            goal=row.goal,
            limit=row.limit,
            comparison=row.comparison,
            note=missing.get(row.ours) or missing.get(row.theirs) or "",
        )
        for row in rows
    ]


def _opened(stack: ExitStack, side: Side) -> Peer | str:
    """Open the processes of a side; return what is missing if they don't come up."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
    try:
        return stack.enter_context(
            open_peer(side.module, folder, servers=side.servers, cpu=side.cpu)
        )
    except PeerUnavailable as error:
        return str(error)


def _take(
    measures: dict[Side, Callable[[], float]], rounds: int, missing: dict[Side, str]
) -> dict[Side, list[float]]:
    values: dict[Side, list[float]] = {side: [] for side in measures}
    for number in range(WARM_UP + rounds):
        # Each round begins with another one: nobody always follows the same neighbour.
        first = number % len(values) if values else 0
        order = [*values][first:] + [*values][:first]
        for side in order:
            try:
                taken = measures[side]()
            except PeerUnavailable as error:
                missing[side] = str(error)
                del values[side]
                continue
            if number >= WARM_UP:
                values[side].append(taken)
    return values
