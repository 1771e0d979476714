"""The gate itself: steps are told in order, and a fault comes exactly before its step."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from container.testing.fault_steps import VARIABLE, write_site
from container.testing.faults import Fault, Gate, Plan, Step, fill

PROGRAM = """
'container.launcher'
import os, sys
root = os.environ['CONTAINER_ROOT']
open('/proc/self/comm', 'w').write('player')
os.mkdir(root + '/first')
os.symlink('x', root + '/0123456789abcdef.link')
try:
    os.mkdir(root + '/second')
    with open(root + '/file', 'w') as file:
        file.write('x' * 10_000)
except OSError as error:
    print(error.strerror)
"""
SECOND = Step("player", "mkdir second", 0)


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cg-") as folder:
        (Path(folder) / "root").mkdir()
        write_site(Path(folder) / "site")
        yield Path(folder)


def play(place: Path) -> subprocess.CompletedProcess[str]:
    search = [str(place / "site"), os.getcwd(), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(search),
        "CONTAINER_ROOT": str(place / "root"),
        VARIABLE: str(place / "gate"),
    }
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_steps_are_told_in_order_and_only_while_somebody_listens(place: Path) -> None:
    with Gate(place / "gate") as gate:
        gate.arm(None)
        done = play(place)
        assert done.returncode == 0, done.stderr
        assert gate.disarm() == [
            Step("player", "mkdir first", 0),
            Step("player", "symlink *.link", 0),
            SECOND,
        ]
    for name in os.listdir(place / "root"):
        path = place / "root" / name
        path.rmdir() if path.is_dir() else path.unlink()
    assert play(place).returncode == 0
    assert len(os.listdir(place / "root")) == 4


def test_a_killed_process_has_done_all_before_its_step_and_nothing_after(place: Path) -> None:
    with Gate(place / "gate") as gate:
        gate.arm(Plan(SECOND, Fault.KILL, place / "root"))
        assert play(place).returncode == -9
        gate.disarm()
        assert gate.injected
    assert sorted(os.listdir(place / "root")) == ["0123456789abcdef.link", "first"]


def test_a_frozen_process_goes_on(place: Path) -> None:
    with Gate(place / "gate") as gate:
        gate.arm(Plan(SECOND, Fault.FREEZE, place / "root"))
        assert play(place).returncode == 0
        assert gate.injected
    assert (place / "root" / "file").exists()


def test_a_process_without_descriptors_is_told_so(place: Path) -> None:
    with Gate(place / "gate") as gate:
        gate.arm(Plan(SECOND, Fault.DESCRIPTORS, place / "root"))
        done = play(place)
        assert done.stdout.strip() == "Too many open files"
    assert not (place / "root" / "file").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_is_full_until_the_operation_is_over(place: Path) -> None:
    root = place / "root"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", root], check=True)
    try:
        with Gate(place / "gate") as gate:
            gate.arm(Plan(SECOND, Fault.FULL, root))
            assert "No space left" in play(place).stdout
            gate.disarm()
        (root / "file").write_bytes(b"x" * 1000)
        fill(root)
        with pytest.raises(OSError, match="No space left"):
            (root / "more").write_bytes(b"x" * 10_000)
    finally:
        subprocess.run(["umount", root], check=True)


def test_a_step_that_is_not_reached_is_told_apart(place: Path) -> None:
    with Gate(place / "gate") as gate:
        gate.arm(Plan(Step("player", "mkdir third", 0), Fault.KILL, place / "root"))
        assert play(place).returncode == 0
        gate.disarm()
        assert not gate.injected
