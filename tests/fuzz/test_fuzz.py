"""Every input of the corpus is taken well; the fuzzer runs, and finds what is planted."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.machine_target import Broken
from tests.fuzz.targets import CORPUS, TARGETS, planted, seeds

ROOT = Path(__file__).parents[2]
INPUTS = sorted(path for target in TARGETS for path in (CORPUS / target).iterdir())
with_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris is not installed: it has no wheel for every Python and machine",
)


@pytest.mark.parametrize("target", TARGETS)
def test_every_input_of_the_corpus_is_taken_well(target: str) -> None:
    inputs = [path for path in INPUTS if path.parent.name == target]
    assert len(inputs) > 10
    for path in inputs:
        TARGETS[target](path.read_bytes())


def test_the_corpus_begins_with_the_golden_frames() -> None:
    for target, inputs in seeds().items():
        recorded = sorted((CORPUS / target).glob("golden-*"))
        assert [path.read_bytes() for path in recorded] == inputs


def test_the_fault_that_is_planted_is_one() -> None:
    whole = next(data for data in seeds()["machine"] if data[20:23] == b"\x06\x01\x01")
    planted(whole)
    with pytest.raises(Broken, match="descriptors"):
        planted(whole[:32] + b"\xc1" + whole[33:])


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the fuzzer."""
    command = [sys.executable, "-m", "tests.fuzz", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@with_atheris
def test_twenty_seconds_of_fuzzing_find_nothing(tmp_path: Path) -> None:
    done = fuzz("18", "--found", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("well: Done") == len(TARGETS)


@with_atheris
def test_a_planted_fault_is_found_within_a_minute(tmp_path: Path) -> None:
    done = fuzz("60", "--plant", "--found", str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    (found,) = tmp_path.glob("machine-crash-*")
    with pytest.raises(Broken):
        planted(found.read_bytes())
    TARGETS["machine"](found.read_bytes())
