"""The tree itself: sizes of files, names, words, and what may not be reached from here."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "manager", "base", "misc"}
"""Names that do not say what a file is about."""


def tracked_files() -> list[Path]:
    """Return the project's files: what git tracks."""
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("not a git work tree")
    names = [name for name in done.stdout.split("\0") if name]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def texts(*suffixes: str) -> dict[str, str]:
    """Return the content of each tracked text file by its path, of some suffixes or all."""
    found: dict[str, str] = {}
    for path in tracked_files():
        if suffixes and path.suffix not in suffixes:
            continue
        try:
            found[str(path.relative_to(ROOT))] = path.read_text()
        except UnicodeDecodeError:
            continue
    return found


def test_no_source_file_has_more_than_600_lines() -> None:
    long = {name: n for name, text in texts(".py").items() if (n := text.count("\n")) > 600}
    assert not long


def test_every_source_file_says_what_it_is_and_postpones_annotations() -> None:
    for name, text in texts(".py").items():
        assert text.startswith(('"""', "#!")), f"{name} has no docstring"
        assert "from __future__ import annotations" in text, name


def test_names_of_files_say_what_they_are_about() -> None:
    bad = [name for name in texts(".py") if set(Path(name).with_suffix("").parts) & FORBIDDEN_NAMES]
    assert not bad


def test_nothing_reaches_outside_the_project() -> None:
    outside = re.compile(r"\.\./shared\b|/root/\.")
    assert not [name for name, text in texts().items() if outside.search(text) and name != THIS]


def test_texts_speak_of_the_project_alone() -> None:
    words = re.compile(
        r"\b(issues? #?\d+|(an?other|previous|next) session|brief\.md|house style)\b", re.IGNORECASE
    )
    found = {
        name: match.group()
        for name, text in texts().items()
        if name != THIS and (match := words.search(text))
    }
    assert not found


def test_texts_name_no_package_index() -> None:
    index = re.compile(r"--(extra-)?index-url|/simple/|find-links", re.IGNORECASE)
    assert not [name for name, text in texts().items() if index.search(text) and name != THIS]


def test_the_lock_pins_every_dependency_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        wanted += extra
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = {normal(line.split("==")[0]) for line in lines if "==" in line}
    names = {normal(re.split(r"[<>=!~;\[ ]", want)[0]) for want in wanted}
    assert names <= pinned


def normal(name: str) -> str:
    """Return a distribution's name in the form in which names are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_links_between_documents_lead_somewhere() -> None:
    link = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
    for name, text in texts(".md").items():
        for target in link.findall(text):
            assert ((ROOT / name).parent / target).exists(), f"{name} links to {target}"


THIS = "tests/test_project.py"
"""The one file that must name what is forbidden."""
