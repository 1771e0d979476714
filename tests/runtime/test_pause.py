"""Pausing, and ending what is paused or stopped by a signal, on every OCI runtime."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio

from container.contracts.runtime import (
    ProcessSpec,
    SandboxPhase,
    Stdio,
    StopOptions,
)
from container.ipc import Fd, InvalidArgument, InvalidState
from container.runtime.cgroup import CgroupFolders

from .conftest import PATH, TRAP, Bench, real_runtime_missing, runtimes, sandbox

every_runtime = pytest.mark.parametrize("runtime", runtimes("recorded", "runc", "crun"))
real_runtimes = pytest.mark.parametrize("runtime", runtimes("runc", "crun"))


async def running(bench: Bench, *command: str) -> None:
    await bench.service.bootstrap(bench.spec(*command), Stdio())
    await bench.service.start("init")


async def phase(bench: Bench) -> SandboxPhase:
    return (await bench.service.state()).phase


@every_runtime
async def test_a_container_is_paused_and_goes_on(runtime: str, tmp_path: Path, layer: Path) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        with pytest.raises(InvalidState):
            await bench.service.pause()
        with pytest.raises(InvalidState):
            await bench.service.resume()
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        with Fd(read_end) as stdin:
            await bench.service.bootstrap(bench.spec("cat"), Stdio(stdin=stdin))
        await bench.service.start("init")
        await bench.service.pause()
        await bench.service.pause()
        assert await phase(bench) is SandboxPhase.PAUSED
        os.close(write_end)
        with trio.move_on_after(0.1):
            await bench.service.wait("init")
        assert await phase(bench) is SandboxPhase.PAUSED
        await bench.service.resume()
        assert (await bench.service.wait("init")).code == 0
        with pytest.raises(InvalidState):
            await bench.service.resume()


@every_runtime
async def test_nothing_is_run_in_a_paused_container(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        await running(bench, "sleep", "100")
        await bench.service.pause()
        spec = ProcessSpec(arguments=("true",), environment=(PATH,))
        with pytest.raises(InvalidState, match="is paused") as caught:
            await bench.service.create_process("one", spec, Stdio())
        assert caught.value.hint
        await bench.service.statistics()
        await bench.service.resume()
        await bench.service.resume()
        await bench.service.create_process("one", spec, Stdio())
        await bench.service.pause()
        with pytest.raises(InvalidState, match="is paused"):
            await bench.service.start("one")


@every_runtime
async def test_stop_gives_a_paused_container_its_time_to_end(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        await running(bench, *TRAP)
        with trio.fail_after(10):
            await bench.said(b"ready")
            await bench.service.pause()
            assert (await bench.service.stop(StopOptions(timeout=None))).code == 7


@every_runtime
@pytest.mark.parametrize("timeout", [0.0, 0.05])
async def test_a_paused_container_that_ignores_its_signal_is_killed(
    runtime: str, tmp_path: Path, layer: Path, timeout: float
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        await running(bench, "sleep", "100")
        await bench.service.pause()
        with trio.fail_after(10):
            assert (await bench.service.stop(StopOptions(timeout=timeout))).code == 137
        with pytest.raises(InvalidState):
            await bench.service.pause()


@every_runtime
async def test_sigkill_ends_a_paused_container_and_other_signals_wait(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        await running(bench, *TRAP)
        with trio.fail_after(10):
            await bench.said(b"ready")
        await bench.service.pause()
        await bench.service.kill("init", "TERM")
        assert await phase(bench) is SandboxPhase.PAUSED
        with trio.fail_after(10):
            await bench.service.kill("init", "KILL")
            assert (await bench.service.wait("init")).code == 137


@every_runtime
async def test_a_paused_container_can_be_shut_down(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        await running(bench, "sleep", "100")
        await bench.service.pause()
        with trio.fail_after(10):
            await bench.service.shutdown()
        assert (await bench.service.wait("init")).code == 137


@every_runtime
async def test_pauses_and_an_end_at_once_end_it(runtime: str, tmp_path: Path, layer: Path) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        await running(bench, "sleep", "100")

        async def pause() -> None:
            try:
                await bench.service.pause()
            except InvalidState:
                pass

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pause)
                nursery.start_soon(bench.service.stop, StopOptions(timeout=0.02))
                nursery.start_soon(pause)
                nursery.start_soon(bench.service.resume)


@every_runtime
async def test_a_negative_timeout_is_refused(runtime: str, tmp_path: Path, layer: Path) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        for timeout in (-1.0, float("nan")):
            with pytest.raises(InvalidArgument, match="timeout"):
                await bench.service.stop(StopOptions(timeout=timeout))


@every_runtime
async def test_a_real_time_signal_stops_it_by_any_of_its_names(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        await bench.service.bootstrap(bench.spec("sleep", "100", stop_signal="SIGRTMIN+3"), Stdio())
        for name in ("RTMIN+3", "sigrtmin+3", "37", "RTMAX-2", "SIGRTMAX"):
            await bench.service.kill("init", name)
        for wrong in ("RTMIN+40", "65", "-1", "RTMIN-1", "0"):
            with pytest.raises(InvalidArgument, match="is no signal"):
                await bench.service.kill("init", wrong)


@real_runtimes
async def test_a_process_that_a_signal_has_stopped_gets_its_stop_signal(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        await running(bench, *TRAP)
        with trio.fail_after(10):
            await bench.said(b"ready")
            await bench.service.kill("init", "STOP")
            assert (await bench.service.stop(StopOptions(timeout=None))).code == 7


@real_runtimes
async def test_a_stopped_process_that_ignores_its_signal_is_killed_in_time(
    runtime: str, tmp_path: Path, layer: Path
) -> None:
    async with sandbox(runtime, tmp_path, layer) as bench:
        await running(bench, "sleep", "100")
        await bench.service.kill("init", "STOP")
        with trio.fail_after(5):
            assert (await bench.service.stop(StopOptions(timeout=0.05))).code == 137


@pytest.mark.skipif(bool(real_runtime_missing("runc")), reason=real_runtime_missing("runc"))
@pytest.mark.parametrize("mount", ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"])
def test_both_kinds_of_freezer_freeze_and_thaw(mount: str) -> None:
    if mount.endswith("unified") and not os.path.exists(mount):
        pytest.skip("cgroup v2 is not mounted beside v1")
    group = CgroupFolders(f"/freezer-test-{os.getpid()}", Path(mount))
    unified = (group.mount / "cgroup.controllers").exists()
    folder = group.mount / ("" if unified else "freezer") / group.path.lstrip("/")
    assert not group.frozen()
    group.thaw()
    with pytest.raises(OSError):
        group.freeze()
    folder.mkdir()
    child = os.fork()
    if child == 0:
        while True:
            signal.pause()
    try:
        (folder / "cgroup.procs").write_text(str(child))
        group.freeze()
        assert group.frozen()
        os.kill(child, signal.SIGKILL)
        group.thaw()
        assert not group.frozen()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    finally:
        assert group.remove()
