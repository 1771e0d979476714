"""The helper as a real process: its gate, its end, and what it does when it is told to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from container.contracts.runtime import (
    ProcessSpec,
    Sandbox,
    SandboxGate,
    SandboxPhase,
    SandboxSpec,
    Stdio,
    StopOptions,
)
from container.ipc import NotFound, UnknownRoute, bind
from container.runtime.cgroup import CgroupFolders, cgroup_path

from .conftest import PATH, pipe, read_all, real_runtime_missing

pytestmark = pytest.mark.skipif(
    bool(real_runtime_missing("runc")), reason=f"runc: {real_runtime_missing('runc')}"
)

# As the launcher does it: the listening socket is descriptor 3, LISTEN_PID is the process itself.
START = """
import os, sys
os.dup2(int(os.environ.pop("SOCKET")), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
from container.runtime.process import main
sys.exit(main())
"""


def spec(container: str, layer: Path, *arguments: str) -> SandboxSpec:
    return SandboxSpec(
        id=container,
        name="tested",
        hostname="tested",
        layers=(str(layer),),
        process=ProcessSpec(arguments=arguments, environment=(PATH,)),
    )


@asynccontextmanager
async def helper(
    tmp_path: Path, container: str, *, left: bool = False
) -> AsyncGenerator[tuple[trio.Process, Path]]:
    """Run a helper process on a socket; it has ended when the block ends, and all is gone.

    Args:
        left: It is to be killed: its container stays.
    """
    folder = tmp_path / "root" / "containers" / container
    folder.mkdir(parents=True, exist_ok=True)
    run = tmp_path / "run"
    run.mkdir(exist_ok=True)
    path = run / "gate.sock"
    listener = bind(path)
    environment = {
        **os.environ,
        "CONTAINER_ROOT": str(tmp_path / "root"),
        "CONTAINER_RUN": str(run),
        "LISTEN_FDS": "1",
        "SOCKET": str(listener.fileno()),
    }
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", START, "start", container],
        env=environment,
        pass_fds=[listener.fileno()],
        stdin=subprocess.DEVNULL,
    )
    listener.close()
    try:
        yield process, path
        with trio.fail_after(20):
            await process.wait()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
    if left:
        return
    assert not CgroupFolders(cgroup_path(container)).folders()
    assert not (folder / "bundle" / "run").exists()


async def test_a_container_runs_behind_the_gate_and_shutdown_ends_the_helper(
    tmp_path: Path, layer: Path
) -> None:
    container = f"p{os.getpid()}"
    async with helper(tmp_path, container) as (process, path):
        async with SandboxGate.connect(path) as gate:
            endpoint = await gate.open()
            async with endpoint.connect() as sandbox:
                out, stdout = pipe()
                await sandbox.bootstrap(
                    spec(container, layer, "echo", "hello"), Stdio(stdout=stdout)
                )
                stdout.close()
                started = await sandbox.start("init")
                assert started.pid > 1
                limited = await gate.open(("wait",))
                async with limited.connect() as waiter:
                    assert (await waiter.wait("init")).code == 0
                    with pytest.raises(Exception) as caught:
                        await waiter.state()
                    assert not isinstance(caught.value, AssertionError)
                assert read_all(out) == b"hello\n"
                with pytest.raises(NotFound):
                    await sandbox.wait("other")
                await sandbox.shutdown()
        assert await process.wait() == 0


async def test_the_gate_offers_nothing_else(tmp_path: Path, layer: Path) -> None:
    container = f"q{os.getpid()}"
    async with helper(tmp_path, container) as (process, path):
        with pytest.raises(Exception, match=r"sandbox") as caught:
            async with Sandbox.connect(path) as sandbox:
                await sandbox.state()
        assert not isinstance(caught.value, UnknownRoute | AssertionError)
        process.terminate()


@asynccontextmanager
async def orphan(pid: int) -> AsyncGenerator[None]:
    """Reap an orphan at its end, as a launcher does; it may be ours or the first process's."""
    pidfd = os.pidfd_open(pid)

    async def reap() -> None:
        await trio.lowlevel.wait_readable(pidfd)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222, has ended

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reap)
            yield
    finally:
        os.close(pidfd)


async def test_a_killed_helper_loses_neither_the_container_nor_its_output_nor_its_status(
    tmp_path: Path, layer: Path
) -> None:
    container = f"k{os.getpid()}"
    script = (
        'trap "echo ended; exit 9" TERM; i=0; '
        "while :; do i=$((i+1)); echo line $i; sleep 0.02; done"
    )
    log = tmp_path / "root" / "containers" / container / "log" / "data"
    async with helper(tmp_path, container, left=True) as (process, path):
        async with SandboxGate.connect(path) as gate:
            async with (await gate.open()).connect() as sandbox:
                wanted = spec(container, layer, "sh", "-c", script)
                await sandbox.bootstrap(wanted, Stdio())
                first = await sandbox.start("init")
        process.kill()
    await trio.sleep(0.1)  # nobody reads now
    async with orphan(first.pid), helper(tmp_path, container) as (_, path):
        async with SandboxGate.connect(path) as gate:
            async with (await gate.open()).connect() as sandbox:
                state = await sandbox.state()
                assert state.phase is SandboxPhase.RUNNING
                assert state.processes[0].pid == first.pid
                assert (await sandbox.start("init")).pid == first.pid
                out, stdout = pipe()
                process_spec = ProcessSpec(arguments=("echo", "again"), environment=(PATH,))
                await sandbox.create_process("x", process_spec, Stdio(stdout=stdout))
                stdout.close()
                await sandbox.start("x")
                assert (await sandbox.wait("x")).code == 0
                assert read_all(out) == b"again\n"
                exit_status = await sandbox.stop(StopOptions())
                assert exit_status.code in (9, None)  # older kernels can't say
                await sandbox.shutdown()
    lines = log.read_text().splitlines()
    assert lines[-1] == "ended"
    assert lines[:-1] == [f"line {number}" for number in range(1, len(lines))]
    assert len(lines) > 5


async def test_a_helper_that_is_told_to_stop_ends_its_container(
    tmp_path: Path, layer: Path
) -> None:
    container = f"s{os.getpid()}"
    async with helper(tmp_path, container) as (process, path):
        async with SandboxGate.connect(path) as gate:
            endpoint = await gate.open()
            async with endpoint.connect() as sandbox:
                await sandbox.bootstrap(spec(container, layer, "sleep", "100"), Stdio())
                await sandbox.start("init")
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
