"""What the benchmarks' table claims: ratios, intervals, and when a goal counts as met."""

from __future__ import annotations

import random
from statistics import median

import pytest

from benchmarks.figures import Comparison, Figure, Goal, estimate, table


def noisy(centre: float, rounds: int = 40, seed: int = 1) -> tuple[float, ...]:
    """Return rounds around a centre, the same each time."""
    generator = random.Random(seed)
    return tuple(generator.gauss(centre, centre / 10) for _ in range(rounds))


def test_the_interval_holds_the_ratio_of_the_medians() -> None:
    ours, theirs = noisy(2.0), noisy(1.0, seed=2)
    ratio = estimate(ours, theirs)
    assert ratio.low <= ratio.value <= ratio.high
    assert ratio.value == pytest.approx(median(ours) / median(theirs))
    assert ratio.rounds == 40


def test_what_slows_both_sides_of_a_round_does_not_widen_the_interval() -> None:
    mood = noisy(1.0, seed=3)
    ratio = estimate([2 * m for m in mood], mood)
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((2, 2, 2))


def test_rounds_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError, match="pair up"):
        estimate([1.0, 2.0], [1.0])


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
    assert figure.as_json()["estimate"] is None


@pytest.mark.parametrize(
    ("comparison", "value"),
    [
        (Comparison.RATIO, 0.5),
        (Comparison.SPEED, 2.0),
        (Comparison.DIFFERENCE, -2.0),
        (Comparison.ALONE, 2.0),
    ],
)
def test_a_figure_compares_as_its_goal_is_meant(comparison: Comparison, value: float) -> None:
    figure = Figure(
        name="x", peer="y", ours=(2.0,) * 3, theirs=(4.0,) * 3, comparison=comparison,
        goal=Goal.AT_MOST, limit=value,
    )  # fmt: skip
    assert figure.estimate is not None
    assert (figure.estimate.low, figure.estimate.value, figure.estimate.high) == (value,) * 3
    assert figure.met


def test_a_limit_needs_no_peer() -> None:
    assert Figure(name="x", peer="", ours=(1.0,), comparison=Comparison.ALONE).estimate is not None
    assert Figure(name="x", peer="", ours=(1.0,)).estimate is None
