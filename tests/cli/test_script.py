"""`bin/container` finds its interpreter and its package, however it was installed and called."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import container

SCRIPT = Path(__file__).parents[2] / "bin" / "container"
LIBRARY = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"


def install(prefix: Path, first_line: str = f"#!{sys.executable}") -> Path:
    """Lay out what an installer does; return the command."""
    (prefix / "bin").mkdir(parents=True)
    shutil.copy(SCRIPT, prefix / "bin" / "container")
    (prefix / "bin" / "container-launcher").write_text(f"{first_line}\nimport sys\n")
    return prefix / "bin" / "container"


def run(command: Path, *arguments: str, status: int = 0) -> str:
    environment = {**os.environ, "CONTAINER_NO_FRONT": "1", "CONTAINER_RUN": "/nonexistent"}
    done = subprocess.run(
        [command, *arguments], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


VERSION = f"container {container.__version__}\n"


@pytest.mark.parametrize("editable", [False, True])
def test_a_package_beside_it_or_linked_is_used_without_site(tmp_path: Path, editable: bool) -> None:
    command = install(tmp_path)
    library = tmp_path / LIBRARY
    library.mkdir(parents=True)
    package = (tmp_path / "source" if editable else library) / "container"
    if editable:
        link = library / "__editable__.container-0.1.0.pth"
        link.write_text(f"{package.parent}\n")
    (package / "cli").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "cli" / "__init__.py").touch()
    (package / "cli" / "front.py").write_text(
        "import sys\ndef script(): sys.exit(f'{sys.flags.no_site} {sys.argv[1:]}')\n"
    )
    assert run(command, "ls", "-a b", status=1) == "1 ['ls', '-a b']\n"


def test_a_package_elsewhere_is_found_as_the_interpreter_finds_it(tmp_path: Path) -> None:
    assert run(install(tmp_path), "--version") == VERSION
    assert "Usage:" in run(install(tmp_path / "b"), "help")


def test_a_link_from_elsewhere_is_followed(tmp_path: Path) -> None:
    command = install(tmp_path / "venv")
    link = tmp_path / "link"
    link.symlink_to(command)
    assert run(link, "--version") == VERSION


@pytest.mark.parametrize("first_line", ["#!/bin/sh", ""])
def test_an_interpreter_beside_it_is_used_where_no_first_line_names_one(
    tmp_path: Path, first_line: str
) -> None:
    command = install(tmp_path / "with blank", first_line)
    (command.parent / "python").symlink_to(sys.executable)
    assert sys.prefix == sys.base_prefix or Path(sys.prefix, "pyvenv.cfg").exists()
    shutil.copy(Path(sys.prefix, "pyvenv.cfg"), tmp_path / "with blank" / "pyvenv.cfg")
    library = tmp_path / "with blank" / LIBRARY
    library.parent.mkdir(parents=True)
    library.symlink_to(Path(container.__file__).parents[1])
    assert run(command, "--version") == VERSION


def test_a_mistake_has_its_exit_status(tmp_path: Path) -> None:
    assert 'no command "rnu"' in run(install(tmp_path), "rnu", status=2)
