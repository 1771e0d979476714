"""The architecture, checked: who may import whom, and what an import loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def loaded_by(statement: str) -> set[str]:
    """Return the names of all modules that a fresh interpreter holds after one statement."""
    program = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    return set(json.loads(done.stdout))


def test_packages_import_only_from_layers_below_them() -> None:
    pytest.importorskip("importlinter", reason="import-linter is not installed")
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [program, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_framework_loads_nothing_of_the_container_system() -> None:
    ours = {name for name in loaded_by("import container.ipc") if name.startswith("container")}
    assert {name for name in ours if not name.startswith("container.ipc")} == {"container"}


def test_importing_the_package_loads_no_event_loop_and_no_codec() -> None:
    loaded = loaded_by("import container")
    assert not loaded & {"trio", "asyncio", "attrs", "attr", "cattrs", "msgspec", "rich"}


def test_help_and_version_load_no_framework() -> None:
    for arguments in ("--version", "help"):
        loaded = loaded_by(
            f"sys.argv = ['container', '{arguments}']\n"
            "import contextlib, io\n"
            "from container.cli.front import main\n"
            "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
            "    main()"
        )
        assert not loaded & {"trio", "cattrs", "container.ipc"}, arguments


def test_the_pytest_plugin_loads_nothing_until_it_is_used() -> None:
    before = loaded_by("import container, pytest")
    added = loaded_by("import container, pytest, container.testing.plugin") - before
    assert {name for name in added if not name.startswith("container.testing")} == set()
