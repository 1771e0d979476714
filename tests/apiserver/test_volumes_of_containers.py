"""Volumes and containers: made together, held for runs, in use, and removed with them or not."""

from __future__ import annotations

import os
from typing import Any

import pytest
import trio

from container.contracts.runtime import Mount, MountKind, Stdio
from container.contracts.volumes import VolumeOptions
from container.ipc import InvalidArgument, InvalidState, NotFound, Unavailable
from tests.apiserver.conftest import make_image


def volume(destination: str, source: str = "", **rest: Any) -> Mount:
    return Mount(MountKind.VOLUME, destination, source, **rest)


def on_disk(world: Any) -> list[str]:
    return sorted(os.listdir(world.paths.volumes))


async def test_a_container_gets_its_volumes_made_and_its_helper_their_paths(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    world.images.images["demo"] = make_image(volumes=("/var/lib/db",))
    made = await containers.create(
        options(mounts=(volume("/data", "mine", read_only=True), volume("/cache")))
    )
    shown = {mount.destination: mount for mount in made.mounts}
    assert shown["/data"] == volume("/data", "mine", read_only=True)
    cache, database = shown["/cache"].source, shown["/var/lib/db"].source
    assert [len(cache), len(database)] == [64, 64]
    assert on_disk(world) == sorted(["mine", cache, database])
    found = {it.name: it for it in await containers.volumes.list()}
    assert [found[name].anonymous for name in ("mine", cache, database)] == [False, True, True]
    assert {it.used_by for it in found.values()} == {(made.id,)}
    await containers.start(made.id)
    (sandbox,) = world.sandboxes.values()
    given = {mount.destination: mount for mount in sandbox.spec.mounts}
    assert given["/data"] == volume("/data", f"{world.paths.volumes}/mine/_data", read_only=True)
    assert given["/cache"].source == f"{world.paths.volumes}/{cache}/_data"
    assert (await containers.get(made.id)).mounts == made.mounts


async def test_a_volume_in_use_is_refused_with_its_users_named(
    autojump_clock: Any, containers: Any, options: Any
) -> None:
    for name in ("one", "two"):
        await containers.create(options(name=name, mounts=(volume("/data", "mine"),)))
    with pytest.raises(InvalidState, match="volume mine is used by containers one, two"):
        await containers.volumes.delete("mine", force=True)
    await containers.delete("one", volumes=True)
    with pytest.raises(InvalidState, match="volume mine is used by container two"):
        await containers.volumes.delete("mine")
    assert await containers.volumes.prune(everything=True) == ()
    await containers.delete("two", volumes=True)
    await containers.volumes.delete("mine")


async def test_anonymous_volumes_stay_unless_they_are_to_go(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    mounts = (volume("/data", "mine"), volume("/cache"))
    first = await containers.create(options(mounts=mounts))
    await containers.delete(first.id)
    assert on_disk(world) == sorted(["mine", first.mounts[1].source])
    second = await containers.create(options(mounts=mounts))
    await containers.delete(second.id, volumes=True)
    assert on_disk(world) == sorted(["mine", first.mounts[1].source])
    (gone,) = await containers.volumes.prune()
    assert gone.name == first.mounts[1].source
    assert on_disk(world) == ["mine"]


async def test_a_container_that_removes_itself_takes_its_anonymous_volumes_with_it(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    mounts = (volume("/data", "mine"), volume("/cache"))
    made = await world.started(containers, mounts=mounts, auto_remove=True)
    assert len(on_disk(world)) == 2
    world.sandboxes[made.id].exit(0)
    await trio.sleep(5)
    assert world.folders() == []
    assert on_disk(world) == ["mine"]


async def test_an_anonymous_volume_that_another_container_uses_goes_with_the_last_one(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    first = await containers.create(options(name="first", mounts=(volume("/cache"),)))
    second = await containers.create(options(name="second", volumes_from=("first:ro",)))
    name = first.mounts[0].source
    assert second.mounts == (
        volume("/cache", name, anonymous=True, read_only=True, populate=False),
    )
    await containers.delete("first", volumes=True)
    assert on_disk(world) == [name]
    await containers.delete("second", volumes=True)
    assert on_disk(world) == []


async def test_an_anonymous_volume_that_a_user_named_is_not_removed_with_the_container(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await containers.volumes.create(VolumeOptions())
    user = await containers.create(options(mounts=(volume("/old", made.name),)))
    await containers.delete(user.id, volumes=True)
    assert on_disk(world) == [made.name]


@pytest.mark.parametrize(
    ("lender", "error", "said"),
    [
        ("nobody", NotFound, "no container 'nobody'"),
        ("first:rx", InvalidArgument, "'first:rx' names no container's volumes"),
        ("", InvalidArgument, "'' names no container's volumes"),
    ],
)
async def test_volumes_from_nobody_are_refused(
    autojump_clock: Any,
    world: Any,
    containers: Any,
    options: Any,
    lender: Any,
    error: Any,
    said: Any,
) -> None:
    await containers.create(options(name="first"))
    with pytest.raises(error, match=said):
        await containers.create(options(name="second", volumes_from=(lender,)))
    assert len(await containers.list()) == 1


@pytest.mark.parametrize("step", ["images.prepare", "images.get"])
async def test_a_creation_that_fails_leaves_no_volume_that_it_made(
    autojump_clock: Any, world: Any, containers: Any, options: Any, step: str
) -> None:
    await containers.volumes.create(VolumeOptions("before"))
    world.faults.errors[step] = Unavailable("no")
    with pytest.raises(Unavailable):
        await containers.create(
            options(mounts=(volume("/a", "before"), volume("/b", "new"), volume("/c")))
        )
    assert on_disk(world) == ["before"]
    await containers.volumes.delete("before")


async def test_a_cancelled_creation_leaves_no_volume_that_it_made(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    world.faults.waits["images.prepare"] = trio.Event()
    with trio.move_on_after(1):
        await containers.create(options(mounts=(volume("/b", "new"), volume("/c"))))
    assert on_disk(world) == []
    assert world.left() == []


async def test_a_volume_that_another_container_has_come_to_use_outlives_a_failed_creation(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    world.faults.waits["images.prepare"] = waiting = trio.Event()
    async with trio.open_nursery() as nursery:

        async def create(name: str) -> None:
            await containers.create(options(name=name, mounts=(volume("/a", "new"),)))

        async def fail() -> None:
            with trio.move_on_after(5):
                await create("first")

        nursery.start_soon(fail)
        await trio.sleep(1)
        nursery.start_soon(create, "second")
        await trio.sleep(10)
        assert on_disk(world) == ["new"]
        waiting.set()
    (used,) = await containers.volumes.list()
    assert len(used.used_by) == 1


async def test_two_mounts_of_one_volume_are_two_mounts(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers, mounts=(volume("/a", "x"), volume("/b", "x")))
    sources = {mount.source for mount in world.sandboxes[made.id].spec.mounts}
    assert sources == {f"{world.paths.volumes}/x/_data"}


async def test_a_bad_name_is_refused_before_anything_is_made(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    with pytest.raises(InvalidArgument, match="can't name a volume"):
        await containers.create(options(mounts=(volume("/a", "../up"),)))
    assert world.left() == []
    assert on_disk(world) == []


async def test_a_volume_that_is_gone_from_under_a_container_that_ran_is_not_made_anew(
    autojump_clock: Any, world: Any, options: Any
) -> None:
    async with world.server() as containers:
        made = await world.started(containers, mounts=(volume("/a", "x"),))
        world.sandboxes[made.id].exit(0)
        await trio.sleep(5)
    for path in sorted((world.paths.volumes / "x").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (world.paths.volumes / "x").rmdir()
    async with world.server() as containers:
        with pytest.raises(NotFound, match=r"volume x of container .* is not there any more"):
            await containers.start(made.id)
        await containers.volumes.create(VolumeOptions("x"))
        await containers.start(made.id)


async def test_a_bootstrap_that_fails_holds_nothing(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await containers.create(options(mounts=(volume("/a", "x"),)))
    world.faults.errors["sandbox.bootstrap"] = Unavailable("no")
    with pytest.raises(Unavailable):
        await containers.bootstrap(made.id, Stdio())
    assert containers.volumes._holds.held(made.id) == ()
    world.faults.errors.clear()
    await containers.start(made.id)
    assert containers.volumes._holds.held(made.id) == ("x",)
    world.sandboxes[made.id].exit(0)
    await trio.sleep(5)
    assert containers.volumes._holds.held(made.id) == ()


async def test_the_next_server_holds_for_what_runs(autojump_clock: Any, world: Any) -> None:
    async with world.server() as containers:
        made = await world.started(containers, mounts=(volume("/a", "x"),))
    async with world.server() as containers:
        await trio.sleep(1)
        assert containers.volumes._holds.held(made.id) == ("x",)
        with pytest.raises(InvalidState):
            await containers.volumes.delete("x")
        await containers.delete(made.id, force=True)
        assert containers.volumes._holds.held(made.id) == ()
        await containers.volumes.delete("x")


async def test_a_container_that_can_t_be_read_keeps_all_volumes(
    autojump_clock: Any, world: Any, options: Any
) -> None:
    async with world.server() as containers:
        made = await containers.create(options(mounts=(volume("/a", "x"),)))
    (world.paths.containers / made.id / "container.json").write_text("{")
    async with world.server() as containers:
        with pytest.raises(InvalidState, match=f"container {made.id} can't be read"):
            await containers.volumes.delete("x")
        await containers.delete(made.id, force=True)
        await containers.volumes.delete("x")
