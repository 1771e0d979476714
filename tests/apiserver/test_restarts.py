"""Restart policies: what starts again, when, and what a user's stop changes."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from attrs import evolve

from container.apiserver.restarts import RestartRow, after_end, at_system_start
from container.contracts.apiserver import (
    Container,
    ContainerStatus,
    RestartCondition,
    RestartPolicy,
)
from container.contracts.runtime import ExitStatus, ProcessSpec, Stdio, StopOptions
from container.ipc import InvalidArgument, InvalidState, NotFound, Unavailable

NO = RestartPolicy()
ALWAYS = RestartPolicy(RestartCondition.ALWAYS)
UNLESS_STOPPED = RestartPolicy(RestartCondition.UNLESS_STOPPED)
ON_FAILURE = RestartPolicy(RestartCondition.ON_FAILURE)
TWICE = RestartPolicy(RestartCondition.ON_FAILURE, 2)


async def running(world: Any, containers: Any, key: str) -> None:
    """Return when a container runs, by the test's clock."""
    # A status is asked for: nobody tells of it but events, which are not the subject here.
    while (await containers.get(key)).status is not ContainerStatus.RUNNING:  # noqa: ASYNC110
        await trio.sleep(0.05)


async def ended(world: Any, containers: Any, key: str, code: int) -> float:
    """Let a container end; return how long it then takes until it runs again."""
    world.sandboxes[key].exit(code)
    await trio.testing.wait_all_tasks_blocked(0.001)
    start = trio.current_time()
    await running(world, containers, key)
    return trio.current_time() - start


# --- the rules ---


@pytest.mark.parametrize(
    ("policy", "code", "count", "by_user", "again"),
    [
        (NO, 1, 0, False, False),
        (ON_FAILURE, 0, 0, False, False),
        (ON_FAILURE, 1, 99, False, True),
        (ON_FAILURE, None, 0, False, True),
        (ON_FAILURE, 1, 0, True, False),
        (TWICE, 1, 1, False, True),
        (TWICE, 1, 2, False, False),
        (ALWAYS, 0, 99, False, True),
        (ALWAYS, 1, 0, True, False),
        (UNLESS_STOPPED, 0, 0, False, True),
        (UNLESS_STOPPED, 0, 0, True, False),
    ],
)
async def test_a_policy_decides_by_exit_code_count_and_the_users_stop(
    autojump_clock: Any,
    containers: Any,
    options: Any,
    policy: RestartPolicy,
    code: int | None,
    count: int,
    by_user: bool,
    again: bool,
) -> None:
    made = await containers.create(options(restart=policy))
    made = evolve(made, restart_count=count, stopped_by_user=by_user)
    assert after_end(made, ExitStatus(code)) is again


@pytest.mark.parametrize(
    ("policy", "by_user", "start"),
    [
        (NO, False, False),
        (ON_FAILURE, False, False),
        (ALWAYS, False, True),
        (ALWAYS, True, True),
        (UNLESS_STOPPED, False, True),
        (UNLESS_STOPPED, True, False),
    ],
)
async def test_what_the_system_starts_with_it(
    autojump_clock: Any,
    containers: Any,
    options: Any,
    policy: RestartPolicy,
    by_user: bool,
    start: bool,
) -> None:
    made: Container = await containers.create(options(restart=policy))
    assert not at_system_start(made), "nobody has ever started it"
    stopped = evolve(made, status=ContainerStatus.STOPPED, stopped_by_user=by_user)
    assert at_system_start(stopped) is start


def test_delays_double_up_to_a_minute_and_ten_seconds_of_life_begin_anew() -> None:
    row = RestartRow()
    delays = [row.delay(0.0) for _ in range(12)]
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert delays[-1] == 60.0
    assert row.delay(9.9) == 60.0
    assert row.delay(10.0) == 0.1
    assert row.delay(0.0) == 0.2


# --- acting on them ---


async def test_what_ends_is_started_again_after_its_delay_and_counted(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers, name="web", restart=ALWAYS)
    for count, delay in enumerate((0.1, 0.2, 0.4), 1):
        took = await ended(world, containers, made.id, 0)
        assert delay <= took < delay + 0.1
        seen = await containers.get("web")
        assert (seen.restart_count, seen.exit) == (count, None)
    await trio.sleep(10)
    assert await ended(world, containers, made.id, 0) < 0.2, "the row of ends is over"


async def test_between_two_runs_it_is_restarting_and_tells_how_the_last_one_ended(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers, name="web", restart=ALWAYS)
    world.sandboxes[made.id].exit(3)
    assert (await containers.wait("web")).code == 3
    seen = await containers.get("web")
    assert (seen.status, seen.exit.code, seen.restart_count) == (ContainerStatus.RESTARTING, 3, 1)
    with pytest.raises(InvalidState, match="is about to be started again"):
        await containers.kill("web", "TERM")
    with pytest.raises(InvalidState, match="is about to be started again"):
        await containers.delete("web")
    await running(world, containers, "web")


async def test_on_failure_restarts_as_often_as_it_may(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers, restart=TWICE)
    await ended(world, containers, made.id, 1)
    await ended(world, containers, made.id, 1)
    world.sandboxes[made.id].exit(1)
    await trio.sleep(100)
    seen = await containers.get(made.id)
    assert (seen.status, seen.exit.code, seen.restart_count) == (ContainerStatus.STOPPED, 1, 2)
    started = await containers.start(made.id)
    assert started.restart_count == 0, "a user's start begins anew"


async def test_on_failure_leaves_what_ended_well(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers, restart=ON_FAILURE)
    world.sandboxes[made.id].exit(0)
    await trio.sleep(100)
    assert (await containers.get(made.id)).status is ContainerStatus.STOPPED


@pytest.mark.parametrize("signal", [None, "SIGKILL", "SIGTERM"])
async def test_what_a_user_stops_or_kills_stays_stopped(
    autojump_clock: Any, world: Any, containers: Any, signal: str | None
) -> None:
    made = await world.started(containers, restart=ALWAYS)
    if signal is None:
        await containers.stop(made.id, StopOptions())
    else:
        await containers.kill(made.id, signal)
        world.sandboxes[made.id].exit(137)
    await trio.sleep(100)
    seen = await containers.get(made.id)
    assert (seen.status, seen.stopped_by_user) == (ContainerStatus.STOPPED, True)
    assert not (await containers.start(made.id)).stopped_by_user


async def test_another_signal_of_a_user_is_no_stop(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers, restart=ALWAYS)
    await containers.kill(made.id, "HUP")
    await ended(world, containers, made.id, 129)


async def test_stop_ends_a_restart_that_is_due(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers, restart=ALWAYS)
    world.sandboxes[made.id].exit(3)
    await containers.wait(made.id)
    stopped = await containers.stop(made.id, StopOptions())
    assert (stopped.status, stopped.exit.code) == (ContainerStatus.STOPPED, 3)
    assert world.launcher.names() == ()
    await trio.sleep(100)
    assert (await containers.get(made.id)).status is ContainerStatus.STOPPED


async def test_start_takes_the_place_of_a_restart_that_is_due(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers, restart=ALWAYS)
    world.sandboxes[made.id].exit(3)
    await containers.wait(made.id)
    started = await containers.start(made.id)
    assert (started.status, started.restart_count) == (ContainerStatus.RUNNING, 0)
    sandbox = world.sandboxes[made.id]
    await trio.sleep(100)
    assert world.sandboxes[made.id] is sandbox
    assert (await containers.get(made.id)).status is ContainerStatus.RUNNING


async def test_a_start_that_fails_in_place_of_a_restart_leaves_it_stopped(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers, restart=ALWAYS)
    world.sandboxes[made.id].exit(3)
    await containers.wait(made.id)
    world.faults.errors["sandbox.bootstrap"] = NotFound("no command")
    with pytest.raises(NotFound):
        await containers.start(made.id)
    await trio.sleep(100)
    assert (await containers.get(made.id)).status is ContainerStatus.STOPPED


async def test_delete_by_force_ends_a_restart_that_is_due(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers, restart=ALWAYS)
    world.sandboxes[made.id].exit(3)
    await containers.wait(made.id)
    await containers.delete(made.id, force=True)
    await trio.sleep(100)
    assert world.left() == []


async def test_a_restart_that_fails_is_tried_again_ever_more_rarely(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers, restart=ALWAYS)
    world.faults.errors["sandbox.start"] = Unavailable("no memory is left")
    world.sandboxes[made.id].exit(0)
    await trio.sleep(5)
    assert (await containers.get(made.id)).status is ContainerStatus.RESTARTING
    tried = world.faults.calls.count("sandbox.start")
    assert 4 <= tried <= 8
    world.faults.errors.clear()
    await trio.sleep(10)
    assert (await containers.get(made.id)).status is ContainerStatus.RUNNING


async def test_restarts_that_fail_count_against_the_limit(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers, restart=TWICE)
    world.faults.errors["sandbox.bootstrap"] = Unavailable("no memory is left")
    world.sandboxes[made.id].exit(1)
    await trio.sleep(100)
    seen = await containers.get(made.id)
    assert (seen.status, seen.exit.code, seen.restart_count) == (ContainerStatus.STOPPED, 1, 2)
    assert world.launcher.names() == ()


async def test_a_crashed_helper_and_container_count_as_a_failure(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers, restart=ON_FAILURE)
    world.kernel.forgets = True
    world.launcher.kill(f"runtime.{made.id}")
    assert (await containers.wait(made.id)).code is None
    world.kernel.forgets = False
    await running(world, containers, made.id)


async def test_an_attached_client_gets_its_status_and_the_next_run_goes_to_the_log(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await containers.create(options(restart=ON_FAILURE))
    endpoint = await containers.bootstrap(made.id, Stdio())
    async with endpoint.connect() as sandbox:
        await sandbox.start("init")
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                assert (await sandbox.wait("init")).code == 4

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            world.sandboxes[made.id].exit(4)
    await running(world, containers, made.id)


# --- restart, by a user ---


async def test_restart_stops_and_starts_and_asks_no_policy(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers, name="web", stop_timeout=3.0)
    first = world.sandboxes[made.id]
    again = await containers.restart("web")
    assert again.status is ContainerStatus.RUNNING
    assert first.stopped == StopOptions(timeout=3.0)
    assert world.sandboxes[made.id] is not first
    seen = await containers.get("web")
    assert (seen.restart_count, seen.stopped_by_user, seen.exit) == (0, False, None)
    await trio.sleep(5)
    assert (await containers.get("web")).status is ContainerStatus.RUNNING


async def test_restart_starts_what_does_not_run(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await containers.create(options())
    assert (await containers.restart(made.id)).status is ContainerStatus.RUNNING
    await containers.stop(made.id, StopOptions())
    assert (await containers.restart(made.id)).status is ContainerStatus.RUNNING


async def test_a_restart_that_cannot_stop_it_leaves_it_running(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers)
    world.faults.errors["sandbox.stop"] = Unavailable("the kernel holds it")
    with pytest.raises(Unavailable):
        await containers.restart(made.id)
    assert (await containers.get(made.id)).status is ContainerStatus.RUNNING
    world.sandboxes[made.id].exit(1)
    assert (await containers.wait(made.id)).code == 1
    await trio.sleep(5)
    assert (await containers.get(made.id)).status is ContainerStatus.STOPPED


async def test_a_container_that_removes_itself_survives_a_restart(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers, auto_remove=True)
    assert (await containers.restart(made.id)).status is ContainerStatus.RUNNING
    world.sandboxes[made.id].exit(0)
    await trio.sleep(5)
    assert world.left() == []


async def test_many_restarts_at_once_end_in_one_running_container(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers, restart=ALWAYS)
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(containers.restart, made.id)
    await trio.sleep(5)
    assert (await containers.get(made.id)).status is ContainerStatus.RUNNING
    await containers.delete(made.id, force=True)
    assert world.left() == []


# --- pause ---


async def test_a_paused_container_is_shown_so_and_goes_on(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers)
    await containers.pause(made.id)
    await containers.pause(made.id)
    assert (await containers.get(made.id)).status is ContainerStatus.PAUSED
    with pytest.raises(InvalidState, match="is paused"):
        await containers.delete(made.id)
    with pytest.raises(InvalidState, match="is paused") as caught:
        await containers.create_process(made.id, "p", ProcessSpec(("true",)), Stdio())
    assert "unpause" in (caught.value.hint or "")
    await containers.unpause(made.id)
    await containers.unpause(made.id)
    assert (await containers.get(made.id)).status is ContainerStatus.RUNNING
    assert world.faults.calls.count("sandbox.pause") == 1
    assert world.faults.calls.count("sandbox.resume") == 1


@pytest.mark.parametrize("how", ["stop", "delete", "restart"])
async def test_a_paused_container_can_be_ended(
    autojump_clock: Any, world: Any, containers: Any, how: str
) -> None:
    made = await world.started(containers)
    await containers.pause(made.id)
    if how == "stop":
        assert (await containers.stop(made.id, StopOptions())).status is ContainerStatus.STOPPED
    elif how == "restart":
        assert (await containers.restart(made.id)).status is ContainerStatus.RUNNING
    else:
        await containers.delete(made.id, force=True)
        assert world.left() == []


async def test_what_does_not_run_is_not_paused(
    autojump_clock: Any, containers: Any, options: Any
) -> None:
    made = await containers.create(options(name="web"))
    for action in (containers.pause, containers.unpause):
        with pytest.raises(InvalidState, match="web does not run"):
            await action("web")
    assert (await containers.get(made.id)).status is ContainerStatus.CREATED


# --- options ---


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"restart": ALWAYS, "auto_remove": True}, "removes itself can't have the restart policy"),
        ({"restart": RestartPolicy(RestartCondition.ALWAYS, 3)}, "always has no limit"),
        ({"restart": RestartPolicy(RestartCondition.ON_FAILURE, 0)}, "0 restarts is out of range"),
        ({"stop_timeout": -1.0}, "stop timeout of -1 s is out of range"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    autojump_clock: Any, world: Any, containers: Any, options: Any, given: Any, sentence: str
) -> None:
    with pytest.raises(InvalidArgument, match=sentence):
        await containers.create(options(**given))
    assert world.left() == []


async def test_a_negative_timeout_stops_nothing(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers)
    with pytest.raises(InvalidArgument, match="-5 s is out of range"):
        await containers.stop(made.id, StopOptions(timeout=-5.0))
    assert (await containers.get(made.id)).status is ContainerStatus.RUNNING
