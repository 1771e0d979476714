"""What goes wrong on the way leaves nothing: errors, cancellation, crashes, wedged helpers."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from attrs import evolve

from container.contracts.apiserver import (
    Containers,
    ContainerStatus,
    PullPolicy,
    WaitCondition,
)
from container.contracts.runtime import (
    INIT,
    Mount,
    MountKind,
    SandboxPhase,
    Stdio,
    StopOptions,
)
from container.ipc import (
    AlreadyExists,
    DataLoss,
    InvalidArgument,
    InvalidState,
    NotFound,
    Overloaded,
    Unavailable,
    in_memory,
)


class CancelAt(trio.abc.Instrument):
    """Cancel a scope when its task has made so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps
        self.scope = trio.CancelScope()
        self.task: trio.lowlevel.Task | None = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            if self.left == 0:
                self.scope.cancel()
            self.left -= 1


async def cancelled_at(step: int, work: Callable[[], Awaitable[Any]]) -> bool:
    """Run `work`, cancel it at one of its steps, and return whether it was cancelled."""
    instrument = CancelAt(step)
    instrument.task = trio.lowlevel.current_task()
    trio.lowlevel.add_instrument(instrument)
    try:
        with instrument.scope:
            await work()
    finally:
        trio.lowlevel.remove_instrument(instrument)
    return instrument.scope.cancelled_caught


# --- one name, many callers ---


async def test_of_a_hundred_creates_of_one_name_one_wins(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made: list[Any] = []
    refused: list[AlreadyExists] = []

    async def create() -> None:
        try:
            made.append(await containers.create(options(name="one")))
        except AlreadyExists as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(create)
    assert (len(made), len(refused)) == (1, 99)
    assert "'one' is taken" in refused[0].message
    assert world.folders() == [made[0].id]


async def test_a_hundred_containers_are_created_and_deleted_beside_each_other(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    async def life() -> None:
        made = await containers.create(options())
        await containers.start(made.id)
        await containers.delete(made.id, force=True)

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(life)
    assert world.left() == []


async def test_of_two_bootstraps_one_wins(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await containers.create(options())
    errors: list[InvalidState] = []

    async def bootstrap() -> None:
        try:
            await containers.bootstrap(made.id, Stdio())
        except InvalidState as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bootstrap)
        nursery.start_soon(bootstrap)
    assert len(errors) == 1
    assert (await containers.get(made.id)).status is ContainerStatus.CREATED


async def test_a_wedged_container_delays_no_other(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    wedged = await containers.create(options())
    fine = await containers.create(options())
    world.faults.waits["sandbox.bootstrap"] = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(containers.bootstrap, wedged.id, Stdio())
        while "sandbox.bootstrap" not in world.faults.calls:  # noqa: ASYNC110
            await trio.sleep(0.01)
        del world.faults.waits["sandbox.bootstrap"]
        start = trio.current_time()
        await containers.start(fine.id)
        await containers.delete(fine.id, force=True)
        assert len(await containers.list()) == 1
        assert trio.current_time() - start < 2
        nursery.cancel_scope.cancel()
    await trio.sleep(11)
    assert world.left() == [wedged.id, f"hold {wedged.id}"]


async def test_who_waits_for_a_wedged_container_is_told_before_the_deadline_what_holds_it(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    wedged = await containers.create(options())
    world.faults.waits["sandbox.bootstrap"] = trio.Event()
    async with in_memory(containers, Containers) as client, trio.open_nursery() as nursery:
        nursery.start_soon(client.bootstrap, wedged.id, Stdio())
        while "sandbox.bootstrap" not in world.faults.calls:  # noqa: ASYNC110
            await trio.sleep(0.01)  # nothing tells of a call's arrival
        with pytest.raises(Overloaded, match="held by call containers/bootstrap of process"):
            with trio.fail_after(10):
                await client.start(wedged.id)
        nursery.cancel_scope.cancel()
    await containers.delete(wedged.id)


# --- errors ---


async def test_an_unknown_image_is_named_with_a_suggestion(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    with pytest.raises(NotFound, match="no image 'dem'") as caught:
        await containers.create(options(image="dem"))
    assert caught.value.hint == "did you mean 'demo'?"
    with pytest.raises(NotFound, match="can't be pulled: the registry") as caught:
        await containers.create(options(image="dem", pull=PullPolicy.MISSING))
    assert caught.value.hint == "did you mean 'demo'?"
    assert world.left() == []


async def test_a_missing_image_is_pulled(
    autojump_clock: Any, world: Any, containers: Any, options: Any, image: Any
) -> None:
    world.images.remote["other"] = image("localhost/other:latest")
    made = await containers.create(options(image="other", pull=PullPolicy.MISSING))
    assert made.image == "localhost/other:latest"
    await containers.create(options(image="other", pull=PullPolicy.MISSING))
    assert world.faults.calls.count("images.pull") == 1
    await containers.create(options(image="other", pull=PullPolicy.ALWAYS))
    assert world.faults.calls.count("images.pull") == 2


async def test_an_image_without_a_command_asks_for_one(
    autojump_clock: Any, world: Any, containers: Any, options: Any, image: Any
) -> None:
    world.images.images["demo"] = image(command=())
    with pytest.raises(InvalidArgument, match="image demo has no command: name one"):
        await containers.create(options())
    assert world.left() == []
    assert (await containers.create(options(command=("ls",)))).process.arguments == ("ls",)


async def test_a_bind_source_that_is_not_there_is_named(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    mount = Mount(MountKind.BIND, "/data", "/does/not/exist")
    with pytest.raises(NotFound, match="the mount source '/does/not/exist' does not exist"):
        await containers.create(options(mounts=(mount,)))
    assert world.left() == []


@pytest.mark.parametrize("operation", ["images.get", "images.prepare"])
async def test_a_failed_create_leaves_nothing(
    autojump_clock: Any, world: Any, containers: Any, options: Any, operation: str
) -> None:
    world.faults.errors[operation] = Unavailable("no space is left")
    with pytest.raises(Unavailable, match="no space is left"):
        await containers.create(options(name="web"))
    assert world.left() == []
    world.faults.errors.clear()
    await containers.create(options(name="web"))


async def test_a_failed_create_whose_image_can_not_be_released_is_for_the_next_start(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    for operation in ("images.prepare", "images.release"):
        world.faults.errors[operation] = Unavailable("the images helper is gone")
    with pytest.raises(Unavailable, match="the images helper is gone"):
        await containers.create(options(name="web"))
    (folder,) = world.paths.containers.iterdir()
    assert (folder / "removing").exists()
    assert await containers.list() == ()
    world.faults.errors.clear()
    await containers.create(options(name="web"))


@pytest.mark.parametrize("operation", ["helper.start", "gate.open", "sandbox.connect"])
async def test_a_helper_that_cannot_be_started_in_advance_is_tried_again_at_bootstrap(
    autojump_clock: Any, world: Any, containers: Any, options: Any, operation: str
) -> None:
    world.faults.errors[operation] = Unavailable("no memory is left")
    made = await containers.create(options(name="web"))
    with pytest.raises(Unavailable):
        await containers.start("web")
    assert world.left() == [made.id, f"hold {made.id}"]
    world.faults.errors.clear()
    assert (await containers.start("web")).status is ContainerStatus.RUNNING


@pytest.mark.parametrize(
    "operation",
    ["sandbox.bootstrap", "gate.hand_out", "sandbox.start"],
)
@pytest.mark.parametrize("auto_remove", [False, True])
async def test_a_failed_start_leaves_the_container_as_it_was(
    autojump_clock: Any,
    world: Any,
    containers: Any,
    options: Any,
    operation: str,
    auto_remove: bool,
) -> None:
    made = await containers.create(options(auto_remove=auto_remove))
    world.faults.errors[operation] = NotFound("no command", details={"exit_status": 127})
    attempt = (
        containers.start(made.id)
        if operation == "sandbox.start"
        else containers.bootstrap(made.id, Stdio())
    )
    with pytest.raises(NotFound) as caught:
        await attempt
    assert caught.value.details["exit_status"] == 127
    world.faults.errors.clear()
    if auto_remove:
        assert world.left() == []
        return
    assert world.left() == [made.id, f"hold {made.id}"]
    assert (await containers.get(made.id)).status is ContainerStatus.CREATED
    assert (await containers.start(made.id)).status is ContainerStatus.RUNNING


# --- cancellation ---


async def test_create_cancelled_at_any_step_leaves_nothing(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    for step in range(1, 200):
        if not await cancelled_at(step, lambda: containers.create(options(name="web"))):
            break
        assert world.left() == [], f"after step {step}"
        assert await containers.list() == ()
    else:
        pytest.fail("create never ended")
    assert step > 3
    assert [made.name for made in await containers.list()] == ["web"]


async def test_bootstrap_cancelled_at_any_step_leaves_the_container_as_it_was(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await containers.create(options())
    for step in range(1, 200):
        if not await cancelled_at(step, lambda: containers.bootstrap(made.id, Stdio())):
            break
        assert (await containers.get(made.id)).status is ContainerStatus.CREATED
        assert set(world.left()) - set(world.launcher.names()) == {made.id, f"hold {made.id}"}
    else:
        pytest.fail("bootstrap never ended")
    assert step > 3
    assert (await containers.start(made.id)).status is ContainerStatus.RUNNING


async def test_delete_cancelled_at_any_step_is_finished_or_not_begun(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    for step in range(1, 200):
        made = await containers.create(options())
        await containers.start(made.id)
        cancelled = await cancelled_at(step, lambda: containers.delete(made.id, force=True))  # noqa: B023
        if made.id in world.folders():
            assert (await containers.get(made.id)).status is ContainerStatus.RUNNING
            await containers.delete(made.id, force=True)
        elif not cancelled:
            break
        assert world.left() == []
    else:
        pytest.fail("delete never ended")
    assert world.left() == []


async def test_a_cancelled_wait_changes_nothing(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers)
    with trio.move_on_after(1):
        await containers.wait(made.id)
    assert (await containers.get(made.id)).status is ContainerStatus.RUNNING


# --- restart of the API server ---


async def test_running_containers_stay_running_over_a_restart(
    autojump_clock: Any, world: Any
) -> None:
    async with world.server() as first:
        made = await world.started(first, name="web")
        short = await world.started(first, name="job", auto_remove=True)
    helper = world.sandboxes[made.id]
    async with world.server() as second:
        statuses = {item.name: item.status for item in await second.list()}
        assert statuses == {"web": ContainerStatus.RUNNING, "job": ContainerStatus.RUNNING}
        assert world.sandboxes[made.id] is helper
        helper.exit(9)
        assert (await second.wait("web")).code == 9
        world.sandboxes[short.id].exit(8)
        assert (await second.wait("job", WaitCondition.REMOVED)).code == 8
        assert world.folders() == [made.id]


async def test_a_container_that_ended_while_no_server_ran_has_its_exit_code(
    autojump_clock: Any, world: Any
) -> None:
    async with world.server() as first:
        made = await world.started(first)
    world.sandboxes[made.id].exit(4)
    async with world.server() as second:
        assert (await second.wait(made.id)).code == 4
        assert (await second.get(made.id)).exit.code == 4
    async with world.server() as third:
        assert (await third.get(made.id)).exit.code == 4


async def test_after_a_reboot_what_ran_is_stopped_with_an_unknown_code(
    autojump_clock: Any, world: Any
) -> None:
    async with world.server() as first:
        made = await world.started(first)
        gone = await world.started(first, auto_remove=True)
    await world.launcher.shutdown()
    world.kernel.states.clear()
    async with world.server() as second:
        (stopped,) = await second.list()
        assert stopped.id == made.id
        assert (stopped.status, stopped.exit.code) == (ContainerStatus.STOPPED, None)
        await trio.sleep(5)
        assert gone.id not in world.folders()
        assert world.left() == [made.id, f"hold {made.id}"]


async def test_a_restart_finishes_what_was_begun_and_sweeps_what_was_half_made(
    autojump_clock: Any, world: Any, options: Any
) -> None:
    async with world.server() as first:
        made = await first.create(options())
        going = await world.started(first)
        await trio.sleep(11)
    (world.paths.containers / going.id / "removing").touch()
    half = world.paths.containers / ".0123456789ab.new"
    half.mkdir()
    async with world.server() as second:
        await trio.sleep(1)
        assert [item.id for item in await second.list()] == [made.id]
        assert world.left() == [made.id, f"hold {made.id}"]


async def test_helpers_started_in_advance_end_with_the_server_or_at_its_next_start(
    autojump_clock: Any, world: Any, options: Any
) -> None:
    async with world.server() as first:
        made = await first.create(options())
        await trio.testing.wait_all_tasks_blocked()
        assert len(world.launcher.names()) == 1
        unit = world.launcher._services[f"runtime.{made.id}"].unit
    assert world.launcher.names() == ()
    await world.launcher.register(unit)
    await world.launcher.register(evolve(unit, name="runtime.0123456789ab", listen="x.sock"))
    async with world.server():
        await trio.sleep(1)
        assert world.launcher.names() == ()


async def test_a_broken_document_is_named_and_left_alone(
    autojump_clock: Any, world: Any, options: Any
) -> None:
    async with world.server() as first:
        broken = await first.create(options(name="bad"))
        newer = await first.create(options(name="new"))
        fine = await first.create(options(name="good"))
    path = world.paths.containers / broken.id / "container.json"
    path.write_text("{")
    other = world.paths.containers / newer.id / "container.json"
    other.write_text(json.dumps({"schema": 99, "value": {}}))
    async with world.server() as second:
        assert [item.id for item in await second.list()] == [fine.id]
        for key in (broken.id, newer.id):
            with pytest.raises(DataLoss, match=f"{key}/container.json"):
                await second.get(key)
            with pytest.raises(DataLoss):
                await second.delete(key)
        await trio.sleep(60)
    assert path.read_text() == "{"
    assert world.images.holders == {broken.id, newer.id, fine.id}


async def test_a_broken_document_is_deleted_by_force_with_all_that_ran_of_it(
    autojump_clock: Any, world: Any
) -> None:
    async with world.server() as first:
        broken = await world.started(first, name="bad")
    (world.paths.containers / broken.id / "container.json").write_text("{")
    async with world.server() as second:
        await second.delete(broken.id, force=True)
        assert world.left() == []
        assert world.kernel.states[broken.id].phase is SandboxPhase.EMPTY
        with pytest.raises(NotFound):
            await second.get(broken.id)


async def test_a_client_keeps_its_endpoint_over_a_restart(
    autojump_clock: Any, world: Any, options: Any
) -> None:
    async with world.server() as first:
        made = await first.create(options())
        endpoint = await first.bootstrap(made.id, Stdio())
    async with world.server() as second, endpoint.connect() as sandbox:
        await sandbox.start(INIT)
        assert (await second.get(made.id)).status is ContainerStatus.RUNNING
        await second.stop(made.id, StopOptions())
        assert (await sandbox.wait(INIT)).code == 143
