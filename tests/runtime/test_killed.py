"""A helper is killed at each step of each call, and the next one completes it or undoes it.

`CONTAINER_SWEEP=all` takes every step; else a few of each call, spread evenly.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio

from container.contracts.runtime import (
    ProcessSpec,
    ProcessState,
    Sandbox,
    SandboxPhase,
    Stdio,
    StopOptions,
)
from container.ipc import ContainerError
from container.storage.paths import Paths

from .conftest import PATH, real_runtime_missing
from .networks import Helper, network_helper
from .surviving import Survivor, System, connected, launcher_running, until

pytestmark = pytest.mark.skipif(
    bool(real_runtime_missing("runc")), reason=real_runtime_missing("runc")
)
FEW = 5
AT_ONCE = 4
SCRIPT = 'trap "echo told; exit 7" TERM; echo out; while :; do sleep 0.02; done'
WORDS = ("sh", "-c", SCRIPT)


@pytest.fixture(scope="module")
def paths() -> Iterator[Paths]:
    with launcher_running() as found:
        yield found


@pytest.fixture
async def system(paths: Paths, layer: Path) -> AsyncGenerator[System]:
    async with connected(paths, layer) as found:
        yield found


async def attempt(survivor: Survivor, call: Callable[[Sandbox], Awaitable[object]]) -> None:
    """Make a call that may find the helper killed under it."""
    try:
        async with survivor.sandbox() as sandbox:
            await call(sandbox)
    except (ContainerError, ExceptionGroup):
        if not survivor.killed:
            raise


async def bootstrap(survivor: Survivor, sandbox: Sandbox) -> None:
    if (await sandbox.state()).phase is SandboxPhase.EMPTY:
        await sandbox.bootstrap(survivor.spec(*WORDS), Stdio())


async def start(sandbox: Sandbox) -> None:
    started = await sandbox.start("init")
    if started.terminal_input is not None:
        started.terminal_input.close()


async def run(survivor: Survivor) -> None:
    async with survivor.sandbox() as sandbox:
        await bootstrap(survivor, sandbox)
        await start(sandbox)


async def end(survivor: Survivor, code: int | None = 7) -> None:
    """Run the container to its end and check all that it left."""
    async with survivor.sandbox() as sandbox:
        await bootstrap(survivor, sandbox)
        with trio.move_on_after(5):
            await start(sandbox)
            await until(lambda: b"out" in survivor.log())
        found = await sandbox.stop(StopOptions())
        assert found.code == code, found
        assert survivor.log().replace(b"\r", b"") == b"out\ntold\n"
        assert survivor.ended()
        await sandbox.shutdown()
    await survivor.gone()


async def in_bootstrap(survivor: Survivor) -> None:
    await attempt(survivor, lambda sandbox: bootstrap(survivor, sandbox))
    async with survivor.sandbox() as sandbox:
        phase = (await sandbox.state()).phase
        assert phase in (SandboxPhase.EMPTY, SandboxPhase.CREATED)
        if phase is SandboxPhase.EMPTY:
            assert survivor.inside() == set()
    await end(survivor)


async def in_bootstrap_with_a_terminal(survivor: Survivor) -> None:
    survivor.terminal = True
    await in_bootstrap(survivor)


async def in_bootstrap_in_networks(survivor: Survivor) -> None:
    web, db = survivor.helpers
    survivor.networks = (web.wanted(survivor.id), db.wanted(survivor.id, "eth1"))
    await attempt(survivor, lambda sandbox: bootstrap(survivor, sandbox))
    async with survivor.sandbox() as sandbox:
        state = await sandbox.state()
        if state.phase is SandboxPhase.EMPTY:
            assert survivor.inside() == set()
            assert not web.kept(survivor.id)
            assert not db.kept(survivor.id)
        else:
            await until(lambda: web.kept(survivor.id) and db.kept(survivor.id))
            assert [each.network_name for each in state.networks] == ["web", "db"]
    await end(survivor)
    assert survivor.id not in web.attached | db.attached


async def in_join(survivor: Survivor) -> None:
    web, db = survivor.helpers
    survivor.networks = (web.wanted(survivor.id),)
    joined = db.wanted(survivor.id, "eth1")
    await run(survivor)
    await attempt(survivor, lambda sandbox: sandbox.join_network(joined))
    async with survivor.sandbox() as sandbox:
        names = [each.network_name for each in (await sandbox.state()).networks]
        if names == ["web"]:  # undone: nobody was told of it
            await until(lambda: survivor.id not in db.attached)
            assert await sandbox.join_network(joined) == db.network.attachments[survivor.id]
        assert survivor.id in web.attached & db.attached
    await end(survivor)
    assert survivor.id not in web.attached | db.attached


async def in_leave(survivor: Survivor) -> None:
    web, db = survivor.helpers
    survivor.networks = (web.wanted(survivor.id), db.wanted(survivor.id, "eth1"))
    await run(survivor)
    left = survivor.networks[0].id
    await attempt(survivor, lambda sandbox: sandbox.leave_network(left))
    async with survivor.sandbox() as sandbox:
        await sandbox.leave_network(left)
        await until(lambda: survivor.id not in web.attached)
        state = await sandbox.state()
        assert [each.network_name for each in state.networks] == ["db"]
        hosts = (survivor.folder / "bundle" / "run" / "hosts").read_text()
        assert "10.1.0." not in hosts
        assert "10.2.0." in hosts
    await end(survivor)
    assert survivor.id not in db.attached


async def in_start(survivor: Survivor) -> None:
    async with survivor.sandbox() as sandbox:
        await bootstrap(survivor, sandbox)
    await attempt(survivor, lambda sandbox: sandbox.start("init"))
    await end(survivor)


async def in_exec(survivor: Survivor) -> None:
    await run(survivor)
    spec = ProcessSpec(("sh", "-c", "sleep 0.1; exit 44"), (PATH,))

    async def execute(sandbox: Sandbox) -> None:
        await sandbox.create_process("further", spec, Stdio())
        await sandbox.start("further")

    await attempt(survivor, execute)
    async with survivor.sandbox() as sandbox:
        state = await sandbox.state()
        assert state.phase is SandboxPhase.RUNNING
        further = [p for p in state.processes if p.id == "further"]
        if not further:  # undone: nothing of it runs, and its name is free again
            await execute(sandbox)
        elif further[0].state is ProcessState.CREATED:
            await sandbox.start("further")
        assert (await sandbox.wait("further")).code == 44
    await end(survivor)


async def in_stop(survivor: Survivor) -> None:
    await run(survivor)
    await attempt(survivor, lambda sandbox: sandbox.stop(StopOptions(timeout=0)))
    async with survivor.sandbox() as sandbox:
        assert (await sandbox.stop(StopOptions(timeout=0))).code == 137
        assert survivor.ended()
        await sandbox.shutdown()
    await survivor.gone()


async def at_the_end(survivor: Survivor) -> None:
    await run(survivor)

    async def to_the_end(sandbox: Sandbox) -> None:
        assert (await sandbox.stop(StopOptions())).code == 7
        await until(lambda: survivor.killed or not (survivor.folder / "bundle" / "run").exists())

    await attempt(survivor, to_the_end)
    async with survivor.sandbox() as sandbox:
        assert (await sandbox.wait("init")).code == 7
        assert survivor.ended()
        await sandbox.shutdown()
    await survivor.gone()


async def in_shutdown(survivor: Survivor) -> None:
    await run(survivor)
    await attempt(survivor, lambda sandbox: sandbox.shutdown())
    async with survivor.sandbox() as sandbox:
        # Killed before it had begun to shut down, the container runs on, and the caller asks again.
        if (await sandbox.state()).phase is SandboxPhase.STOPPED:
            assert (await sandbox.wait("init")).code == 137
        await sandbox.shutdown()
    assert survivor.ended()
    await survivor.gone()


CALLS = {
    "bootstrap": (in_bootstrap, "bootstrap"),
    "bootstrap with a terminal": (in_bootstrap_with_a_terminal, "bootstrap"),
    "bootstrap in networks": (in_bootstrap_in_networks, "bootstrap"),
    "joining a network": (in_join, "join_network"),
    "leaving a network": (in_leave, "leave_network"),
    "start": (in_start, "start"),
    "exec": (in_exec, "create_process start"),
    "stop": (in_stop, "_kill_all"),
    "end": (at_the_end, "_tear_down"),
    "shutdown": (in_shutdown, "shutdown"),
}


@pytest.mark.parametrize("name", CALLS)
async def test_a_helper_killed_in_a_call_leaves_nothing_half_done(
    system: System, name: str
) -> None:
    folder = system.paths.run
    async with network_helper(folder, "web") as web, network_helper(folder, "db") as db:
        await _killed_at_each_step(system, name, (web, db))


async def _killed_at_each_step(system: System, name: str, helpers: tuple[Helper, Helper]) -> None:
    scenario, route = CALLS[name]
    counting = await system.container(route, 0)
    counting.helpers = helpers
    await scenario(counting)
    count = int(counting.flag.read_text())
    assert count >= 3
    every = os.environ.get("CONTAINER_SWEEP") == "all"
    steps = range(1, count + 1) if every else range(1, count + 1, max(1, count // FEW))
    slots = trio.CapacityLimiter(AT_ONCE)
    killed: list[int] = []

    async def at(step: int) -> None:
        async with slots:
            survivor = await system.container(route, step)
            survivor.helpers = helpers
            try:
                await scenario(survivor)
            except BaseException as error:
                error.add_note(f"killed at step {step} of {count} of {name}, {survivor.id}")
                raise
            if survivor.killed:
                killed.append(step)

    async with trio.open_nursery() as nursery:
        for step in steps:
            nursery.start_soon(at, step)
    assert len(killed) > len(steps) // 2, (killed, count)
