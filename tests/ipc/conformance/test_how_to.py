"""The page on conformance does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from container.ipc import testing
from container.ipc.testing import Faults

PAGE = Path(__file__).parents[3] / "docs/how-to/conformance.md"


def test_the_test_of_a_transport_runs_as_it_is_written(tmp_path: Path) -> None:
    (program, *_) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "test_mine.py").write_text(program)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntrio_mode = true\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "value or witness"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"[1-9] passed", done.stdout)


@pytest.mark.parametrize("name", ["split", "delay", "drop", "close", "freeze", "thaw"])
def test_each_fault_of_the_page_exists(name: str) -> None:
    assert f"`{name}(" in PAGE.read_text()
    assert getattr(Faults, name).__doc__


@pytest.mark.parametrize("name", ["FaultyTransport", "no_leaks", "every_checkpoint", "over_pair"])
def test_each_name_of_the_page_is_public(name: str) -> None:
    assert f"{name}(" in PAGE.read_text()
    assert getattr(testing, name).__doc__
