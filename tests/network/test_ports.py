"""Published ports: what is refused, who has a taken one, and that each change is whole."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from container.contracts.network import Protocol, PublishedPort
from container.ipc import (
    AlreadyExists,
    ContainerError,
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    Unavailable,
)
from container.network import nft, reserving
from container.network.firewall import Firewall
from container.network.ports import PublishedPorts, check_ports, open_published_ports
from container.testing.network import NetworkNamespace, network_configuration
from tests.network.neighbourhood import (
    HOST4,
    HOST6,
    OUTSIDE4,
    ask,
    neighbourhood,
    telling,
)

UDP = Protocol.UDP
ADDRESSES = ("10.89.0.2/24", "fd00:c0de::2/64")


@asynccontextmanager
async def publishing(host: NetworkNamespace) -> AsyncIterator[PublishedPorts]:
    """Published ports of a network whose bridge nobody needs."""
    firewall = Firewall(network_configuration(), "ctb00000001")
    await firewall.setup()
    async with open_published_ports(firewall) as ports:
        yield ports


def taken(host: NetworkNamespace) -> set[str]:
    """Return the host ports that somebody has: `tcp 0.0.0.0:80`."""
    lines = host.run("ss", "-tulnH").stdout.splitlines()
    return {f"{words[0]} {words[4]}" for words in map(str.split, lines)}


def elements(host: NetworkNamespace) -> str:
    """Return what of the host's rules depends on ports, on one line."""
    listed = host.run("nft", "list", "ruleset").stdout
    found = re.findall(r"elements = (\{[^}]* \. [^}]*\})", listed)
    return " ".join(" ".join(found).split())


# --- what is refused ---


@pytest.mark.parametrize(
    ("port", "sentence"),
    [
        (PublishedPort(0), "container port 0: ports are 1 to 65535"),
        (PublishedPort(65_536), "container port 65536: ports are 1 to 65535"),
        (PublishedPort(-1), "container port -1: ports are 1 to 65535"),
        (PublishedPort(80, 65_536), "host port 65536: ports are 1 to 65535, and 0 is any"),
        (PublishedPort(80, -1), "host port -1: ports are 1 to 65535, and 0 is any"),
        (PublishedPort(80, 80, 0), "0 ports in a row: at least one is published"),
        (PublishedPort(80, 80, -3), "-3 ports in a row: at least one is published"),
        (
            PublishedPort(65_000, 80, 1000),
            "1000 container ports from 65000 on: the last one possible is 65535",
        ),
        (
            PublishedPort(80, 65_000, 1000),
            "1000 host ports from 65000 on: the last one possible is 65535",
        ),
        (PublishedPort(1, 1, 20_000), "more than 16,384 published ports of one container"),
        (
            PublishedPort(80, host_address="localhost"),
            '"localhost" is no IP address of this host',
        ),
        (PublishedPort(80, host_address="1.2.3"), '"1.2.3" is no IP address of this host'),
        (PublishedPort(80, host_address="[::1]"), '"[::1]" is no IP address of this host'),
        (PublishedPort(80, host_address="10.0.0.0/8"), '"10.0.0.0/8" is no IP address'),
        (PublishedPort(80, host_address=" "), '" " is no IP address of this host'),
        (PublishedPort(80, host_address="224.0.0.1"), "224.0.0.1 is an address of many hosts"),
        (PublishedPort(80, host_address="ff02::1"), "ff02::1 is an address of many hosts"),
        (PublishedPort(80, host_address="255.255.255.255"), "is an address of many hosts"),
        (
            PublishedPort(80, host_address="::ffff:1.2.3.4"),
            "is an IPv4 address: say 1.2.3.4",
        ),
        (PublishedPort(80, host_address="fe80::1"), "fe80::1 is another host on every link"),
    ],
)
def test_a_malformed_port_is_refused_by_the_right_sentence(
    port: PublishedPort, sentence: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_ports([port])
    assert sentence in caught.value.message


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        (PublishedPort(80, 8080), PublishedPort(81, 8080), "8080/tcp"),
        (PublishedPort(80, 8080, 10), PublishedPort(81, 8089), "8089/tcp"),
        (PublishedPort(81, 8089), PublishedPort(80, 8080, 10), "8089/tcp"),
        (PublishedPort(80, 80, host_address="127.0.0.1"), PublishedPort(80, 80), "80/tcp"),
        (
            PublishedPort(80, 80, host_address="::"),
            PublishedPort(80, 80, host_address="::1"),
            "80/tcp",
        ),
        (
            PublishedPort(80, 80, host_address="fd00::1"),
            PublishedPort(81, 80, host_address="fd00:0::1"),
            "[fd00:0::1]:80/tcp",
        ),
    ],
)
def test_a_host_port_that_is_wanted_twice_is_refused(
    first: PublishedPort, second: PublishedPort, named: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_ports([first, PublishedPort(80, 1), second])
    assert caught.value.message.endswith("of the host is to be published twice")
    assert named in caught.value.message


def test_ports_that_do_not_meet_may_have_one_number() -> None:
    check_ports(
        [
            PublishedPort(80, 80, host_address="127.0.0.1"),
            PublishedPort(80, 80, host_address="127.0.0.2"),
            PublishedPort(80, 80, host_address="::1"),
            PublishedPort(80, 80, protocol=UDP),
            PublishedPort(80, 0),
            PublishedPort(80, 0),
            PublishedPort(80, 70, 10),
            PublishedPort(80, 65_535, host_address="fe80::1%lo"),
        ]
    )


# --- who has it ---


async def test_a_taken_port_is_said_by_whom(host: NetworkNamespace) -> None:
    async with publishing(host) as ports:
        await ports.publish("k1", "web", ADDRESSES, (PublishedPort(80, 8080, 2),))
        with pytest.raises(
            AlreadyExists, match=r'^port 8081/tcp of the host is taken by container "web"$'
        ):
            await ports.publish("k2", "db", ADDRESSES, (PublishedPort(80, 8081),))
        with pytest.raises(AlreadyExists, match=r'port 127.0.0.1:8080/tcp .* by container "web"$'):
            await ports.publish(
                "k2", "db", ADDRESSES, (PublishedPort(80, 8080, host_address="127.0.0.1"),)
            )
        # Another protocol is another port.
        await ports.publish("k2", "db", ADDRESSES, (PublishedPort(80, 8080, protocol=UDP),))


LISTEN = """
import socket, sys
sockets = []
for family, kind, address in eval(sys.argv[1]):
    one = socket.socket(family, kind)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind(address)
    kind == socket.SOCK_STREAM and one.listen()
    sockets.append(one)
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("family", "kind", "address"),
    [
        (socket.AF_INET, socket.SOCK_STREAM, ("0.0.0.0", 8080)),
        (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 8080)),
        (socket.AF_INET6, socket.SOCK_STREAM, ("::1", 8080)),
        (socket.AF_INET6, socket.SOCK_STREAM, ("::", 8080)),
        (socket.AF_INET, socket.SOCK_DGRAM, ("0.0.0.0", 8080)),
        (socket.AF_INET6, socket.SOCK_DGRAM, ("::1", 8080)),
    ],
)
async def test_a_process_that_has_a_port_is_named(
    host: NetworkNamespace, family: int, kind: int, address: tuple[str, int]
) -> None:
    which = repr([(int(family), int(kind), address)])
    with host.popen(sys.executable, "-c", LISTEN, which, stdin=-1, stdout=-1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        protocol = Protocol.TCP if kind == socket.SOCK_STREAM else UDP
        async with publishing(host) as ports:
            port = PublishedPort(80, 8080, protocol=protocol)
            with pytest.raises(AlreadyExists) as caught:
                await ports.publish("k", "web", ADDRESSES, (port,))
            assert " is taken by python" in caught.value.message
            assert caught.value.message.endswith(f"(process {process.pid})")
        process.stdin.close()


HELPER = """
import socket, sys, trio
from container.contracts.network import Attachment, PublishedPort
from container.ipc import open_service
from container.testing.network import FakeNetwork, network_configuration

async def main():
    network = FakeNetwork(network_configuration("backend"))
    network.attachments["k"] = Attachment(
        "id", "backend", "k", "eth0", (), (), "", 1500,
        ports=(PublishedPort(80, 8080, 3),), names=("db", "k"),
    )
    async with open_service(network, at=sys.argv[1]):
        with socket.create_server(("0.0.0.0", 8081)), socket.create_server(("0.0.0.0", 9000)):
            print(flush=True)
            await trio.to_thread.run_sync(sys.stdin.read)

trio.run(main)
"""


async def test_a_container_of_another_network_is_told_by_name(
    host: NetworkNamespace, tmp_path: Path
) -> None:
    folder = tmp_path / "network"
    folder.mkdir()
    command = (sys.executable, "-c", HELPER, str(folder / "0123.sock"))
    with host.popen(*command, stdin=-1, stdout=-1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        async with publishing(host) as ports:
            with pytest.raises(
                AlreadyExists, match=r'8081/tcp .* taken by container "db" in network backend$'
            ):
                await ports.publish("k", "web", ADDRESSES, (PublishedPort(80, 8081),))
            with pytest.raises(AlreadyExists, match=r"taken by a container in network backend$"):
                await ports.publish("k", "web", ADDRESSES, (PublishedPort(80, 9000),))
        process.stdin.close()


async def test_nobody_takes_a_published_port(host: NetworkNamespace) -> None:
    async with publishing(host) as ports:
        wanted = (PublishedPort(80, 8080), PublishedPort(53, 5353, protocol=UDP))
        await ports.publish("k", "web", ADDRESSES, wanted)
        for kind, number in ((socket.SOCK_STREAM, 8080), (socket.SOCK_DGRAM, 5353)):
            for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::")):
                with host.socket(family, kind) as other:
                    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    with pytest.raises(OSError, match="in use"):
                        other.bind((address, number))
        await ports.withdraw("k")
        assert taken(host) == set()


async def test_an_address_that_the_host_has_not_is_refused(host: NetworkNamespace) -> None:
    async with publishing(host) as ports:
        for address in ("192.0.2.77", "2001:db8::77", "fe80::1%nowhere"):
            port = PublishedPort(80, 8080, host_address=address)
            with pytest.raises(InvalidArgument, match=f"^this host has no address {address}$"):
                await ports.publish("k", "web", ADDRESSES, (port,))
        assert taken(host) == set()


async def test_a_port_too_low_for_this_process_is_refused(
    host: NetworkNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    async with publishing(host) as ports:
        with pytest.raises(PermissionDenied, match="port 80/tcp of the host may not be taken"):
            await ports.publish("k", "web", ADDRESSES, (PublishedPort(80, 80),))


async def test_without_descriptors_nothing_is_published_and_it_is_said(
    host: NetworkNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with publishing(host) as ports:
        real, left = socket.socket, iter(range(3))

        def some(*arguments: int) -> socket.socket:
            if next(left, None) is None:
                raise OSError(24, "Too many open files")
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(reserving.socket, "socket", some)
            with pytest.raises(Overloaded, match="Too many open files") as caught:
                await ports.publish("k", "web", ADDRESSES, (PublishedPort(80, 8080, 5),))
        assert "two descriptors" in str(caught.value.hint)
        assert taken(host) == set()


# --- which ports ---


async def test_random_ports_are_chosen_free_ones_and_told(host: NetworkNamespace) -> None:
    async with publishing(host) as ports:
        wanted = (PublishedPort(80), PublishedPort(80, protocol=UDP), PublishedPort(100, 0, 20))
        first, second, row = await ports.publish("k", "web", ADDRESSES, wanted)
        assert min(first.host_port, second.host_port, row.host_port) > 1024
        assert f"tcp 0.0.0.0:{first.host_port}" in taken(host)
        assert f"udp [::]:{second.host_port}" in taken(host)
        last = row.host_port + 19
        assert {f"tcp 0.0.0.0:{last}", f"tcp [::]:{last}"} <= taken(host)
        assert f"tcp . {last} : 119" in elements(host)
        assert len(taken(host)) == 2 * 22


async def test_a_row_that_is_nowhere_free_is_refused(host: NetworkNamespace) -> None:
    host.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40003")
    async with publishing(host) as ports:
        await ports.publish("k", "web", ADDRESSES, (PublishedPort(80, 40_002, 2),))
        await ports.publish("l", "row", ADDRESSES, (PublishedPort(80, 40_000, 2),))
        with pytest.raises(Overloaded, match=r"^no port of the host could be found free"):
            await ports.publish("m", "one", ADDRESSES, (PublishedPort(80),))
        await ports.withdraw("k")
        blocks = (PublishedPort(80, 40_010), PublishedPort(80, 0, 20))
        with pytest.raises(Overloaded, match=r"^no 20 ports in a row of the host could be found"):
            await ports.publish("m", "one", ADDRESSES, blocks)
        assert len(taken(host)) == 4


async def test_a_row_of_hundreds_of_ports_is_published(host: NetworkNamespace) -> None:
    async with publishing(host) as ports:
        wanted = (PublishedPort(10_000, 10_000, 300, UDP),)
        assert await ports.publish("k", "sip", ADDRESSES, wanted) == wanted
        assert len(taken(host)) == 600
        await ports.withdraw("k")
        assert taken(host) == set()
        assert elements(host) == ""


@pytest.mark.parametrize(
    ("address", "sockets", "rule"),
    [
        ("", {"tcp 0.0.0.0:8080", "tcp [::]:8080"}, "{ tcp . 8080 : fd00:c0de::2 }"),
        ("0.0.0.0", {"tcp 0.0.0.0:8080"}, "{ tcp . 8080 : 10.89.0.2 }"),
        ("::", {"tcp [::]:8080"}, "{ tcp . 8080 : fd00:c0de::2 }"),
        ("127.0.0.1", {"tcp 127.0.0.1:8080"}, "{ 127.0.0.1 . tcp . 8080 : 10.89.0.2 }"),
        ("::1", {"tcp [::1]:8080"}, ""),
        ("fe80::1%lo", {"tcp [fe80::1]%lo:8080"}, ""),
    ],
)
async def test_a_port_is_published_at_the_address_that_is_named(
    host: NetworkNamespace, address: str, sockets: set[str], rule: str
) -> None:
    host.run("ip", "address", "add", "fe80::1/64", "dev", "lo")
    async with publishing(host) as ports:
        port = PublishedPort(80, 8080, host_address=address)
        await ports.publish("k", "web", ADDRESSES, (port,))
        assert taken(host) == sockets
        assert rule in elements(host)
        assert bool(elements(host)) == bool(rule)


async def test_a_host_without_ipv6_publishes_what_it_has(host: NetworkNamespace) -> None:
    host.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
    async with publishing(host) as ports:
        await ports.publish("k", "web", ADDRESSES, (PublishedPort(80, 8080),))
        assert "tcp 0.0.0.0:8080" in taken(host)


async def test_a_network_of_one_family_is_reached_by_the_other_too(
    host: NetworkNamespace,
) -> None:
    with neighbourhood(host) as around:
        for number, family, gateway in ((1, 4, "10.89.1.1"), (2, 6, "fd00:2::1")):
            lan = await around.lan(number, families=(family,))
            web = lan.container()
            async with telling(web, 80), lan.publishing(web, PublishedPort(80, 8080)):
                by_rule, relayed = (HOST4, HOST6) if family == 4 else (HOST6, HOST4)
                assert await ask(around.outside, by_rule, 8080) not in (None, gateway)
                assert await ask(around.outside, relayed, 8080) == gateway
                assert await ask(around.outside, relayed, 8080, UDP) is None


# --- changes ---


async def test_ports_are_changed_as_a_whole(host: NetworkNamespace) -> None:
    async with publishing(host) as ports:
        await ports.publish(
            "k", "web", ADDRESSES, (PublishedPort(80, 8080), PublishedPort(81, 8081))
        )
        await ports.publish(
            "k", "web", ADDRESSES, (PublishedPort(90, 8081), PublishedPort(82, 8082))
        )
        assert taken(host) == {
            f"tcp {each}:{n}" for each in ("0.0.0.0", "[::]") for n in (8081, 8082)
        }
        assert "tcp . 8081 : 90, tcp . 8082 : 82" in elements(host)
        assert "8080" not in elements(host)
        assert await ports.publish("k", "web", ADDRESSES, ()) == ()
        assert taken(host) == set()
        assert elements(host) == ""


async def test_a_refused_change_leaves_the_earlier_ports(host: NetworkNamespace) -> None:
    async with publishing(host) as ports:
        await ports.publish("other", "db", ADDRESSES, (PublishedPort(80, 9090),))
        await ports.publish("k", "web", ADDRESSES, (PublishedPort(80, 8080),))
        before = taken(host), elements(host)
        for wrong in (
            (PublishedPort(80, 8081), PublishedPort(80, 9090)),
            (PublishedPort(80, 8081), PublishedPort(0)),
        ):
            with pytest.raises(ContainerError):
                await ports.publish("k", "web", ADDRESSES, wrong)
            assert (taken(host), elements(host)) == before


async def test_rules_that_fail_leave_the_earlier_ports(
    host: NetworkNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with publishing(host) as ports:
        await ports.publish("k", "web", ADDRESSES, (PublishedPort(80, 8080),))
        before = taken(host), elements(host)

        async def refuse(commands: object) -> None:
            raise Unavailable("nft refused the network's rules: no")

        with monkeypatch.context() as patch:
            patch.setattr(nft, "apply", refuse)
            with pytest.raises(Unavailable):
                await ports.publish("k", "web", ADDRESSES, (PublishedPort(80, 8081),))
            assert (taken(host), elements(host)) == before
            # But what goes frees its ports, and its rules with the next change.
            with pytest.raises(Unavailable):
                await ports.withdraw("k")
        assert taken(host) == set()
        await ports.publish("l", "db", ADDRESSES, (PublishedPort(80, 8082),))
        assert "8080" not in elements(host)


async def test_a_cancelled_change_leaves_the_earlier_ports(host: NetworkNamespace) -> None:
    async with publishing(host) as ports:
        await ports.publish("k", "web", ADDRESSES, (PublishedPort(80, 8080),))
        before = taken(host)
        with trio.CancelScope() as scope:
            scope.cancel()
            await ports.publish("k", "web", ADDRESSES, (PublishedPort(80, 8081),))
        assert taken(host) == before


async def test_many_attachments_at_once_have_ports_of_their_own(host: NetworkNamespace) -> None:
    async with publishing(host) as ports:
        chosen: list[int] = []

        async def one(number: int) -> None:
            found = await ports.publish(f"k{number}", "web", ADDRESSES, (PublishedPort(80),))
            chosen.append(found[0].host_port)
            if number % 2:
                await ports.withdraw(f"k{number}")

        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(one, number)
        assert len(taken(host)) == 60
        # Of each that is left two addresses and two ports.
        assert elements(host).count(" . ") == 30 * 4


async def test_what_an_earlier_helper_published_is_taken_up(host: NetworkNamespace) -> None:
    configuration = network_configuration()
    wanted = (PublishedPort(80, 8080), PublishedPort(81, 8081), PublishedPort(82, 0))
    first = Firewall(configuration, "ctb00000001")
    await first.setup()
    async with open_published_ports(first) as ports:
        chosen = await ports.publish("k", "web", ADDRESSES, wanted)
    assert taken(host) == set()
    before = elements(host)
    with host.socket() as thief:
        thief.bind(("0.0.0.0", 8081))
        thief.listen()
        second = Firewall(configuration, "ctb00000001")
        async with open_published_ports(second) as ports:
            await ports.restore("k", "web", ADDRESSES, chosen)
            await second.setup()
            # As it was: the one that is lost still leads in from outside.
            assert elements(host) == before
            assert len(taken(host)) == 2 * 2 + 1
            (problem,) = await ports.problems()
            assert problem.startswith("port 8081/tcp of the host is taken by ")
            assert 'container "web"' in problem
            thief.close()
            assert await ports.publish("k", "web", ADDRESSES, chosen) == chosen
            assert await ports.problems() == ()
            assert len(taken(host)) == 2 * 3


async def test_a_client_of_udp_reaches_the_container_that_comes_next(
    host: NetworkNamespace,
) -> None:
    with neighbourhood(host) as around:
        lan = await around.lan()
        first, second = lan.container(), lan.container()
        port = PublishedPort(514, 514, protocol=UDP)
        plain = around.outside.socket(socket.AF_INET, socket.SOCK_DGRAM)
        plain.setblocking(False)
        with trio.socket.from_stdlib_socket(plain) as client:
            await client.connect((HOST4, 514))
            for place in (first, second):
                async with telling(place, 514), lan.publishing(place, port):
                    with trio.fail_after(2):
                        await client.send(b"hello")
                        assert (await client.recv(100)).startswith(OUTSIDE4.encode())


def test_how_a_port_is_called() -> None:
    assert reserving.named(Protocol.TCP, "", 80) == "80/tcp"
    assert reserving.named(UDP, "127.0.0.1", 53) == "127.0.0.1:53/udp"
    assert reserving.named(UDP, "::1", 53) == "[::1]:53/udp"
