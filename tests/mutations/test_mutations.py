"""The list of mutations speaks of the code as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.mutations.guarantees import MUTATIONS, Mutation

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.guarantee}-{m.file}")
def test_the_place_exists_once_and_so_does_the_test(mutation: Mutation) -> None:
    text = (ROOT / "container" / "ipc" / mutation.file).read_text()
    assert text.count(mutation.old) == 1
    assert mutation.old != mutation.new
    file, _, name = mutation.test.partition("::")
    tests = (ROOT / "tests" / "ipc" / file).read_text()
    assert not name or len(re.findall(rf"def {name}\(", tests)) == 1


@pytest.mark.parametrize("guarantee", ["G1", "G2", "G3", "G4", "G6", "G7", "G8"])
def test_each_guarantee_has_at_least_two(guarantee: str) -> None:
    assert sum(mutation.guarantee == guarantee for mutation in MUTATIONS) >= 2
