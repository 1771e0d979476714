"""Nothing outlives the block: not a stubborn, wedged or stopped child, nor what it left behind.

However it ends: left, cancelled at any point, or with the program killed.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from attrs import evolve

from container.ipc import (
    Limits,
    PeerGone,
    ProcessExited,
    Unavailable,
    Zygote,
    process_of,
    spawn,
)
from tests.ipc.spawn import services
from tests.ipc.spawn.conftest import BOUND, QUICK, alive, leave_nothing, named, parent_of, until
from tests.ipc.spawn.services import Bench, BenchService


async def test_a_child_that_ignores_cancellation_and_sigterm_is_killed(zygote: Zygote) -> None:
    with pytest.raises(ProcessExited, match="SIGKILL") as caught:
        async with spawn(Bench, BenchService, zygote=zygote, bounds=QUICK) as bench:
            await bench.stubborn()
    assert caught.value.hint == "it did not end within its bounds"


async def test_a_child_whose_loop_is_blocked_is_terminated(zygote: Zygote) -> None:
    with pytest.raises(ProcessExited, match="SIG"):
        async with spawn(
            Bench, BenchService, zygote=zygote, bounds=QUICK, limits=Limits(grace_seconds=0.1)
        ) as bench:
            with trio.move_on_after(0.5):
                await bench.wedge(60.0)


async def test_a_stopped_child_is_continued_and_ends(zygote: Zygote, tmp_path: Path) -> None:
    bounds = evolve(QUICK, terminate=BOUND)
    async with spawn(
        Bench, services.Stateful, str(tmp_path), zygote=zygote, bounds=bounds
    ) as bench:
        os.kill(process_of(bench).pid, signal.SIGSTOP)
    assert (tmp_path / "ended").exists()


async def test_a_child_that_had_to_be_killed_does_not_hide_a_cancellation(
    zygote: Zygote, caplog: pytest.LogCaptureFixture
) -> None:
    with trio.CancelScope() as scope:
        async with spawn(Bench, BenchService, zygote=zygote, bounds=QUICK) as bench:
            await bench.stubborn()
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert "died with signal SIGKILL" in caplog.text


async def test_a_tear_down_that_takes_too_long_is_cancelled(zygote: Zygote, tmp_path: Path) -> None:
    bounds = evolve(QUICK, cancel=5.0)
    async with spawn(
        Bench, services.Stateful, str(tmp_path), 60.0, zygote=zygote, bounds=bounds
    ) as bench:
        pid = process_of(bench).pid
    assert not alive(pid)
    assert not (tmp_path / "ended").exists()


async def test_a_service_that_never_gets_ready_ends_when_its_block_is_cancelled(
    zygote: Zygote,
) -> None:
    with trio.move_on_after(0.1) as scope:
        async with spawn(Bench, services.Sleepy, zygote=zygote):
            pytest.fail("the block must not begin")
    assert scope.cancelled_caught
    assert not named("Sleepy")


async def test_a_daemon_ends_with_the_block(start: Zygote | None) -> None:
    async with spawn(Bench, BenchService, zygote=start) as bench:
        daemon = await bench.daemon()
        assert alive(daemon)
    assert not alive(daemon)


async def test_a_daemon_ends_when_the_child_is_killed(zygote: Zygote) -> None:
    daemon = 0
    with pytest.raises(ProcessExited):
        async with spawn(Bench, BenchService, zygote=zygote) as bench:
            daemon = await bench.daemon()
            await bench.kill(signal.SIGKILL)
    assert daemon
    assert not alive(daemon)


async def test_a_daemon_that_ends_by_itself_is_no_zombie(zygote: Zygote) -> None:
    async with spawn(Bench, BenchService, zygote=zygote) as bench:
        daemon = await bench.daemon()
        assert parent_of(daemon) == parent_of(process_of(bench).pid)  # the keeper
        os.kill(daemon, signal.SIGKILL)
        await until(lambda: not Path(f"/proc/{daemon}").exists())
        assert await bench.add(1, 1) == 2


async def test_a_killed_keeper_takes_its_child_with_it(start: Zygote | None) -> None:
    pid = 0
    with pytest.raises(ProcessExited, match="unknown way"):
        async with spawn(Bench, BenchService, zygote=start) as bench:
            pid = process_of(bench).pid
            os.kill(parent_of(pid), signal.SIGKILL)
            await trio.sleep_forever()
    assert pid
    assert not alive(pid)


async def test_a_stopped_keeper_does_not_hold_up_the_end(
    zygote: Zygote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("container.ipc.spawning.process.KILL_BOUND", 0.2)
    monkeypatch.setattr("container.ipc.spawning.process.SLACK", 0.2)
    pid = keeper = 0
    with pytest.raises(ProcessExited):
        async with spawn(Bench, BenchService, zygote=zygote, bounds=QUICK) as bench:
            pid = process_of(bench).pid
            keeper = parent_of(pid)
            os.kill(keeper, signal.SIGSTOP)
    await until(lambda: not alive(pid) and not alive(keeper))


async def test_a_child_that_does_not_answer_is_given_up(zygote: Zygote) -> None:
    limits = Limits(liveness_seconds=0.3)
    with pytest.raises((PeerGone, ProcessExited)):
        async with spawn(Bench, BenchService, zygote=zygote, bounds=QUICK, limits=limits) as bench:
            os.kill(process_of(bench).pid, signal.SIGSTOP)
            await bench.word()


async def test_no_process_can_be_started(zygote: Zygote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(Unavailable, match="No such file"):
        async with spawn(Bench, BenchService):
            pytest.fail("the block must not begin")


def _limit_that_leaves(count: int) -> int:
    """Return the limit under which so many more descriptors can be opened."""
    limit = 0
    while count or limit < 3:
        limit += 1
        try:
            os.fstat(limit)
        except OSError:
            count -= 1
    return limit + 1


@pytest.mark.parametrize("forked", [True, False])
async def test_wherever_descriptors_run_out_nothing_is_left(zygote: Zygote, forked: bool) -> None:
    async with spawn(Bench, BenchService, zygote=zygote):
        pass
    before = _state()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    failures = 0
    for more in range(14 if forked else 6):
        resource.setrlimit(resource.RLIMIT_NOFILE, (_limit_that_leaves(more), hard))
        try:
            async with spawn(Bench, BenchService, zygote=zygote if forked else None) as bench:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                await bench.word()
        except (Unavailable, PeerGone, ExceptionGroup):
            failures += 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert _state() == before, more
    assert failures > 3


# --- the program is killed ---

PROGRAM = """
from __future__ import annotations

import os, signal, sys
import trio
from container.ipc import StopBounds, open_zygote, process_of, spawn
from tests.ipc.spawn.services import Bench, BenchService

async def main() -> None:
    bounds = StopBounds(cleanup=0.2, cancel=0.1, terminate=0.1)
    async with open_zygote() as zygote:
        for given in (None, zygote):
            stack = spawn(Bench, BenchService, zygote=given, bounds=bounds)
            bench = await stack.__aenter__()
            stacks.append(stack)
            daemon = await bench.daemon()
            if "stubborn" in sys.argv:
                await bench.stubborn()
            print(process_of(bench).pid, daemon, zygote.pid, flush=True)
            if "stopped" in sys.argv:
                os.kill(process_of(bench).pid, signal.SIGSTOP)
        await trio.sleep_forever()

stacks = []
trio.run(main)
"""


@pytest.mark.parametrize("manner", ["willing", "stubborn", "stopped"])
def test_the_programs_sigkill_ends_the_child_and_all_below_it(manner: str) -> None:
    root = Path(services.__file__).parents[3]
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, manner],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
    )
    pids: set[int] = set()
    try:
        assert program.stdout is not None
        for _ in range(2):
            child, daemon, zygote = map(int, program.stdout.readline().split())
            pids |= {child, daemon, zygote, parent_of(child)}
        assert all(map(alive, pids))
    finally:
        program.kill()
        program.communicate()
    deadline = time.monotonic() + BOUND
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)  # nothing tells of others' processes
    left = [pid for pid in pids if alive(pid)]
    leave_nothing(*left)
    assert not left


# --- cancelled anywhere ---


class _CancelAt(trio.abc.Instrument):
    """Cancel a scope when a task is about to make its n-th step."""

    def __init__(self, task: trio.lowlevel.Task, scope: trio.CancelScope, step: int) -> None:
        self._task = task
        self._scope = scope
        self._left = step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


async def _cancelled_at(step: int, operation: Callable[[], Awaitable[None]]) -> bool:
    """Run an operation, cancelled at its n-th step; False if it has fewer."""
    with trio.CancelScope() as scope:
        instrument = _CancelAt(trio.lowlevel.current_task(), scope, step)
        trio.lowlevel.add_instrument(instrument)
        try:
            await operation()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return scope.cancel_called


def _state() -> tuple[frozenset[str], frozenset[str]]:
    """Return this process's descriptors and children."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return frozenset(os.listdir("/proc/self/fd")), frozenset(children)


async def test_a_spawn_cancelled_at_any_step_leaves_nothing(zygote: Zygote) -> None:
    async def operation() -> None:
        async with spawn(Bench, BenchService, "a", zygote=zygote, name="swept") as bench:
            await bench.word()
            await trio.lowlevel.checkpoint()

    await operation()  # what is made once, is made
    before = _state()
    step = 1
    while await _cancelled_at(step, operation):
        assert _state() == before, step
        # One that was never born is the zygote's to wait for, and may be ending still.
        await until(lambda: not named("swept"))
        step += 1
    assert step > 10
    # Keepers of those that were never born are the zygote's children, and gone as well.
    await until(lambda: not _children_of(zygote.pid))


def _children_of(pid: int | None) -> str:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 6, 8, 12])
async def test_a_fresh_spawn_cancelled_early_leaves_nothing(step: int) -> None:
    async def operation() -> None:
        async with spawn(Bench, BenchService, "a", name="sweptfresh") as bench:
            await bench.word()

    before = _state()
    await _cancelled_at(step, operation)
    assert _state() == before
    assert not named("sweptfresh")
