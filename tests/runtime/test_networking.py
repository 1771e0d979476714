"""A container and its networks, whose helpers allocate and touch no kernel."""

from __future__ import annotations

import os

import pytest
import trio
from attrs import evolve

from container.contracts.network import AttachmentRequest, PublishedPort
from container.contracts.runtime import (
    NameOptions,
    ProcessSpec,
    SandboxNetwork,
    SandboxPhase,
    SandboxSpec,
    Stdio,
    StopOptions,
)
from container.ipc import (
    Backoff,
    Fd,
    InvalidArgument,
    NotFound,
    Overloaded,
    Unavailable,
)
from container.runtime import sessions
from container.runtime.networking import arranged
from container.runtime.records import Records

from .attached import ID, Place
from .networks import Helper

pytestmark = pytest.mark.usefixtures("bounded")


# --- the whole life of an attachment ---


async def test_a_container_is_in_its_networks_from_bootstrap_to_its_end(
    place: Place, web: Helper, db: Helper
) -> None:
    async with place.helper() as service:
        ports = (PublishedPort(80),)
        wanted = place.spec(web.wanted(ID, ports=ports), db.wanted(ID, "eth1"))
        await service.bootstrap(wanted, Stdio())
        first, second = (await service.state()).networks
        assert (first, second) == (web.network.attachments[ID], db.network.attachments[ID])
        assert first.ports[0].host_port
        assert (first.interface, second.interface) == ("eth0", "eth1")
        requests = (web.network.requests[0], db.network.requests[0])
        assert [request.default_route for request in requests] == [True, False]
        assert requests[0].neighbours == (second.network,)
        assert requests[1].neighbours == (first.network,)
        await service.start("init")
        await service.stop(StopOptions(timeout=0))
        while (await service.state()).networks:  # noqa: ASYNC110
            await trio.sleep(0.002)
        assert web.attached == db.attached == set()


async def test_a_container_that_is_shut_down_or_whose_helper_ends_leaves_its_networks(
    place: Place, web: Helper
) -> None:
    async with place.running(web.wanted(ID)) as service:
        await service.shutdown()
        assert web.attached == set()
    async with place.running(web.wanted(ID)):
        assert web.attached == {ID}
    assert web.attached == set()


async def test_one_network_that_refuses_lets_all_be_left(
    place: Place, web: Helper, db: Helper
) -> None:
    db.network.fail = Overloaded("no address is left")
    async with place.helper() as service:
        with pytest.raises(Overloaded, match="no address is left"):
            await service.bootstrap(place.spec(web.wanted(ID), db.wanted(ID, "eth1")), Stdio())
        assert web.attached == set()
        assert (await service.state()).phase is SandboxPhase.EMPTY
        assert not (place.folder / "bundle" / "records").exists()
        db.network.fail = None
        await service.bootstrap(place.spec(web.wanted(ID), db.wanted(ID, "eth1")), Stdio())
        assert db.attached == {ID}


async def test_a_command_that_is_not_there_lets_the_networks_be_left(
    place: Place, web: Helper
) -> None:
    async with place.helper() as service:
        spec = place.spec(web.wanted(ID))
        with pytest.raises(NotFound):
            await service.bootstrap(_command(spec, "nothing"), Stdio())
        assert web.attached == set()


def _command(spec: SandboxSpec, *arguments: str) -> SandboxSpec:
    return evolve(spec, process=ProcessSpec(arguments=arguments))


async def test_a_network_that_nobody_serves_is_named(place: Place, web: Helper) -> None:
    await web.kill()
    async with place.helper() as service:
        with pytest.raises(Unavailable, match="network web can't be reached"):
            await service.bootstrap(place.spec(web.wanted(ID)), Stdio())


async def test_a_network_that_does_not_answer_is_given_up(
    place: Place, web: Helper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "ATTACH_SECONDS", 0.1)
    web.network.stuck = True
    async with place.helper() as service:
        with pytest.raises(Unavailable, match="attaches nothing within"):
            await service.bootstrap(place.spec(web.wanted(ID)), Stdio())
        assert (await service.state()).phase is SandboxPhase.EMPTY


@pytest.mark.parametrize(
    ("mode", "networks", "namespace"),
    [
        ("networks", 0, False),
        ("none", 1, False),
        ("host", 1, False),
        ("shared", 0, False),
        ("none", 0, True),
        ("networks", 1, True),
    ],
)
async def test_what_does_not_go_together_is_refused(
    place: Place, web: Helper, mode: str, networks: int, namespace: bool
) -> None:
    spec = place.spec(*(web.wanted(ID),) * networks, network=mode)
    async with place.helper() as service:
        given = place.namespaces.make() if namespace else None
        with pytest.raises(InvalidArgument):
            await service.bootstrap(spec, Stdio(), given)
        if given is not None:
            given.close()
    assert web.attached == set()


# --- helpers that are killed ---


async def test_an_attachment_is_taken_up_again_after_its_networks_helper_was_killed(
    place: Place, web: Helper
) -> None:
    async with place.running(web.wanted(ID)) as service:
        before = (await service.state()).networks
        for _ in range(3):
            await web.kill()
            assert web.attached == {ID}  # broken off, not left
            assert (await service.state()).networks == before
            granted = len(web.network.requests)
            await web.start()
            while len(web.network.requests) == granted:  # noqa: ASYNC110
                await trio.sleep(0.002)
        assert (await service.state()).networks == before
    assert web.attached == set()


async def test_a_new_launcher_has_attachments_taken_up_at_once(
    place: Place, web: Helper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "BACKOFF", Backoff(first=1000.0, longest=1000.0))
    async with place.running(web.wanted(ID)) as service:
        await web.kill()
        await web.start()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(web.network.requests) == 1
        service.launcher_came()
        while len(web.network.requests) == 1:  # noqa: ASYNC110
            await trio.sleep(0.002)


async def test_addresses_that_have_changed_meanwhile_are_told(place: Place, web: Helper) -> None:
    async with place.running(web.wanted(ID)) as service:
        before = (await service.state()).networks
        inode = os.stat(place.folder / "bundle" / "run" / "hosts").st_ino
        await web.kill()
        web.network.namespace_gone(ID)
        web.network._leases.grant("another", ("10.1.0.2",))  # pyright: ignore[reportPrivateUsage]
        await web.start()
        while "10.1.0.3\thost tested\n" not in place.etc("hosts"):  # noqa: ASYNC110
            await trio.sleep(0.002)
        assert "10.1.0.2" not in place.etc("hosts")
        assert os.stat(place.folder / "bundle" / "run" / "hosts").st_ino == inode
        assert (await service.state()).networks != before
        assert place.record.attachments == (await service.state()).networks


async def test_a_container_ends_at_once_while_its_networks_helper_is_gone(
    place: Place, web: Helper
) -> None:
    async with place.running(web.wanted(ID)) as service:
        await web.kill()
        with trio.fail_after(2):
            await service.shutdown()


async def test_the_next_runtime_helper_takes_the_attachments_up(
    place: Place, web: Helper, db: Helper
) -> None:
    async with place.helper(killed=True) as service:
        networks = (web.wanted(ID), db.wanted(ID, "eth1"))
        await service.bootstrap(place.spec(*networks), Stdio())
        await service.start("init")
        before = (await service.state()).networks
    assert web.attached == db.attached == {ID}
    await db.kill()
    async with place.helper() as service:
        # Known at once, whoever can be reached.
        assert (await service.state()).networks == before
        await db.start()
        while len(db.network.requests) < 2:  # noqa: ASYNC110
            await trio.sleep(0.002)
        await service.shutdown()
        assert web.attached == db.attached == set()


# --- sharing ---


async def test_a_namespace_that_others_use_keeps_its_attachments(place: Place, web: Helper) -> None:
    async with place.running(web.wanted(ID)) as service:
        (await service.network_namespace()).close()
        assert place.record.shared
        place.namespaces.in_use = True
        await service.shutdown()
        await trio.testing.wait_all_tasks_blocked()
        assert web.attached == {ID}
    async with place.running(web.wanted(ID)) as service:
        (await service.network_namespace()).close()
        place.namespaces.in_use = False
        await service.shutdown()
        assert web.attached == set()


async def test_a_shared_namespace_is_the_one_that_was_given(place: Place) -> None:
    async with place.helper() as service:
        with place.namespaces.make() as given:
            await service.bootstrap(place.spec(network="shared"), Stdio(), given)
        handed = await service.network_namespace()
        with handed:
            assert isinstance(handed, Fd)
            assert os.path.samestat(os.stat("/dev/null"), os.fstat(handed.fileno()))


# --- names ---


async def test_the_files_of_names_tell_of_the_networks_when_the_container_is_there(
    place: Place, web: Helper
) -> None:
    names = NameOptions(hosts=("up:host-gateway", "one:1.2.3.4"), search=("example",))
    async with place.running(web.wanted(ID), names=names):
        assert place.etc("hosts") == (
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n1.2.3.4\tone\n"
            "10.1.0.1\tup\nfd00:1::1\tup\n10.1.0.2\thost tested\nfd00:1::2\thost tested\n"
            "10.1.0.1\thost.container.internal\nfd00:1::1\thost.container.internal\n"
        )
        resolver = place.etc("resolv.conf").splitlines()
        assert resolver[1:4] == ["nameserver 10.1.0.1", "nameserver fd00:1::1", "search example"]
        assert place.etc("hostname") == "host\n"


async def test_names_and_the_host_are_those_of_the_network_that_leads_out(
    place: Place, web: Helper, db: Helper
) -> None:
    """An internal network that is named first knows no names of the world."""
    networks = (web.wanted(ID, default_route=False), db.wanted(ID, "eth1"))
    async with place.running(*networks) as service:
        assert [each.network_name for each in (await service.state()).networks] == ["web", "db"]
        assert place.etc("resolv.conf").splitlines()[1] == "nameserver 10.2.0.1"
        assert "10.2.0.1\thost.container.internal\n" in place.etc("hosts")


async def test_one_network_leads_out_and_all_know_each_other() -> None:
    def wanted(name: str, out: bool, able: bool = True) -> SandboxNetwork:
        request = AttachmentRequest(ID, name, "tested", default_route=out)
        return SandboxNetwork(name, name, "", request, able)

    def out(*networks: SandboxNetwork) -> list[bool]:
        return [network.request.default_route for network in arranged(networks)]

    assert out() == []
    assert out(wanted("a", False), wanted("b", False)) == [True, False]
    assert out(wanted("a", False), wanted("b", True), wanted("c", True)) == [False, True, False]
    # An internal network is no way out, even if it is the only one.
    assert out(wanted("a", True, False)) == [False]
    assert out(wanted("a", True, False), wanted("b", False)) == [False, True]
    known = arranged((wanted("a", True), wanted("b", False)))
    assert [network.request.neighbours for network in known] == [("b",), ("a",)]


async def test_a_disk_that_is_full_keeps_no_run_from_being_taken_up(
    place: Place, web: Helper, db: Helper, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.helper(killed=True) as service:
        await service.bootstrap(place.spec(web.wanted(ID)), Stdio())
        await service.start("init")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Records, "write_networks", full)
    async with place.helper() as service:
        assert (await service.state()).phase is SandboxPhase.RUNNING
        while len(web.network.requests) == 1:  # noqa: ASYNC110
            await trio.sleep(0.002)
        with pytest.raises(Unavailable, match="No space left"):
            await service.join_network(db.wanted(ID, "eth1"))
        assert db.attached == set()
        await service.shutdown()
    assert web.attached == set()
