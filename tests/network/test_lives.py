"""A helper that is killed at any of its steps heals: a small share of what `lives` can do."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from container.testing.network import can_make_namespaces

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(
    not can_make_namespaces(), reason="needs root: makes network namespaces"
)


def lives(*arguments: str) -> str:
    """Run lives on a host of their own; return what they say."""
    done = subprocess.run(
        [sys.executable, str(HERE / "lives.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(HERE.parent.parent)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
    return done.stdout


def test_a_helper_killed_at_a_step_leaves_what_the_next_one_heals():
    # Another share of the steps each time: which, is in the message of a failure.
    offset = random.randrange(40)
    assert "killed at" in lives("steps", "40", str(offset))


def test_nothing_leaks_over_attach_kill_and_heal_in_any_order():
    seed = random.randrange(10**6)
    assert "nothing is left" in lives("cycles", "8", str(seed))
