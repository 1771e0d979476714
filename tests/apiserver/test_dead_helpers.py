"""Helpers that die, freeze or forget: their containers go on, and nobody else waits."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from container.contracts.apiserver import ContainerStatus
from container.contracts.runtime import StopOptions
from container.ipc import InvalidState, Unavailable, actor_statistics


async def test_a_killed_helper_comes_back_and_the_exit_is_not_lost(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers)
    first = world.sandboxes[made.id]
    world.launcher.kill(f"runtime.{made.id}")
    await trio.sleep(2)
    assert world.sandboxes[made.id] is not first
    assert (await containers.get(made.id)).status is ContainerStatus.RUNNING
    world.sandboxes[made.id].exit(5)
    assert (await containers.wait(made.id)).code == 5


async def test_a_helper_that_comes_back_knowing_nothing_makes_the_code_unknown_never_zero(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers)
    world.kernel.forgets = True
    world.launcher.kill(f"runtime.{made.id}")
    assert (await containers.wait(made.id)).code is None
    stopped = await containers.get(made.id)
    assert (stopped.status, stopped.exit.code) == (ContainerStatus.STOPPED, None)


async def test_a_helper_that_does_not_answer_makes_the_status_unknown_and_heals(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers)
    world.faults.errors["helper.start"] = Unavailable("it can't start")
    world.launcher.kill(f"runtime.{made.id}")
    await trio.sleep(10)
    assert (await containers.get(made.id)).status is ContainerStatus.UNKNOWN
    with pytest.raises(InvalidState, match="may run: its helper does not answer"):
        await containers.delete(made.id)
    world.faults.errors.clear()
    await trio.sleep(60)
    assert (await containers.get(made.id)).status is ContainerStatus.RUNNING


async def test_a_frozen_helper_costs_list_a_second_and_is_unknown(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers)
    other = await world.started(containers)
    frozen = world.sandboxes[made.id]

    async def mute() -> Any:
        await trio.sleep_forever()

    frozen.state = mute
    start = trio.current_time()
    statuses = {item.id: item.status for item in await containers.list()}
    assert trio.current_time() - start <= 1.1
    assert statuses == {made.id: ContainerStatus.UNKNOWN, other.id: ContainerStatus.RUNNING}
    await containers.delete(made.id, force=True)
    assert world.folders() == [other.id]


async def test_a_frozen_helper_costs_one_list_its_second_and_the_next_ones_nothing(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers)
    frozen = world.sandboxes[made.id]
    real, thawed = frozen.state, trio.Event()

    async def mute() -> Any:
        await thawed.wait()
        return await real()

    frozen.state = mute
    await containers.list()
    start = trio.current_time()
    (seen,) = await containers.list()
    assert (seen.status, trio.current_time() - start) == (ContainerStatus.UNKNOWN, 0)
    thawed.set()
    await trio.testing.wait_all_tasks_blocked()
    (seen,) = await containers.list()
    assert seen.status is ContainerStatus.RUNNING


async def test_stop_replaces_a_frozen_helper_and_stops_through_its_successor(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers)
    frozen = world.sandboxes[made.id]

    async def mute(*_: Any) -> Any:
        await trio.sleep_forever()

    frozen.state = frozen.stop = mute
    stopped = await containers.stop(made.id, StopOptions())
    assert (stopped.status, stopped.exit.code) == (ContainerStatus.STOPPED, 143)
    assert world.sandboxes[made.id] is not frozen
    assert trio.current_time() < 10


async def test_a_call_on_a_connection_that_is_given_up_is_told_so(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers)

    async def closed(*_: Any) -> Any:
        raise trio.ClosedResourceError

    world.sandboxes[made.id].state = closed
    assert (await containers.get(made.id)).status is ContainerStatus.UNKNOWN
    world.sandboxes[made.id].kill = closed
    with pytest.raises(Unavailable, match="went away"):
        await containers.kill(made.id, "HUP")


async def test_a_helper_that_does_not_end_is_replaced_by_one_that_cleans_up(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers)
    wedged = world.sandboxes[made.id]

    async def mute() -> None:
        await trio.sleep_forever()

    wedged.shutdown = mute
    await containers.delete(made.id, force=True)
    assert world.sandboxes[made.id] is not wedged
    assert world.left() == []


async def test_a_removal_that_fails_can_be_tried_again(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await containers.create(options())
    world.faults.errors["images.release"] = Unavailable("the images helper is away")
    with pytest.raises(Unavailable):
        await containers.delete(made.id)
    world.faults.errors.clear()
    await containers.delete(made.id)
    assert world.left() == []


async def test_removal_by_force_ends_a_bootstrap_that_is_under_way(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await containers.create(options(name="web"))
    world.faults.waits["sandbox.bootstrap"] = trio.Event()
    errors: list[InvalidState] = []

    async def start() -> None:
        try:
            await containers.start("web")
        except InvalidState as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        while "sandbox.bootstrap" not in world.faults.calls:  # noqa: ASYNC110
            await trio.sleep(0.01)  # nothing tells of a call's arrival
        began = trio.current_time()
        await containers.delete(made.id, force=True)
    assert trio.current_time() - began < 10
    assert "web was not started: somebody removes it" in errors[0].message
    assert world.left() == []


async def test_nobody_waits_for_the_sections_of_a_container_whose_helper_is_frozen(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    fine = [await world.started(containers) for _ in range(50)]
    wedged = await world.started(containers)
    frozen = world.sandboxes[wedged.id]

    async def mute(*_: Any) -> Any:
        await trio.sleep_forever()

    for name in ("state", "stop", "kill", "shutdown", "wait"):
        setattr(frozen, name, mute)
    await containers.list()
    most = 0

    class Sections(trio.abc.Instrument):
        def after_task_step(self, task: trio.lowlevel.Task) -> None:
            nonlocal most
            for section in actor_statistics(containers).sections:
                if section.key == wedged.id:
                    most = max(most, section.waiting)

    instrument = Sections()
    trio.lowlevel.add_instrument(instrument)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(containers.delete, wedged.id, True)
        nursery.start_soon(containers.list)
        await trio.testing.wait_all_tasks_blocked()
        start = trio.current_time()
        async with trio.open_nursery() as others:
            for made in fine:
                others.start_soon(containers.get, made.id)
                others.start_soon(containers.pause, made.id)
                others.start_soon(containers.restart, made.id)
            others.start_soon(containers.list)
        assert trio.current_time() - start < 1, "their own time, and none of the frozen one's"
        assert wedged.id in world.folders(), "it is still being removed"
    trio.lowlevel.remove_instrument(instrument)
    assert most <= 1, "nobody but the watch of its own run"
    assert wedged.id not in world.folders()
