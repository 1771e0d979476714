"""Networks beside docker's, podman's, firewalld's and an administrator's rules."""

from __future__ import annotations

import shutil

import pytest
import trio
import trio.testing

from container.contracts.network import PublishedPort
from container.network.coexistence import legacy_problems, problems
from container.network.firewall import DnsAt
from container.testing.network import NetworkNamespace
from tests.network.neighbourhood import (
    HOST4,
    HOST6,
    NO_ANSWER,
    OUTSIDE4,
    OUTSIDE6,
    Lan,
    Neighbourhood,
    ask,
    neighbourhood,
    telling,
)

DOCKER = """
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 9000 -j DNAT --to-destination 172.17.0.2:80
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
"""
"""As Docker 27 has them, with one container that publishes port 9000."""

NETAVARK = """
add table inet netavark
delete table inet netavark
table inet netavark {
  chain INPUT { type filter hook input priority filter; policy accept; }
  chain FORWARD {
    type filter hook forward priority filter; policy accept;
    ct state invalid drop
    jump NETAVARK-ISOLATION-1
    ip daddr 10.88.0.0/16 ct state established,related accept
    ip saddr 10.88.0.0/16 accept
  }
  chain NETAVARK-ISOLATION-1 { iifname "podman0" oifname != "podman0" jump NETAVARK-ISOLATION-2; }
  chain NETAVARK-ISOLATION-2 { oifname "podman0" drop; }
  chain POSTROUTING {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr 10.88.0.0/16 ip daddr != 224.0.0.0/4 masquerade
  }
  chain PREROUTING {
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local tcp dport 9001 dnat ip to 10.88.0.2:80
  }
}
"""

FIREWALLD = """
add table inet firewalld
delete table inet firewalld
table inet firewalld {
  chain filter_INPUT {
    type filter hook input priority filter + 10; policy accept;
    ct state { established, related } accept
    ct status dnat accept
    iifname "lo" accept
    jump filter_INPUT_ZONES
    ct state invalid drop
    reject with icmpx type admin-prohibited
  }
  chain filter_FORWARD {
    type filter hook forward priority filter + 10; policy accept;
    ct state { established, related } accept
    ct status dnat accept
    iifname "lo" accept
    jump filter_FORWARD_ZONES
    ct state invalid drop
    reject with icmpx type admin-prohibited
  }
  chain filter_INPUT_ZONES { %s goto filter_IN_public; }
  chain filter_FORWARD_ZONES { %s goto filter_FWD_public; }
  chain filter_IN_public { tcp dport 22 accept; meta l4proto { icmp, ipv6-icmp } accept; }
  chain filter_FWD_public { ip daddr 203.0.113.0/24 accept; }
  chain filter_IN_trusted { accept; }
  chain filter_FWD_trusted { accept; }
}
"""
TRUSTED = (
    'iifname "{bridge}" goto filter_IN_trusted;',
    'iifname "{bridge}" goto filter_FWD_trusted;',
)

MINE = """
table inet mine {
  chain fwd_all { type filter hook forward priority 5; policy drop; }
  chain inp {
    type filter hook input priority 5;
    ct state established accept
    drop
  }
}
"""

LEGACY = """-P FORWARD DROP
-A FORWARD -i docker0 -j ACCEPT
"""


def restore(host: NetworkNamespace, rules: str, program: str = "iptables") -> None:
    """Load a firewall's rules as it does itself."""
    host.run(f"{program}-restore", input=rules)


def load(host: NetworkNamespace, rules: str) -> None:
    """Load an nft firewall's tables as it does itself."""
    host.run("nft", "-f", "-", input=rules)


def advised(problem: str) -> str:
    """Return the command that a sentence says to run."""
    return problem.split("`")[1]


def ours(host: NetworkNamespace, lan: Lan) -> str:
    """Return the rules of a network."""
    return host.run("nft", "list", "table", "inet", f"container-{lan.configuration.id}").stdout


async def works(around: Neighbourhood, lan: Lan) -> tuple[bool, bool]:
    """Say whether a container is reached by its published port, and whether it gets out."""
    web = lan.places[0]
    inward = await ask(around.outside, HOST4, 8080, patience=NO_ANSWER)
    outward = await ask(web, OUTSIDE4, 80, patience=NO_ANSWER)
    return inward == OUTSIDE4, outward == HOST4


async def test_dockers_drop_is_told_of_and_what_is_told_helps(host: NetworkNamespace) -> None:
    with neighbourhood(host) as around:
        restore(host, DOCKER)
        before = host.run("iptables-save").stdout
        lan = await around.lan(families=(4,))
        web = lan.container()
        async with (
            telling(web, 80),
            telling(around.outside, 80),
            lan.publishing(web, PublishedPort(80, 8080)),
        ):
            (problem,) = await lan.firewall.problems()
            assert "chain FORWARD of table ip filter drops packets to and from" in problem
            assert "-I DOCKER-USER -i ctb00000001" in advised(problem)
            assert await works(around, lan) == (False, False)
            assert _rules_alone(host.run("iptables-save").stdout) == _rules_alone(before)
            host.run("sh", "-c", advised(problem))
            assert await lan.firewall.problems() == ()
            assert await works(around, lan) == (True, True)


def _rules_alone(saved: str) -> list[str]:
    return [line.split(" [")[0] for line in saved.splitlines() if not line.startswith("#")]


async def test_firewalls_that_are_loaded_again_leave_a_network_alone(
    host: NetworkNamespace,
) -> None:
    with neighbourhood(host) as around:
        lan = await around.lan(families=(4,))
        web = lan.container()
        let = DOCKER.replace("-A DOCKER-USER -j RETURN", "-A DOCKER-USER -j ACCEPT")
        firewalld = FIREWALLD % tuple(each.format(bridge=lan.bridge) for each in TRUSTED)
        async with (
            telling(web, 80),
            telling(around.outside, 80),
            lan.publishing(web, PublishedPort(80, 8080)),
        ):
            before = ours(host, lan)
            for _ in range(2):
                restore(host, let)
                load(host, NETAVARK)
                load(host, firewalld)
                assert ours(host, lan) == before
                assert await works(around, lan) == (True, True)
                assert await lan.firewall.problems() == ()
            # And ours, made anew, leaves theirs.
            theirs = [
                host.run("nft", "list", "table", "inet", each).stdout
                for each in ("netavark", "firewalld")
            ]
            saved = _rules_alone(host.run("iptables-save").stdout)
            await lan.firewall.again()
            assert theirs == [
                host.run("nft", "list", "table", "inet", each).stdout
                for each in ("netavark", "firewalld")
            ]
            assert saved == _rules_alone(host.run("iptables-save").stdout)


async def test_firewalld_is_told_of_at_both_hooks_until_the_bridge_is_in_a_zone(
    host: NetworkNamespace,
) -> None:
    with neighbourhood(host) as around:
        lan = await around.lan()
        web = lan.container()
        await lan.firewall.setup([DnsAt(each, 5301, 5301) for each in lan.gateways])
        load(host, FIREWALLD % ("", ""))
        async with telling(around.outside, 80):
            found = await lan.firewall.problems()
            assert [advised(each) for each in found] == [
                "firewall-cmd --permanent --zone=trusted --add-interface=ctb00000001"
                " && firewall-cmd --reload"
            ] * 2
            assert await ask(web, OUTSIDE4, 80, patience=NO_ANSWER) is None
            load(host, FIREWALLD % tuple(each.format(bridge=lan.bridge) for each in TRUSTED))
            assert await lan.firewall.problems() == ()
            assert await ask(web, OUTSIDE4, 80) == HOST4
            assert await ask(web, OUTSIDE6, 80) == HOST6


async def test_an_administrators_own_table_is_told_of_with_rules_that_help(
    host: NetworkNamespace,
) -> None:
    with neighbourhood(host) as around:
        lan = await around.lan()
        web = lan.container()
        await lan.firewall.setup([DnsAt(each, 5301, 5301) for each in lan.gateways])
        load(
            host,
            MINE,
        )
        async with telling(around.outside, 80), telling(host, 5301):
            assert await ask(web, lan.gateways[0], 53, patience=NO_ANSWER) is None
            found = await lan.firewall.problems()
            assert len(found) == 2
            assert "what containers ask the host, names too" in found[1]
            for each in found:
                host.run("sh", "-c", advised(each))
            assert await lan.firewall.problems() == ()
            assert await ask(web, OUTSIDE4, 80) == HOST4
            assert await ask(web, lan.gateways[0], 53) == web.address(4)


async def test_a_flush_of_all_rules_is_healed_and_theirs_come_back_by_themselves(
    host: NetworkNamespace,
) -> None:
    with neighbourhood(host) as around:
        lan = await around.lan(families=(4,))
        web = lan.container()
        async with trio.open_nursery() as nursery, telling(web, 80), telling(around.outside, 80):
            nursery.start_soon(lan.firewall.keep)
            async with lan.publishing(web, PublishedPort(80, 8080)):
                await trio.testing.wait_all_tasks_blocked()
                load(host, "flush ruleset\n" + NETAVARK)
                with trio.fail_after(10):
                    while await works(around, lan) != (True, True):
                        await trio.lowlevel.checkpoint()
                host.run("nft", "list", "table", "inet", "netavark")
            nursery.cancel_scope.cancel()


@pytest.mark.skipif(not shutil.which("iptables-legacy"), reason="no iptables-legacy")
async def test_the_old_iptables_is_told_of_too(host: NetworkNamespace) -> None:
    with neighbourhood(host) as around:
        lan = await around.lan(families=(4,))
        web = lan.container()
        if host.run("iptables-legacy", "-P", "FORWARD", "DROP", check=False).returncode:
            pytest.skip("this kernel has no old iptables")
        async with telling(around.outside, 80):
            assert await ask(web, OUTSIDE4, 80, patience=NO_ANSWER) is None
            (problem,) = await lan.firewall.problems()
            assert problem.startswith("chain FORWARD of iptables-legacy drops packets")
            host.run("sh", "-c", advised(problem))
            assert await lan.firewall.problems() == ()
            assert await ask(web, OUTSIDE4, 80) == HOST4


async def test_an_internal_network_is_not_concerned_with_what_others_forward(
    host: NetworkNamespace,
) -> None:
    with neighbourhood(host) as around:
        restore(host, DOCKER)
        lan = await around.lan(internal=True)
        assert await lan.firewall.problems() == ()


def test_a_chain_that_drops_the_other_family_is_no_problem() -> None:
    chain = {"family": "ip6", "table": "filter", "name": "FORWARD", "type": "filter"}
    ruleset = [
        {"table": {"family": "ip6", "name": "filter"}},
        {"chain": {**chain, "hook": "forward", "policy": "drop"}},
    ]

    def found(*families: str) -> tuple[str, ...]:
        return problems(
            ruleset,
            table=None,
            bridge="ctb1",
            families=families,
            leads_out=True,
            answers_names=True,
        )

    assert found("ip") == ()
    (problem,) = found("ip", "ip6")
    assert advised(problem).startswith("ip6tables -I FORWARD -i ctb1 -j ACCEPT")


def test_ufw_is_told_in_its_own_words() -> None:
    chain = {"family": "ip", "table": "filter", "type": "filter", "policy": "drop"}
    ruleset = [
        {"table": {"family": "ip", "name": "filter"}},
        {"chain": {**chain, "name": "FORWARD", "hook": "forward"}},
        {"chain": {**chain, "name": "INPUT", "hook": "input"}},
        {"chain": {"family": "ip", "table": "filter", "name": "ufw-user-forward"}},
    ]
    found = problems(
        ruleset,
        table=None,
        bridge="ctb1",
        families=["ip"],
        leads_out=True,
        answers_names=True,
    )
    assert [advised(each) for each in found] == [
        "ufw route allow in on ctb1 && ufw route allow out on ctb1",
        "ufw allow in on ctb1",
    ]


@pytest.mark.parametrize(
    ("rules", "dropped"),
    [
        ("", True),
        ("accept", False),
        ("counter accept", False),
        ("tcp dport 22 accept", True),
        ("jump other", False),
        ("return; accept", True),
        ("jump empty; accept", False),
        ("goto empty; accept", True),
        ("jump around", True),
        ("iifname ctb00000001 accept; oifname ctb00000001 accept", False),
        ("iifname ctb00000001 accept", True),
        ('iifname "ctb*" accept; oifname { "lo", "ctb00000001" } accept', False),
        ("iifname ctb00000001 drop; oifname ctb00000001 drop", True),
    ],
)
async def test_what_a_chain_does_with_what_it_does_not_know_is_found_out(
    host: NetworkNamespace, rules: str, dropped: bool
) -> None:
    with neighbourhood(host) as around:
        lan = await around.lan()
        lines = "\n".join(rules.split(";"))
        load(
            host,
            "table inet t {\nchain empty { }\nchain other { accept; }\n"
            "chain around { jump empty; }\n"
            f"chain f {{ type filter hook forward priority 0; policy drop;\n{lines}\n}}\n}}",
        )
        assert bool(await lan.firewall.problems()) == dropped


def test_a_table_of_ours_that_is_gone_is_told_of() -> None:
    (problem,) = problems(
        [], table="container-1", bridge="ctb1", families=["ip"], leads_out=True, answers_names=False
    )
    assert problem.startswith("another program deleted the rules of the network")


@pytest.mark.parametrize(
    ("listing", "advice"),
    [
        ("-P FORWARD ACCEPT\n", None),
        (LEGACY, "iptables-legacy -I FORWARD -i ctb1"),
        ("-P FORWARD ACCEPT\n-A FORWARD -j REJECT --reject-with x\n", "iptables-legacy -I FORWARD"),
        (LEGACY + "-A FORWARD -j DOCKER-USER\n", "iptables-legacy -I DOCKER-USER -i ctb1"),
        (LEGACY + "-A FORWARD -i ctb1 -j ACCEPT\n-A FORWARD -o ctb1 -j ACCEPT\n", None),
        ("", None),
    ],
)
def test_a_listing_of_the_old_iptables_is_understood(listing: str, advice: str | None) -> None:
    found = legacy_problems(listing, "ctb1", "iptables-legacy", hook="forward")
    assert [advice in advised(each) for each in found if advice] == [True] * (advice is not None)
    assert bool(found) == (advice is not None)
