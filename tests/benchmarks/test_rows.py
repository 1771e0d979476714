"""Every row of the framework can be measured: a short run of each, whose values mean nothing."""

from __future__ import annotations

import pytest

from benchmarks import calls, channels, codec, idle, memory, spawn
from benchmarks.options import SMOKE

SUITES = (calls, channels, codec, idle, memory, spawn)


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.__name__.split(".")[-1])
def test_each_row_is_measured_on_our_side_and_on_each_peer_that_is_installed(suite) -> None:
    figures = suite.measure(suite.NAMES, SMOKE)
    assert [figure.name for figure in figures] == list(suite.NAMES)
    for figure in figures:
        assert figure.ours, (figure.name, figure.note)
        assert figure.estimate is not None or "not installed" in figure.note, figure


def test_slopes_are_growth_a_call_and_one_step_weighs_little() -> None:
    steady = [5000 + 30 * i for i in range(90)]
    assert memory.slopes(steady, step=10) == [3.0] * 45
    step = [0] * 70 + [9000] * 20
    assert sorted(memory.slopes(step, step=10))[22] == 0


def test_both_codecs_of_the_row_give_back_the_whole_message() -> None:
    message = codec.message()
    assert codec.ours("put", message)() == codec.plain_cattrs(message)() == message
