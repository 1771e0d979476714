"""Networks are made, kept, used and deleted; which a container is in is its document's word."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing

from container.apiserver.containers import ContainersService
from container.apiserver.subnets import Taken, parse_range
from container.contracts.apiserver import (
    Container,
    ContainerOptions,
    ContainerStatus,
    NetworkUse,
    PullPolicy,
)
from container.contracts.network import NetworkConfiguration
from container.contracts.networks import NetworkOptions
from container.contracts.runtime import StopOptions
from container.contracts.stored import read_network
from container.ipc import (
    AlreadyExists,
    ContainerError,
    DataLoss,
    InvalidArgument,
    InvalidState,
    NotFound,
    Overloaded,
    PermissionDenied,
    Unavailable,
)


def uses(*names: str) -> tuple[NetworkUse, ...]:
    return tuple(NetworkUse(name) for name in names)


def world_options(**options: Any) -> ContainerOptions:
    """Return options for the image `demo`; without a network named, the default one is meant."""
    return ContainerOptions(**({"image": "demo", "pull": PullPolicy.NEVER} | options))


async def make(world: Any, name: str = "web", **fields: Any) -> NetworkConfiguration:
    made = (await world.networks.create(NetworkOptions(name, **fields))).configuration
    assert isinstance(made, NetworkConfiguration)
    return made


async def started(world: Any, containers: ContainersService, **options: Any) -> Container:
    made = await world.started(containers, **options)
    return await containers.get(made.id)


def network_folders(world: Any) -> list[str]:
    folder = world.paths.networks
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


# --- made and kept ---


async def test_a_network_is_on_disk_for_us_and_for_its_helper_before_the_reply(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    made = await make(world, labels={"a": "b"}, mtu=1400)
    assert (made.subnets, made.gateways) == (("10.89.0.0/24",), ("10.89.0.1",))
    folder = world.paths.networks / made.id
    assert read_network(folder) == made
    plain = json.loads((folder / "configuration.json").read_bytes())
    assert (plain["id"], plain["name"], plain["mtu"]) == (made.id, "web", 1400)
    assert (folder / "configuration.json").stat().st_mode & 0o777 == 0o600
    assert world.launcher.names() == (f"network.{made.id}",)


async def test_the_unit_of_a_helper_starts_with_a_connection_and_ends_when_idle(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    made = await make(world)
    unit = world.launcher._services[f"network.{made.id}"].unit
    folder = str(world.paths.networks / made.id)
    assert unit.command == ("bridge", "--root", folder, made.id)
    assert unit.listen == f"network/{made.id}.sock"
    assert unit.idle_timeout is not None
    assert not unit.outlives_launcher


async def test_ranges_are_nobody_elses(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    world.routes = (Taken(parse_range("10.89.1.0/24"), "the host's route by eth0"),)
    assert (await make(world, "a")).subnets == ("10.89.0.0/24",)
    assert (await make(world, "b")).subnets == ("10.89.2.0/24",)
    with pytest.raises(AlreadyExists, match="which is the network b's"):
        await make(world, "c", subnets=("10.89.2.0/25",))
    with pytest.raises(AlreadyExists, match="which is the host's route by eth0"):
        await make(world, "c", subnets=("10.89.1.0/25",))
    assert len(network_folders(world)) == 2


async def test_many_networks_made_at_once_have_a_range_each(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(make, world, f"n{number}")
    ranges = {it.configuration.subnets for it in await world.networks.list()}
    assert len(ranges) == 20


async def test_a_network_that_no_range_is_left_for_is_refused(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    world.routes = tuple(
        Taken(parse_range(text), "x") for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
    )
    with pytest.raises(Overloaded, match="no range is left"):
        await make(world)
    with pytest.raises(Overloaded):
        await containers.create(world_options(networks=()))
    assert network_folders(world) == []


@pytest.mark.parametrize(
    ("fields", "error", "sentence"),
    [
        ({"name": "a b"}, InvalidArgument, "'a b' can't name a network"),
        ({"name": ""}, InvalidArgument, "can't name a network"),
        ({"name": "host"}, InvalidArgument, "'host' can't name a network"),
        ({"name": "none"}, InvalidArgument, "has a meaning"),
        ({"driver": "vlan"}, NotFound, "no network driver 'vlan'"),
        ({"driver": "container-runtime"}, NotFound, "no network driver"),
        ({"subnets": ("x",)}, InvalidArgument, "is no range"),
        ({"gateways": ("10.9.0.1",)}, InvalidArgument, "the gateway 10.9.0.1 has no range"),
        (
            {"subnets": ("10.9.0.0/24",), "gateways": ("10.8.0.1",)},
            InvalidArgument,
            "is not in the range",
        ),
        ({"mtu": 20}, InvalidArgument, "an MTU of 20 is out of range"),
        ({"mtu": 1000, "ipv6": True}, InvalidArgument, r"\(IPv6 needs that\)"),
        ({"options": {"": "x"}}, InvalidArgument, "an option has no name"),
        ({"labels": {"a": "\0"}}, InvalidArgument, "a label 'a' holds a NUL"),
    ],
)
async def test_a_network_that_makes_no_sense_is_refused_and_leaves_nothing(
    autojump_clock: Any,
    world: Any,
    containers: ContainersService,
    fields: dict[str, Any],
    error: type[ContainerError],
    sentence: str,
) -> None:
    with pytest.raises(error, match=sentence):
        await make(world, **({"name": "web"} | fields))
    assert network_folders(world) == []
    assert world.launcher.names() == ()


async def test_a_name_is_taken_once(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    made = await make(world)
    with pytest.raises(AlreadyExists, match=f"taken by network {made.id}"):
        await make(world)


async def test_options_are_looked_at_by_the_driver_which_may_refuse_them(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    await make(world, "good", options={"com.example": "1"})
    assert world.faults.calls.count("network.status") == 1
    world.faults.errors["network.status"] = InvalidArgument("no option 'bad'")
    with pytest.raises(InvalidArgument, match="no option 'bad'"):
        await make(world, "web", options={"bad": "1"})
    assert [it.configuration.name for it in await world.networks.list()] == ["good"]
    assert len(network_folders(world)) == 1


async def test_networks_survive_the_api_server_with_ranges_and_names(
    autojump_clock: Any, world: Any
) -> None:
    async with world.server():
        made = await make(world, ipv6=True, internal=True)
    await world.launcher.shutdown()
    async with world.server():
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(0.1)
        assert [it.configuration for it in await world.networks.list()] == [made]
        assert world.launcher.names() == (f"network.{made.id}",)
        assert (await make(world, "next")).subnets == ("10.89.1.0/24",)


async def test_the_helper_of_a_network_that_is_gone_is_ended_at_the_next_start(
    autojump_clock: Any, world: Any
) -> None:
    async with world.server():
        made = await make(world)
    for path in sorted((world.paths.networks / made.id).iterdir()):
        path.unlink()
    (world.paths.networks / made.id).rmdir()
    async with world.server():
        await trio.sleep(1)
        assert world.launcher.names() == ()


async def test_a_document_that_can_not_be_read_sets_its_network_aside_alone(
    autojump_clock: Any, world: Any
) -> None:
    async with world.server() as containers:
        broken, whole = await make(world, "a"), await make(world, "b")
        await containers.create(world_options(networks=uses("a"), name="it"))
    (world.paths.networks / broken.id / "network.json").write_text("{")
    async with world.server() as containers:
        assert [it.configuration for it in await world.networks.list()] == [whole]
        with pytest.raises(DataLoss):
            await world.networks.get(broken.id)
        with pytest.raises(NotFound, match="no network 'a'"):
            await containers.start("it")
        assert (await containers.get("it")).status is ContainerStatus.CREATED


async def test_what_was_half_made_is_swept_and_the_helpers_copy_is_mended(
    autojump_clock: Any, world: Any
) -> None:
    async with world.server():
        made = await make(world)
    (world.paths.networks / ".0123456789ab.new").mkdir()
    (world.paths.networks / "strange").mkdir()
    (world.paths.networks / made.id / "configuration.json").write_text("{}")
    async with world.server():
        assert network_folders(world) == sorted([made.id, "strange"])
        plain = json.loads((world.paths.networks / made.id / "configuration.json").read_bytes())
        assert plain["name"] == "web"


# --- found ---


async def test_a_network_is_found_by_name_id_and_beginning(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    made = await make(world)
    for word in ("web", made.id, made.id[:6]):
        found = await world.networks.get(word)
        assert found.configuration == made
        assert found.status is not None
    with pytest.raises(NotFound, match="no network 'wed'") as caught:
        await world.networks.get("wed")
    assert caught.value.hint == "did you mean 'web'?"


async def test_a_helper_that_does_not_answer_costs_its_network_no_more_than_its_word(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    made = await make(world)
    world.faults.waits["network.status"] = trio.Event()
    began = trio.current_time()
    found = await world.networks.get("web")
    assert (found.configuration, found.status) == (made, None)
    assert trio.current_time() - began < 2
    world.faults.errors["network.start"] = Unavailable("no")
    world.launcher.kill(f"network.{made.id}")
    assert (await world.networks.get("web")).status is None


# --- deleted ---


async def test_a_network_that_containers_are_in_is_not_deleted_and_they_are_named(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    made = await make(world)
    await containers.create(world_options(networks=uses("web"), name="one"))
    with pytest.raises(InvalidState, match="the network web is used by container one"):
        await world.networks.delete("web")
    await containers.create(world_options(networks=uses("web"), name="two"))
    with pytest.raises(InvalidState, match="used by containers"):
        await world.networks.delete(made.id)
    assert await world.networks.prune() == ()
    await containers.delete("one")
    await containers.delete("two")
    await world.networks.delete("web")
    assert await world.networks.list() == ()
    assert (network_folders(world), world.launcher.names()) == ([], ())


async def test_a_network_is_deleted_by_force_from_under_its_containers(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    await make(world, "web")
    await make(world, "db")
    await started(world, containers, networks=uses("web", "db"), name="runs")
    await containers.create(world_options(networks=uses("web"), name="stopped"))
    await world.networks.delete("web", force=True)
    runs = await containers.get("runs")
    assert [use.network for use in runs.networks] == ["db"]
    assert [it.network_name for it in runs.attachments] == ["db"]
    assert (await containers.get("stopped")).network == "none"
    assert [it.configuration.name for it in await world.networks.list()] == ["db"]


async def test_a_network_is_held_for_a_container_in_the_making(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    await make(world)
    world.faults.waits["images.prepare"] = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(containers.create, world_options(networks=uses("web"), name="it"))
        await trio.sleep(1)
        for force in (False, True):
            with pytest.raises(InvalidState, match="is used by container"):
                await world.networks.delete("web", force=force)
        assert await world.networks.prune() == ()
        nursery.cancel_scope.cancel()
    world.faults.waits.clear()
    await world.networks.delete("web")


async def test_the_default_network_stays(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    it = await containers.create(world_options())
    await containers.delete(it.id)
    for force in (False, True):
        with pytest.raises(PermissionDenied, match="the network default can't be deleted"):
            await world.networks.delete("default", force=force)
    await make(world)
    assert await world.networks.prune() == ("web",)
    assert [it.configuration.name for it in await world.networks.list()] == ["default"]


async def test_the_range_of_a_network_is_free_when_it_is_gone_and_not_before(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    await make(world)
    world.faults.waits["network.status"] = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.networks.delete, "web")
        await trio.sleep(1)
        assert await world.networks.list() == ()
        assert (await make(world, "next")).subnets == ("10.89.1.0/24",)
        world.faults.waits["network.status"].set()
    assert (await make(world, "again")).subnets == ("10.89.0.0/24",)


async def test_a_deletion_that_was_begun_is_finished_by_the_next_api_server(
    autojump_clock: Any, world: Any
) -> None:
    async with world.server():
        made = await make(world)
    (world.paths.networks / made.id / "removing").touch()
    async with world.server():
        assert await world.networks.list() == ()
        await trio.sleep(1)
        assert network_folders(world) == []
        assert world.launcher.names() == ()


async def test_a_deletion_is_finished_though_its_caller_is_gone_and_its_helper_is_wedged(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    await make(world)
    world.faults.waits["network.status"] = trio.Event()
    with trio.move_on_after(0.5):
        await world.networks.delete("web")
    assert await world.networks.list() == ()
    await trio.sleep(30)
    assert (network_folders(world), world.launcher.names()) == ([], ())


async def test_a_port_is_dialled_in_a_running_container_alone(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    it = await started(world, containers, name="it")
    with await containers.dial("it", 80):
        assert world.sandboxes[it.id].dialled == 80
    with pytest.raises(InvalidArgument, match="65536 is no port"):
        await containers.dial("it", 65536)
    await containers.stop("it", StopOptions())
    with pytest.raises(InvalidState, match="does not run"):
        await containers.dial("it", 80)
