"""Real packets through networks that the helper itself has made: its parts together."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import pytest
import trio

from container.contracts.network import Network, Protocol, PublishedPort
from container.ipc import Backoff, PeerGone, connection_of, open_service
from container.network import nft, service
from container.network.service import NetworkService
from container.testing.network import NetworkNamespace, network_configuration
from tests.network.conftest import Serve, wants
from tests.network.neighbourhood import (
    HOST4,
    HOST6,
    NO_ANSWER,
    OUTSIDE4,
    OUTSIDE6,
    ask,
    neighbourhood,
    telling,
)

Make = Callable[[], NetworkNamespace]
OTHER: dict[str, Any] = {"subnets": ("10.90.0.0/24",), "gateways": ("10.90.0.1",)}


async def resolve(
    origin: NetworkNamespace, name: str, kind: str = "A", server: str = "10.89.0.1"
) -> list[str]:
    """Return what a container is told at its nameserver."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    plain = origin.socket(family, socket.SOCK_DGRAM)
    plain.setblocking(False)
    query = dns.message.make_query(name, kind)
    with trio.socket.from_stdlib_socket(plain) as client, trio.fail_after(5):
        await client.connect((server, 53))
        await client.send(query.to_wire())
        answer = dns.message.from_wire(await client.recv(4096))
    if answer.rcode() != dns.rcode.NOERROR:
        return [dns.rcode.to_text(answer.rcode())]
    return sorted(str(item) for rows in answer.answer for item in rows)


@pytest.mark.parametrize("protocol", list(Protocol))
async def test_containers_of_one_network_reach_each_other(
    host: NetworkNamespace, container: Make, serve: Serve, protocol: Protocol
):
    one, two = container(), container()
    async with serve() as network, telling(two, 80):
        async with network.attach(wants("one"), one.duplicate()) as first:
            async with network.attach(wants("two"), two.duplicate()) as second:
                for mine, other in zip(first.addresses, second.addresses, strict=True):
                    address = other.partition("/")[0]
                    assert await ask(one, address, 80, protocol) == mine.partition("/")[0]


@pytest.mark.parametrize("protocol", list(Protocol))
async def test_a_container_reaches_the_world_and_the_world_a_published_port(
    host: NetworkNamespace, container: Make, serve: Serve, protocol: Protocol
):
    inside = container()
    with neighbourhood(host) as around:
        async with serve() as network, telling(around.outside, 80), telling(inside, 80):
            request = wants(ports=(PublishedPort(80, 8080, protocol=protocol),))
            async with network.attach(request, inside.duplicate()):
                assert await ask(inside, OUTSIDE4, 80, protocol) == HOST4
                assert await ask(inside, OUTSIDE6, 80, protocol) == HOST6
                assert await ask(around.outside, HOST4, 8080, protocol) == OUTSIDE4
                assert await ask(around.outside, HOST6, 8080, protocol) == OUTSIDE6
                assert await ask(host, "127.0.0.1", 8080, protocol) is not None
                assert await ask(host, "::1", 8080, protocol) is not None
            assert await ask(around.outside, HOST4, 8080, protocol, patience=NO_ANSWER) is None


async def test_containers_of_two_networks_do_not_reach_each_other(
    host: NetworkNamespace, container: Make, serve: Serve
):
    one, two = container(), container()
    async with serve("a") as left, serve("b", **OTHER) as right, telling(two, 80):
        async with left.attach(wants("one"), one.duplicate()):
            async with right.attach(wants("two"), two.duplicate()):
                assert await ask(host, "10.90.0.2", 80) is not None
                assert await ask(one, "10.90.0.2", 80, patience=NO_ANSWER) is None


async def test_a_container_of_two_networks_reaches_both(
    host: NetworkNamespace, container: Make, serve: Serve
):
    one, left, right = container(), container(), container()
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(serve("a"))
        second = await stack.enter_async_context(serve("b", **OTHER))
        for network, place, request in (
            (first, one, wants("one")),
            (second, one, wants("one", interface="eth1", default_route=False)),
            (first, left, wants("left")),
            (second, right, wants("right")),
        ):
            await stack.enter_async_context(network.attach(request, place.duplicate()))
        async with telling(left, 80), telling(right, 80):
            assert await ask(one, "10.89.0.3", 80) == "10.89.0.2"
            assert await ask(one, "10.90.0.3", 80) == "10.90.0.2"


async def test_an_internal_network_stays_inside(
    host: NetworkNamespace, container: Make, serve: Serve
):
    one, two = container(), container()
    with neighbourhood(host) as around:
        async with serve(internal=True) as network, telling(around.outside, 80), telling(two, 80):
            async with network.attach(wants("one"), one.duplicate()):
                async with network.attach(wants("two"), two.duplicate()):
                    one.run("ip", "route", "add", "default", "via", "10.89.0.1")
                    assert await ask(one, "10.89.0.3", 80) == "10.89.0.2"
                    assert await ask(host, "10.89.0.3", 80) == "10.89.0.1"
                    assert await ask(one, OUTSIDE4, 80, patience=NO_ANSWER) is None


async def test_containers_are_found_by_name_at_their_gateway(
    host: NetworkNamespace, container: Make, serve: Serve
):
    one, two = container(), container()
    async with serve() as network, network.attach(wants("one"), one.duplicate()) as first:
        assert first.nameservers == ("10.89.0.1", "fd00:c0de::1")
        async with network.attach(wants("two", aliases=("db",)), two.duplicate()):
            assert await resolve(one, "two") == ["10.89.0.3"]
            assert await resolve(one, "DB") == ["10.89.0.3"]
            assert await resolve(one, "two", "AAAA") == ["fd00:c0de::3"]
            assert await resolve(one, "two", server="fd00:c0de::1") == ["10.89.0.3"]
            assert await resolve(one, "3.0.89.10.in-addr.arpa", "PTR") == ["two."]
            assert await resolve(one, "host.container.internal") == ["10.89.0.1"]
        assert await resolve(one, "two") != ["10.89.0.3"]


async def test_a_network_without_names_has_no_nameserver(
    host: NetworkNamespace, container: Make, serve: Serve
):
    inside = container()
    async with serve(names=False) as network:
        async with network.attach(wants(), inside.duplicate()) as attachment:
            assert attachment.nameservers == ()


@asynccontextmanager
async def helpers(folder: Path, *names: str) -> AsyncGenerator[dict[str, Network]]:
    """Serve networks that can ask each other."""
    async with AsyncExitStack() as stack:
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
        connected: dict[str, Network] = {}
        for number, name in enumerate(names):
            configuration = network_configuration(
                name, (f"10.{89 + number}.0.0/24",), (f"10.{89 + number}.0.1",)
            )
            place = folder / name
            place.mkdir()
            at = sockets / f"{configuration.id}.sock"
            helper = NetworkService(place, configuration, sockets=sockets)
            await stack.enter_async_context(open_service(helper, at=at))
            connected[name] = await stack.enter_async_context(Network.connect(at))
        yield connected


async def test_names_of_a_container_s_other_networks_are_found_too(
    host: NetworkNamespace, container: Make, tmp_path: Path
):
    one, two = container(), container()
    second = network_configuration("b").id
    async with helpers(tmp_path, "a", "b") as served:
        async with AsyncExitStack() as stack:
            for network, place, request in (
                ("a", one, wants("one", neighbours=(second,))),
                ("b", one, wants("one", interface="eth1", default_route=False)),
                ("b", two, wants("two")),
            ):
                attached = served[network].attach(request, place.duplicate())
                await stack.enter_async_context(attached)
            assert await resolve(one, "two") == ["10.90.0.3"]


async def test_packets_flow_while_the_helper_is_gone_and_after_it_is_back(
    host: NetworkNamespace, container: Make, tmp_path: Path
):
    one, two = container(), container()
    configuration = network_configuration("a")
    request = wants("two", ports=(PublishedPort(80, 8080),))

    async def life(*requests: Any) -> None:
        with tempfile.TemporaryDirectory(dir="/tmp") as place:
            helper = NetworkService(tmp_path, configuration)
            async with open_service(helper, at=f"{place}/s"):
                for each, inside in requests:
                    try:
                        async with Network.connect(f"{place}/s") as network:
                            async with network.attach(each, inside.duplicate()):
                                connection_of(network).abort()
                                await trio.sleep_forever()
                    except* Exception:
                        pass
                await reached()

    async def reached(*, port: bool = True) -> None:
        assert await ask(one, "10.89.0.3", 80) == "10.89.0.2"
        if port:
            assert await ask(around.outside, HOST4, 8080) == OUTSIDE4

    with neighbourhood(host) as around:
        async with telling(two, 80):
            await life((wants("one"), one), (request, two))
            await reached()
            await life()
            await reached()


async def test_ports_lead_on_when_the_rules_could_not_be_written_at_the_start(
    host: NetworkNamespace, container: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    inside = container()
    configuration = network_configuration("a")
    request = wants(ports=(PublishedPort(80, 8080),))
    monkeypatch.setattr(service, "UP_AGAIN", Backoff(0.05, 0.05))

    @asynccontextmanager
    async def serving() -> AsyncGenerator[Network]:
        with tempfile.TemporaryDirectory(dir="/tmp") as place:
            async with open_service(NetworkService(tmp_path, configuration), at=f"{place}/s"):
                async with Network.connect(f"{place}/s") as network:
                    yield network

    with neighbourhood(host) as around:
        async with telling(inside, 80):
            with pytest.RaisesGroup(PeerGone, flatten_subgroups=True, allow_unwrapped=True):
                async with serving() as network:
                    async with network.attach(request, inside.duplicate()):
                        connection_of(network).abort()
                        await trio.sleep_forever()
            host.run("nft", "flush", "ruleset")
            where = nft._where
            monkeypatch.setattr(nft, "_where", lambda name: None)
            async with serving() as network:
                assert "nft" in " ".join((await network.status()).problems)
                monkeypatch.setattr(nft, "_where", where)
                with trio.fail_after(20):
                    while (await network.status()).problems:  # noqa: ASYNC110
                        await trio.sleep(0.02)  # the helper tries again in its own time
                assert await ask(around.outside, HOST4, 8080) == OUTSIDE4
