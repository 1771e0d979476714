"""The container's root: users and commands read inside it, the overlay, the control group."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from container.contracts.runtime import ProcessSpec
from container.ipc import DataLoss, InvalidArgument, NotFound
from container.runtime.cgroup import CgroupFolders, cgroup_path
from container.runtime.command import missing_command
from container.runtime.inside import InsideRoot
from container.runtime.rootfs import OverlayRoot
from container.runtime.user import User, resolve_user

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it mounts")


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("", User(0, 0, (), "/root")),
        ("root", User(0, 0, (), "/root")),
        ("ada", User(1000, 1000, (2000,), "/home/ada")),
        ("1000", User(1000, 1000, (2000,), "/home/ada")),
        ("ada:extra", User(1000, 2000, (), "/home/ada")),
        ("ada:7", User(1000, 7, (), "/home/ada")),
        ("4711", User(4711, 0, (), "/")),
        ("4711:4712", User(4711, 4712, (), "/")),
    ],
)
def test_users_are_resolved_in_the_container(layer: Path, text: str, user: User) -> None:
    with InsideRoot.open(layer) as root:
        assert resolve_user(text, root) == user


@pytest.mark.parametrize("text", ["bob", "ada:nobody", "broken", "-1", "0x10"])
def test_unknown_users_are_not_found(layer: Path, text: str) -> None:
    with InsideRoot.open(layer) as root, pytest.raises(NotFound):
        resolve_user(text, root)


@pytest.mark.parametrize("text", ["4294967295", "99999999999", "0:4294967295", "9" * 5000])
def test_numbers_that_are_no_ids_are_refused(layer: Path, text: str) -> None:
    with InsideRoot.open(layer) as root, pytest.raises(InvalidArgument):
        resolve_user(text, root)


def test_a_passwd_that_leads_outside_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("evil:x:0:0::/:\n")
    for target in (str(outside), "../../../../.." + str(outside)):
        root = tmp_path / f"root{len(target)}"
        (root / "etc").mkdir(parents=True)
        (root / "etc/passwd").symlink_to(target)
        with InsideRoot.open(root) as inside, pytest.raises(NotFound):
            resolve_user("evil", inside)


def test_a_passwd_that_is_a_fifo_does_not_block(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/passwd")
    with InsideRoot.open(tmp_path) as inside:
        assert resolve_user("", inside).uid == 0


def test_commands_are_looked_for_as_the_container_would(layer: Path) -> None:
    def check(*arguments: str, cwd: str = "/", path: str = "/nowhere:/bin") -> object:
        process = ProcessSpec(
            arguments=arguments, environment=(f"PATH={path}",), working_directory=cwd
        )
        with InsideRoot.open(layer) as root:
            error = missing_command(process, root)
        return None if error is None else error.details["exit_status"]

    assert check("sh") is None
    assert check("/bin/sh") is None
    assert check("./sh", cwd="/bin") is None
    assert check("bin/sh") is None
    assert check("nonsense") == 127
    assert check("./sh") == 127
    assert check("sh", path="/nowhere") == 127
    assert check("plain") == 126
    assert check("unexecutable") == 126
    assert check("/etc") == 126


def test_folders_are_made_inside(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/real")
    (tmp_path / "real").mkdir()
    with InsideRoot.open(tmp_path) as inside:
        inside.make_folder("/link/a/b", os.getuid(), os.getgid())
        inside.make_folder("/link/a/b", os.getuid(), os.getgid())
    assert (tmp_path / "real/a/b").is_dir()


# --- overlay ---


@as_root
async def test_layers_are_merged_and_never_written(tmp_path: Path) -> None:
    for name in ("low", "high"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "who").write_text(name)
    (tmp_path / "low/only").write_text("low")
    root = OverlayRoot(tmp_path / "c")
    mounted = await root.mount((str(tmp_path / "high"), str(tmp_path / "low")), volatile=False)
    try:
        assert (mounted / "who").read_text() == "high"
        assert (mounted / "only").read_text() == "low"
        (mounted / "who").write_text("changed")
    finally:
        await root.unmount()
    assert (tmp_path / "high/who").read_text() == "high"
    mounted = await root.mount((str(tmp_path / "high"), str(tmp_path / "low")), volatile=True)
    assert (mounted / "who").read_text() == "changed"
    await root.unmount()
    await root.unmount()


@as_root
@pytest.mark.parametrize("count", [1, 120])
async def test_more_layers_than_a_page_names(tmp_path: Path, count: int) -> None:
    folder = tmp_path / ("long-name-" * 10)
    layers: list[str] = []
    for number in range(count):
        layer = folder / f"{number}"
        layer.mkdir(parents=True)
        (layer / f"f{number}").touch()
        layers.append(str(layer))
    root = OverlayRoot(tmp_path / "c")
    mounted = await root.mount(layers, volatile=False)
    try:
        assert len(os.listdir(mounted)) == count
    finally:
        await root.unmount()


@as_root
async def test_a_path_with_characters_of_the_options_is_no_option(tmp_path: Path) -> None:
    layer = tmp_path / "a,b:c\\d"
    layer.mkdir()
    (layer / "x").touch()
    root = OverlayRoot(tmp_path / "c")
    mounted = await root.mount((str(layer),), volatile=False)
    try:
        assert os.listdir(mounted) == ["x"]
    finally:
        await root.unmount()


@as_root
async def test_a_missing_layer_is_named_and_nothing_is_mounted(tmp_path: Path) -> None:
    root = OverlayRoot(tmp_path / "c")
    with pytest.raises(DataLoss, match="gone"):
        await root.mount((str(tmp_path / "gone"),), volatile=False)


# --- control groups ---


def hierarchy(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_usage_is_read_on_version_2(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    hierarchy(
        tmp_path / "container-x",
        memory__current="5000\n",
        memory__stat="anon 1\ninactive_file 1000\n",
        memory__max="max\n",
        cpu__stat="usage_usec 12\nuser_usec 1\n",
        pids__current="3\n",
        io__stat="8:0 rbytes=10 wbytes=20 rios=1\n9:0 rbytes=1 wbytes=2\n",
        memory__events="low 0\noom 1\noom_kill 2\n",
    )
    group = CgroupFolders(cgroup_path("x"), tmp_path)
    usage = group.usage()
    assert usage is not None
    assert (usage.memory_bytes, usage.memory_limit_bytes) == (4000, None)
    assert (usage.cpu_nanoseconds, usage.pids) == (12000, 3)
    assert (usage.read_bytes, usage.written_bytes) == (11, 22)
    assert group.out_of_memory_kills() == 2


def test_usage_is_read_on_version_1(tmp_path: Path) -> None:
    for controller, files in {
        "memory": {
            "memory__usage_in_bytes": "5000",
            "memory__stat": "total_inactive_file 1000\n",
            "memory__limit_in_bytes": "9223372036854771712",
            "memory__oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
        },
        "cpuacct": {"cpuacct__usage": "12000"},
        "pids": {"pids__current": "3"},
        "blkio": {"blkio__throttle__io_service_bytes": "8:0 Read 10\n8:0 Write 20\nTotal 30\n"},
    }.items():
        hierarchy(tmp_path / controller / "container-x", **files)
    group = CgroupFolders(cgroup_path("x"), tmp_path)
    usage = group.usage()
    assert usage is not None
    assert (usage.memory_bytes, usage.memory_limit_bytes) == (4000, None)
    assert (usage.cpu_nanoseconds, usage.pids) == (12000, 3)
    assert (usage.read_bytes, usage.written_bytes) == (10, 20)
    assert group.out_of_memory_kills() == 1


def test_a_group_that_is_gone_has_no_usage(tmp_path: Path) -> None:
    group = CgroupFolders(cgroup_path("x"), tmp_path)
    assert group.usage() is None
    assert group.out_of_memory_kills() == 0
    assert group.remove()


def test_a_group_is_removed_in_every_hierarchy_with_its_children(tmp_path: Path) -> None:
    for controller in ("pids", "unified"):
        (tmp_path / controller / "container-x" / "child" / "grandchild").mkdir(parents=True)
    (tmp_path / "linked").symlink_to("pids")
    group = CgroupFolders(cgroup_path("x"), tmp_path)
    assert len(group.folders()) == 2
    assert group.remove()
    assert group.folders() == []
