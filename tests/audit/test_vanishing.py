"""What goes while it is looked at is no reason to fail."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from container.audit import machine
from container.audit.machine import look
from container.storage.paths import Paths


def test_a_control_group_that_is_removed_meanwhile_is_one_without_processes(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    for name in ("one", "two"):
        folder = tmp_path / f"pids/{machine.GROUP_PREFIX}{name}"
        folder.mkdir(parents=True)
        (folder / "cgroup.procs").write_text("4711\n4712\n")
    glob = Path.glob

    def removing(folder: Path, pattern: str) -> Iterator[Path]:
        if folder.name == f"{machine.GROUP_PREFIX}one":
            shutil.rmtree(folder)
            raise FileNotFoundError(2, "No such file or directory", str(folder))
        return glob(folder, pattern)

    monkeypatch.setattr(Path, "glob", removing)
    assert look(paths).groups == {"one": 0, "two": 2}
