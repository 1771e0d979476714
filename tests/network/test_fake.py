"""The played network and the real one do the same, as far as a caller can see."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from container.contracts.network import Network, NetworkConfiguration, PublishedPort
from container.ipc import (
    AlreadyExists,
    ContainerError,
    InvalidArgument,
    NotFound,
    Overloaded,
    PeerGone,
    connection_of,
    open_service,
)
from container.network.service import NetworkService
from container.testing.network import (
    FakeNetwork,
    NetworkNamespace,
    network_configuration,
)
from tests.network.conftest import wants

Connect = Callable[[], AbstractAsyncContextManager[Network]]
Make = Callable[[], NetworkNamespace]


@pytest.fixture(params=["real", "fake"])
def open_network(
    request: pytest.FixtureRequest, host: NetworkNamespace, tmp_path: Path
) -> Callable[..., AbstractAsyncContextManager[Connect]]:
    """Serves a network of either kind; yields how to connect."""

    def made(configuration: NetworkConfiguration) -> Network:
        if request.param == "fake":
            return FakeNetwork(configuration)
        return NetworkService(tmp_path, configuration)

    @asynccontextmanager
    async def serving(**fields: Any) -> AsyncGenerator[Connect]:
        with tempfile.TemporaryDirectory(prefix="ctn-", dir="/tmp") as place:
            at = os.path.join(place, "s")
            async with open_service(made(network_configuration("net", **fields)), at=at):
                yield lambda: Network.connect(at)

    return serving


Open = Callable[..., AbstractAsyncContextManager[Connect]]


async def test_an_attachment_is_described_found_and_forgotten(open_network: Open, container: Make):
    request = wants("web", aliases=("www",), ports=(PublishedPort(80, 8080),))
    async with open_network() as connect, connect() as network:
        async with network.attach(request, container().duplicate()) as attachment:
            assert attachment.addresses == ("10.89.0.2/24", "fd00:c0de::2/64")
            assert attachment.mac == "02:42:0a:59:00:02"
            assert attachment.mtu == 1500
            assert attachment.nameservers == attachment.gateways
            assert attachment.ports == request.ports
            assert attachment.names == ("web", "www", request.key)
            assert (await network.status()).attachments == (attachment,)
            (found,) = await network.lookup("WWW")
            assert (found.name, found.addresses) == ("web", ("10.89.0.2", "fd00:c0de::2"))
            (found,) = await network.lookup("10.89.0.2")
            assert found.name == "web"
        assert (await network.status()).attachments == ()
        assert await network.lookup("web") == ()


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"addresses": ("10.89.0.2",)}, AlreadyExists),
        ({"addresses": ("10.88.0.2",)}, InvalidArgument),
        ({"ports": (PublishedPort(80, 8080),)}, AlreadyExists),
        ({"ports": (PublishedPort(80, 70000),)}, InvalidArgument),
        ({"mac": "no"}, InvalidArgument),
        ({"mtu": 9000}, InvalidArgument),
        ({"aliases": ("no no",)}, InvalidArgument),
    ],
)
async def test_what_can_not_be_is_refused(
    open_network: Open, container: Make, fields: dict[str, Any], error: type[ContainerError]
):
    first = wants("first", ports=(PublishedPort(80, 8080),))
    async with open_network() as connect, connect() as network:
        async with network.attach(first, container().duplicate()) as attachment:
            with pytest.raises(error):
                async with network.attach(wants("second", **fields), container().duplicate()):
                    pass
            assert (await network.status()).attachments == (attachment,)


async def test_an_exhausted_range_is_told(open_network: Open, container: Make):
    small: dict[str, Any] = {"subnets": ("10.89.0.0/30",), "gateways": ("10.89.0.1",)}
    async with open_network(**small) as connect, connect() as network:
        async with network.attach(wants("a"), container().duplicate()):
            with pytest.raises(Overloaded):
                async with network.attach(wants("b"), container().duplicate()):
                    pass


async def test_what_broke_off_stays_and_is_taken_up(open_network: Open, container: Make):
    inside = container()
    async with open_network() as connect:
        with pytest.RaisesGroup(PeerGone, flatten_subgroups=True, allow_unwrapped=True):
            async with connect() as network:
                async with network.attach(wants(), inside.duplicate()) as kept:
                    connection_of(network).abort()
                    await trio.sleep_forever()
        async with connect() as network:
            assert (await network.status()).attachments == (kept,)
            async with network.attach(wants(), inside.duplicate()) as again:
                assert again == kept
            assert (await network.status()).attachments == ()


async def test_ports_are_published_anew(open_network: Open, container: Make):
    async with open_network() as connect, connect() as network:
        with pytest.raises(NotFound):
            await network.publish("nobody", ())
        request = wants(ports=(PublishedPort(80, 8080),))
        async with network.attach(request, container().duplicate()):
            changed = await network.publish(request.key, (PublishedPort(81),))
            assert [port.container_port for port in changed.ports] == [81]
            assert changed.ports[0].host_port > 0
            assert (await network.publish(request.key, ())).ports == ()
