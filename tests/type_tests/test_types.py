"""A type checker sees both ends of a contract: correct uses pass, and mistakes are errors."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is not installed")
def test_a_checker_accepts_correct_uses_and_finds_each_mistake() -> None:
    program = Path(sys.executable).with_name("pyright")
    done = subprocess.run(
        [program, "--pythonpath", sys.executable, "--project", HERE / "pyrightconfig.json"],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
