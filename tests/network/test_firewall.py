"""What the rules of a network let pass, by real packets, and how they change."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from attrs import evolve

from container.contracts.network import Protocol, PublishedPort
from container.ipc import Unavailable, Unsupported
from container.network import firewall as firewalls
from container.network import nft
from container.network.firewall import DnsAt, Firewall, Forwarded
from container.network.ruleset import elements_of
from container.testing.network import NetworkNamespace, network_configuration
from tests.network.neighbourhood import (
    HOST4,
    HOST6,
    NO_ANSWER,
    OUTSIDE4,
    OUTSIDE6,
    ask,
    neighbourhood,
    silent,
    telling,
)

WEB = Forwarded(Protocol.TCP, "", 8080, "10.89.1.2", 80)


def rules(host: NetworkNamespace) -> str:
    """Return all rules of a host."""
    return host.run("nft", "list", "ruleset").stdout


# --- what passes ---


@pytest.mark.parametrize("protocol", list(Protocol))
async def test_containers_reach_the_world_by_the_hosts_address(
    host: NetworkNamespace, protocol: Protocol
) -> None:
    with neighbourhood(host) as around:
        web = (await around.lan()).container()
        async with telling(around.outside, 80):
            assert await ask(web, OUTSIDE4, 80, protocol) == HOST4
            assert await ask(web, OUTSIDE6, 80, protocol) == HOST6


async def test_what_is_not_published_is_not_reached_from_outside(host: NetworkNamespace) -> None:
    with neighbourhood(host) as around:
        lan = await around.lan()
        web, beside = lan.container(), lan.container()
        around.outside.run("ip", "route", "add", "10.89.1.0/24", "via", HOST4)
        around.outside.run("ip", "route", "add", "fd00:1::/64", "via", HOST6)
        async with telling(web, 80), lan.publishing(web, PublishedPort(81, 8080)):
            assert await silent(*((around.outside, address, 80) for address in web.addresses))
            for address in web.addresses:
                assert await ask(beside, address, 80) is not None
                assert await ask(host, address, 80) is not None


async def test_networks_are_isolated_from_each_other(host: NetworkNamespace) -> None:
    with neighbourhood(host) as around:
        web = (await around.lan(1)).container()
        elsewhere = (await around.lan(2)).container()
        async with telling(web, 80):
            assert await silent(*((elsewhere, address, 80) for address in web.addresses))


async def test_networks_stay_isolated_while_the_rules_of_one_are_gone(
    host: NetworkNamespace,
) -> None:
    with neighbourhood(host) as around:
        first, second = await around.lan(1), await around.lan(2)
        web, elsewhere = first.container(), second.container()
        await first.firewall.remove()
        async with telling(web, 80):
            assert await silent(*((elsewhere, address, 80) for address in web.addresses))


async def test_an_internal_network_has_no_way_out_and_none_in_but_from_the_host(
    host: NetworkNamespace,
) -> None:
    with neighbourhood(host) as around:
        inner, lan = await around.lan(1, internal=True), await around.lan(2)
        web, beside, elsewhere = inner.container(), inner.container(), lan.container()
        # As a container would do that wants out.
        for gateway in inner.gateways:
            beside.namespace.run("ip", "route", "add", "default", "via", gateway)
        port = PublishedPort(80, 8080)
        async with telling(web, 80), telling(around.outside, 80), inner.publishing(web, port):
            assert await ask(beside, web.address(4), 80) == beside.address(4)
            for address in ("127.0.0.1", "::1", HOST4, HOST6):
                gateway = inner.gateways[":" in address]
                assert await ask(host, address, 8080) == gateway
            assert await silent(
                *((around.outside, address, 8080) for address in (HOST4, HOST6)),
                *((elsewhere, address, 8080) for address in (HOST4, HOST6)),
                *((beside, address, 80) for address in (OUTSIDE4, OUTSIDE6)),
            )


async def test_a_container_does_not_reach_the_hosts_loopback(host: NetworkNamespace) -> None:
    with neighbourhood(host) as around:
        web = (await around.lan()).container()
        settings = ("all.route_localnet=1", "eth0.route_localnet=1")
        web.namespace.run("sysctl", "-qw", *(f"net.ipv4.conf.{each}" for each in settings))
        web.namespace.run("ip", "address", "del", "127.0.0.1/8", "dev", "lo")
        web.namespace.run("ip", "route", "add", "127.0.0.1", "via", "10.89.1.1")
        async with telling(host, 80, 4):
            assert await ask(host, "127.0.0.1", 80) == "127.0.0.1"
            assert await ask(web, "127.0.0.1", 80, patience=NO_ANSWER) is None
            await trio.to_thread.run_sync(_open_the_table, host)
            # What held it back was the rule, and nothing else.
            assert await ask(web, "127.0.0.1", 80) is not None


def _open_the_table(host: NetworkNamespace) -> None:
    table = next(line.split()[2] for line in rules(host).splitlines() if line.startswith("table"))
    host.run("nft", "flush", "chain", "inet", table, "early")


async def test_a_port_of_loopback_alone_is_not_reached_by_a_neighbour_that_names_it(
    host: NetworkNamespace,
) -> None:
    with neighbourhood(host) as around:
        lan = await around.lan()
        web, outside = lan.container(), around.outside
        settings = ("all.route_localnet=1", "eth0.route_localnet=1")
        outside.run("sysctl", "-qw", *(f"net.ipv4.conf.{each}" for each in settings))
        outside.run("ip", "address", "del", "127.0.0.1/8", "dev", "lo")
        outside.run("ip", "route", "add", "127.0.0.1", "via", HOST4)
        port = PublishedPort(80, 8080, host_address="127.0.0.1")
        async with telling(web, 80), lan.publishing(web, port):
            assert await ask(host, "127.0.0.1", 8080) == "10.89.1.1"
            assert await ask(outside, "127.0.0.1", 8080, patience=NO_ANSWER) is None
            assert await ask(outside, HOST4, 8080, patience=NO_ANSWER) is None


@pytest.mark.parametrize("protocol", list(Protocol))
async def test_port_53_of_the_gateways_leads_to_the_dns_server_from_the_bridge_alone(
    host: NetworkNamespace, protocol: Protocol
) -> None:
    with neighbourhood(host) as around:
        lan = await around.lan()
        web = lan.container()
        await lan.firewall.setup([DnsAt(each, 5301, 5301) for each in lan.gateways])
        # A server of the host's own, at every address of it, is undisturbed.
        async with telling(host, 5301), telling(host, 53):
            for version, gateway in zip((4, 6), lan.gateways, strict=True):
                assert await ask(web, gateway, 53, protocol) == web.address(version)
            assert await ask(around.outside, HOST4, 53, protocol) == OUTSIDE4
            around.outside.run("ip", "route", "add", "10.89.1.1", "via", HOST4)
            hidden = await ask(around.outside, "10.89.1.1", 5301, protocol, patience=NO_ANSWER)
            assert hidden is None
        async with telling(host, 53):
            assert await ask(web, lan.gateways[0], 53, protocol, patience=NO_ANSWER) is None


@pytest.mark.parametrize("protocol", list(Protocol))
async def test_a_published_port_53_takes_no_networks_questions(
    host: NetworkNamespace, protocol: Protocol
) -> None:
    with neighbourhood(host) as around:
        lans = [await around.lan(number) for number in (1, 2)]
        web, *askers = lans[0].container(), lans[0].container(), lans[1].container()
        for lan in lans:
            await lan.firewall.setup([DnsAt(each, 5301, 5301) for each in lan.gateways])
        port = PublishedPort(53, 53, protocol=protocol)
        async with telling(host, 5301), lans[0].publishing(web, port):
            # Nobody answers there: who does is the helper.
            assert await ask(around.outside, HOST4, 53, protocol) is None
            for lan, asker in zip(lans, askers, strict=True):
                for version, gateway in zip((4, 6), lan.gateways, strict=True):
                    assert await ask(asker, gateway, 53, protocol) == asker.address(version)


async def test_where_the_way_out_is_another_network_the_gateway_is_the_source(
    host: NetworkNamespace,
) -> None:
    with neighbourhood(host) as around:
        lan = await around.lan()
        web = lan.container()
        web.namespace.run("ip", "route", "del", "default")
        web.namespace.run("ip", "-6", "route", "del", "default")
        port = PublishedPort(80, 8080)
        async with telling(web, 80), lan.publishing(web, port, default_route=False):
            assert await ask(around.outside, HOST4, 8080) == lan.gateways[0]
            assert await ask(around.outside, HOST6, 8080) == lan.gateways[1]
        async with telling(web, 80), lan.publishing(web, port):
            assert await ask(around.outside, HOST4, 8080, patience=NO_ANSWER) is None


async def test_without_route_localnet_127_0_0_1_is_relayed(
    host: NetworkNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with neighbourhood(host) as around:
        lan = await around.lan()
        web = lan.container()
        host.run("sysctl", "-qw", f"net.ipv4.conf.{lan.bridge}.route_localnet=0")
        monkeypatch.setattr(firewalls, "let_loopback_pass", lambda bridge: False)
        await lan.firewall.again()
        async with telling(web, 80), lan.publishing(web, PublishedPort(80, 8080)):
            assert await ask(host, "127.0.0.1", 8080) is not None
            assert await ask(host, "127.0.0.1", 8080, Protocol.UDP) is None


# --- how they change ---


async def test_only_the_networks_own_table_is_ever_touched(host: NetworkNamespace) -> None:
    host.run(
        "nft", "add table inet theirs; add chain inet theirs c { type nat hook output priority 0; }"
    )
    before = rules(host)
    with neighbourhood(host) as around:
        lan = await around.lan()
        await lan.firewall.forward("web", [WEB])
        assert "elements = { tcp . 8080 : 10.89.1.2 }" in rules(host)
        assert before in rules(host)
        await lan.firewall.forward("web", [])
        assert "elements" not in rules(host)
        await lan.firewall.remove()
        assert rules(host) == before
        await lan.firewall.remove()


async def test_a_refused_change_leaves_all_as_it_was_and_says_what_nft_said(
    host: NetworkNamespace,
) -> None:
    with neighbourhood(host) as around:
        lan = await around.lan()
        await lan.firewall.forward("web", [WEB])
        before = rules(host)
        wrong = [evolve(WEB, host_port=8081), evolve(WEB, host_port=8082, address="nowhere at all")]
        with pytest.raises(Unavailable, match=r"nft refused the network's rules: .*resolve"):
            await lan.firewall.forward("db", wrong)
        assert rules(host) == before
        # And later changes are made.
        await lan.firewall.forward("db", wrong[:1])
        assert "tcp . 8081 : 10.89.1.2" in rules(host)
        assert "tcp . 8080 : 10.89.1.2" in rules(host)


async def test_rules_of_an_earlier_helper_are_replaced_whole(host: NetworkNamespace) -> None:
    with neighbourhood(host) as around:
        lan = await around.lan()
        await lan.firewall.forward("old", [evolve(WEB, host_port=8081)])
        after = Firewall(lan.configuration, lan.bridge)
        await after.setup(forwarded={"web": [WEB]})
        assert "8081" not in rules(host)
        assert "tcp . 8080 : 10.89.1.2" in rules(host)
        assert rules(host).count("table inet") == 1


async def test_ports_told_before_the_table_is_made_are_in_it(host: NetworkNamespace) -> None:
    with neighbourhood(host) as around:
        lan = await around.lan()
        firewall = Firewall(lan.configuration, lan.bridge)
        await firewall.forward("web", [WEB])
        await firewall.setup()
        assert "tcp . 8080 : 10.89.1.2" in rules(host)


@pytest.mark.parametrize("command", ["flush ruleset", "delete table inet {}"])
async def test_rules_that_another_deletes_are_written_again(
    host: NetworkNamespace, command: str
) -> None:
    with neighbourhood(host) as around:
        lan = await around.lan()
        web = lan.container()
        async with trio.open_nursery() as nursery, telling(web, 80):
            nursery.start_soon(lan.firewall.keep)
            async with lan.publishing(web, PublishedPort(80, 8080)):
                await trio.testing.wait_all_tasks_blocked()
                table = f"container-{lan.configuration.id}"
                host.run("nft", command.format(table))
                with trio.fail_after(5):
                    # The helper hears of it; nothing tells the test that it did.
                    while await ask(around.outside, HOST4, 8080) != OUTSIDE4:
                        await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()


async def test_a_change_finds_the_table_gone_and_writes_it_again(host: NetworkNamespace) -> None:
    with neighbourhood(host) as around:
        lan = await around.lan()
        await lan.firewall.forward("web", [WEB])
        host.run("nft", "flush", "ruleset")
        await lan.firewall.forward("db", [evolve(WEB, host_port=8081)])
        assert "tcp . 8080 : 10.89.1.2" in rules(host)
        assert "tcp . 8081 : 10.89.1.2" in rules(host)


async def test_a_table_of_no_further_use_is_not_written_again(host: NetworkNamespace) -> None:
    with neighbourhood(host) as around:
        lan = await around.lan()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lan.firewall.keep)
            await trio.testing.wait_all_tasks_blocked()
            await lan.firewall.remove()
            await lan.firewall.again()
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert rules(host) == ""
            nursery.cancel_scope.cancel()


async def test_a_cancelled_change_is_made_or_not_and_never_half(host: NetworkNamespace) -> None:
    with neighbourhood(host) as around:
        lan = await around.lan()
        with trio.move_on_after(0.001):
            await lan.firewall.forward("web", [WEB, evolve(WEB, host_port=8081)])
        assert ("8080" in rules(host)) == ("8081" in rules(host))
        await lan.firewall.forward("web", [WEB])
        assert "8080" in rules(host)
        assert "8081" not in rules(host)


async def test_nothing_is_run_when_nothing_changes(
    host: NetworkNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with neighbourhood(host) as around:
        lan = await around.lan()
        await lan.firewall.forward("web", [WEB])
        monkeypatch.setenv("PATH", "/nowhere")
        monkeypatch.setattr(nft, "_PLACES", "")
        await lan.firewall.forward("web", [WEB])
        await lan.firewall.forward("db", [])
        with pytest.raises(Unsupported):
            await lan.firewall.forward("web", [])


async def test_a_missing_nft_is_said_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(nft, "_PLACES", "")
    firewall = Firewall(network_configuration(), "ctb00000001")
    with pytest.raises(Unsupported, match="nft is missing") as caught:
        await firewall.setup()
    assert caught.value.hint == "install the package nftables"
    (problem,) = await firewall.problems()
    assert problem.endswith("install the package nftables")


async def test_an_nft_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "nft"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(nft, "DEADLINE", 0.2)
    firewall = Firewall(network_configuration(), "ctb00000001")
    with pytest.raises(Unavailable, match="did not end"):
        await firewall.setup()


async def test_an_nft_that_dies_is_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "nft"
    program.write_text("#!/bin/sh\nkill -SEGV $$\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(Unavailable, match="killed by signal 11"):
        await Firewall(network_configuration(), "ctb00000001").setup()


def test_each_published_port_is_an_element_of_two_maps() -> None:
    six = Forwarded(Protocol.UDP, "fd12::1", 53, "fd00::2", 5353, keep_source=False)
    assert elements_of({"a": [WEB], "b": [six]}) == {
        ("any4_address", ("tcp", 8080), "10.89.1.2"),
        ("any4_port", ("tcp", 8080), 80),
        ("one6_address", ("fd12::1", "udp", 53), "fd00::2"),
        ("one6_port", ("fd12::1", "udp", 53), 5353),
        ("masked6", ("fd00::2",), None),
    }
