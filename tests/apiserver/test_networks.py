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
    ContainerStatus,
    NetworkOptions,
    NetworkUse,
)
from container.contracts.network import NetworkConfiguration, PublishedPort
from container.contracts.runtime import SandboxState
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
    Unsupported,
)
from container.ipc.errors import Hop


def uses(*names: str) -> tuple[NetworkUse, ...]:
    return tuple(NetworkUse(name) for name in names)


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


# --- used ---


def world_options(**options: Any) -> Any:
    from container.contracts.apiserver import ContainerOptions, PullPolicy

    return ContainerOptions(**({"image": "demo", "pull": PullPolicy.NEVER} | options))


async def test_the_default_network_is_made_when_it_is_first_needed(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    assert await world.networks.list() == ()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(containers.create, world_options())
    (found,) = await world.networks.list()
    assert found.configuration.name == "default"
    assert [":" in it for it in found.configuration.subnets] == [False, True]
    assert len(found.containers) == 5
    for container in await containers.list():
        assert container.network == ""
        assert [use.network for use in container.networks] == ["default"]


async def test_a_default_network_of_the_users_own_is_taken(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    await make(world, "default", subnets=("10.9.0.0/24",))
    await containers.create(world_options())
    assert len(await world.networks.list()) == 1


async def test_a_network_is_named_in_documents_however_it_was_named_by_the_user(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    made = await make(world)
    container = await containers.create(world_options(networks=uses(made.id[:8])))
    assert container.networks == (NetworkUse("web", interface="eth0"),)
    with pytest.raises(InvalidArgument, match="'web' is given twice"):
        await containers.create(world_options(networks=uses("web", made.id)))


async def test_a_container_in_no_network_that_is_there_is_not_made(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    made = await make(world)
    with pytest.raises(NotFound, match="no network 'wed'"):
        await containers.create(world_options(networks=uses("web", "wed"), name="it"))
    with pytest.raises(InvalidArgument, match="not in the range"):
        await containers.create(
            world_options(networks=(NetworkUse("web", ("10.1.0.1",)),), name="it")
        )
    assert await containers.list() == ()
    assert (await world.networks.get("web")).containers == ()
    await containers.create(world_options(networks=uses("web"), name="it"))
    assert (await world.networks.get(made.id)).containers != ()


async def test_the_helper_is_asked_for_each_network_and_its_word_is_shown_while_it_runs(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    web, db = await make(world, "web"), await make(world, "db", internal=True)
    port = PublishedPort(80, 8080)
    container = await started(
        world, containers, networks=(NetworkUse("web", ("10.89.0.9",)), NetworkUse("db")),
        ports=(port,), name="it",
    )  # fmt: skip
    spec = world.sandboxes[container.id].spec
    assert spec.network == "networks"
    assert [it.socket for it in spec.networks] == [
        str(world.paths.network_socket(it.id)) for it in (web, db)
    ]
    assert [it.request.ports for it in spec.networks] == [(port,), ()]
    assert [it.network_name for it in container.attachments] == ["web", "db"]
    assert container.attachments[0].ports == (port,)
    assert (await containers.list())[0].attachments == container.attachments
    world.sandboxes[container.id].exit(0)
    await trio.sleep(5)
    assert (await containers.get("it")).attachments == ()


async def test_attachments_are_never_on_disk(autojump_clock: Any, world: Any) -> None:
    async with world.server() as containers:
        await make(world)
        container = await started(world, containers, networks=uses("web"))
        assert container.attachments
        await containers.stop(container.id, options_to_stop())
        document = world.paths.containers / container.id / "container.json"
        assert json.loads(document.read_bytes())["value"]["attachments"] == []


def options_to_stop() -> Any:
    from container.contracts.runtime import StopOptions

    return StopOptions()


async def test_a_helper_whose_unit_is_gone_is_registered_before_a_start(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    made = await make(world)
    container = await containers.create(world_options(networks=uses("web")))
    await world.launcher.remove(f"network.{made.id}")
    await containers.start(container.id)
    assert f"network.{made.id}" in world.launcher.names()


@pytest.mark.parametrize(
    ("hint", "told"),
    [
        ("install nftables", "install nftables; `--network none` does without"),
        (None, "`--network none` does without"),
    ],
)
async def test_what_the_machine_can_not_do_for_a_network_can_be_done_without(
    autojump_clock: Any, world: Any, containers: ContainersService, hint: str, told: str
) -> None:
    await containers.create(world_options(name="it"))
    hop = Hop("container-network", 7, "network/attach")
    world.faults.errors["sandbox.bootstrap"] = Unsupported("no nft", hint=hint, provenance=(hop,))
    with pytest.raises(Unsupported, match="no nft") as caught:
        await containers.start("it")
    assert caught.value.hint == told
    world.faults.errors["sandbox.bootstrap"] = Unsupported("no runtime", hint=hint)
    with pytest.raises(Unsupported) as caught:
        await containers.start("it")
    assert caught.value.hint == hint


# --- another's network ---


async def test_a_shared_network_is_that_of_a_container_that_runs(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    await make(world)
    web = await started(world, containers, networks=uses("web"), name="web")
    made = await containers.create(world_options(network="container:web", name="side"))
    assert (made.network, made.networks) == (f"container:{web.id}", ())
    await containers.start("side")
    sandbox = world.sandboxes[made.id]
    assert sandbox.spec.network == "shared"
    assert sandbox.namespace is not None


async def test_a_shared_network_of_one_that_does_not_run_can_not_be_had(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    await containers.create(world_options(network="none", name="web"))
    await containers.create(world_options(network="container:web", name="side"))
    with pytest.raises(InvalidState, match="shares the network of container web, which does not"):
        await containers.start("side")
    assert (await containers.get("side")).status is ContainerStatus.CREATED
    await containers.delete("web")
    with pytest.raises(NotFound, match="which was removed"):
        await containers.start("side")


async def test_a_shared_network_of_nobody_or_the_host_is_refused_at_once(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    with pytest.raises(NotFound, match="no container 'web'"):
        await containers.create(world_options(network="container:web"))
    await containers.create(world_options(network="host", name="web"))
    with pytest.raises(InvalidState, match="uses the host's network"):
        await containers.create(world_options(network="container:web"))
    assert len(await containers.list()) == 1


# --- connected and disconnected ---


async def test_a_running_container_joins_and_leaves_a_network(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    await make(world, "web")
    db = await make(world, "db")
    it = await started(world, containers, networks=uses("web"), name="it")
    attachment = await world.networks.connect_container("it", NetworkUse("db", ("10.89.1.7",)))
    assert (attachment.network, attachment.interface) == (db.id, "eth1")
    joined = world.sandboxes[it.id].joined
    assert (joined.id, joined.request.addresses) == (db.id, ("10.89.1.7",))
    assert not joined.request.default_route
    assert joined.request.neighbours != ()
    seen = await containers.get("it")
    assert [use.network for use in seen.networks] == ["web", "db"]
    assert [it.network_name for it in seen.attachments] == ["web", "db"]
    await world.networks.disconnect_container("it", "web")
    seen = await containers.get("it")
    assert [use.network for use in seen.networks] == ["db"]
    assert [it.network_name for it in seen.attachments] == ["db"]
    assert (await world.networks.get("web")).containers == ()


async def test_a_stopped_container_joins_and_leaves_by_its_document_alone(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    await make(world)
    it = await containers.create(world_options(network="none", name="it"))
    assert await world.networks.connect_container("it", NetworkUse("web")) is None
    seen = await containers.get("it")
    assert (seen.network, seen.networks) == ("", (NetworkUse("web", interface="eth0"),))
    await containers.start("it")
    assert [n.name for n in world.sandboxes[it.id].spec.networks] == ["web"]
    await containers.stop("it", options_to_stop())
    await world.networks.disconnect_container("it", "web")
    seen = await containers.get("it")
    assert (seen.network, seen.networks) == ("none", ())


async def test_leaving_a_network_that_it_is_not_in_is_no_error(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    await make(world)
    await started(world, containers, name="it")
    await world.networks.disconnect_container("it", "web")


@pytest.mark.parametrize(
    ("use", "error", "sentence"),
    [
        (NetworkUse("web"), AlreadyExists, "container it is in the network web already"),
        (NetworkUse("wed"), NotFound, "no network 'wed'"),
        (NetworkUse("db", interface="eth0"), InvalidArgument, "two networks have the interface"),
        (NetworkUse("db", ("10.1.0.1",)), InvalidArgument, "not in the range"),
        (NetworkUse("db", mac="x"), InvalidArgument, "is no MAC address"),
    ],
)
async def test_a_container_that_can_not_join_is_where_it_was(
    autojump_clock: Any,
    world: Any,
    containers: ContainersService,
    use: NetworkUse,
    error: type[ContainerError],
    sentence: str,
) -> None:
    await make(world, "web")
    await make(world, "db")
    await started(world, containers, networks=uses("web"), name="it")
    before = await containers.get("it")
    with pytest.raises(error, match=sentence):
        await world.networks.connect_container("it", use)
    assert await containers.get("it") == before
    assert (await world.networks.get("db")).containers == ()


@pytest.mark.parametrize("mode", ["host", "container:other"])
async def test_who_has_no_network_of_its_own_joins_none(
    autojump_clock: Any, world: Any, containers: ContainersService, mode: str
) -> None:
    await make(world)
    await started(world, containers, name="other")
    await containers.create(world_options(network=mode, name="it"))
    with pytest.raises(InvalidState, match="it can't be in others"):
        await world.networks.connect_container("it", NetworkUse("web"))


async def test_a_join_that_fails_is_undone_in_the_document_too(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    await make(world, "web")
    await make(world, "db")
    it = await started(world, containers, networks=uses("web"), name="it")
    world.faults.errors["sandbox.join_network"] = Overloaded("no address is left")
    with pytest.raises(Overloaded):
        await world.networks.connect_container("it", NetworkUse("db"))
    assert [use.network for use in (await containers.get("it")).networks] == ["web"]
    assert "sandbox.leave_network" in world.faults.calls
    assert (await world.networks.get("db")).containers == ()
    document = json.loads((world.paths.containers / it.id / "container.json").read_bytes())
    assert [use["network"] for use in document["value"]["networks"]] == ["web"]


async def test_a_join_that_is_cancelled_is_undone(
    autojump_clock: Any, world: Any, containers: ContainersService
) -> None:
    await make(world, "db")
    await started(world, containers, name="it")
    world.faults.waits["sandbox.join_network"] = trio.Event()
    with trio.move_on_after(3) as scope:
        await world.networks.connect_container("it", NetworkUse("db"))
    assert scope.cancelled_caught
    seen = await containers.get("it")
    assert (seen.network, seen.networks) == ("none", ())


async def test_what_an_api_server_was_killed_in_is_made_up_by_the_next(
    autojump_clock: Any, world: Any
) -> None:
    async with world.server() as containers:
        web, db = await make(world, "web"), await make(world, "db")
        it = await started(world, containers, networks=uses("web", "db"), name="it")
    # Killed between a disconnection's document and its effect, and so with a connection.
    document = world.paths.containers / it.id / "container.json"
    body = json.loads(document.read_bytes())
    body["value"]["networks"] = [body["value"]["networks"][1]]
    document.write_text(json.dumps(body))
    now: SandboxState = world.kernel.states[it.id]
    assert {attachment.network for attachment in now.networks} == {web.id, db.id}
    async with world.server() as containers:
        await trio.sleep(1)
        seen = await containers.get("it")
        assert [attachment.network for attachment in seen.attachments] == [db.id]
        assert seen.status is ContainerStatus.RUNNING


async def test_a_join_that_was_cut_off_is_done_by_the_next_api_server(
    autojump_clock: Any, world: Any
) -> None:
    async with world.server() as containers:
        web, db = await make(world, "web"), await make(world, "db")
        it = await started(world, containers, networks=uses("web"), name="it")
    document = world.paths.containers / it.id / "container.json"
    body = json.loads(document.read_bytes())
    extra = {**body["value"]["networks"][0], "network": "db", "interface": "eth1"}
    body["value"]["networks"].append(extra)
    document.write_text(json.dumps(body))
    async with world.server() as containers:
        await trio.sleep(1)
        seen = await containers.get("it")
        assert [attachment.network for attachment in seen.attachments] == [web.id, db.id]
        assert (await world.networks.get("db")).containers == (it.id,)


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
    await containers.stop("it", options_to_stop())
    with pytest.raises(InvalidState, match="does not run"):
        await containers.dial("it", 80)
