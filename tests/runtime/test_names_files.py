"""hosts, resolv.conf and hostname: what they say for each network mode, and how they change."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from container.contracts.network import Attachment
from container.contracts.runtime import (
    Mount,
    MountKind,
    NameOptions,
    NetworkMode,
    ProcessSpec,
    SandboxSpec,
)
from container.ipc import InvalidArgument
from container.runtime.bundle import check_spec
from container.runtime.mounts import all_mounts
from container.runtime.names_files import HEADER, NamesFiles, check_names, parse_host

WEB = Attachment(
    network="0123456789ab",
    network_name="web",
    key="a",
    interface="eth0",
    addresses=("10.1.0.2/24", "fd00:1::2/64"),
    gateways=("10.1.0.1", "fd00:1::1"),
    mac="02:00:00:00:00:01",
    mtu=1500,
    nameservers=("10.1.0.1",),
)
SILENT = Attachment("ba9876543210", "silent", "a", "eth1", ("10.2.0.2/24",), (), "", 1500)


def spec(network: NetworkMode = "networks", name: str = "web", **names: Any) -> SandboxSpec:
    return SandboxSpec(
        *("a", name, "web-1", ()),
        process=ProcessSpec(("true",)),
        network=network,
        names=NameOptions(**names),
    )


@pytest.fixture
def files(tmp_path: Path) -> NamesFiles:
    (tmp_path / "etc").mkdir()
    (tmp_path / "own").mkdir()
    (tmp_path / "etc/resolv.conf").write_text(
        "# the host's\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\n"
        "search lan corp\noptions ndots:2\n"
    )
    (tmp_path / "etc/hosts").write_text("127.0.0.1 localhost\n192.0.2.9 printer")
    return NamesFiles(tmp_path / "own", tmp_path / "etc", tmp_path / "upstream")


def hosts(files: NamesFiles, wanted: SandboxSpec, *attachments: Attachment) -> list[str]:
    return files.hosts(wanted, attachments).splitlines()


def resolver(files: NamesFiles, wanted: SandboxSpec, *attachments: Attachment) -> list[str]:
    text = files.resolver(wanted, attachments)
    assert text.startswith(HEADER)
    return text.removeprefix(HEADER).splitlines()


# --- hosts ---


def test_hosts_has_the_container_the_host_and_what_the_user_adds(files: NamesFiles) -> None:
    wanted = spec(hosts=("one:192.0.2.3", "six:[::7]", "up:host-gateway"))
    assert hosts(files, wanted, WEB, SILENT) == [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "192.0.2.3\tone",
        "::7\tsix",
        "10.1.0.1\tup",
        "fd00:1::1\tup",
        "10.1.0.2\tweb-1 web",
        "fd00:1::2\tweb-1 web",
        "10.2.0.2\tweb-1 web",
        "10.1.0.1\thost.container.internal",
        "fd00:1::1\thost.container.internal",
    ]


def test_without_a_network_a_container_finds_itself_and_no_host(files: NamesFiles) -> None:
    assert hosts(files, spec("none"))[2:] == ["127.0.0.1\tweb-1 web"]
    assert hosts(files, spec("none", name="web-1"))[2:] == ["127.0.0.1\tweb-1"]
    assert hosts(files, spec("none", name=""))[2:] == ["127.0.0.1\tweb-1"]


def test_in_the_hosts_network_its_own_file_is_the_first_part(files: NamesFiles) -> None:
    assert hosts(files, spec("host", hosts=("up:host-gateway",))) == [
        "127.0.0.1 localhost",
        "192.0.2.9 printer",
        "127.0.0.1\tup",
        "127.0.0.1\tweb-1 web",
        "127.0.0.1\thost.container.internal",
    ]


def test_who_names_the_host_himself_is_right(files: NamesFiles) -> None:
    found = hosts(files, spec(hosts=("host.container.internal:192.0.2.3",)), WEB)
    assert [line for line in found if "internal" in line] == ["192.0.2.3\thost.container.internal"]


def test_a_change_leaves_what_others_wrote_and_the_inode(files: NamesFiles) -> None:
    wanted = spec(hosts=("up:host-gateway",))
    own = files.write(wanted)["/etc/hosts"]
    inode = own.stat().st_ino
    with own.open("a") as file:
        file.write("192.0.2.77\tadded by the container")  # and no end of the line
    files.update(wanted, (WEB, SILENT))
    text = own.read_text()
    assert text.count("192.0.2.77\tadded by the container\n") == 1
    assert "127.0.0.1\tweb-1 web\n" not in text
    assert "10.2.0.2\tweb-1 web\n" in text
    files.update(wanted, (SILENT,))
    assert own.read_text() == (
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
        "192.0.2.77\tadded by the container\n10.2.0.2\tweb-1 web\n"
    )
    files.update(wanted, ())
    assert own.read_text().endswith("\n127.0.0.1\tweb-1 web\n")
    assert own.stat().st_ino == inode


# --- resolv.conf ---


def test_the_first_network_that_answers_names_is_asked(files: NamesFiles) -> None:
    expected = ["nameserver 10.1.0.1", "search lan corp", "options ndots:2"]
    assert resolver(files, spec(), WEB) == expected
    assert resolver(files, spec(), SILENT, WEB) == expected
    # The user's own are asked by the network, for names that no container has.
    assert resolver(files, spec(servers=("192.0.2.5",)), WEB) == expected


def test_in_a_network_that_answers_none_the_hosts_are_asked_that_can_be_reached(
    files: NamesFiles,
) -> None:
    assert resolver(files, spec(), SILENT)[0] == "nameserver 192.0.2.1"
    assert resolver(files, spec(servers=("192.0.2.5", "::7")), SILENT) == [
        *("nameserver 192.0.2.5", "nameserver ::7", "search lan corp", "options ndots:2")
    ]
    assert resolver(files, spec("shared"))[0] == "nameserver 192.0.2.1"


def test_a_stub_resolver_on_the_hosts_loopback_says_whom_it_asks(files: NamesFiles) -> None:
    (files.etc / "resolv.conf").write_text("nameserver 127.0.0.53\nsearch .\n")
    assert resolver(files, spec(), SILENT) == ["search ."]
    files.upstream.write_text("nameserver 192.0.2.8\nnameserver nonsense\nsearch other\n")
    assert resolver(files, spec(), SILENT) == ["nameserver 192.0.2.8", "search ."]


def test_a_host_without_nameservers_gives_none(files: NamesFiles) -> None:
    (files.etc / "resolv.conf").unlink()
    files.upstream.write_text("nameserver 192.0.2.8\n")
    assert resolver(files, spec(), SILENT) == []


def test_without_a_network_nobody_is_asked_but_whom_the_user_names(files: NamesFiles) -> None:
    assert resolver(files, spec("none")) == []
    assert resolver(files, spec("none", servers=("127.0.0.1",), search=("x",))) == [
        *("nameserver 127.0.0.1", "search x", "options ndots:2")
    ]


def test_in_the_hosts_network_all_of_its_nameservers_are_asked(files: NamesFiles) -> None:
    assert resolver(files, spec("host"))[:3] == [
        *("nameserver 127.0.0.53", "nameserver 192.0.2.1", "nameserver fe80::1%eth0")
    ]
    assert resolver(files, spec("host", servers=("192.0.2.5",)))[0] == "nameserver 192.0.2.5"


def test_search_domains_and_options_are_the_users_if_he_names_any(files: NamesFiles) -> None:
    wanted = spec(search=("a.example", "b.example"), options=("timeout:1", "attempts:1"))
    assert resolver(files, wanted, WEB)[1:] == [
        *("search a.example b.example", "options timeout:1 attempts:1")
    ]
    assert resolver(files, spec(search=(".",)), WEB)[1:] == ["options ndots:2"]


def test_a_resolver_that_the_container_wrote_is_left_alone(files: NamesFiles) -> None:
    own = files.write(spec())["/etc/resolv.conf"]
    files.update(spec(), (WEB,))
    assert "nameserver 10.1.0.1\n" in own.read_text()
    own.write_text("nameserver 192.0.2.99\n")
    files.update(spec(), ())
    assert own.read_text() == "nameserver 192.0.2.99\n"


# --- the files ---


def test_anybody_in_the_container_may_read_them(files: NamesFiles) -> None:
    before = os.umask(0o077)
    try:
        written = files.write(spec())
    finally:
        os.umask(before)
    assert set(written) == {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in written.values()} == {0o644}
    assert written["/etc/hostname"].read_text() == "web-1\n"


def test_the_images_own_hosts_is_kept_if_that_is_wanted(files: NamesFiles) -> None:
    wanted = spec(keep_hosts=True)
    assert "/etc/hosts" not in files.write(wanted)
    files.update(wanted, (WEB,))
    assert not (files.folder / "hosts").exists()
    assert "nameserver 10.1.0.1\n" in (files.folder / "resolv.conf").read_text()


def test_none_is_bound_where_the_user_mounts_something(files: NamesFiles, tmp_path: Path) -> None:
    written = files.write(spec())

    def sources(*mounts: Mount) -> dict[str, str]:
        return {m["destination"]: m["source"] for m in all_mounts([], written, mounts)}

    own = Mount(MountKind.BIND, "/etc/hosts", str(tmp_path))
    found = sources(own)
    assert found["/etc/hosts"] == str(tmp_path)
    assert found["/etc/resolv.conf"] == str(written["/etc/resolv.conf"])
    above = Mount(MountKind.BIND, "/etc", str(tmp_path))
    assert set(sources(above)) == {"/etc"}


# --- bad input ---


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a:1.2.3.4", ("a", "1.2.3.4")),
        ("a:::1", ("a", "::1")),
        ("a:[::1]", ("a", "::1")),
        ("a.b-c:host-gateway", ("a.b-c", "host-gateway")),
    ],
)
def test_hosts_are_read_as_people_write_them(text: str, found: tuple[str, str]) -> None:
    assert parse_host(text) == found


@pytest.mark.parametrize(
    "text",
    ["", "a", ":1.2.3.4", "a:", "a:b", "a b:1.2.3.4", "a#:1.2.3.4", "a:1.2.3.4\n::1 x", "a\n:::1"],
)
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_host(text)


@pytest.mark.parametrize(
    "names",
    [
        {"servers": ("nonsense",)},
        {"servers": ("1.2.3.4\nnameserver 5.6.7.8",)},
        {"servers": ("1.2.3.4:53",)},
        {"search": ("a b",)},
        {"search": ("",)},
        {"options": ("x\ny",)},
        {"hosts": ("a:b",)},
    ],
)
def test_names_that_cannot_be_are_refused(names: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        check_names(NameOptions(**names), reaches_host=True)


@pytest.mark.parametrize("mode", ["none", "shared"])
def test_the_hosts_address_needs_a_network(mode: NetworkMode) -> None:
    wanted = spec(mode, hosts=("up:host-gateway",))
    with pytest.raises(InvalidArgument, match="up:host-gateway needs a network"):
        check_spec(wanted)
    check_spec(spec("host", hosts=("up:host-gateway",)))


def test_a_container_that_fills_its_own_files_costs_us_no_memory(files: NamesFiles) -> None:
    own = files.write(spec())["/etc/hosts"]
    with own.open("r+b") as file:
        file.truncate(1 << 30)
    files.update(spec(), (WEB,))
    assert own.stat().st_size < 1 << 22
