"""What the benchmarks' table claims: ratios, intervals, and when a goal counts as met."""

from __future__ import annotations

import random
from statistics import median

import pytest

from benchmarks.figures import Figure, Goal, ratio_of, table


def noisy(centre: float, rounds: int = 40, seed: int = 1) -> tuple[float, ...]:
    """Return rounds around a centre, the same each time."""
    generator = random.Random(seed)
    return tuple(generator.gauss(centre, centre / 10) for _ in range(rounds))


def test_the_interval_holds_the_ratio_of_the_medians() -> None:
    ours, theirs = noisy(2.0), noisy(1.0, seed=2)
    ratio = ratio_of(ours, theirs)
    assert ratio.low <= ratio.value <= ratio.high
    assert ratio.value == pytest.approx(median(ours) / median(theirs))
    assert ratio.rounds == 40


def test_what_slows_both_sides_of_a_round_does_not_widen_the_interval() -> None:
    mood = noisy(1.0, seed=3)
    ratio = ratio_of([2 * m for m in mood], mood)
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((2, 2, 2))


def test_rounds_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError, match="pair up"):
        ratio_of([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("goal", "limit", "met"),
    [
        (Goal.AT_MOST, 2.5, True),
        (Goal.AT_MOST, 1.9, False),
        (Goal.AT_LEAST, 1.5, True),
        (Goal.AT_LEAST, 2.4, False),
        (Goal.LESS_THAN, 2.5, True),
        (Goal.LESS_THAN, 1.9, False),
    ],
)
def test_a_goal_is_met_only_by_the_worse_end_of_the_interval(
    goal: Goal, limit: float, met: bool
) -> None:
    figure = Figure(
        name="x", peer="y", ours=noisy(2.0), theirs=noisy(1.0, seed=2), goal=goal, limit=limit
    )
    assert figure.met is met


def test_a_row_without_its_peer_says_so_and_claims_nothing() -> None:
    figure = Figure(name="x", peer="y", goal=Goal.AT_LEAST, limit=1, note="y is not installed")
    assert figure.met is None
    assert "y is not installed" in table([figure.cells()])
    assert figure.as_json()["ratio"] is None
