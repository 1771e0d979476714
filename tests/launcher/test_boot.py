"""Starting a launcher: what is refused, and what a failed start says."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from container.contracts.launcher import Launcher, ServiceState
from container.ipc import InvalidArgument, InvalidState, PermissionDenied, Unavailable
from container.launcher.boot import ensure_running, start_private, wait_stopped
from container.launcher.rundir import somebody_listens
from container.storage.paths import Paths

from .conftest import System, processes_of, until

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make another's directory")


@root_only
async def test_a_run_directory_of_another_user_is_refused_and_not_touched(paths: Paths) -> None:
    paths.run.mkdir(0o700)
    os.chown(paths.run, 65534, 65534)
    before = paths.run.stat()
    with pytest.raises(PermissionDenied, match="belongs to user 65534") as caught:
        await ensure_running(paths)
    assert caught.value.hint is not None
    assert (paths.run.stat(), os.listdir(paths.run)) == (before, [])
    assert not processes_of(paths)


async def test_a_run_directory_that_is_open_to_others_is_refused(paths: Paths) -> None:
    paths.run.mkdir()
    paths.run.chmod(0o755)
    with pytest.raises(PermissionDenied, match="open to others") as caught:
        await ensure_running(paths)
    assert caught.value.hint == f"chmod 0700 {paths.run}"
    assert os.listdir(paths.run) == []


async def test_a_run_directory_that_is_a_link_is_refused(paths: Paths) -> None:
    target = paths.run.with_name("other")
    target.mkdir(0o700)
    paths.run.symlink_to(target)
    with pytest.raises(PermissionDenied, match="is not a directory"):
        await ensure_running(paths)
    assert os.listdir(target) == []


async def test_a_launcher_that_can_not_start_says_why_to_who_started_it(paths: Paths) -> None:
    long = Paths(root=paths.root, run=paths.run.with_name("x" * 100))
    with pytest.raises(InvalidArgument, match="107 bytes are allowed"):
        await ensure_running(long)
    await until(lambda: not processes_of(long))


async def test_who_finds_the_launcher_listening_finds_its_services_sockets_too(
    paths: Paths,
) -> None:
    found: list[bool] = []

    def look() -> None:
        deadline = time.monotonic() + 20
        while not somebody_listens(paths.launcher_socket):
            assert time.monotonic() < deadline
        found.append(somebody_listens(paths.apiserver_socket))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, look)
        lifeline = await start_private(paths)
    lifeline.close()
    await until(lambda: not processes_of(paths))
    assert found == [True]


async def test_a_launcher_that_breaks_is_told_by_its_log(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "trio.py").write_text("raise RuntimeError('a broken installation')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(Unavailable, match="a broken installation") as caught:
        await ensure_running(paths)
    assert str(paths.logs / "launcher.log") in str(caught.value.hint)


async def test_a_cancelled_start_leaves_no_launcher(paths: Paths) -> None:
    with trio.move_on_after(0.1) as scope:
        await start_private(paths)
    assert scope.cancelled_caught
    await until(lambda: not processes_of(paths))


async def test_a_private_start_is_refused_where_a_launcher_works(system: System) -> None:
    with pytest.raises(InvalidState, match="works in"):
        await start_private(system.paths)


async def test_nothing_is_waited_for_where_nothing_runs(paths: Paths) -> None:
    with trio.fail_after(5):
        await wait_stopped(paths)
        paths.run.mkdir(0o700)
        await wait_stopped(paths)
    assert os.listdir(paths.run) == []


UNIT = """
[Unit]
After = {after}
{condition}
[Service]
ExecStart = ["x"]
Entry = "services:{entry}"
Restart = "no"
StartAtBoot = true
[Socket]
ListenStream = "{name}.sock"
"""


def start_launcher(paths: Paths, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a launcher as a child of the test."""
    paths.logs.mkdir(parents=True, exist_ok=True)
    with (paths.logs / "launcher.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "container.launcher.process", "--log", "-", *arguments],
            env={**os.environ, **paths.environment()},
            stderr=log,
        )


async def test_at_boot_what_has_something_to_come_back_for_is_started(
    paths: Paths, tmp_path: Path
) -> None:
    (paths.root / "full/something").mkdir(parents=True)
    (paths.root / "empty").mkdir()
    for name, entry, after, folder in (
        ("a", "bare", [], ""),
        ("b", "bare", ["a", "broken"], "full"),
        ("broken", "failing", [], ""),
        ("c", "bare", [], "empty"),
        ("d", "bare", [], "missing"),
    ):
        condition = f'ConditionDirectoryNotEmpty = "{folder}"' if folder else ""
        text = UNIT.format(name=name, entry=entry, after=after, condition=condition)
        (tmp_path / f"{name}.toml").write_text(text)
    process = start_launcher(paths, "--units", str(tmp_path))
    try:
        await until(lambda: somebody_listens(paths.launcher_socket))
        async with Launcher.connect(paths.launcher_socket) as launcher:
            system = System(paths, launcher)
            await system.until("a", ServiceState.RUNNING)
            await system.until("b", ServiceState.RUNNING)
            states = {one.name: one.state for one in (await launcher.status()).services}
            assert states["c"] is states["d"] is ServiceState.LISTENING
            await system.until("broken", ServiceState.LISTENING)
            assert "status 3" in (await system.service("broken")).problem
    finally:
        process.terminate()
        await until(lambda: process.poll() == 0)
