"""The API server is killed at any moment of an operation, or the machine is: the next one heals.

While an operation runs, everything that would outlive the API server is recorded each time that it
changes: files, what the kernel runs, helpers, held images. From each of these moments another API
server starts, and must come to a state that is one of those that are right.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define

from container.apiserver.adoption import SEEN
from container.contracts.apiserver import (
    ContainerStatus,
    EventFilter,
    EventKind,
    RestartCondition,
    RestartPolicy,
)
from container.contracts.launcher import ServiceUnit
from container.contracts.runtime import SandboxPhase, SandboxState, Stdio, StopOptions
from container.testing.clock import hold_autojump_clock

ALWAYS = RestartPolicy(RestartCondition.ALWAYS)
SETTLED = 200.0
"""Seconds by the test's clock after which nothing is due any more."""


@define(frozen=True)
class Moment:
    """All that outlives an API server."""

    files: tuple[tuple[str, bytes | None], ...]
    states: tuple[SandboxState, ...]
    units: tuple[ServiceUnit, ...]
    holders: frozenset[str]

    @classmethod
    def of(cls, world: Any) -> Moment:
        # Worker threads go on while we look: what is seen twice was there at one moment.
        last, files = None, _files(world.paths.containers)
        while files != last:
            last, files = files, _files(world.paths.containers)
        return cls(
            files,
            tuple(world.kernel.states.values()),
            tuple(service.unit for service in world.launcher._services.values()),
            frozenset(world.images.holders),
        )

    def __str__(self) -> str:
        said = [f"{name}: {_status(content)}" for name, content in self.files]
        phases = [f"{state.id} {state.phase.value}" for state in self.states]
        return f"{said}, kernel {phases}, units {[unit.name for unit in self.units]}"

    def _write(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        for name, content in self.files:
            if content is None:
                (folder / name).mkdir()
            else:
                (folder / name).write_bytes(content)

    async def restore(self, world: Any, *, rebooted: bool) -> None:
        """Make a fresh world what this one was; after a reboot nothing runs in it."""
        self._write(world.paths.containers)
        world.images.holders.update(self.holders)
        if rebooted:
            return
        world.kernel.states.update({state.id: state for state in self.states})
        for unit in self.units:
            await world.launcher.register(unit)
        status = await world.launcher.status()
        world.paths.run.mkdir(parents=True)
        name = f"{status.pid} {status.started.isoformat()}\n"
        (world.paths.run / SEEN).write_text(name)


def _files(folder: Path) -> tuple[tuple[str, bytes | None], ...]:
    try:
        return tuple(
            (str(path.relative_to(folder)), None if path.is_dir() else path.read_bytes())
            for path in sorted(folder.rglob("*"))
        )
    except OSError:  # what was listed has just been removed
        return _files(folder)


def _status(content: bytes | None) -> str:
    try:
        value = json.loads(content or b"")["value"]
        return f"{value['status']}, exit {value['exit']}, by user {value['stopped_by_user']}"
    except (ValueError, KeyError, TypeError):
        return ""


class Recorder(trio.abc.Instrument):
    """Record each moment that differs from those before it."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.moments: dict[str, Moment] = {}

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        moment = Moment.of(self.world)
        self.moments.setdefault(repr(moment), moment)


@asynccontextmanager
async def recorded(world: Any) -> AsyncGenerator[Recorder]:
    recorder = Recorder(world)
    trio.lowlevel.add_instrument(recorder)
    try:
        yield recorder
    finally:
        trio.lowlevel.remove_instrument(recorder)


Operation = Callable[[Any, Any, Any], Awaitable[None]]


async def create(world: Any, server: Any, options: Any) -> None:
    await server.create(options(name="web"))


async def start(world: Any, server: Any, options: Any) -> None:
    await server.start("web")


async def bootstrap(world: Any, server: Any, options: Any) -> None:
    await server.bootstrap("web", Stdio())


async def stop(world: Any, server: Any, options: Any) -> None:
    await server.stop("web", StopOptions())
    await trio.sleep(2)


async def restart(world: Any, server: Any, options: Any) -> None:
    await server.restart("web")


async def crash(world: Any, server: Any, options: Any) -> None:
    (sandbox,) = world.sandboxes.values()
    sandbox.exit(3)
    await trio.sleep(2)


async def delete(world: Any, server: Any, options: Any) -> None:
    await server.delete("web", force=True)


GONE, CREATED, RUNNING, STOPPED = None, "created", "running", "stopped"

CASES: dict[str, tuple[Operation, dict[str, Any], bool, set[str | None], set[str | None]]] = {
    # operation, options, runs before, what is right then, and after a reboot
    "create": (create, {}, False, {GONE, CREATED}, {GONE, CREATED}),
    "start": (start, {}, False, {CREATED, RUNNING}, {CREATED, STOPPED}),
    "start one with a policy": (
        start, {"restart": ALWAYS}, False, {CREATED, RUNNING}, {CREATED, RUNNING},
    ),
    "bootstrap": (bootstrap, {}, False, {CREATED}, {CREATED, STOPPED}),
    "stop": (stop, {}, True, {RUNNING, STOPPED}, {STOPPED}),
    "stop one with a policy": (
        stop, {"restart": ALWAYS}, True, {RUNNING, STOPPED}, {RUNNING},
    ),
    "restart": (restart, {}, True, {RUNNING}, {STOPPED}),
    "restart one with a policy": (restart, {"restart": ALWAYS}, True, {RUNNING}, {RUNNING}),
    "a crash": (crash, {}, True, {RUNNING, STOPPED}, {STOPPED}),
    "a crash of one with a policy": (crash, {"restart": ALWAYS}, True, {RUNNING}, {RUNNING}),
    "a crash of one that starts after failures": (
        crash,
        {"restart": RestartPolicy(RestartCondition.ON_FAILURE)},
        True,
        {RUNNING},
        {STOPPED},
    ),
    "delete": (delete, {}, True, {RUNNING, GONE}, {STOPPED, GONE}),
    "delete one with a policy": (
        delete, {"restart": ALWAYS}, True, {RUNNING, GONE}, {RUNNING, GONE},
    ),
    "start one that removes itself": (
        start, {"auto_remove": True}, False, {GONE, CREATED, RUNNING}, {GONE, CREATED},
    ),
    "the end of one that removes itself": (
        crash, {"auto_remove": True}, True, {GONE, RUNNING}, {GONE},
    ),
}  # fmt: skip


@pytest.mark.parametrize("rebooted", [False, True], ids=["killed", "rebooted"])
@pytest.mark.parametrize("case", CASES)
async def test_whatever_the_moment_the_next_server_comes_to_a_right_state(
    autojump_clock: Any, world: Any, options: Any, case: str, rebooted: bool, tmp_path: Path
) -> None:
    operation, given, runs, right, right_after_reboot = CASES[case]
    async with world.server() as server:
        if case != "create":
            await server.create(options(name="web", **given))
            await trio.sleep(11)
        if runs:
            await server.start("web")
            await trio.sleep(2)
        async with recorded(world) as recorder:
            await operation(world, server, options)
    moments = list(recorder.moments.values())
    assert len(moments) > 1
    wanted = right_after_reboot if rebooted else right
    for number, moment in enumerate(moments):
        other = type(world)(tmp_path / str(number))
        async with other.launcher:
            await moment.restore(other, rebooted=rebooted)
            await _heals(other, wanted, f"moment {number} of {len(moments)}: {moment}")


async def _heals(world: Any, wanted: set[str | None], where: str) -> None:
    async with world.server() as server:
        with hold_autojump_clock():
            await trio.sleep(SETTLED)
        found = await server.list()
        status = found[0].status.value if found else None
        assert status in wanted, where
        for container in found:
            phase = (
                world.kernel.states[container.id].phase
                if container.id in (world.kernel.states)
                else SandboxPhase.EMPTY
            )
            assert (phase is SandboxPhase.RUNNING) == (status == RUNNING), where
            if status == STOPPED:
                assert container.exit is not None, where
                assert container.exit.code != 0, where
            if status == RUNNING:
                assert container.exit is None, where
                assert world.launcher.names() == (f"runtime.{container.id}",), where
            else:
                assert world.launcher.names() == (), where
            assert world.images.holders <= {container.id}, where
        if not found:
            assert world.left() == [], where
        for container in found:
            await server.delete(container.id, force=True)
        assert world.left() == [], where


async def test_what_a_user_stopped_comes_back_with_the_system_if_its_policy_is_always_alone(
    autojump_clock: Any, world: Any
) -> None:
    unless = RestartPolicy(RestartCondition.UNLESS_STOPPED)
    async with world.server() as first:
        for name, policy in (("always", ALWAYS), ("unless", unless), ("both", unless)):
            await world.started(first, name=name, restart=policy)
        await first.stop("always", StopOptions())
        await first.stop("unless", StopOptions())
        await trio.sleep(5)
    async with world.server() as second:
        await trio.sleep(5)
        stopped = {it.name for it in await second.list() if it.status is ContainerStatus.STOPPED}
        assert stopped == {"always", "unless"}, "another API server is no start of the system"
    (world.paths.run / SEEN).unlink()
    world.kernel.states.clear()
    await world.launcher.shutdown()
    async with world.server() as third:
        await trio.sleep(5)
        running = {it.name: it for it in await third.list() if it.status is ContainerStatus.RUNNING}
        assert set(running) == {"always", "both"}
        assert not running["always"].stopped_by_user


@pytest.mark.parametrize("restart", [RestartPolicy(), ALWAYS], ids=["no policy", "a policy"])
@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
async def test_a_stop_that_was_cut_off_is_finished_by_the_container_s_own_rules(
    autojump_clock: Any, world: Any, restart: RestartPolicy, paused: bool
) -> None:
    world.faults.waits["sandbox.stop"] = trio.Event()
    async with world.server() as first, trio.open_nursery() as nursery:
        made = await world.started(first, restart=restart, stop_timeout=77.0)
        if paused:
            await first.pause(made.id)
        nursery.start_soon(first.stop, made.id, StopOptions(timeout=5.0))
        await trio.sleep(1)
        assert world.faults.calls[-1] == "sandbox.stop"
        nursery.cancel_scope.cancel()
    world.faults.waits.clear()
    async with world.server() as second:
        await trio.sleep(5)
        async with second.events(EventFilter(after=0)) as events:
            with trio.fail_after(5):
                told = [(await events.receive()).kind for _ in range(2)]
        assert told == [EventKind.DIE, EventKind.STOP]
        seen = await second.get(made.id)
        assert (seen.status, seen.stopped_by_user) == (ContainerStatus.STOPPED, True)
        assert seen.exit is not None
        assert seen.exit.code == 143
        assert world.sandboxes[made.id].stopped == StopOptions(timeout=77.0)


async def test_a_frozen_helper_delays_the_adoption_of_no_other(
    autojump_clock: Any, world: Any
) -> None:
    async with world.server() as first:
        made = [await world.started(first, name=f"web{number}") for number in range(20)]
    frozen = {it.id for it in made[:10]}
    for key in frozen:

        async def mute() -> Any:
            await trio.sleep_forever()

        world.sandboxes[key].state = mute
    async with world.server() as second:
        start = trio.current_time()
        seen = {it.id: it.status for it in await second.list()}
        assert trio.current_time() - start <= 1.1
        for container in made:
            status = ContainerStatus.UNKNOWN if container.id in frozen else ContainerStatus.RUNNING
            assert seen[container.id] is status
        start = trio.current_time()
        await second.stop(made[-1].id, StopOptions())
        assert trio.current_time() - start <= 1.1


async def test_a_removal_that_cannot_be_finished_is_tried_again(
    autojump_clock: Any, world: Any, options: Any
) -> None:
    from container.ipc import Unavailable

    async with world.server() as first:
        made = await first.create(options())
        await trio.sleep(11)
    (world.paths.containers / made.id / "removing").touch()
    world.faults.errors["images.release"] = Unavailable("the images helper is away")
    async with world.server() as second:
        await trio.sleep(10)
        assert world.folders() == [made.id]
        assert await second.list() == ()
        world.faults.errors.clear()
        await trio.sleep(60)
        assert world.left() == []


async def test_half_made_and_half_removed_folders_are_swept(
    autojump_clock: Any, world: Any, options: Any
) -> None:
    async with world.server() as first:
        made = await first.create(options())
        await trio.sleep(11)
    folder = world.paths.containers
    (folder / made.id).rename(folder / f".{made.id}.gone")
    (folder / ".0123456789ab.new").mkdir()
    async with world.server() as second:
        await trio.sleep(1)
        assert await second.list() == ()
        assert world.folders() == []


async def test_restarts_of_many_containers_at_a_start_of_the_system_take_turns(
    autojump_clock: Any, world: Any
) -> None:
    async with world.server() as first:
        for _ in range(30):
            await world.started(first, restart=ALWAYS)
    world.kernel.states.clear()
    await world.launcher.shutdown()
    (world.paths.run / SEEN).unlink()
    at_once = most = 0

    async def bootstrap(sandbox: Any, spec: Any, stdio: Any, namespace: Any = None) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await trio.sleep(0.5)
        at_once -= 1
        await real(sandbox, spec, stdio, namespace)

    async with world.server() as second:
        sandbox_type = type(next(iter(world.sandboxes.values())))
        real, sandbox_type.bootstrap = sandbox_type.bootstrap, bootstrap
        try:
            await trio.sleep(10)
        finally:
            sandbox_type.bootstrap = real
        statuses = {it.status for it in await second.list()}
        assert statuses == {ContainerStatus.RUNNING}
        assert most == 8
