"""A container's life through the API server: create, run, wait, stop, delete."""

from __future__ import annotations

import os
from typing import Any

import pytest
import trio

from container.contracts.apiserver import ContainerStatus, WaitCondition
from container.contracts.runtime import INIT, ProcessSpec, Stdio, StopOptions
from container.ipc import InvalidArgument, InvalidState, NotFound, Unavailable


async def test_a_new_container_is_on_disk_and_listed(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await containers.create(options(name="web"))
    assert made.status is ContainerStatus.CREATED
    assert (made.name, made.image, made.process.arguments) == (
        "web",
        "localhost/demo:latest",
        ("/bin/sh",),
    )
    assert world.folders() == [made.id]
    assert world.images.holders == {made.id}
    assert await containers.list() == (made,)
    assert await containers.get("web") == made
    assert await containers.get(made.id[:5]) == made


async def test_a_started_container_runs_and_its_exit_is_told_and_kept(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await world.started(containers, name="web")
    assert made.status is ContainerStatus.RUNNING
    assert (await containers.get("web")).pid == 4711
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            assert (await containers.wait("web")).code == 3

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        world.sandboxes[made.id].exit(3)
    stopped = await containers.get("web")
    assert (stopped.status, stopped.exit.code, stopped.pid) == (ContainerStatus.STOPPED, 3, None)
    await trio.sleep(5)
    assert world.launcher.names() == ()
    assert (await containers.wait("web")).code == 3


async def test_a_caller_gets_an_endpoint_limited_to_what_it_needs(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await containers.create(options())
    stdio = Stdio()
    endpoint = await containers.bootstrap(made.id, stdio)
    assert endpoint.routes == ("start", "wait", "resize", "kill")
    assert world.sandboxes[made.id].stdio is stdio
    assert world.sandboxes[made.id].spec.layers == world.images.layers
    assert (await containers.get(made.id)).status is ContainerStatus.CREATED
    async with endpoint.connect() as sandbox:
        await sandbox.start(INIT)
    # The server was not told: it asks.
    assert [item.status for item in await containers.list()] == [ContainerStatus.RUNNING]


async def test_a_container_that_removes_itself_leaves_nothing(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await world.started(containers, auto_remove=True)
    world.sandboxes[made.id].exit(7)
    start = trio.current_time()
    assert (await containers.wait(made.id, WaitCondition.REMOVED)).code == 7
    assert trio.current_time() - start < 0.5, "the linger was not cut short"
    assert world.left() == []
    assert await containers.list() == ()
    # Whoever asks a moment too late is told all the same.
    assert (await containers.wait(made.id, WaitCondition.REMOVED)).code == 7
    assert (await containers.wait(made.id)).code == 7


async def test_a_container_that_cannot_be_removed_now_is_removed_later_and_who_waits_is_told(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await world.started(containers, auto_remove=True)
    world.faults.errors["images.release"] = Unavailable("the images service is away")
    world.sandboxes[made.id].exit(7)
    with trio.move_on_after(20) as away:
        await containers.wait(made.id, WaitCondition.REMOVED)
    assert away.cancelled_caught
    world.faults.errors.clear()
    assert (await containers.wait(made.id, WaitCondition.REMOVED)).code == 7
    assert world.left() == []


async def test_a_helper_lingers_for_a_client_that_has_just_started_the_container(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await containers.create(options(auto_remove=True))
    endpoint = await containers.bootstrap(made.id, Stdio())
    async with endpoint.connect() as sandbox:
        await sandbox.start(INIT)
        world.sandboxes[made.id].exit(0)
        await trio.sleep(0.3)
        assert (await sandbox.wait(INIT)).code == 0
    await trio.sleep(2)
    assert world.left() == []


async def test_a_stopped_container_starts_again_with_a_fresh_helper(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await world.started(containers)
    first = world.sandboxes[made.id]
    first.exit(1)
    assert (await containers.wait(made.id)).code == 1
    again = await containers.start(made.id)  # within the linger
    assert again.status is ContainerStatus.RUNNING
    assert again.exit is None
    assert world.sandboxes[made.id] is not first
    world.sandboxes[made.id].exit(2)
    assert (await containers.wait(made.id)).code == 2


async def test_start_is_idempotent_and_bootstrap_is_not(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await world.started(containers, name="web")
    assert (await containers.start("web")).status is ContainerStatus.RUNNING
    with pytest.raises(InvalidState, match="web already runs"):
        await containers.bootstrap(made.id, Stdio())


async def test_stop_is_idempotent(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await world.started(containers)
    stopped = await containers.stop(made.id, StopOptions())
    assert (stopped.status, stopped.exit.code) == (ContainerStatus.STOPPED, 143)
    again = await containers.stop(made.id, StopOptions())
    assert (again.status, again.exit) == (ContainerStatus.STOPPED, stopped.exit)


async def test_stop_of_a_created_container_leaves_it_created(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await containers.create(options())
    assert (await containers.stop(made.id, StopOptions())).status is ContainerStatus.CREATED


async def test_stop_returns_a_container_that_removes_itself(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await world.started(containers, auto_remove=True)
    stopped = await containers.stop(made.id, StopOptions())
    assert (stopped.status, stopped.exit.code) == (ContainerStatus.STOPPED, 143)
    await trio.sleep(2)
    assert world.left() == []


async def test_kill_needs_a_running_container_and_a_signal_that_exists(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await containers.create(options(name="web"))
    with pytest.raises(InvalidState, match="web does not run"):
        await containers.kill("web", "TERM")
    await containers.start("web")
    with pytest.raises(InvalidArgument, match="no signal 'NONE'"):
        await containers.kill("web", "NONE")
    await containers.kill("web", "usr1")
    assert world.sandboxes[made.id].killed == "SIGUSR1"
    await containers.kill("web", "9")
    assert (await containers.wait("web")).code == 137


async def test_delete_wants_force_for_a_running_container(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await world.started(containers, name="web")
    with pytest.raises(InvalidState, match="web runs") as caught:
        await containers.delete("web")
    assert "--force" in (caught.value.hint or "")
    await containers.delete("web", force=True)
    assert world.left() == []
    assert "sandbox.shutdown" in world.faults.calls
    with pytest.raises(NotFound):
        await containers.get(made.id)
    assert (await containers.create(options(name="web"))).name == "web"


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("state", ["created", "bootstrapped", "exited", "stopped"])
async def test_delete_works_in_every_state_that_does_not_run(
    autojump_clock: Any, world: Any, containers: Any, options: Any, state: str, force: bool
) -> None:
    made = await containers.create(options())
    if state != "created":
        await containers.bootstrap(made.id, Stdio())
    if state in ("exited", "stopped"):
        await containers.start(made.id)
        world.sandboxes[made.id].exit(0)
        await containers.wait(made.id)
    if state == "stopped":
        await trio.sleep(5)
    await containers.delete(made.id, force=force)
    assert world.left() == []


async def test_a_deleted_container_wakes_who_waits_for_it(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await containers.create(options(name="web"))
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(NotFound, match="web was removed before it ended"):
                await containers.wait("web")

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await containers.delete(made.id)


async def test_a_client_that_vanishes_after_bootstrap_leaves_nothing_in_the_end(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    kept = await containers.create(options())
    removed = await containers.create(options(auto_remove=True))
    never = await containers.create(options(auto_remove=True))
    await containers.bootstrap(kept.id, Stdio())
    await containers.bootstrap(removed.id, Stdio())
    await trio.sleep(world.timeouts.start + 1)
    assert {item.id for item in await containers.list()} == {kept.id, never.id}
    assert (await containers.get(kept.id)).status is ContainerStatus.CREATED
    assert world.launcher.names() == ()
    await trio.sleep(world.timeouts.claim)
    assert world.folders() == [kept.id]
    assert (await containers.start(kept.id)).status is ContainerStatus.RUNNING


async def test_a_further_process_takes_what_it_lacks_from_the_container(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await containers.create(
        options(environment=("A=1", "B=2"), working_directory="/srv", user="app")
    )
    spec = ProcessSpec(arguments=("id",), environment=("B=3",), working_directory="", user="")
    with pytest.raises(InvalidState):
        await containers.create_process(made.id, "x1", spec, Stdio())
    await containers.start(made.id)
    endpoint = await containers.create_process(made.id, "x1", spec, Stdio())
    assert endpoint.routes == ("start", "wait", "resize", "kill")
    name, complete = world.sandboxes[made.id].further
    assert name == "x1"
    assert {"A=1", "B=3"} <= set(complete.environment)
    assert "B=2" not in complete.environment
    assert (complete.working_directory, complete.user) == ("/srv", "app")
    with pytest.raises(InvalidArgument, match="'init' can't be the id"):
        await containers.create_process(made.id, "init", spec, Stdio())


async def test_statistics_are_of_running_containers(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await containers.create(options())
    with pytest.raises(InvalidState):
        await containers.statistics(made.id)
    await containers.start(made.id)
    assert (await containers.statistics(made.id)).pids == 3
    assert containers.census() == (1, 1)


async def test_logs_say_why_there_are_none(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    silent = await containers.create(options(keep_log=False))
    with pytest.raises(InvalidState, match="keeps no log"):
        await containers.logs(silent.id)
    fresh = await containers.create(options())
    with pytest.raises(InvalidState, match="never ran"):
        await containers.logs(fresh.id)


async def test_logs_of_a_stopped_container_need_no_helper(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await containers.create(options())
    folder = world.paths.containers / made.id / "log"
    folder.mkdir()
    (folder / "data").write_bytes(b"out")
    (folder / "index").write_bytes(b"")
    await trio.sleep(20)  # the helper that was started in advance is gone
    assert world.launcher.names() == ()
    files = await containers.logs(made.id)
    with files.data, files.index:
        assert os.pread(files.data.fileno(), 10, 0) == b"out"


async def test_a_container_starts_again_after_its_image_has_lost_its_name(
    autojump_clock: Any, world: Any, options: Any
) -> None:
    async with world.server() as first:
        made = await first.create(options())
    world.images.images.clear()
    async with world.server() as second:
        assert (await second.start(made.id)).status is ContainerStatus.RUNNING
        assert world.sandboxes[made.id].spec.layers == world.images.layers
