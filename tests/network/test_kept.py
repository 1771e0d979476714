"""Attachments that broke off, are taken up, put back, and let go when that can be done."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from container.contracts.network import (
    Attachment,
    AttachmentRequest,
    Network,
    PublishedPort,
)
from container.ipc import (
    PeerGone,
    Unavailable,
    connection_of,
    open_service,
)
from container.network import bridge, service
from container.network.bridge import bridge_name, port_name
from container.network.netlink import Link
from container.network.service import NetworkService
from container.testing.network import NetworkNamespace, network_configuration
from tests.network.conftest import Make, Serve, links, tables, until, wants

# --- broken off, and taken up ---


@asynccontextmanager
async def helper(folder: Path, configuration: Any = None) -> AsyncGenerator[Callable[[], Any]]:
    """Serve by a helper in this process whose connections can break; yields how to connect."""
    os.makedirs(folder, exist_ok=True)
    network = NetworkService(folder, configuration or network_configuration("net"))
    with tempfile.TemporaryDirectory(prefix="ctn-", dir="/tmp") as place:
        async with open_service(network, at=f"{place}/s"):
            yield lambda: Network.connect(f"{place}/s")


async def hold_until_lost(
    connect: Callable[[], Any], request: AttachmentRequest, namespace: NetworkNamespace
) -> Attachment:
    """Attach, and lose the connection."""
    found: list[Attachment] = []
    try:
        async with connect() as network:
            async with network.attach(request, namespace.duplicate()) as attachment:
                found.append(attachment)
                connection_of(network).abort()
                await trio.sleep_forever()
    except* PeerGone:
        pass
    return found[0]


async def test_an_attachment_that_broke_off_stays_as_long_as_its_namespace(
    host: NetworkNamespace, tmp_path: Path
):
    async with helper(tmp_path / "net") as connect:
        with NetworkNamespace() as inside:
            kept = await hold_until_lost(connect, wants(), inside)
            async with connect() as network:
                assert (await network.status()).attachments == (kept,)
                assert links(inside) == {"eth0"}
        async with connect() as network:
            await until(lambda: len(links(host)) == 1)
            with trio.fail_after(20):
                while (await network.status()).attachments:  # noqa: ASYNC110
                    await trio.sleep(0.005)  # the kernel tells the helper, not us
            assert await network.lookup("web") == ()


async def test_the_next_holder_takes_an_attachment_up_as_it_was(
    host: NetworkNamespace, container: Make, tmp_path: Path
):
    inside = container()
    ports = (PublishedPort(80),)
    async with helper(tmp_path / "net") as connect:
        kept = await hold_until_lost(connect, wants(ports=ports), inside)
        index = inside.run("ip", "-o", "link", "show", "eth0").stdout.split(":")[0]
        async with connect() as network:
            async with network.attach(wants(ports=ports), inside.duplicate()) as again:
                assert again == kept
                now = inside.run("ip", "-o", "link", "show", "eth0").stdout.split(":")[0]
                assert now == index, "it was made anew"
            assert links(inside) == set()
            assert (await network.status()).attachments == ()


async def test_who_holds_last_holds_and_an_earlier_leaving_ends_nothing(
    host: NetworkNamespace, container: Make, serve: Serve
):
    inside = container()
    leave, left = trio.Event(), trio.Event()

    async def hold_first(*, task_status: trio.TaskStatus[None]) -> None:
        async with network.attach(wants(), inside.duplicate()):
            task_status.started()
            await leave.wait()
        left.set()

    async with serve() as network, trio.open_nursery() as nursery:
        await nursery.start(hold_first)
        async with network.attach(wants(), inside.duplicate()) as later:
            leave.set()
            await left.wait()
            assert links(inside) == {"eth0"}
            assert (await network.status()).attachments == (later,)
        assert links(inside) == set()


async def test_a_container_that_is_started_anew_does_not_wait_for_its_last_life_s_end(
    host: NetworkNamespace, container: Make, tmp_path: Path
):
    last, anew = container(), container()
    async with helper(tmp_path / "net") as connect:
        kept = await hold_until_lost(connect, wants(), last)
        async with connect() as network:
            async with network.attach(wants(), anew.duplicate()) as attachment:
                assert attachment.addresses == kept.addresses
                assert links(last) == set()
                assert links(anew) == {"eth0"}
            request = wants(addresses=("10.89.0.99",))
            async with network.attach(request, container().duplicate()) as attachment:
                assert attachment.addresses[0] == "10.89.0.99/24"


async def test_an_attachment_survives_its_helper(
    host: NetworkNamespace, container: Make, tmp_path: Path
):
    inside, gone = container(), NetworkNamespace()
    async with helper(tmp_path / "net") as connect:
        kept = await hold_until_lost(connect, wants(), inside)
        with gone:
            await hold_until_lost(connect, wants("gone"), gone)
    assert len(links(host)) >= 2, "what is attached stays when the helper ends"
    await until(lambda: len(links(host)) == 2)
    async with helper(tmp_path / "net") as connect, connect() as network:
        assert (await network.status()).attachments == (kept,)
        assert (await network.status()).problems == ()
        (found,) = await network.lookup("web")
        assert found.addresses == ("10.89.0.2", "fd00:c0de::2")
        async with network.attach(wants(), inside.duplicate()) as again:
            assert again == kept
    assert links(host) == set()
    assert tables(host) == ""


async def test_a_helper_that_lost_its_state_removes_what_nobody_is_attached_by(
    host: NetworkNamespace, container: Make, tmp_path: Path
):
    inside = container()
    async with helper(tmp_path / "net") as connect:
        await hold_until_lost(connect, wants(), inside)
    (tmp_path / "net" / "state.json").write_text('{"records": {"')
    async with helper(tmp_path / "net") as connect, connect() as network:
        assert links(inside) == set()
        assert (await network.status()).attachments == ()
    assert (tmp_path / "net" / "state.torn").exists()


# --- what others do to our interfaces ---


async def test_a_bridge_that_somebody_removes_is_put_back_with_its_ports(
    host: NetworkNamespace, container: Make, serve: Serve
):
    inside = container()
    name = bridge_name(network_configuration("net").id)
    async with serve() as network, network.attach(wants(), inside.duplicate()):
        host.run("ip", "link", "delete", name)
        await until(lambda: f"master {name}" in host.run("ip", "link").stdout)
        shown = host.run("ip", "address", "show", name).stdout
        assert "10.89.0.1/24" in shown
        assert "fd00:c0de::1/64" in shown
        await trio.sleep(0.05)
        assert (await network.status()).problems == ()


async def test_a_port_that_somebody_takes_off_the_bridge_is_put_back(
    host: NetworkNamespace, container: Make, serve: Serve
):
    identity = network_configuration("net").id
    port = port_name(identity, wants().key)
    async with serve() as network, network.attach(wants(), container().duplicate()):
        host.run("ip", "link", "set", port, "nomaster")
        await until(
            lambda: f"master {bridge_name(identity)}" in host.run("ip", "link", "show", port).stdout
        )


async def test_an_interface_that_somebody_removes_is_put_back_while_it_is_held(
    host: NetworkNamespace, container: Make, serve: Serve
):
    inside = container()
    async with serve() as network:
        async with network.attach(wants(), inside.duplicate()) as attachment:
            inside.run("ip", "link", "delete", "eth0")
            await until(lambda: links(inside) == {"eth0"})
            await until(
                lambda: "fd00:c0de::2/64" in inside.run("ip", "address", "show", "eth0").stdout
            )
            shown = inside.run("ip", "address", "show", "eth0").stdout
            assert attachment.mac in shown
            assert attachment.addresses[0] in shown
        assert links(inside) == set()
        assert len(links(host)) == 1


async def test_an_interface_that_is_removed_before_the_helper_knows_it_is_put_back(
    host: NetworkNamespace, container: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch
):
    inside = container()
    original, removed = bridge.Bridge.plug, list[Link]()

    def plug_and_remove(self: bridge.Bridge, plug: bridge.Plug, namespace: int) -> Link:
        link = original(self, plug, namespace)
        if not removed:
            removed.append(link)
            inside.run("ip", "link", "delete", "eth0")
            time.sleep(0.1)  # the helper's loop hears of it before it hears of us
        return link

    monkeypatch.setattr(bridge.Bridge, "plug", plug_and_remove)
    async with serve() as network, network.attach(wants(), inside.duplicate()):
        await until(lambda: links(inside) == {"eth0"})
        assert removed


async def test_an_interface_that_is_removed_again_and_again_is_told_of(
    host: NetworkNamespace, container: Make, serve: Serve
):
    inside = container()
    async with serve() as network:
        async with network.attach(wants(), inside.duplicate()):
            for _ in range(service.HEALINGS):
                await until(lambda: links(inside) == {"eth0"})
                inside.run("ip", "link", "delete", "eth0")
            await until(lambda: links(inside) == {"eth0"})
            inside.run("ip", "link", "delete", "eth0")
            with trio.fail_after(20):
                while not (await network.status()).problems:  # noqa: ASYNC110
                    await trio.sleep(0.005)  # the kernel tells the helper, not us
            assert "again and again" in (await network.status()).problems[0]
            assert links(inside) == set()
        assert (await network.status()).problems == ()


async def test_what_can_not_be_taken_away_now_is_taken_away_later(
    host: NetworkNamespace, container: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch
):
    real, failures = bridge.Bridge.unplug, [Unavailable("no descriptor is left")] * 2

    def refused_twice(self: bridge.Bridge, key: str) -> None:
        if failures:
            raise failures.pop()
        real(self, key)

    monkeypatch.setattr(bridge.Bridge, "unplug", refused_twice)
    monkeypatch.setattr(service, "RETRY_SECONDS", (0.01, 0.02))
    inside = container()
    async with serve() as network:
        async with network.attach(wants(), inside.duplicate()):
            pass
        (kept,) = (await network.status()).attachments
        assert kept.key == wants().key
        assert "no descriptor" in (await network.status()).problems[0]
        await until(lambda: links(inside) == set())
        with trio.fail_after(20):
            while (await network.status()).attachments:  # noqa: ASYNC110
                await trio.sleep(0.005)  # no event tells a test of it
        assert (await network.status()).problems == ()
