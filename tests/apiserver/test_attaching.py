"""Containers are in the networks that their documents say, whoever is killed meanwhile."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing

from container.apiserver.containers import ContainersService
from container.contracts.apiserver import (
    Container,
    ContainerOptions,
    ContainerStatus,
    NetworkUse,
    PullPolicy,
)
from container.contracts.network import NetworkConfiguration, PublishedPort
from container.contracts.networks import NetworkOptions
from container.contracts.runtime import SandboxState, StopOptions
from container.ipc import (
    AlreadyExists,
    ContainerError,
    InvalidArgument,
    InvalidState,
    NotFound,
    Overloaded,
    Unsupported,
)
from container.ipc.errors import Hop


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
        await containers.stop(container.id, StopOptions())
        document = world.paths.containers / container.id / "container.json"
        assert json.loads(document.read_bytes())["value"]["attachments"] == []


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
    await containers.stop("it", StopOptions())
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
