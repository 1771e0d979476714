"""The program of the how-to does what is written beside it, in a folder with nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

DOCUMENT = Path(__file__).parents[3] / "docs" / "how-to" / "spawn.md"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)


def test_the_program_prints_what_the_page_says(tmp_path: Path) -> None:
    (program,) = _blocks("python")
    (output,) = _blocks("text")
    (tmp_path / "words.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "words.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr, done.returncode) == (output, "", 0)


def test_a_program_that_can_not_be_imported_is_told_what_to_do(tmp_path: Path) -> None:
    (program,) = _blocks("python")
    done = subprocess.run(
        [sys.executable, "-"],
        input=program,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "WordsService is defined in a program that another process can't import" in done.stderr
