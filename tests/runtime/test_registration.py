"""A helper stays registered: with the launcher that started it, and with each one after it."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
import trio
from attrs import define, field

from container.contracts.launcher import Launcher, ServiceUnit
from container.ipc import AlreadyExists, Fd, PeerGone
from container.runtime.process import parse, unit
from container.runtime.registration import stay_registered

UNIT = ServiceUnit(name="runtime.x", command=("helper",))


@define(eq=False)
class Launchers:
    """A launcher that comes and goes."""

    present: bool = True
    adoptions: int = 0
    refuse: bool = False
    connections: int = 0
    gone: trio.Event = field(factory=trio.Event)
    adopted: trio.Event = field(factory=trio.Event)

    async def adopt(self, unit: ServiceUnit, socket: Fd) -> None:
        assert unit == UNIT
        self.adoptions += 1
        self.adopted.set()
        if self.refuse:
            raise AlreadyExists("it is here")
        await trio.lowlevel.checkpoint()

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Launcher]:
        self.connections += 1
        if not self.present:
            raise PeerGone("nobody listens")
        yield cast("Launcher", self)

    async def until_gone(self, launcher: Launcher) -> None:
        await self.gone.wait()
        self.gone = trio.Event()


@asynccontextmanager
async def registered(launchers: Launchers, path: Path) -> AsyncGenerator[None]:
    with socket.socket(socket.AF_UNIX) as listener:
        async with trio.open_nursery() as nursery:

            async def stay() -> None:
                await stay_registered(
                    launchers.open, UNIT, listener, path, until_gone=launchers.until_gone
                )

            nursery.start_soon(stay)
            await trio.testing.wait_all_tasks_blocked()
            yield
            nursery.cancel_scope.cancel()


async def test_the_launcher_that_started_it_is_not_asked(tmp_path: Path) -> None:
    launchers = Launchers()
    async with registered(launchers, tmp_path / "launcher.sock"):
        assert launchers.connections == 1
        assert launchers.adoptions == 0


@pytest.mark.parametrize("refuse", [False, True])
async def test_the_next_launcher_adopts_it(tmp_path: Path, refuse: bool) -> None:
    launchers = Launchers(refuse=refuse)
    path = tmp_path / "launcher.sock"
    async with registered(launchers, path):
        launchers.present = False
        launchers.gone.set()
        await trio.sleep(0.2)
        assert launchers.adoptions == 0
        launchers.present = True
        path.touch()
        with trio.fail_after(5):
            await launchers.adopted.wait()
        # Again: each launcher is one of many.
        launchers.adopted = trio.Event()
        launchers.gone.set()
        with trio.fail_after(5):
            await launchers.adopted.wait()
        assert launchers.adoptions == 2


async def test_a_launcher_that_is_away_is_not_asked_in_a_loop(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    launchers = Launchers(present=False)
    async with registered(launchers, tmp_path / "launcher.sock"):
        await trio.sleep(60)
    assert launchers.connections < 15


async def test_a_run_directory_that_is_gone_is_no_error(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    launchers = Launchers(present=False)
    async with registered(launchers, tmp_path / "gone" / "launcher.sock"):
        await trio.sleep(30)
    assert launchers.connections < 10


def test_the_command_line_is_read() -> None:
    assert parse(["start", "0123456789ab"]).container_id == "0123456789ab"
    options = parse(["start", "--root", "/c/x", "--id", "x"])
    assert (options.container_id, options.folder) == ("x", Path("/c/x"))
    for wrong in ([], ["start"], ["../x"], ["--id"], ["a", "b"], ["--what", "x"]):
        with pytest.raises(Exception, match=r"."):
            parse(wrong)


def test_the_unit_is_the_one_that_the_api_server_registers() -> None:
    found = unit("0123456789ab", ("container-runtime", "start", "0123456789ab"))
    assert found.name == "runtime.0123456789ab"
    assert found.listen == "runtime/0123456789ab.sock"
    assert found.outlives_launcher
