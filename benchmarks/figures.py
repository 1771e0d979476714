"""A figure: ours beside a peer's, their ratio with its uncertainty, and whether a goal is met.

The ratio is of the medians of paired rounds. Its interval is a bootstrap of 95 %: rounds are drawn
again, with replacement and as pairs, so that what both sides of a round had in common stays so.
A goal is met when the worse end of the interval meets it, never when only the ratio itself does.

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
    """Which side of its limit a ratio should be on."""

    AT_MOST = "<="
    LESS_THAN = "<"
    AT_LEAST = ">="


@frozen
class Ratio:
    """Ours divided by the peer's."""

    value: float
    low: float
    high: float
    rounds: int


def ratio_of(ours: Sequence[float], peer: Sequence[float]) -> Ratio:
    """Return the ratio of medians of paired rounds with its bootstrap interval.

    Equal rounds give equal intervals: the generator starts from a fixed seed.
    """
    if len(ours) != len(peer) or not ours:
        raise ValueError(f"rounds do not pair up: {len(ours)} of ours, {len(peer)} of the peer")
    generator = random.Random(20240101)
    pairs = list(zip(ours, peer, strict=True))
    drawn: list[float] = []
    for _ in range(RESAMPLES):
        again = generator.choices(pairs, k=len(pairs))
        drawn.append(median(a for a, _ in again) / median(b for _, b in again))
    drawn.sort()
    tail = (1 - CONFIDENCE) / 2
    return Ratio(
        value=median(ours) / median(peer),
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
    ratio: Ratio | None = field(init=False)

    @ratio.default  # type: ignore[attr-defined,unused-ignore]
    def _ratio(self) -> Ratio | None:
        return ratio_of(self.ours, self.theirs) if self.ours and self.theirs else None

    @property
    def met(self) -> bool | None:
        """Does the worse end of the interval meet the goal? None where there is nothing to meet."""
        if self.ratio is None or self.goal is None or self.limit is None:
            return None
        match self.goal:
            case Goal.AT_MOST:
                return self.ratio.high <= self.limit
            case Goal.LESS_THAN:
                return self.ratio.high < self.limit
            case Goal.AT_LEAST:
                return self.ratio.low >= self.limit

    def as_json(self) -> dict[str, Any]:
        """Return the figure with all its rounds, for a file."""
        ratio = self.ratio
        return {
            "name": self.name,
            "peer": self.peer,
            "unit": self.unit,
            "ours": list(self.ours),
            "theirs": list(self.theirs),
            "ratio": None if ratio is None else [ratio.value, ratio.low, ratio.high],
            "rounds": 0 if ratio is None else ratio.rounds,
            "goal": None if self.goal is None else f"{self.goal.value} {self.limit:g}",
            "met": self.met,
            "note": self.note,
        }

    def cells(self) -> tuple[str, ...]:
        """Return the figure as a row of the table."""
        ratio, met = self.ratio, self.met
        return (
            self.name,
            f"{median(self.ours):.4g} {self.unit}" if self.ours else "-",
            f"{median(self.theirs):.4g} {self.unit}" if self.theirs else "-",
            self.peer,
            "-" if ratio is None else f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
            "-" if ratio is None else str(ratio.rounds),
            "-" if self.goal is None else f"{self.goal.value} {self.limit:g}",
            {True: "yes", False: "NO", None: "-"}[met] + (f"  ({self.note})" if self.note else ""),
        )


HEADINGS = ("figure", "ours", "peer's", "peer", "ratio [95 %]", "rounds", "goal", "met")


def table(rows: Sequence[Sequence[str]], headings: Sequence[str] = HEADINGS) -> str:
    """Return rows as text, each column as wide as its widest cell."""
    everything = [tuple(headings), *rows]
    widths = [max(len(row[i]) for row in everything) for i in range(len(headings))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in everything]
    return "\n".join(line.rstrip() for line in lines)
