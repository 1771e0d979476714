"""Networks of a system in this process: real addresses and documents, no interfaces."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from container.contracts.apiserver import NetworkUse
from container.contracts.network import PublishedPort
from container.contracts.networks import NetworkOptions
from container.ipc import NotFound
from container.testing import system


@pytest.fixture(autouse=True)
def no_other_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONTAINER_NETWORK", raising=False)


async def test_a_container_is_in_the_default_network_unless_it_says_otherwise(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with system() as it:
        await it.add_image()
        async with it.run("demo", ["sleep", "9"]) as c:
            (attachment,) = (await it.containers.get(c.id)).attachments
            assert (attachment.network_name, attachment.interface) == ("default", "eth0")
            assert attachment.addresses[0] == "10.89.0.2/24"
            assert attachment.addresses[1].endswith("::2/64")
        async with it.run("demo", ["sleep", "9"], network="none") as c:
            assert (await it.containers.get(c.id)).attachments == ()
        monkeypatch.setenv("CONTAINER_NETWORK", "none")
        async with it.run("demo", ["sleep", "9"]) as c:
            assert (await it.containers.get(c.id)).network == "none"


async def test_a_container_is_in_the_networks_that_it_names_with_its_ports(
    autojump_clock: Any,
) -> None:
    async with system() as it:
        await it.add_image()
        await it.networks.create(NetworkOptions("web", subnets=("10.9.0.0/24",)))
        await it.networks.create(NetworkOptions("db", internal=True))
        use = NetworkUse("web", ("10.9.0.7",), aliases=("www",))
        async with it.run(
            "demo", ["sleep", "9"], networks=[use, "db"], ports=[PublishedPort(80)], name="c"
        ) as c:
            web, db = (await it.containers.get(c.id)).attachments
            assert (web.addresses, db.network_name) == (("10.9.0.7/24",), "db")
            assert "www" in web.names
            assert web.ports[0].host_port > 0
            info = await it.networks.get("web")
            assert info.containers == (c.id,)
            assert info.status is not None
            assert info.status.attachments == (web,)
        assert (await it.networks.get("web")).status.attachments == ()  # type: ignore[union-attr]
        async with it.run("demo", ["sleep", "9"], network="web", networks=["db"]) as c:
            names = [a.network_name for a in (await it.containers.get(c.id)).attachments]
            assert names == ["web", "db"]
        with pytest.raises(NotFound, match="no network 'wed'"):
            async with it.run("demo", ["sleep", "9"], network="wed"):
                pass


async def test_an_attachment_outlives_the_helper_of_its_network(autojump_clock: Any) -> None:
    async with system() as it:
        await it.add_image()
        async with it.run("demo", ["sleep", "99"]) as c:
            before = (await it.containers.get(c.id)).attachments
            network = (await it.networks.get("default")).configuration
            it.helpers.kill(f"network.{network.id}")
            await trio.sleep(10)
            info = await it.networks.get("default")
            assert info.status is not None
            assert [a.key for a in info.status.attachments] == [c.id]
            assert (await it.containers.get(c.id)).attachments == before


async def test_a_running_container_is_connected_and_disconnected(autojump_clock: Any) -> None:
    async with system() as it:
        await it.add_image()
        await it.networks.create(NetworkOptions("web"))
        async with it.run("demo", ["sleep", "99"]) as c:
            attachment = await it.networks.connect_container(c.id, NetworkUse("web"))
            assert attachment is not None
            assert attachment.interface == "eth1"
            assert len((await it.containers.get(c.id)).attachments) == 2
            await it.networks.disconnect_container(c.id, "default")
            (left,) = (await it.containers.get(c.id)).attachments
            assert left.network_name == "web"
