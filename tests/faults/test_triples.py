"""A few triples and a few cycles; `scripts/faults` and `scripts/heal` do the rest."""

from __future__ import annotations

import pytest

from tests.faults import heal
from tests.faults.triples import OPERATIONS, run_all
from tests.system.conftest import _why_not

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(240),
    pytest.mark.skipif(_why_not() is not None, reason=str(_why_not())),
]


def test_a_process_that_is_broken_at_a_step_costs_no_more_than_its_operation() -> None:
    said: list[str] = []
    some = [operation for operation in OPERATIONS if operation.name in ("create", "load", "kill")]
    verdicts = run_all(8, seed=20, only=": kill at", seconds=30, operations=some, say=said.append)
    assert verdicts
    assert not [verdict for verdict in verdicts if verdict.problems], "\n".join(said)


def test_a_killed_process_is_healed_by_the_next_commands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = heal.run(4, seed=3, seconds=20)
    assert not wrong, capsys.readouterr().out
