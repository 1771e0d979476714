"""Attachments in the kernel: made and left, what is asked of them, and what stands in the way."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import trio

from container.contracts.network import (
    Attachment,
    PublishedPort,
)
from container.ipc import (
    AlreadyExists,
    Fd,
    InvalidArgument,
    NotFound,
    Overloaded,
    PermissionDenied,
    Unavailable,
    Unsupported,
)
from container.network import forwarding, nft
from container.network.bridge import bridge_name
from container.network.service import NetworkService
from container.testing.network import NetworkNamespace, network_configuration
from tests.network.conftest import Make, Serve, links, tables, wants

# --- made and left ---


async def test_an_attachment_is_there_while_its_scope_is_held(
    host: NetworkNamespace, container: Make, serve: Serve
):
    inside = container()
    async with serve() as network:
        async with network.attach(wants(), inside.duplicate()) as attachment:
            assert attachment.addresses == ("10.89.0.2/24", "fd00:c0de::2/64")
            shown = inside.run("ip", "address", "show", "eth0").stdout
            assert all(f"{address} " in shown for address in attachment.addresses)
            assert f"link/ether {attachment.mac} " in shown
            assert f"mtu {attachment.mtu} " in shown
            assert "default via 10.89.0.1" in inside.run("ip", "route").stdout
            assert "default via fd00:c0de::1" in inside.run("ip", "-6", "route").stdout
            assert len(links(host)) == 2
            (listed,) = (await network.status()).attachments
            assert listed == attachment
        # Nothing is waited for: it is gone when the leaving is done.
        assert links(host) == {bridge_name(network_configuration("net").id)}
        assert links(inside) == set()
        assert (await network.status()).attachments == ()
    assert links(host) == set()
    assert tables(host) == ""


async def test_an_address_of_ipv6_is_usable_at_once(
    host: NetworkNamespace, container: Make, serve: Serve
):
    inside = container()
    async with serve() as network, network.attach(wants(), inside.duplicate()):
        assert "tentative" not in inside.run("ip", "address", "show", "scope", "global").stdout


async def test_a_holder_whose_block_fails_leaves_nothing(
    host: NetworkNamespace, container: Make, serve: Serve
):
    inside = container()
    async with serve() as network:
        with pytest.raises(ValueError, match="mine"):
            async with network.attach(wants(), inside.duplicate()):
                raise ValueError("mine")
        assert links(inside) == set()
        assert (await network.status()).attachments == ()


async def test_a_holder_that_is_cancelled_leaves_nothing(
    host: NetworkNamespace, container: Make, serve: Serve
):
    inside = container()
    async with serve() as network:
        with trio.move_on_after(0.3) as bound:
            async with network.attach(wants(), inside.duplicate()):
                await trio.sleep_forever()
        assert bound.cancelled_caught
        assert links(inside) == set()
        assert (await network.status()).attachments == ()


async def test_an_opening_that_is_cancelled_leaves_nothing_wherever_it_is(
    host: NetworkNamespace, container: Make, serve: Serve
):
    inside = container()
    async with serve() as network:
        async with network.attach(wants("warm"), container().duplicate()):
            for delay in (0, 0.0005, 0.001, 0.002, 0.003, 0.005):
                with trio.move_on_after(delay):
                    async with network.attach(wants(), inside.duplicate()):
                        pass
                assert links(inside) == set()
                (only,) = (await network.status()).attachments
                assert "warm" in only.names


async def test_three_hundred_attach_and_detach_at_once(
    host: NetworkNamespace, container: Make, serve: Serve
):
    count = 300
    spaces = [container() for _ in range(count)]
    attachments: list[Attachment] = []
    async with serve(subnets=("10.89.0.0/23",), gateways=("10.89.0.1",)) as network:
        ready = trio.Event()

        async def hold(number: int) -> None:
            request = wants(f"c{number:03}")
            async with network.attach(request, spaces[number].duplicate()) as attachment:
                attachments.append(attachment)
                if len(attachments) == count:
                    ready.set()
                await ready.wait()

        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(hold, number)
            await ready.wait()
            assert len(links(host)) == count + 1
        assert len({attachment.addresses for attachment in attachments}) == count
        assert links(host) == {bridge_name(network_configuration("net").id)}
        assert (await network.status()).attachments == ()
    assert links(host) == set()


async def test_two_systems_side_by_side_do_not_touch_each_other(
    host: NetworkNamespace, container: Make, serve: Serve
):
    other: dict[str, Any] = {"subnets": ("10.90.0.0/24",), "gateways": ("10.90.0.1",)}
    one, two = container(), container()
    async with serve("a") as first:
        async with serve("b", **other) as second:
            async with second.attach(wants("two"), two.duplicate()):
                async with first.attach(wants("one"), one.duplicate()):
                    assert tables(host).count("container-") == 2
                assert links(two) == {"eth0"}
                assert (await first.status()).problems == ()
        assert tables(host).count("container-") == 1
        assert links(host) == {bridge_name(network_configuration("a").id)}


async def test_what_is_another_s_on_the_machine_is_left_as_it_was(
    host: NetworkNamespace, container: Make, serve: Serve
):
    host.run("ip", "link", "add", "docker0", "type", "bridge")
    host.run("ip", "link", "add", "veth1", "type", "veth", "peer", "veth2")
    host.run("nft", "add table ip nat; add chain ip nat DOCKER")
    before = links(host), host.run("nft", "list", "ruleset").stdout
    async with serve() as network, network.attach(wants(), container().duplicate()):
        pass
    assert (links(host), host.run("nft", "list", "ruleset").stdout) == before


# --- what is asked ---


async def test_an_internal_network_has_no_way_out(
    host: NetworkNamespace, container: Make, serve: Serve
):
    inside = container()
    async with serve(internal=True) as network, network.attach(wants(), inside.duplicate()):
        assert "default" not in inside.run("ip", "route").stdout
        assert "default" not in inside.run("ip", "-6", "route").stdout


async def test_a_second_network_gives_no_default_route_and_another_interface(
    host: NetworkNamespace, container: Make, serve: Serve
):
    inside = container()
    other: dict[str, Any] = {"subnets": ("10.90.0.0/24",), "gateways": ("10.90.0.1",)}
    async with serve("a") as first, serve("b", **other) as second:
        async with first.attach(wants(), inside.duplicate()):
            request = wants(interface="eth1", default_route=False)
            async with second.attach(request, inside.duplicate()):
                assert links(inside) == {"eth0", "eth1"}
                routes = inside.run("ip", "route").stdout
                assert routes.count("default") == 1
                assert "10.90.0.0/24 dev eth1" in routes
            assert links(inside) == {"eth0"}


async def test_address_mac_and_mtu_are_as_wanted(
    host: NetworkNamespace, container: Make, serve: Serve
):
    inside = container()
    request = wants(addresses=("10.89.0.77", "fd00:c0de::77"), mac="02-00-00-00-00-07", mtu=1400)
    async with serve() as network, network.attach(request, inside.duplicate()) as attachment:
        assert attachment.addresses == ("10.89.0.77/24", "fd00:c0de::77/64")
        assert attachment.mac == "02:00:00:00:00:07"
        shown = inside.run("ip", "address", "show", "eth0").stdout
        assert "mtu 1400 " in shown
        assert attachment.mac in shown


async def test_the_mtu_of_a_network_is_that_of_all_its_interfaces(
    host: NetworkNamespace, container: Make, serve: Serve
):
    inside = container()
    async with serve(mtu=9000) as network:
        async with network.attach(wants(), inside.duplicate()) as attachment:
            assert attachment.mtu == (await network.status()).mtu == 9000
            assert host.run("ip", "link").stdout.count("mtu 9000 ") == 2


async def test_names_are_found_while_they_are_attached(
    host: NetworkNamespace, container: Make, serve: Serve
):
    async with serve() as network:
        request = wants("web", aliases=("www",), hostname="Web.Example")
        async with network.attach(request, container().duplicate()) as attachment:
            for name in ("web", "WWW", "web.example", request.key, "10.89.0.2"):
                (found,) = await network.lookup(name)
                assert found.name == "web"
                assert found.addresses == ("10.89.0.2", "fd00:c0de::2")
            assert attachment.names == ("web", "Web.Example", "www", request.key)
        assert await network.lookup("web") == ()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"key": "../x"}, "no key"),
        ({"key": ""}, "no key"),
        ({"interface": "eth0/1"}, "no name for an interface"),
        ({"interface": "a" * 16}, "no name for an interface"),
        ({"interface": "lo"}, "no name for an interface"),
        ({"interface": ".."}, "no name for an interface"),
        ({"interface": "ethé567890123456"}, "no name for an interface"),
        ({"key": "k", "name": "a b"}, "no name that DNS"),
        ({"key": "k", "name": "-web"}, "no name that DNS"),
        ({"aliases": ("",)}, "no name that DNS"),
        ({"aliases": ("x" * 64,)}, "no name that DNS"),
        ({"hostname": "a..b"}, "no name that DNS"),
        ({"aliases": tuple(f"a{n}" for n in range(99))}, "too many"),
        ({"mac": "02:42"}, "no MAC address"),
        ({"mac": "ff:ff:ff:ff:ff:ff"}, "many interfaces"),
        ({"mtu": 1200}, "1280 to 1500"),
        ({"mtu": 9000}, "1280 to 1500"),
        ({"addresses": ("10.89.0.1",)}, "gateway"),
        ({"addresses": ("10.88.0.2",)}, "not in the network's range"),
        ({"addresses": ("nine",)}, "no IP address"),
        ({"nameservers": ("dns.example",)}, "no IP address"),
        ({"neighbours": ("../../x",)}, "no id of a network"),
        ({"ports": (PublishedPort(0),)}, "port"),
        ({"ports": (PublishedPort(80, host_port=65535, count=2),)}, "port"),
        ({"ports": (PublishedPort(80, host_address="here"),)}, "here"),
    ],
)
async def test_what_can_not_be_is_refused_before_anything_is_done(
    fields: dict[str, Any], said: str, host: NetworkNamespace, container: Make, serve: Serve
):
    inside = container()
    async with serve() as network:
        with pytest.raises(InvalidArgument, match=said):
            async with network.attach(wants(**fields), inside.duplicate()):
                pass
        assert links(host) == links(inside) == set()
        assert (await network.status()).attachments == ()


async def test_an_option_that_the_driver_does_not_know_is_refused(
    host: NetworkNamespace, container: Make, serve: Serve
):
    async with serve(options={"com.docker.x": "1"}) as network:
        with pytest.raises(InvalidArgument, match=r"has no option 'com\.docker\.x'"):
            async with network.attach(wants(), container().duplicate()):
                pass
        with pytest.raises(InvalidArgument, match="has no option"):
            await network.status()


async def test_a_descriptor_that_is_no_network_namespace_is_refused(
    host: NetworkNamespace, serve: Serve
):
    async with serve() as network:
        for path in ("/dev/null", "/proc/self/ns/uts", "/proc/self/ns/net"):
            with pytest.raises(InvalidArgument, match="namespace"):
                async with network.attach(wants(), Fd.give(os.open(path, os.O_RDONLY))):
                    pass
        assert len(links(host)) <= 1


async def test_an_interface_name_that_the_container_has_already_is_refused(
    host: NetworkNamespace, container: Make, serve: Serve
):
    inside = container()
    inside.run("ip", "link", "add", "eth0", "type", "bridge")
    async with serve() as network:
        with pytest.raises(AlreadyExists, match="has an interface eth0 already"):
            async with network.attach(wants(), inside.duplicate()):
                pass
        assert links(inside) == {"eth0"}
        assert (await network.status()).attachments == ()


async def test_an_address_or_mac_that_is_taken_is_refused_with_who_has_it(
    host: NetworkNamespace, container: Make, serve: Serve
):
    async with serve() as network:
        async with network.attach(wants("first"), container().duplicate()) as first:
            request = wants("second", addresses=("10.89.0.2",))
            with pytest.raises(AlreadyExists, match=r"10\.89\.0\.2.*\(first\)"):
                async with network.attach(request, container().duplicate()):
                    pass
            with pytest.raises(AlreadyExists, match="taken by first"):
                async with network.attach(wants("second", mac=first.mac), container().duplicate()):
                    pass
            async with network.attach(wants("second"), container().duplicate()) as second:
                assert second.addresses[0] == "10.89.0.3/24"


async def test_an_exhausted_range_is_told_and_free_again_after_a_leaving(
    host: NetworkNamespace, container: Make, serve: Serve
):
    small: dict[str, Any] = {"subnets": ("10.89.0.0/30",), "gateways": ("10.89.0.1",)}
    async with serve(**small) as network:
        async with network.attach(wants("a"), container().duplicate()):
            with pytest.raises(Overloaded, match=r"no address is left in 10\.89\.0\.0/30"):
                async with network.attach(wants("b"), container().duplicate()):
                    pass
        async with network.attach(wants("b"), container().duplicate()) as attachment:
            assert attachment.addresses == ("10.89.0.2/30",)


# --- what stands in the way ---


async def test_forwarding_that_can_not_be_switched_on_is_refused_by_the_sysctl_s_name(
    host: NetworkNamespace,
    container: Make,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    monkeypatch.setattr(forwarding, "SYSCTL", tmp_path / "no")
    async with serve() as network:
        with pytest.raises(PermissionDenied, match=r"net\.ipv4\.ip_forward"):
            async with network.attach(wants(), container().duplicate()):
                pass
        assert links(host) == set()
        assert (await network.status()).attachments == ()


async def test_an_internal_network_needs_no_forwarding(
    host: NetworkNamespace,
    container: Make,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    monkeypatch.setattr(forwarding, "SYSCTL", tmp_path / "no")
    async with serve(internal=True) as network:
        async with network.attach(wants(), container().duplicate()):
            pass


async def test_forwarding_that_somebody_switches_off_is_told(
    host: NetworkNamespace, container: Make, serve: Serve
):
    async with serve() as network, network.attach(wants(), container().duplicate()):
        assert (await network.status()).problems == ()
        host.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
        (problem,) = (await network.status()).problems
        assert "sysctl -w net.ipv4.ip_forward=1" in problem


async def test_a_route_of_the_host_that_covers_the_range_is_told(
    host: NetworkNamespace, container: Make, serve: Serve
):
    host.run("ip", "link", "add", "vpn0", "type", "bridge")
    host.run("ip", "link", "set", "vpn0", "up")
    host.run("ip", "route", "add", "10.0.0.0/8", "dev", "vpn0")
    async with serve() as network:
        (problem,) = (await network.status()).problems
        assert "10.0.0.0/8 by vpn0 covers the range 10.89.0.0/24" in problem


async def test_a_missing_nft_is_told_with_what_to_install(
    host: NetworkNamespace, container: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch
):
    async with serve() as network:
        with monkeypatch.context() as patch:
            patch.setattr(nft, "_where", lambda name: None)
            with pytest.raises(Unsupported) as caught:
                async with network.attach(wants(), container().duplicate()):
                    pass
            assert "nftables" in str(caught.value.hint)
        async with network.attach(wants(), container().duplicate()) as attachment:
            assert attachment.addresses[0] == "10.89.0.2/24"


async def test_an_interface_of_another_s_with_our_name_is_not_taken(
    host: NetworkNamespace, container: Make, serve: Serve
):
    name = bridge_name(network_configuration("net").id)
    host.run("ip", "link", "add", name, "type", "bridge")
    host.run("ip", "link", "set", name, "alias", "mine")
    async with serve() as network:
        with pytest.raises(AlreadyExists, match="is not ours"):
            async with network.attach(wants(), container().duplicate()):
                pass
    assert links(host) == {name}


async def test_a_container_without_ipv6_is_told_so(
    host: NetworkNamespace, container: Make, serve: Serve
):
    inside = container()
    inside.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
    inside.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
    async with serve() as network:
        with pytest.raises(Unsupported, match="IPv6 is off"):
            async with network.attach(wants(), inside.duplicate()):
                pass
        assert links(inside) == set()


async def test_a_full_disk_refuses_and_leaves_nothing(
    host: NetworkNamespace, container: Make, serve: Serve, tmp_path: Path
):
    async with serve() as network:
        (tmp_path / "net" / "state.writing").mkdir()
        with pytest.raises(Unavailable, match=r"state\.json can't be written"):
            async with network.attach(wants(), container().duplicate()):
                pass
        assert (await network.status()).attachments == ()
        (tmp_path / "net" / "state.writing").rmdir()
        async with network.attach(wants(), container().duplicate()) as attachment:
            assert attachment.addresses[0].startswith("10.89.0.")


async def test_a_gateway_that_somebody_takes_off_the_bridge_is_told(
    host: NetworkNamespace, container: Make, serve: Serve
):
    name = bridge_name(network_configuration("net").id)
    async with serve() as network, network.attach(wants(), container().duplicate()):
        host.run("ip", "address", "del", "10.89.0.1/24", "dev", name)
        (problem,) = (await network.status()).problems
        assert f"ip address add 10.89.0.1/24 dev {name}" in problem


async def test_a_network_of_ipv6_works_where_ipv6_is_off_for_other_interfaces(
    host: NetworkNamespace, container: Make, serve: Serve
):
    for name in ("all", "default"):
        host.run("sysctl", "-qw", f"net.ipv6.conf.{name}.disable_ipv6=1")
    async with serve() as network:
        async with network.attach(wants(), container().duplicate()) as attachment:
            assert attachment.addresses[1] == "fd00:c0de::2/64"
            assert (await network.status()).problems == ()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"id": "../../etc"}, "no id of a network"),
        ({"subnets": (), "gateways": ()}, "one range of each family"),
        ({"subnets": ("10.1.0.0/24", "10.2.0.0/24")}, "one range of each family"),
        ({"subnets": ("10.1.0.0/24",), "gateways": ()}, "a gateway for each range"),
        ({"subnets": ("10.1.0.0/24",), "gateways": ("10.2.0.1",)}, "is not in"),
        ({"subnets": ("10.1.0.7/24",), "gateways": ("10.1.0.1",)}, "host bits"),
        ({"subnets": ("here",), "gateways": ("10.1.0.1",)}, "here"),
    ],
)
def test_a_network_without_a_range_that_can_be_served_is_refused(
    fields: dict[str, Any], said: str, tmp_path: Path
):
    with pytest.raises(InvalidArgument, match=said):
        NetworkService(tmp_path, network_configuration(**fields))


async def test_a_network_whose_mtu_is_too_small_is_refused(host: NetworkNamespace, serve: Serve):
    async with serve(mtu=600) as network:
        with pytest.raises(InvalidArgument, match="an MTU of 600 is not in 1280 to 65535"):
            await network.status()


# --- ports ---


async def test_ports_are_published_changed_and_withdrawn(
    host: NetworkNamespace, container: Make, serve: Serve
):
    async with serve() as network:
        request = wants(ports=(PublishedPort(80),))
        async with network.attach(request, container().duplicate()) as attachment:
            (chosen,) = attachment.ports
            assert chosen.host_port
            changed = await network.publish(request.key, (PublishedPort(81, host_port=8081),))
            assert [port.host_port for port in changed.ports] == [8081]
            assert (await network.status()).attachments == (changed,)
            other = wants("other", ports=(PublishedPort(82, host_port=8081),))
            with pytest.raises(AlreadyExists, match="web"):
                async with network.attach(other, container().duplicate()):
                    pass
            assert (await network.status()).attachments == (changed,)
        async with network.attach(other, container().duplicate()) as attachment:
            assert attachment.ports[0].host_port == 8081


async def test_ports_of_nobody_can_not_be_published(host: NetworkNamespace, serve: Serve):
    async with serve() as network:
        with pytest.raises(NotFound, match="no attachment of nobody"):
            await network.publish("nobody", ())
