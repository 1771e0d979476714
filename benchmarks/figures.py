"""A figure: ours beside a peer's, how they compare and how surely, and whether a goal is met.

What is compared are medians of paired rounds. The interval is a bootstrap of 95 %: rounds are drawn
again, with replacement and as pairs, so that what both sides of a round had in common stays so.
A goal is met when the worse end of the interval meets it, never when only the estimate itself does.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13 (percentile interval).
"""

from __future__ import annotations

import enum
import random
from collections.abc import Sequence
from statistics import median
from typing import Any

from attrs import field, frozen

RESAMPLES = 4000
CONFIDENCE = 0.95


class Goal(enum.Enum):
    """Which side of its limit an estimate should be on."""

    AT_MOST = "<="
    LESS_THAN = "<"
    AT_LEAST = ">="


class Comparison(enum.Enum):
    """What of the two medians the goal is about; the value is how a table writes it."""

    RATIO = "ours / peer's"
    SPEED = "peer's / ours"
    """How many times faster ours is, where both are times."""
    DIFFERENCE = "ours - peer's"
    ALONE = "ours"
    """There is no peer: the goal is a limit."""

    def of(self, ours: float, peer: float) -> float:
        """Compare two values."""
        match self:
            case Comparison.RATIO:
                return ours / peer
            case Comparison.SPEED:
                return peer / ours
            case Comparison.DIFFERENCE:
                return ours - peer
            case Comparison.ALONE:
                return ours


@frozen
class Estimate:
    """A comparison and the interval that it is in."""

    value: float
    low: float
    high: float
    rounds: int


def estimate(
    ours: Sequence[float], peer: Sequence[float], comparison: Comparison = Comparison.RATIO
) -> Estimate:
    """Return the comparison of medians of paired rounds with its bootstrap interval.

    Equal rounds give equal intervals: the generator starts from a fixed seed.
    """
    if comparison is Comparison.ALONE:
        peer = ours
    if len(ours) != len(peer) or not ours:
        raise ValueError(f"rounds do not pair up: {len(ours)} of ours, {len(peer)} of the peer")
    generator = random.Random(20240101)
    pairs = list(zip(ours, peer, strict=True))
    drawn: list[float] = []
    for _ in range(RESAMPLES):
        again = generator.choices(pairs, k=len(pairs))
        drawn.append(comparison.of(median(a for a, _ in again), median(b for _, b in again)))
    drawn.sort()
    tail = (1 - CONFIDENCE) / 2
    return Estimate(
        value=comparison.of(median(ours), median(peer)),
        low=drawn[int(tail * RESAMPLES)],
        high=drawn[min(RESAMPLES - 1, int((1 - tail) * RESAMPLES))],
        rounds=len(pairs),
    )


@frozen
class Figure:
    """One row of the table."""

    name: str
    peer: str
    """What ours is compared with, in words."""
    unit: str = ""
    ours: tuple[float, ...] = ()
    """One value a round."""
    theirs: tuple[float, ...] = ()
    goal: Goal | None = None
    limit: float | None = None
    note: str = ""
    """Why there is no figure, or what to know about it."""
    comparison: Comparison = Comparison.RATIO
    estimate: Estimate | None = field(init=False)

    @estimate.default  # type: ignore[attr-defined,unused-ignore]
    def _estimate(self) -> Estimate | None:
        if not self.ours or (not self.theirs and self.comparison is not Comparison.ALONE):
            return None
        return estimate(self.ours, self.theirs, self.comparison)

    @property
    def met(self) -> bool | None:
        """Does the worse end of the interval meet the goal? None where there is nothing to meet."""
        if self.estimate is None or self.goal is None or self.limit is None:
            return None
        match self.goal:
            case Goal.AT_MOST:
                return self.estimate.high <= self.limit
            case Goal.LESS_THAN:
                return self.estimate.high < self.limit
            case Goal.AT_LEAST:
                return self.estimate.low >= self.limit

    def as_json(self) -> dict[str, Any]:
        """Return the figure with all its rounds, for a file."""
        found = self.estimate
        return {
            "name": self.name,
            "peer": self.peer,
            "unit": self.unit,
            "ours": list(self.ours),
            "theirs": list(self.theirs),
            "comparison": self.comparison.value,
            "estimate": None if found is None else [found.value, found.low, found.high],
            "rounds": 0 if found is None else found.rounds,
            "goal": None if self.goal is None else f"{self.goal.value} {self.limit:g}",
            "met": self.met,
            "note": self.note,
        }

    def cells(self) -> tuple[str, ...]:
        """Return the figure as a row of the table."""
        found, met = self.estimate, self.met
        goal = "-"
        if self.goal is not None and self.limit is not None:
            goal = f"{self.goal.value} {self.limit:g}"
        return (
            self.name,
            f"{median(self.ours):.4g} {self.unit}" if self.ours else "-",
            f"{median(self.theirs):.4g} {self.unit}" if self.theirs else "-",
            self.peer,
            self.comparison.value,
            "-" if found is None else f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]",
            "-" if found is None else str(found.rounds),
            goal,
            {True: "yes", False: "NO", None: "-"}[met] + (f"  ({self.note})" if self.note else ""),
        )


HEADINGS = (
    "figure", "ours", "peer's", "peer", "what", "estimate [95 %]", "rounds", "goal", "met"
)  # fmt: skip


def table(rows: Sequence[Sequence[str]], headings: Sequence[str] = HEADINGS) -> str:
    """Return rows as text, each column as wide as its widest cell."""
    everything = [tuple(headings), *rows]
    widths = [max(len(row[i]) for row in everything) for i in range(len(headings))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in everything]
    return "\n".join(line.rstrip() for line in lines)


def markdown(rows: Sequence[Sequence[str]], headings: Sequence[str] = HEADINGS) -> str:
    """Return rows as a table of Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
