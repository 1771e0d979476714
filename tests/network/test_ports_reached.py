"""From where a published port is reached, and whom the container sees."""

from __future__ import annotations

import socket

import pytest
import trio

from container.contracts.network import Protocol, PublishedPort
from container.network.ports import open_published_ports
from container.testing.network import NetworkNamespace
from tests.network.neighbourhood import (
    HOST4,
    HOST6,
    OUTSIDE4,
    OUTSIDE6,
    ask,
    neighbourhood,
    telling,
)

HOST = {4: HOST4, 6: HOST6}
OUTSIDE = {4: OUTSIDE4, 6: OUTSIDE6}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
BOTH = pytest.mark.parametrize("protocol", list(Protocol))


@pytest.mark.parametrize("family", [4, 6])
@BOTH
async def test_a_published_port_is_reached_from_everywhere(
    host: NetworkNamespace, protocol: Protocol, family: int
) -> None:
    with neighbourhood(host) as around:
        lan, other = await around.lan(1), await around.lan(2)
        web, beside, elsewhere = lan.container(), lan.container(), other.container()
        gateway = next(each for each in lan.gateways if (":" in each) == (family == 6))
        async with (
            telling(web, 80),
            lan.publishing(web, PublishedPort(80, 8080, protocol=protocol)),
        ):
            seen = {
                "outside": await ask(around.outside, HOST[family], 8080, protocol),
                "the host by its address": await ask(host, HOST[family], 8080, protocol),
                "the host by loopback": await ask(host, LOOPBACK[family], 8080, protocol),
                "the host by the gateway": await ask(host, gateway, 8080, protocol),
                "the same network": await ask(beside, HOST[family], 8080, protocol),
                "the same network, at the gateway": await ask(beside, gateway, 8080, protocol),
                "itself": await ask(web, HOST[family], 8080, protocol),
                "another network": await ask(elsewhere, HOST[family], 8080, protocol),
            }
    assert seen == {
        "outside": OUTSIDE[family],
        "the host by its address": HOST[family],
        "the host by loopback": gateway,
        "the host by the gateway": gateway,
        "the same network": gateway,
        "the same network, at the gateway": gateway,
        "itself": gateway,
        "another network": elsewhere.address(family),
    }


@BOTH
async def test_a_link_local_address_of_the_host_is_relayed(
    host: NetworkNamespace, protocol: Protocol
) -> None:
    with neighbourhood(host) as around:
        lan = await around.lan()
        web = lan.container()
        for place, address in ((host, "fe80::1"), (around.outside, "fe80::9")):
            place.run("ip", "address", "add", f"{address}/64", "dev", "eth0", "nodad")
        async with (
            telling(web, 80),
            lan.publishing(web, PublishedPort(80, 8080, protocol=protocol)),
        ):
            for place in (around.outside, host):
                seen = await ask(place, "fe80::1%eth0", 8080, protocol)
                assert seen == "fd00:1::1"


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.9", "::1", HOST4, HOST6])
async def test_a_port_of_one_address_is_found_at_no_other(
    host: NetworkNamespace, address: str
) -> None:
    others = {"127.0.0.1", "127.0.0.9", "::1", HOST4, HOST6} - {address}
    with neighbourhood(host) as around:
        lan = await around.lan()
        web = lan.container()
        async with (
            telling(web, 80),
            lan.publishing(web, PublishedPort(80, 8080, host_address=address)),
        ):
            assert await ask(host, address, 8080) is not None
            if address in (HOST4, HOST6):
                assert await ask(around.outside, address, 8080) is not None
            for other in others:
                assert await ask(host, other, 8080) is None


@pytest.mark.parametrize("relayed", [False, True])
async def test_when_a_helper_ends_only_what_it_relays_is_cut_off(
    host: NetworkNamespace, relayed: bool
) -> None:
    with neighbourhood(host) as around:
        lan = await around.lan()
        web = lan.container()
        with (
            web.namespace.socket() as service,
            host.socket(socket.AF_INET6 if relayed else socket.AF_INET) as client,
        ):
            service.bind(("0.0.0.0", 80))
            service.listen()
            client.settimeout(5)
            service.settimeout(5)
            async with open_published_ports(lan.firewall) as published:
                await published.publish("k", "web", web.addresses, (PublishedPort(80, 8080),))
                address = ("::1" if relayed else "127.0.0.1", 8080)
                await trio.to_thread.run_sync(client.connect, address)
                inside, _ = await trio.to_thread.run_sync(service.accept)
            with inside:
                inside.settimeout(5)
                if relayed:
                    with pytest.raises(ConnectionResetError):
                        client.recv(1)
                else:
                    client.sendall(b"x")
                    assert inside.recv(1) == b"x"


async def test_a_port_that_is_withdrawn_is_free_and_leads_nowhere(host: NetworkNamespace) -> None:
    with neighbourhood(host) as around:
        lan = await around.lan()
        web = lan.container()
        async with telling(web, 80), open_published_ports(lan.firewall) as published:
            for _ in range(3):
                await published.publish("k", "web", web.addresses, (PublishedPort(80, 8080),))
                for address in ("127.0.0.1", "::1", HOST4, HOST6):
                    assert await ask(host, address, 8080) is not None
                await published.withdraw("k")
                for address in ("127.0.0.1", "::1", HOST4, HOST6):
                    assert await ask(host, address, 8080) is None
