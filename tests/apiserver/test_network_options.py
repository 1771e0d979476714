"""What a container wants of networks is checked by its rule and made into what is asked for."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from container.apiserver.configuration import make_container
from container.apiserver.network_options import (
    check_network_options,
    check_use,
    exposed,
    network_mode,
    sandbox_networks,
    with_interfaces,
)
from container.contracts.apiserver import ContainerOptions, NetworkUse
from container.contracts.network import NetworkConfiguration, Protocol, PublishedPort
from container.contracts.runtime import NameOptions
from container.ipc import InvalidArgument

WHEN = datetime(2026, 1, 1, tzinfo=UTC)
WEB, DB = NetworkUse("web"), NetworkUse("db")


def network(name: str, **fields: Any) -> NetworkConfiguration:
    fields.setdefault("subnets", ("10.9.0.0/24", "fd00:9::/64"))
    fields.setdefault("gateways", ("10.9.0.1", "fd00:9::1"))
    return NetworkConfiguration(f"{name:0<12}", name, "container-network", WHEN, **fields)


def port(inside: int, outside: int = 0, **fields: Any) -> PublishedPort:
    return PublishedPort(inside, outside, **fields)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"network": "web"}, "'web' is no way to have a network"),
        ({"network": "container:"}, "names no container"),
        ({"network": "none", "networks": (WEB,)}, "goes with no other: 'web'"),
        ({"network": "host", "ports": (port(80),)}, "the network host no port can be published"),
        ({"network": "none", "publish_all": True}, "the network none no port can be published"),
        ({"network": "container:x", "ports": (port(80),)}, "the other container publishes"),
        ({"network": "container:x", "names": NameOptions(("1.1.1.1",))}, "as the other container"),
        ({"networks": (WEB, DB, WEB)}, "'web' is given twice"),
        ({"networks": (NetworkUse(""),)}, "has no name"),
        ({"networks": (NetworkUse("web", interface="a/b"),)}, "can't be an interface"),
        ({"networks": (NetworkUse("web", interface="lo"),)}, "can't be an interface"),
        ({"networks": (NetworkUse("web", interface="x" * 16),)}, "at most 15"),
        (
            {"networks": (NetworkUse("web", interface="a"), NetworkUse("db", interface="a"))},
            "two networks have the interface 'a'",
        ),
        ({"networks": (NetworkUse("web", ("10.9.0.300",)),)}, "is no address"),
        ({"networks": (NetworkUse("web", ("10.9.0.2", "10.9.0.3")),)}, "two addresses of IPv4"),
        ({"networks": (NetworkUse("web", mac="02:00"),)}, "is no MAC address"),
        ({"networks": (NetworkUse("web", mac="01:00:00:00:00:01"),)}, "even byte"),
        ({"networks": (NetworkUse("web", mac="00:00:00:00:00:00"),)}, "even byte"),
        ({"networks": (NetworkUse("web", mtu=67),)}, "an MTU of 67 is out of range"),
        ({"networks": (NetworkUse("web", mtu=65536),)}, "out of range"),
        ({"networks": (NetworkUse("web", aliases=("a b",)),)}, "'a b' can't be an alias"),
        ({"networks": (NetworkUse("web", aliases=("a" * 64,)),)}, "at most 63 in a row"),
        ({"networks": tuple(NetworkUse(f"n{it}") for it in range(65))}, "65 networks are too many"),
        ({"ports": (port(0),)}, "0 can't be a port of the container"),
        ({"ports": (port(65536),)}, "65536 can't be a port of the container"),
        ({"ports": (port(80, -1),)}, "-1 can't be a port of the host"),
        ({"ports": (port(80, 65536),)}, "65536 can't be a port of the host"),
        ({"ports": (port(80, 65530, count=9),)}, "65538 can't be a port of the host"),
        ({"ports": (port(65530, 80, count=9),)}, "65538 can't be a port of the container"),
        ({"ports": (port(80, count=0),)}, "a row of 0 ports"),
        ({"ports": (port(1, count=16_385),)}, "more than 16384 ports"),
        ({"ports": (port(80, host_address="here"),)}, "is no address of the host"),
        ({"ports": (port(80, 8080), port(81, 8080))}, "host's port 8080/tcp is published twice"),
        ({"ports": (port(80, 8080, count=5), port(9, 8083))}, "8083/tcp is published twice"),
        (
            {"ports": (port(80, 8080), port(81, 8080, host_address="127.0.0.1"))},
            "8080/tcp is published twice",
        ),
        (
            {
                "ports": (
                    port(80, 8080, host_address="::"),
                    port(81, 8080, host_address="::1"),
                )
            },
            "8080/tcp is published twice",
        ),
        ({"names": NameOptions(servers=("dns",))}, "is no address of a DNS server"),
        ({"names": NameOptions(search=("a..b",))}, "can't be a search domain"),
        ({"names": NameOptions(options=("a b",))}, "is no DNS option"),
        ({"names": NameOptions(options=("",))}, "is no DNS option"),
        ({"names": NameOptions(hosts=("db",))}, "'db' is no host"),
        ({"names": NameOptions(hosts=("db:here",))}, "is no address of the host db"),
        ({"names": NameOptions(hosts=(":1.2.3.4",))}, "can't be a host's name"),
        ({"names": NameOptions(hosts=("db:1.2.3.4",), keep_hosts=True)}, "left as it is"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused_by_their_rule(
    fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidArgument, match=sentence):
        check_network_options(ContainerOptions("demo", **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"network": "host"},
        {"network": "container:web"},
        {"networks": (NetworkUse("web", ("10.9.0.2", "fd00:9::2"), interface="web0"), DB)},
        {"ports": (port(80, 8080), port(80, 8080, protocol=Protocol.UDP))},
        {"ports": (port(80), port(81))},
        {
            "ports": (
                port(80, 8080, host_address="127.0.0.1"),
                port(81, 8080, host_address="127.0.0.2"),
                port(82, 8080, host_address="::1"),
            )
        },
        {"names": NameOptions(("::1",), (".", "a.b"), ("ndots:2",), ("h:host-gateway", "g:::1"))},
    ],
)
def test_options_that_make_sense_are_taken(fields: dict[str, Any]) -> None:
    check_network_options(ContainerOptions("demo", **fields))


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        (NetworkUse("web", ("10.8.0.2",)), "is not in the range of the network web: 10.9.0.0/24"),
        (NetworkUse("web", ("10.9.0.1",)), "is the gateway of the network web"),
        (NetworkUse("web", ("10.9.0.0",)), "the address of the range"),
        (NetworkUse("web", ("10.9.0.255",)), "is the broadcast address"),
        (NetworkUse("web", mtu=1000), "IPv6 needs 1280"),
    ],
)
def test_a_use_that_does_not_fit_its_network_is_refused(use: NetworkUse, sentence: str) -> None:
    with pytest.raises(InvalidArgument, match=sentence):
        check_use(use, network("web"))


def test_an_alias_in_a_network_without_names_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="knows no names: 'db' can't be one"):
        check_use(NetworkUse("web", aliases=("db",)), network("web", names=False))
    check_use(NetworkUse("web", mtu=1000), network("web", subnets=("10.9.0.0/24",)))


def test_interfaces_are_numbered_around_those_that_are_named() -> None:
    uses = with_interfaces((WEB, NetworkUse("db", interface="eth0"), NetworkUse("x")))
    assert [use.interface for use in uses] == ["eth1", "eth0", "eth2"]


def test_exposed_ports_are_published_where_the_user_has_not() -> None:
    ports = (port(80, 8080), port(90, 9090, count=3))
    found = exposed(("80/tcp", "80/udp", "443", "91-94/tcp", "x", "7/sctp", "443/tcp"), ports)
    assert found == (port(80, protocol=Protocol.UDP), port(443), port(93), port(94))
    assert exposed(("0", "65535-70000"), ()) == (port(65535),)


def made(image: Any, **fields: Any) -> Any:
    options = ContainerOptions("demo", command=("true",), **fields)
    return make_container(
        options, image(exposed_ports=("80/tcp",)), container_id="c" * 12, name="it", created_at=WHEN
    )


def test_a_container_keeps_what_was_asked_for(image: Any) -> None:
    names = NameOptions(("1.1.1.1",))
    container = made(image, networks=(WEB,), ports=(port(1, 2),), publish_all=True, names=names)
    assert container.networks == (WEB,)
    assert container.ports == (port(1, 2), port(80))
    assert container.names == names
    assert made(image, networks=(WEB,)).ports == ()


def test_the_mode_says_where_the_namespace_comes_from(image: Any) -> None:
    modes = [
        network_mode(made(image, **fields))
        for fields in (
            {"networks": (WEB,)}, {"network": "none"}, {"network": "host"},
            {"network": "container:x"}, {},
        )
    ]  # fmt: skip
    assert modes == ["networks", "none", "host", "shared", "none"]


def test_the_first_network_with_a_way_out_is_the_way_out_and_the_way_in(image: Any) -> None:
    uses = with_interfaces(
        (
            NetworkUse("db", aliases=("store",)),
            NetworkUse("web", ("10.9.0.7",), mtu=1300),
            NetworkUse("dc"),
        )
    )
    configurations = [network("db", internal=True), network("web"), network("dc", mtu=1400)]
    names = NameOptions(("1.1.1.1",), ("example.com",))
    container = made(image, networks=uses, ports=(port(80, 8080),), names=names, hostname="h")
    inner, outer, last = sandbox_networks(container, configurations, lambda it: f"/run/{it}")
    assert (inner.name, inner.socket) == ("db", f"/run/{inner.id}")
    assert [it.request.default_route for it in (inner, outer, last)] == [False, True, False]
    assert [it.request.ports for it in (inner, outer, last)] == [(), (port(80, 8080),), ()]
    assert [it.request.mtu for it in (inner, outer, last)] == [None, 1300, 1400]
    request = outer.request
    assert (request.key, request.name, request.hostname) == ("c" * 12, "it", "h")
    assert (request.addresses, request.interface) == (("10.9.0.7",), "eth1")
    assert (request.nameservers, request.search) == (("1.1.1.1",), ("example.com",))
    assert request.neighbours == (inner.id, last.id)
    assert inner.request.aliases == ("store",)


def test_with_internal_networks_alone_the_first_gets_the_ports(image: Any) -> None:
    container = made(image, networks=with_interfaces((WEB, DB)), ports=(port(80, 8080),))
    configurations = [network("web", internal=True), network("db", internal=True)]
    first, second = sandbox_networks(container, configurations, str)
    assert (first.request.ports, second.request.ports) == ((port(80, 8080),), ())
    assert not first.request.default_route
