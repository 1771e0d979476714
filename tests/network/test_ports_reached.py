"""From where a published port is reached, and whom the container sees."""

from __future__ import annotations

import pytest

from container.contracts.network import Protocol, PublishedPort
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
