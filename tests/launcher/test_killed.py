"""The launcher killed -9 at every step of a start: no half service, and the next one has it all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from container.contracts.launcher import Launcher, ServiceUnit
from container.ipc import Fate, PeerGone, connection_of
from container.launcher.rundir import somebody_listens
from container.storage.paths import Paths

from .conftest import ask, processes_of, running, unit, until
from .dying import NAME, STEPS


def start_dying(paths: Paths, step: str) -> subprocess.Popen[bytes]:
    """Start a launcher that will kill itself at a step."""
    paths.logs.mkdir(parents=True, exist_ok=True)
    with (paths.logs / "launcher.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "dying.py"), step, "--log", "-"],
            env={**os.environ, **paths.environment()},
            stdout=log,
            stderr=log,
        )


async def start_for_ever(paths: Paths, one: ServiceUnit) -> None:
    """Register and start a service, and wait for the launcher's end."""
    async with Launcher.connect(paths.launcher_socket) as launcher:
        await launcher.register(one)
        await launcher.start(NAME)
        await connection_of(launcher).wait_lost()
    raise PeerGone("gone", fate=Fate.UNKNOWN)


def serving(paths: Paths) -> list[int]:
    """Return the processes of the service: the others are called something else."""
    return [pid for pid, name in processes_of(paths).items() if name == NAME]


@pytest.mark.parametrize(
    ("step", "outlives"), [*((step, True) for step in STEPS), ("fork", False), ("run", False)]
)
async def test_a_launcher_killed_while_it_starts_a_service_leaves_no_half_of_it(
    paths: Paths, step: str, outlives: bool
) -> None:
    one = unit(NAME, "proper", outlives_launcher=outlives)
    dying = start_dying(paths, step)
    await until(lambda: somebody_listens(paths.launcher_socket))
    with pytest.raises(PeerGone):
        await start_for_ever(paths, one)
    await until(lambda: dying.poll() is not None)
    assert dying.returncode == -signal.SIGKILL
    lives = outlives and step in ("gate", "run")
    # What lives on is past its gate, and serves; all else ends by itself.
    await until(lambda: list(processes_of(paths).values()) == ([NAME] if lives else []))
    survivor = serving(paths)
    async with running(paths) as system:
        path = await system.launcher.register(one)
        if lives:
            assert (await ask(path, f"adopt {NAME} {NAME}.sock"))["pid"] == survivor[0]
        pid = (await ask(path))["pid"]
        assert serving(paths) == [pid]
        assert survivor in ([], [pid])
