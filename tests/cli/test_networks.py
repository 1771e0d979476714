"""Networks and ports on the command line: what is asked for, and each wrong word refused."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container.cli.failure import UsageRefused
from container.cli.networking import parse_network
from container.cli.ports import parse_container_port, parse_publish
from container.contracts.apiserver import ContainerStatus, NetworkUse
from container.contracts.network import Protocol, PublishedPort
from container.contracts.networks import NetworkOptions
from container.contracts.runtime import MountKind, NameOptions
from tests.cli.fake_networks import attachment

UDP = Protocol.UDP


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("80", PublishedPort(80)),
        ("80/udp", PublishedPort(80, protocol=UDP)),
        ("8080:80", PublishedPort(80, 8080)),
        ("8080:80/TCP", PublishedPort(80, 8080)),
        ("0:80", PublishedPort(80)),
        ("8000-8009:80-89", PublishedPort(80, 8000, 10)),
        ("80-89", PublishedPort(80, count=10)),
        ("127.0.0.1:8080:80", PublishedPort(80, 8080, host_address="127.0.0.1")),
        ("127.0.0.1::80", PublishedPort(80, host_address="127.0.0.1")),
        ("[::1]:8080:80/udp", PublishedPort(80, 8080, protocol=UDP, host_address="::1")),
        ("[::]::80-81", PublishedPort(80, count=2, host_address="::")),
        ("65535:65535", PublishedPort(65535, 65535)),
    ],
)
def test_a_port_is_published_in_every_form(text: str, port: PublishedPort) -> None:
    assert parse_publish(text) == port


BAD_PORTS = [
    ("", '"" is no port to publish'),
    (":", '":" is no port to publish'),
    (":80", '":80" is no port to publish'),
    ("8080:", '"8080:" is no port to publish'),
    ("80/", '"" in "80/" is no protocol'),
    ("80/sctp", '"sctp" in "80/sctp" is no protocol here: use tcp or udp'),
    ("80/tcp/udp", "is no protocol"),
    ("http", '"http" is no port: use a number from 1 to 65535'),
    ("-1", '"" in "-1" is no port'),
    ("0", '"0" is no port'),
    ("65536", '"65536" is no port'),
    ("8080:0", '"0" in "8080:0" is no port'),
    ("70000:80", '"70000" in "70000:80" is no port'),
    ("8080:80.5", '"80.5" in "8080:80.5" is no port'),
    ("٨٠", "is no port"),
    ("9-8", '"9-8" in "9-8" is no range of ports'),
    ("8-", '"" in "8-" is no port'),
    ("1-2-3", '"2-3" in "1-2-3" is no port'),
    ("0-5:0-5", "is no port|is no range"),
    ("8000-8001:80", "leads from 2 ports of the host into 1 port of the container"),
    ("8000:80-81", "leads from 1 port of the host into 2 ports of the container"),
    ("127.0.0.1:80", "write 127.0.0.1::80 for any free one"),
    ("127.0.0.300:80:80", '"127.0.0.300" in "127.0.0.300:80:80" is no address of the host'),
    ("host:80:80", '"host" in "host:80:80" is no address of the host'),
    ("::80", '"" in "::80" is no address of the host'),
    ("1:2:3:4", "is no port to publish"),
    ("::1:80:80", "is no port to publish"),
    ("[::1:80:80", "is no port to publish"),
    ("[::1]80", "is no port to publish"),
    ("[::1]:80", r"write \[::1\]::80 for any free port of the host"),
    ("[1.2.3.4]:80:80", '"1.2.3.4" in "[1.2.3.4]:80:80" is no address'.replace("[", r"\[")),
    ("[::1]:1:2:3", "is no port to publish"),
    ("[]:80:80", "is no address of the host"),
]


@pytest.mark.parametrize(("text", "sentence"), BAD_PORTS)
def test_a_port_that_makes_no_sense_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(UsageRefused, match=sentence):
        parse_publish(text)


@settings(deadline=None)
@given(st.text(alphabet="0123456789:-/[].tcpud", max_size=20))
def test_any_text_is_a_port_or_refused(text: str) -> None:
    try:
        port = parse_publish(text)
    except UsageRefused:
        return
    assert 1 <= port.container_port <= port.container_port + port.count - 1 <= 65535
    assert port.host_port == 0 or port.host_port + port.count - 1 <= 65535


def test_an_ipv6_address_without_brackets_gets_the_hint() -> None:
    with pytest.raises(UsageRefused) as caught:
        parse_publish("::1:80:80")
    assert caught.value.hint == "an IPv6 address is written in brackets, as in [::1]:8080:80"


@pytest.mark.parametrize(
    ("text", "use"),
    [
        ("web", NetworkUse("web")),
        ("name=web", NetworkUse("web")),
        ("bridge", NetworkUse("default")),
        (
            "web,ip=10.9.0.7,ip6=fd00::7,mac=02:42:AC:11:00:02,mtu=1400,interface=web0",
            NetworkUse(
                "web", ("10.9.0.7", "fd00::7"), "02:42:ac:11:00:02", (), 1400, "web0"
            ),
        ),
        ("web,alias=db,alias=store.local", NetworkUse("web", aliases=("db", "store.local"))),
        ("web,mac-address=02:00:00:00:00:01", NetworkUse("web", mac="02:00:00:00:00:01")),
    ],
)  # fmt: skip
def test_a_network_has_fields(text: str, use: NetworkUse) -> None:
    assert parse_network(text) == use


BAD_NETWORKS = [
    ("", '"" is no name for a network'),
    ("a b", '"a b" is no name for a network'),
    ("-x", "is no name for a network"),
    ("x" * 64, "at most 63"),
    (",ip=1.2.3.4", '"" is no name for a network'),
    ("web,", '"" in "web," is no field'),
    ("web,ip", '"ip" in "web,ip" is no field of a network'),
    ("web,port=1", '"port=1" in "web,port=1" is no field of a network: use ip, ip6'),
    ("web,ip=", 'ip in "web,ip=" is empty'),
    ("web,ip=10.9.0.300", '"10.9.0.300" is no address of the container in network "web": use an'),
    ("web,ip=fd00::1", "use an IPv4 address"),
    ("web,ip6=10.9.0.1", "use an IPv6 address"),
    ("web,ip=10.9.0.1,ip=10.9.0.2", 'ip is given twice in "web,ip=10.9.0.1,ip=10.9.0.2"'),
    ("web,mac=x", '"x" is no MAC address: use six bytes'),
    ("web,mac=01:00:00:00:00:00", "is no MAC address"),
    ("web,mac=00:00:00:00:00:00", "is no MAC address"),
    ("web,mtu=1k", '"1k" is no MTU: use a number from 68 to 65535'),
    ("web,mtu=67", '"67" is no MTU'),
    ("web,mtu=65536", '"65536" is no MTU'),
    ("web,alias=a b", '"a b" is no alias'),
    ("web,alias=" + "a" * 64, "at most 63 in a row"),
    ("web,interface=" + "x" * 16, "is no interface: use at most 15"),
    ("web,interface=a/b", '"a/b" is no interface'),
    ("web,interface=lo", '"lo" is no interface'),
    ("none,ip=10.9.0.1", "--network none has no fields"),
    ("host,mtu=1400", "--network host has no fields"),
]


@pytest.mark.parametrize(("text", "sentence"), BAD_NETWORKS)
def test_a_network_that_makes_no_sense_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(UsageRefused, match=sentence):
        parse_network(text)


BAD_OPTIONS = [
    (("-p", "x"), '"x" is no port'),
    (("--publish-socket", "/no/such:/run/s"), '"/no/such" in "/no/such:/run/s" does not exist'),
    (("--publish-socket", "/etc:/run/s"), '"/etc" in "/etc:/run/s" is no socket'),
    (("--publish-socket", "/etc"), '"/etc" is no socket to publish: use SOCKET:DESTINATION'),
    (("--publish-socket", "/etc:"), "is no socket to publish"),
    (("--publish-socket", "/a:/b:ro"), "is no socket to publish"),
    (("--network", "none", "--network", "web"), '--network none stands alone: "web" was given'),
    (("--network", "host", "--network", "host"), '--network host stands alone: "host" was given'),
    (("--network", "web", "--network", "web"), '--network "web" is given twice'),
    (("--network", "bridge", "--network", "default"), '--network "default" is given twice'),
    (("--network", "container:"), '"container:" names no container'),
    (("--network", "none", "--ip", "10.9.0.1"), "--ip needs a network, and --network none is none"),
    (("--network", "host", "--network-alias", "x"), "--network-alias needs a network"),
    (("--network", "a", "--network", "b", "--ip", "10.9.0.1"), "of which network is --ip?"),
    (("--network", "a,ip=10.9.0.1", "--ip", "10.9.0.2"), 'two IPv4 addresses in network "a"'),
    (("--ip", "fd00::1"), "use an IPv4 address"),
    (("--ip6", "10.9.0.1"), "use an IPv6 address"),
    (("--mac-address", "x"), '"x" is no MAC address'),
    (("--network-alias", "a b"), '"a b" is no alias'),
    (("--dns", "dns.example"), '"dns.example" is no address of a DNS server'),
    (("--dns-search", "a..b"), '"a..b" is no domain'),
    (("--dns-option", "a b"), '"a b" is no DNS option'),
    (("--dns-opt", ""), '"" is no DNS option'),
    (("--add-host", "db"), '"db" is no host: use NAME:ADDRESS'),
    (("--add-host", "db:"), '"db:" is no host'),
    (("--add-host", "db:here"), '"here" is no address of the host "db"'),
    (("--add-host", ":1.2.3.4"), '"" is no host name'),
    (("--add-host", "db:1.2.3.4", "--no-hosts"), "contradict each other"),
]


@pytest.mark.parametrize("verb", ["run", "create"])
@pytest.mark.parametrize(("options", "sentence"), BAD_OPTIONS)
def test_an_option_that_makes_no_sense_is_125_with_a_sentence_and_a_hint(
    run: Any, session: Any, monkeypatch: Any, verb: str, options: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.delenv("CONTAINER_NETWORK", raising=False)
    said = run(verb, *options, "demo")
    assert (said.status, said.out) == (125, "")
    first, second = said.err.splitlines()
    assert sentence in first
    assert second.startswith("hint: ")
    assert session.connections == 0


def asked(run: Any, session: Any, *options: str) -> Any:
    said = run("create", *options, "demo")
    assert said.status == 0, said.err
    return session.fake_containers.options[-1]


def test_all_options_reach_the_api_server(run: Any, session: Any, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        options = asked(
            run, session, "--network", "web,ip=10.9.0.7", "--net", "db", "-p", "8080:80", "-p",
            "53/udp", "-P", "--dns", "1.1.1.1", "--dns-search", ".", "--dns-option", "ndots:2",
            "--add-host", "db:10.9.0.9", "--add-host", "h=host-gateway", "--add-host", "s:[::1]",
            "--publish-socket", f"{tmp_path}/s:/run/s",
        )  # fmt: skip
    assert options.network == ""
    assert options.networks == (NetworkUse("web", ("10.9.0.7",)), NetworkUse("db"))
    assert options.ports == (PublishedPort(80, 8080), PublishedPort(53, protocol=UDP))
    assert options.publish_all
    assert options.names == NameOptions(
        ("1.1.1.1",), (".",), ("ndots:2",), ("db:10.9.0.9", "h:host-gateway", "s:::1")
    )
    (mount,) = options.mounts
    assert (mount.kind, mount.source) == (MountKind.BIND, f"{tmp_path}/s")
    assert mount.destination == "/run/s"


def test_no_hosts_leaves_the_images_file(run: Any, session: Any) -> None:
    assert asked(run, session, "--no-hosts").names == NameOptions(keep_hosts=True)


@pytest.mark.parametrize(
    ("words", "mode", "networks"),
    [
        ((), "", ()),
        (("--network", "none"), "none", ()),
        (("--network", "host"), "host", ()),
        (("--network", "container:web"), "container:web", ()),
        (("--network", "web"), "", (NetworkUse("web"),)),
        (("--ip", "10.89.0.7"), "", (NetworkUse("default", ("10.89.0.7",)),)),
        (
            ("--network", "web", "--ip6", "fd00::7", "--mac-address", "02:00:00:00:00:01",
             "--network-alias", "a", "--network-alias", "b"),
            "", (NetworkUse("web", ("fd00::7",), "02:00:00:00:00:01", ("a", "b")),),
        ),
    ],
)  # fmt: skip
def test_the_options_of_the_only_network_are_its_fields(
    run: Any, session: Any, monkeypatch: Any, words: tuple[str, ...], mode: str, networks: Any
) -> None:
    monkeypatch.delenv("CONTAINER_NETWORK", raising=False)
    options = asked(run, session, *words)
    assert (options.network, options.networks) == (mode, networks)


def test_a_variable_names_another_default(run: Any, session: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("CONTAINER_NETWORK", "none")
    assert asked(run, session).network == "none"
    monkeypatch.setenv("CONTAINER_NETWORK", "web")
    assert asked(run, session).networks == (NetworkUse("web"),)
    assert asked(run, session, "--network", "db").networks == (NetworkUse("db"),)


# --- networks ---


def test_a_network_is_created_with_all_its_options(run: Any, session: Any) -> None:
    said = run(
        "network", "create", "--subnet", "10.9.0.0/24", "--subnet", "fd00:9::/64", "--gateway",
        "10.9.0.254", "--internal", "--mtu", "1400", "-o", "a=b=c", "--disable-dns", "-l", "x=y",
        "--ipv6", "-d", "vlan", "web",
    )  # fmt: skip
    assert (said.status, said.out) == (0, "0123456789ab\n")
    assert session.fake_networks.calls == [
        (
            "create",
            NetworkOptions(
                "web", "vlan", ("10.9.0.0/24", "fd00:9::/64"), ("10.9.0.254",), True, True, 1400,
                {"a": "b=c"}, {"x": "y"}, False,
            ),
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("a b",), '"a b" is no name for a network'),
        (("--subnet", "web", "web"), '"web" is no range: use an address and a prefix length'),
        (("--subnet", "10.9.0.0", "web"), '"10.9.0.0" is no range'),
        (("--subnet", "10.9.0.0/33", "web"), '"10.9.0.0/33" is no range'),
        (("--subnet", "10.9.0.1/24", "web"), "is an address in the range 10.9.0.0/24"),
        (("--subnet", "10.9.0.0/24", "--gateway", "x", "web"), '"x" is no address of a gateway'),
        (("--gateway", "10.9.0.1", "web"), "--gateway 10.9.0.1 has no range"),
        (("--mtu", "big", "web"), '"big" is no MTU'),
        (("--driver", "", "web"), "is no name"),
        (("-o", "x", "web"), '"x" is no option of a driver: use KEY=VALUE'),
        (("-o", "=x", "web"), '"=x" is no option of a driver'),
        (("-o", "a=1", "-o", "a=2", "web"), '--opt "a" is given twice'),
        (("-l", "=x", "web"), "=x"),
        ((), "NAME"),
        (("a", "b"), "b"),
    ],
)
def test_a_network_that_makes_no_sense_is_2(
    run: Any, session: Any, words: tuple[str, ...], sentence: str
) -> None:
    said = run("network", "create", *words)
    assert (said.status, said.out) == (2, "")
    assert sentence in said.err
    assert session.connections == 0


def test_networks_are_listed_inspected_and_deleted(run: Any, session: Any) -> None:
    run("network", "create", "--subnet", "10.9.0.0/24", "web")
    said = run("network", "ls")
    assert said.out.splitlines()[0].split() == [
        "ID", "NAME", "DRIVER", "RANGES", "CONTAINERS", "CREATED",
    ]  # fmt: skip
    assert said.out.splitlines()[2].split()[:5] == [
        "0123456789ab", "web", "bridge", "10.9.0.0/24", "1",
    ]  # fmt: skip
    assert run("network", "list", "-q").out == "0123456789ab\n" * 2
    assert '"name": "web"' in run("network", "inspect", "web").out
    said = run("network", "inspect", "web", "wed")
    assert said.status == 1
    assert 'no network "wed"' in said.err
    assert run("network", "rm", "web").out == "web\n"
    assert run("network", "rm", "web").status == 1
    assert run("network", "delete", "-f", "web").status == 0
    assert session.fake_networks.calls[-1] == ("delete", "web", True)
    run("network", "create", "db")
    assert run("network", "prune").out == "db\n"
    assert run("network").out.startswith("Usage: container network")


def test_a_container_is_connected_and_disconnected(run: Any, session: Any) -> None:
    said = run("network", "connect", "--ip", "10.9.0.7", "--alias", "db", "web,mtu=1400", "it")
    assert (said.status, said.out) == (0, "10.89.0.2/24\n")
    use = NetworkUse("web", ("10.9.0.7",), aliases=("db",), mtu=1400)
    assert session.fake_networks.calls[-1] == ("connect", "it", use)
    assert run("network", "connect", "web", "stopped").out == ""
    assert run("network", "disconnect", "web", "it").status == 0
    assert session.fake_networks.calls[-1] == ("disconnect", "it", "web")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("host", "it"), '"host" is no network'),
        (("container:x", "it"), '"container:x" is no network'),
        (("web,ip=x", "it"), '"x" is no address'),
        (("--ip", "x", "web", "it"), '"x" is no address'),
        (("web",), "CONTAINER"),
    ],
)
def test_a_connection_that_makes_no_sense_is_2(
    run: Any, session: Any, words: tuple[str, ...], sentence: str
) -> None:
    said = run("network", "connect", *words)
    assert said.status == 2
    assert sentence in said.err
    assert session.connections == 0


# --- ports ---


@pytest.fixture
def web(session: Any) -> Any:
    ports = (
        PublishedPort(80, 8080),
        PublishedPort(53, 5353, 2, UDP, "127.0.0.1"),
        PublishedPort(443, 8443, host_address="::1"),
    )
    return session.fake_containers.add(
        "web", ContainerStatus.RUNNING, attachments=(attachment("default", *ports),)
    )


@pytest.mark.usefixtures("web")
def test_ports_are_shown_by_port_and_list(run: Any) -> None:
    assert run("port", "web").out.splitlines() == [
        "80/tcp -> 0.0.0.0:8080",
        "53/udp -> 127.0.0.1:5353",
        "54/udp -> 127.0.0.1:5354",
        "443/tcp -> [::1]:8443",
    ]
    assert run("port", "web", "80").out == "0.0.0.0:8080\n"
    assert run("port", "web", "54/udp").out == "127.0.0.1:5354\n"
    assert (
        "0.0.0.0:8080->80/tcp, 127.0.0.1:5353-5354->53-54/udp, [::1]:8443->443/tcp"
        in run("list").out
    )
    assert '"host_port": 8080' in run("inspect", "web").out


@pytest.mark.usefixtures("web")
def test_a_port_that_is_not_published_is_1_and_one_that_is_none_2(run: Any, session: Any) -> None:
    said = run("port", "web", "81")
    assert said.status == 1
    assert 'port 81/tcp of "web" is not published' in said.err
    assert "published are 80/tcp" in said.err
    session.fake_containers.add("still", ContainerStatus.STOPPED)
    assert "it does not run, or has no network" in run("port", "still", "80").err
    assert run("port", "still").out == ""
    for text in ("x", "0", "80/sctp", "65536"):
        assert run("port", "web", text).status == 2
    assert parse_container_port("80/UDP") == (80, "udp")


@pytest.mark.usefixtures("web")
def test_a_port_inside_is_dialled_by_stdin_and_stdout(
    run: Any, session: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    (tmp_path / "in").write_bytes(b"ping")
    heard: list[bytes] = []

    def answer() -> None:
        with session.fake_containers.lines.get(timeout=30) as line:
            while data := line.recv(100):
                heard.append(data)
            line.sendall(b"pong")

    peer = threading.Thread(target=answer)
    peer.start()
    import os

    saved = os.dup(0)
    try:
        with open(tmp_path / "in", "rb") as source:
            os.dup2(source.fileno(), 0)
        said = run("dial", "web", "80")
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        peer.join()
    assert (said.status, said.out) == (0, "pong")
    assert b"".join(heard) == b"ping"
    assert session.fake_containers.calls[-1] == ("dial", "web", 80)
    for text in ("0", "x", "65536", "80/tcp"):
        assert run("dial", "web", text).status == 2
