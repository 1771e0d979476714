"""A network gets a range that nobody else has, and one that can't be had is refused by its rule."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container.apiserver.subnets import (
    POOLS,
    Taken,
    gateways,
    has_ipv6,
    host_routes,
    parse_range,
    ranges,
)
from container.ipc import AlreadyExists, InvalidArgument, Overloaded, Unsupported


def taken(*texts: str, by: str = "the network web's") -> tuple[Taken, ...]:
    return tuple(Taken(ipaddress.ip_network(text), by) for text in texts)


def chosen(*wanted: str, ipv6: bool = False, of: tuple[Taken, ...] = ()) -> tuple[str, ...]:
    return tuple(str(it) for it in ranges(wanted, ipv6=ipv6, taken=of, kernel_ipv6=True))


def test_the_first_free_range_of_the_pool_is_chosen() -> None:
    assert chosen() == ("10.89.0.0/24",)
    assert chosen(of=taken("10.89.0.0/24", "10.89.1.128/25")) == ("10.89.2.0/24",)
    assert chosen(of=taken("10.89.0.0/17")) == ("10.89.128.0/24",)


def test_another_pool_is_taken_where_the_host_routes_all_of_the_first() -> None:
    assert chosen(of=taken("10.0.0.0/8")) == ("172.29.0.0/24",)
    assert chosen(of=taken("10.0.0.0/8", "172.16.0.0/12")) == ("192.168.224.0/24",)


def test_no_range_is_left_when_all_pools_are_taken() -> None:
    with pytest.raises(Overloaded, match="no range is left"):
        chosen(of=taken(*POOLS))


def test_an_ipv6_range_is_a_random_unique_local_one() -> None:
    first, second = chosen(ipv6=True)[1], chosen(ipv6=True)[1]
    for text in (first, second):
        found = ipaddress.ip_network(text)
        assert found.prefixlen == 64
        assert found.subnet_of(ipaddress.IPv6Network("fd00::/8"))
    assert first != second


def test_wanted_ranges_are_had_as_they_are_and_ipv6_is_added_only_where_none_is_wanted() -> None:
    assert chosen("10.9.0.0/24") == ("10.9.0.0/24",)
    assert chosen("fd00:1::/64", "10.9.0.0/24", ipv6=True) == ("fd00:1::/64", "10.9.0.0/24")
    assert len(chosen("10.9.0.0/24", ipv6=True)) == 2
    assert chosen("fd00:1::/64") == ("fd00:1::/64",)


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ("10.9.0.0/23", "the range 10.9.0.0/23 overlaps 10.9.1.0/24, which is the network web's"),
        ("10.9.1.128/25", "overlaps 10.9.1.0/24"),
        ("fd00:1::/64", "overlaps fd00:1::/48"),
    ],
)
def test_a_range_that_overlaps_anothers_is_refused_with_its_owner(
    wanted: str, sentence: str
) -> None:
    with pytest.raises(AlreadyExists, match=sentence):
        chosen(wanted, of=taken("10.9.1.0/24", "fd00:1::/48"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is no range"),
        ("web", "is no range"),
        ("10.9.0.0/33", "is no range"),
        ("10.9.0/24", "is no range"),
        ("10.9.0.0/-1", "is no range"),
        ("fd00::/129", "is no range"),
        ("10.9.0.0", "has no prefix length"),
        ("10.9.0.7/24", "is an address in the range 10.9.0.0/24"),
        ("10.9.0.0/31", "too small"),
        ("10.9.0.8/32", "too small"),
        ("fd00::/127", "too small"),
        ("127.0.0.0/24", "127.0.0.0/8 is reserved"),
        ("0.0.0.0/0", "is reserved"),
        ("224.1.0.0/16", "is reserved"),
        ("169.254.1.0/24", "is reserved"),
        ("fe80::/64", "is reserved"),
        ("ff02::/64", "is reserved"),
        ("::/0", "is reserved"),
    ],
)
def test_a_range_that_can_be_no_networks_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(InvalidArgument, match=sentence):
        parse_range(text)


@settings(deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_a_range_or_refused(text: str) -> None:
    try:
        found = parse_range(text)
    except InvalidArgument:
        return
    assert found.num_addresses >= 4


def test_two_ranges_of_one_family_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="at most one range of IPv4"):
        chosen("10.9.0.0/24", "10.10.0.0/24")


def test_ipv6_is_refused_where_the_kernel_has_none() -> None:
    for wanted, ipv6 in (((), True), (("fd00:1::/64",), False)):
        with pytest.raises(Unsupported, match="no IPv6"):
            ranges(wanted, ipv6=ipv6, taken=(), kernel_ipv6=False)


def test_the_gateway_is_the_first_address_or_the_wanted_one() -> None:
    found = ranges(("10.9.0.0/24", "fd00:1::/64"), ipv6=False, taken=(), kernel_ipv6=True)
    assert gateways(found, ()) == ("10.9.0.1", "fd00:1::1")
    assert gateways(found, ("10.9.0.254",)) == ("10.9.0.254", "fd00:1::1")
    assert gateways(found, ("fd00:1::9", "10.9.0.7")) == ("10.9.0.7", "fd00:1::9")


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (("10.8.0.1",), "the gateway 10.8.0.1 is not in the range 10.9.0.0/24"),
        (("fd00::1",), "is not in the range"),
        (("10.9.0.0",), "is the address of the range"),
        (("10.9.0.255",), "is the broadcast address"),
        (("here",), "'here' is no gateway"),
        (("10.9.0.1", "10.9.0.2"), "has two gateways"),
    ],
)
def test_a_gateway_that_can_be_none_is_refused(wanted: tuple[str, ...], sentence: str) -> None:
    found = ranges(("10.9.0.0/24",), ipv6=False, taken=(), kernel_ipv6=True)
    with pytest.raises(InvalidArgument, match=sentence):
        gateways(found, wanted)


def test_what_the_host_routes_is_read_without_its_default_routes(tmp_path: Path) -> None:
    (tmp_path / "route").write_text(
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
        "tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\n"
        "tun0\t0000590A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
        "torn\n"
    )
    (tmp_path / "ipv6_route").write_text(
        "fd000000000000000000000000000000 40 " + "0" * 32 + " 00 " + "0" * 32
        + " 00000100 00000001 00000000 00000001     eth0\n"
        "fe800000000000000000000000000000 40 " + "0" * 32 + " 00 " + "0" * 32
        + " 00000100 00000001 00000000 00000001     eth0\n"
        "00000000000000000000000000000000 00 " + "0" * 32 + " 00 " + "0" * 32
        + " ffffffff 00000001 00000000 00200200       lo\n"
    )  # fmt: skip
    assert [(str(it.range), it.by) for it in host_routes(tmp_path)] == [
        ("192.0.2.0/24", "the host's route by eth0"),
        ("10.89.0.0/16", "the host's route by tun0"),
        ("fd00::/64", "the host's route by eth0"),
    ]


def test_a_kernel_without_ipv6_routes_none(tmp_path: Path) -> None:
    assert host_routes(tmp_path) == ()
    assert not has_ipv6(tmp_path)
    (tmp_path / "if_inet6").touch()
    assert has_ipv6(tmp_path)


def test_this_machines_routes_can_be_read() -> None:
    for route in host_routes():
        assert route.range.prefixlen > 3
