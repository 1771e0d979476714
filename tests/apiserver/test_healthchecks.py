"""Health checks: when they run, what their results make of a container."""

from __future__ import annotations

import os
from typing import Any

import pytest
import trio

from container.contracts.apiserver import (
    ContainerOptions,
    ContainerStatus,
    EventFilter,
    EventKind,
    HealthCheck,
    HealthStatus,
    PullPolicy,
)
from container.ipc import InvalidArgument, Unavailable
from container.testing import system
from container.testing.oci import Play

CHECK = HealthCheck(command=("check",), interval=10.0, timeout=5.0, retries=2)


class Checks:
    """A played check whose results the test chooses."""

    def __init__(self) -> None:
        self.code = 0
        self.output = b"fine\n"
        self.hangs = False
        self.times: list[float] = []

    async def __call__(self, play: Play) -> int:
        self.times.append(trio.current_time())
        await play.write(self.output)
        if self.hangs:
            await trio.sleep_forever()
        return self.code


async def checked(
    it: Any, check: HealthCheck = CHECK, command: tuple[str, ...] = ("sleep", "100000")
) -> str:
    """Start a container that is checked; return its name."""
    await it.add_image(programs=["check"])
    await it.containers.create(
        ContainerOptions("demo", name="web", command=command, health=check, pull=PullPolicy.NEVER)
    )
    await it.containers.start("web")
    return "web"


async def status(it: Any) -> HealthStatus | None:
    found = (await it.containers.get("web")).health_status
    assert found is None or isinstance(found, HealthStatus)
    return found


async def test_a_container_is_starting_then_healthy_and_its_last_results_are_kept(
    autojump_clock: Any,
) -> None:
    checks = Checks()
    async with system(programs={"check": checks}) as it:
        await checked(it)
        assert await status(it) is HealthStatus.STARTING
        await trio.sleep(11)
        seen = await it.containers.get("web")
        assert (seen.health_status, seen.health_failures) == (HealthStatus.HEALTHY, 0)
        (result,) = seen.health_results
        assert (result.code, result.output) == (0, "fine\n")
        await trio.sleep(100)
        assert len((await it.containers.get("web")).health_results) == 5
        (listed,) = await it.containers.list()
        assert (listed.health_status, listed.health_results) == (HealthStatus.HEALTHY, ())
        gaps = {round(b - a) for a, b in zip(checks.times, checks.times[1:], strict=False)}
        assert gaps == {10}


async def test_failures_in_a_row_make_it_unhealthy_and_one_success_healthy(
    autojump_clock: Any,
) -> None:
    checks = Checks()
    async with system(programs={"check": checks}) as it:
        await checked(it)
        async with it.containers.events(EventFilter(kinds=(EventKind.HEALTH_STATUS,))) as events:
            checks.code = 1
            await trio.sleep(11)
            seen = await it.containers.get("web")
            assert (seen.health_status, seen.health_failures) == (HealthStatus.STARTING, 1)
            for code, wanted in ((1, "unhealthy"), (0, "healthy")):
                checks.code = code
                assert (await events.receive()).attributes == {"status": wanted}
        assert await status(it) is HealthStatus.HEALTHY


async def test_a_check_that_overstays_is_killed_and_has_failed(autojump_clock: Any) -> None:
    checks = Checks()
    checks.hangs = True
    async with system(programs={"check": checks}) as it:
        await checked(it)
        await trio.sleep(16)
        (result,) = (await it.containers.get("web")).health_results
        assert result.code is None
        assert result.output == "it did not end within 5 s and was killed\nfine\n"
        hanging = [p for p in it.runtime.processes if p.play.arguments == ("check",)]
        assert all(process._over.is_set() for process in hanging)
        await trio.sleep(15)
        assert await status(it) is HealthStatus.UNHEALTHY


async def test_output_is_bounded_and_a_check_that_writes_much_is_not_held_up(
    autojump_clock: Any,
) -> None:
    checks = Checks()
    checks.output = b"x" * 300_000
    async with system(programs={"check": checks}) as it:
        await checked(it)
        await trio.sleep(11)
        (result,) = (await it.containers.get("web")).health_results
        assert (result.code, result.output) == (0, "x" * 4096)


async def test_failures_in_the_start_period_do_not_count_until_a_success(
    autojump_clock: Any,
) -> None:
    checks = Checks()
    checks.code = 1
    check = HealthCheck(command=("check",), interval=30.0, start_period=21.0, retries=1)
    async with system(programs={"check": checks}) as it:
        await checked(it, check)
        await trio.sleep(20.5)
        seen = await it.containers.get("web")
        assert (seen.health_status, seen.health_failures) == (HealthStatus.STARTING, 0)
        assert len(checks.times) == 4, "it is looked at more often while it starts"
        await trio.sleep(35)
        assert await status(it) is HealthStatus.UNHEALTHY
    checks.times.clear()
    checks.code = 0
    async with system(programs={"check": checks}) as it:
        await checked(it, check)
        await trio.sleep(6)
        assert await status(it) is HealthStatus.HEALTHY
        checks.code = 1
        await trio.sleep(35)
        assert await status(it) is HealthStatus.UNHEALTHY, "its start is over"


async def test_a_command_that_is_not_there_is_a_failure_with_its_code(autojump_clock: Any) -> None:
    check = HealthCheck(command=("nothing-of-that-name",), interval=1.0, retries=1)
    async with system() as it:
        await checked(it, check)
        await trio.sleep(2)
        seen = await it.containers.get("web")
        assert seen.health_status is HealthStatus.UNHEALTHY
        assert seen.health_results[0].code == 127
        assert "nothing-of-that-name" in seen.health_results[0].output


async def test_a_paused_container_is_not_checked(autojump_clock: Any) -> None:
    checks = Checks()
    async with system(programs={"check": checks}) as it:
        await checked(it)
        await it.containers.pause("web")
        await trio.sleep(55)  # between two checks: at the same moment either may come first
        assert checks.times == []
        await it.containers.unpause("web")
        await trio.sleep(11)
        assert len(checks.times) == 1


async def test_a_run_that_is_over_is_not_checked_and_the_next_one_starts_anew(
    autojump_clock: Any,
) -> None:
    checks = Checks()
    checks.code = 1
    async with system(programs={"check": checks}) as it:
        await checked(it)
        await trio.sleep(25)
        assert await status(it) is HealthStatus.UNHEALTHY
        await it.containers.kill("web", "KILL")
        await it.containers.wait("web")
        assert await status(it) is None
        count = len(checks.times)
        await trio.sleep(60)
        assert len(checks.times) == count
        await it.containers.start("web")
        seen = await it.containers.get("web")
        assert (seen.health_status, seen.health_results) == (HealthStatus.STARTING, ())


async def test_a_helper_that_is_away_says_nothing_of_its_container(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers, health=HealthCheck(("check",), interval=1.0, retries=1))
    world.faults.errors["helper.start"] = Unavailable("no memory is left")
    world.launcher.kill(f"runtime.{made.id}")
    await trio.sleep(20)
    world.faults.errors.clear()
    world.faults.errors["sandbox.create_process"] = Unavailable("not now")
    await trio.sleep(40)
    seen = await containers.get(made.id)
    assert (seen.status, seen.health_status) == (ContainerStatus.RUNNING, HealthStatus.STARTING)


async def test_a_helper_that_dies_under_a_check_is_no_end_of_its_runs_watch(
    autojump_clock: Any,
) -> None:
    checks = Checks()
    checks.hangs = True
    async with system(programs={"check": checks}) as it:
        await checked(it, HealthCheck(command=("check",), interval=1.0, timeout=100.0))
        await trio.sleep(2)
        assert len(checks.times) == 1
        (name,) = [name for name in it.helpers.names() if name.startswith("runtime.")]
        it.helpers.kill(name)
        with trio.fail_after(60):
            await it.containers.wait("web")
        assert (await it.containers.get("web")).status is ContainerStatus.STOPPED


async def test_a_check_that_leaves_a_process_with_its_output_open_ends(
    autojump_clock: Any,
) -> None:
    left: list[int] = []

    async def leaves(play: Play) -> int:
        left.append(os.dup(play.stdio[1]))
        await play.write(b"left")
        return 0

    async with system(programs={"check": leaves}) as it:
        await checked(it)
        await trio.sleep(10.5)
        (result,) = (await it.containers.get("web")).health_results
        assert (result.code, result.output) == (0, "left")
    for descriptor in left:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("check", "sentence"),
    [
        (HealthCheck(interval=5.0), "there is no health command to run"),
        (HealthCheck(command=("",)), "the health command is empty"),
        (HealthCheck(command=("x",), interval=0.0), "interval of 0 s is out of range"),
        (HealthCheck(command=("x",), timeout=-1.0), "timeout of -1 s is out of range"),
        (HealthCheck(command=("x",), start_period=-1.0), "start period of -1 s is out of range"),
        (HealthCheck(command=("x",), retries=0), "0 health retries are out of range"),
        (HealthCheck(command=("x\0",)), "NUL byte"),
    ],
)
async def test_a_check_that_makes_no_sense_is_refused(
    autojump_clock: Any,
    world: Any,
    containers: Any,
    options: Any,
    check: HealthCheck,
    sentence: str,
) -> None:
    with pytest.raises(InvalidArgument, match=sentence):
        await containers.create(options(health=check))
    assert world.left() == []


async def test_what_is_left_open_takes_its_default(
    autojump_clock: Any, containers: Any, options: Any
) -> None:
    made = await containers.create(options(health=HealthCheck(command=("x",), retries=7)))
    assert made.health == HealthCheck(("x",), 30.0, 30.0, 0.0, 7)
    assert (await containers.create(options(health=HealthCheck(command=())))).health is None
    assert (await containers.create(options())).health is None
