"""What a container's configuration says, without running one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from container.contracts.runtime import (
    Mount,
    MountKind,
    ProcessSpec,
    Resources,
    SandboxSpec,
    TerminalSize,
)
from container.ipc import InvalidArgument, NotFound
from container.runtime.bundle import (
    CAPABILITIES,
    BundleFiles,
    check_process,
    check_spec,
    configuration,
    process_configuration,
)
from container.runtime.kernel import Machine
from container.runtime.mounts import all_mounts, default_mounts
from container.runtime.names_files import NamesFiles
from container.runtime.seccomp import seccomp_profile
from container.runtime.signals import parse_signal
from container.runtime.user import User

ROOT = User(0, 0, (), "/root")
MACHINE = Machine("x86_64", own_cgroup_namespace=True)
SPEC = SandboxSpec(
    id="0123456789ab",
    name="web",
    hostname="web-1",
    layers=("/layer",),
    process=ProcessSpec(arguments=("true",)),
)


def configured(
    spec: SandboxSpec, tmp_path: Path, user: User = ROOT, network: str | None = "/namespace"
) -> dict[str, Any]:
    files = NamesFiles(tmp_path).write(spec)
    return configuration(spec, user, tmp_path / "rootfs", files, MACHINE, network)


def mount(whole: dict[str, Any], destination: str) -> dict[str, Any]:
    return next(m for m in whole["mounts"] if m["destination"] == destination)


def test_defaults_are_safe(tmp_path: Path) -> None:
    whole = configured(SPEC, tmp_path)
    process = whole["process"]
    assert process["noNewPrivileges"] is True
    assert process["capabilities"]["bounding"] == list(CAPABILITIES)
    assert process["capabilities"]["ambient"] == []
    assert "rlimits" not in process
    namespaces = {entry["type"] for entry in whole["linux"]["namespaces"]}
    assert namespaces == {"pid", "ipc", "uts", "mount", "network", "cgroup"}
    assert "/proc/kcore" in whole["linux"]["maskedPaths"]
    assert "/proc/sys" in whole["linux"]["readonlyPaths"]
    assert whole["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert whole["linux"]["cgroupsPath"] == "/container-0123456789ab"
    assert "ro" in mount(whole, "/sys")["options"]
    assert "size=65536k" in mount(whole, "/dev/shm")["options"]


def test_a_user_who_is_not_root_has_no_capability_of_its_own(tmp_path: Path) -> None:
    process = configured(SPEC, tmp_path, User(1000, 1000, (2000,), "/home/ada"))["process"]
    assert process["capabilities"]["effective"] == []
    assert process["capabilities"]["permitted"] == []
    assert process["user"]["additionalGids"] == [2000]
    assert "HOME=/home/ada" in process["env"]


def test_the_host_network_has_no_namespace_and_none_of_our_settings(tmp_path: Path) -> None:
    whole = configured(evolve(SPEC, network="host"), tmp_path, network=None)
    assert "network" not in {entry["type"] for entry in whole["linux"]["namespaces"]}
    assert "sysctl" not in whole["linux"]


def test_a_network_namespace_is_named_by_its_path_and_lets_anybody_ping_and_listen(
    tmp_path: Path,
) -> None:
    linux = configured(SPEC, tmp_path)["linux"]
    assert {"type": "network", "path": "/namespace"} in linux["namespaces"]
    assert linux["sysctl"] == {
        "net.ipv4.ping_group_range": "0 2147483647",
        "net.ipv4.ip_unprivileged_port_start": "0",
    }
    assert "sysctl" not in configured(evolve(SPEC, network="shared"), tmp_path)["linux"]


def test_limits_become_resources(tmp_path: Path) -> None:
    resources = Resources(memory=64 << 20, cpus=1.5, pids=7)
    found = configured(evolve(SPEC, resources=resources), tmp_path)["linux"]["resources"]
    assert found["memory"] == {"limit": 64 << 20, "swap": 64 << 20}
    assert found["cpu"] == {"quota": 150_000, "period": 100_000}
    assert found["pids"] == {"limit": 7}
    assert found["devices"] == [{"allow": False, "access": "rwm"}]


@pytest.mark.parametrize(
    "resources",
    [
        Resources(memory=1),
        Resources(cpus=0.0),
        Resources(cpus=-1.0),
        Resources(cpus=float("nan")),
        Resources(cpus=100_000.0),
        Resources(pids=0),
    ],
)
def test_limits_that_cannot_be_are_refused(resources: Resources) -> None:
    with pytest.raises(InvalidArgument):
        check_spec(evolve(SPEC, resources=resources))


@pytest.mark.parametrize(
    "process",
    [
        ProcessSpec(arguments=()),
        ProcessSpec(arguments=("",)),
        ProcessSpec(arguments=("true", "a\0b")),
        ProcessSpec(arguments=("true",), environment=("NOVALUE",)),
        ProcessSpec(arguments=("true",), environment=("=x",)),
        ProcessSpec(arguments=("true",), working_directory="relative"),
        ProcessSpec(arguments=("true",), privileged=True),
    ],
)
def test_processes_that_cannot_run_are_refused(process: ProcessSpec) -> None:
    with pytest.raises(InvalidArgument):
        check_process(process)


@pytest.mark.parametrize("hostname", ["", "-x", "a b", "a/b", "x" * 65, "a\nb"])
def test_host_names_are_checked(hostname: str) -> None:
    with pytest.raises(InvalidArgument):
        check_spec(evolve(SPEC, hostname=hostname))


def test_a_terminal_has_its_size_and_a_type() -> None:
    process = ProcessSpec(
        arguments=("sh",), terminal=True, terminal_size=TerminalSize(width=80, height=25)
    )
    found = process_configuration(process, ROOT)
    assert found["consoleSize"] == {"height": 25, "width": 80}
    assert "TERM=xterm" in found["env"]


def test_what_the_user_set_is_not_set_again() -> None:
    process = ProcessSpec(arguments=("sh",), environment=("PATH=/x", "HOME=/y"))
    assert process_configuration(process, ROOT)["env"] == ["PATH=/x", "HOME=/y"]


def test_the_configuration_is_json(tmp_path: Path) -> None:
    files = BundleFiles(tmp_path)
    files.write(configured(SPEC, tmp_path))
    assert json.loads(files.config.read_text())["hostname"] == "web-1"
    assert (tmp_path / "hosts").read_text().endswith("127.0.0.1\tweb-1 web\n")
    assert (tmp_path / "hostname").read_text() == "web-1\n"


# --- mounts ---


def bind(source: Path | str, destination: str, **rest: Any) -> Mount:
    return Mount(MountKind.BIND, destination, str(source), **rest)


def mounted(*mounts: Mount, files: dict[str, Path] | None = None) -> list[dict[str, Any]]:
    return all_mounts(default_mounts(True), files or {}, mounts)


def test_a_missing_bind_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=str(tmp_path / "nothing")):
        mounted(bind(tmp_path / "nothing", "/data"))


def test_a_bind_is_private_and_without_devices_and_set_uid(tmp_path: Path) -> None:
    found = mount({"mounts": mounted(bind(tmp_path, "/data/", read_only=True))}, "/data")
    assert set(found["options"]) == {"rbind", "rprivate", "nosuid", "nodev", "ro"}


def test_parents_are_mounted_before_their_children(tmp_path: Path) -> None:
    order = [
        m["destination"] for m in mounted(bind(tmp_path, "/data/sub"), bind(tmp_path, "/data"))
    ]
    assert order.index("/data") < order.index("/data/sub")
    assert order.index("/dev") < order.index("/dev/shm")


def test_a_users_mount_takes_the_place_of_ours(tmp_path: Path) -> None:
    files = {"/etc/hosts": tmp_path / "hosts", "/etc/hostname": tmp_path / "hostname"}
    found = mounted(bind(tmp_path, "/etc/hosts"), bind(tmp_path, "/dev/shm"), files=files)
    assert mount({"mounts": found}, "/etc/hosts")["source"] == str(tmp_path)
    assert mount({"mounts": found}, "/etc/hostname")["source"] == str(tmp_path / "hostname")
    assert [m["source"] for m in found if m["destination"] == "/dev/shm"] == [str(tmp_path)]
    found = mounted(bind(tmp_path, "/etc"), files=files)
    assert not [m for m in found if m["destination"].startswith("/etc/")]


@pytest.mark.parametrize("destination", ["relative", "", "/", "/x/..", "/a\0b"])
def test_destinations_that_cannot_be_are_refused(tmp_path: Path, destination: str) -> None:
    with pytest.raises(InvalidArgument):
        mounted(bind(tmp_path, destination))


def test_dots_do_not_lead_out(tmp_path: Path) -> None:
    found = mounted(bind(tmp_path, "/a/../../../etc/x"))
    assert mount({"mounts": found}, "/etc/x")


def test_mount_options_are_checked(tmp_path: Path) -> None:
    for options in (("size=1m",), ("nonsense",), ("ro,rw",)):
        with pytest.raises(InvalidArgument, match="is not known for a bind"):
            mounted(bind(tmp_path, "/data", options=options))
    tmpfs = Mount(MountKind.TMPFS, "/cache", options=("size=1m", "exec"))
    found = mount({"mounts": mounted(tmpfs)}, "/cache")
    assert found["options"] == ["size=1m", "exec", "nosuid", "nodev", "mode=1777"]
    with pytest.raises(InvalidArgument, match="is not known for a tmpfs"):
        mounted(Mount(MountKind.TMPFS, "/cache", options=("mpol=x",)))


# --- signals ---


@pytest.mark.parametrize(
    ("text", "number"),
    [("SIGTERM", 15), ("term", 15), ("9", 9), (" kill ", 9), ("RTMIN+3", 37), ("SIGRTMAX-1", 63)],
)
def test_signals_are_read_as_people_write_them(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "-9", "SIG", "SIGFOO", "RTMIN+99", "9.5", "²"])
def test_what_is_no_signal_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_signal(text)


def test_an_unknown_machine_gets_no_profile_rather_than_a_wrong_one() -> None:
    assert seccomp_profile("pdp11") is None
