"""Volumes by the installed command: real containers, real mounts, helpers that are killed."""

from __future__ import annotations

import ast
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from container.testing.busybox import Entry, write_layout
from tests.system.conftest import Machine

EXAMPLE = Path(__file__).parents[2] / "examples" / "shelf"


@pytest.fixture(scope="session")
def data_layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with something at /data, which it asks a volume for."""
    folder = tmp_path_factory.mktemp("image") / "data"
    entries = [
        Entry("data/", mode=0o750, kind=b"5", uid=33, gid=34),
        Entry("data/hello", b"from the image\n", mode=0o640, uid=33, gid=34),
    ]
    write_layout(folder, name="data", layers=[entries], config={"Volumes": {"/data": {}}})
    return folder


@pytest.fixture
def place(own_machine: Machine, data_layout: Path) -> Machine:
    """A system of the test's own, with both images."""
    own_machine.run("image", "load", "-i", str(data_layout))
    return own_machine


def mounted(machine: Machine) -> list[str]:
    return [point for point in machine.census().mounts if "/volumes/" in point]


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)  # the kernel tells nobody


def kill(machine: Machine, service: str) -> None:
    status = json.loads(machine.text("system", "status", "--format", "json"))
    (pid,) = [it["pid"] for it in status["services"] if it["name"] == service]
    os.kill(pid, signal.SIGKILL)


def test_data_outlives_containers_and_is_shared(place: Machine) -> None:
    none = ("--network", "none")
    said = place.text("run", "--rm", *none, "-v", "mine:/data", "data", "ls", "-ln", "/data")
    assert said.split()[2:6] == ["-rw-r-----", "1", "33", "34"]
    place.run("run", "--rm", *none, "-v", "mine:/x", "demo", "sh", "-c", "echo new > /x/new")
    running = place.text("run", "-d", *none, "-v", "mine:/y:ro", "demo", "sleep", "1000").strip()
    assert place.text("exec", running, "cat", "/y/new", "/y/hello") == "new\nfrom the image\n"
    assert "Read-only" in place.run("exec", running, "touch", "/y/z", status=1).stderr.decode()
    said = place.refused("volume", "rm", "mine", status=1)
    name = json.loads(place.text("inspect", running))[0]["name"]
    assert f"volume mine is used by container {name}" in said
    lent = place.text("run", "--rm", *none, "--volumes-from", f"{name}:ro", "demo", "ls", "/y")
    assert lent.split() == ["hello", "new"]
    empty = place.text("run", "--rm", *none, "-v", "e:/data:nocopy", "data", "ls", "/data")
    assert empty == ""
    place.run("rm", "-f", running)
    place.run("volume", "rm", "mine", "e")
    assert place.text("volume", "ls", "-q") == ""  # the anonymous ones went with their containers


def test_anonymous_volumes_go_with_rm_v_and_what_df_says_is_what_prune_frees(
    place: Machine,
) -> None:
    for name in ("one", "two"):
        place.run("run", "--network", "none", "--name", name, "data", "true")
    assert len(place.text("volume", "ls", "-q").split()) == 2
    place.run("rm", "-v", "one")
    assert len(place.text("volume", "ls", "-q").split()) == 1
    # The helper of the last run sweeps what that had, a moment after its end.
    until(lambda: not any(it.startswith("runtime/") for it in place.census().sockets))
    told = json.loads(place.text("system", "df", "--format", "json"))
    before = blocks(place.root)
    gone = json.loads(
        place.text("system", "prune", "--all", "--volumes", "--force", "--format", "json")
    )
    promised = {total["kind"]: total["reclaimable_bytes"] for total in told["totals"]}
    assert sum(gone["freed"].values()) == before - blocks(place.root) == sum(promised.values())
    assert (gone["containers"], len(gone["volumes"]), len(gone["images"])) == (["two"], 1, 2)
    assert place.text("volume", "ls", "-q") == ""


def blocks(root: Path) -> int:
    folders = [root / name for name in ("containers", "images", "volumes")]
    found = [path.lstat() for it in folders for path in (it, *it.rglob("*"))]
    return sum({it.st_ino: it.st_blocks * 512 for it in found}.values())


def test_a_volume_with_a_size_is_mounted_while_it_is_used_whoever_is_killed(
    place: Machine,
) -> None:
    place.run("volume", "create", "--opt", "size=16m", "big")
    command = "while true; do date > /big/now; sleep 0.05; done"
    arguments = ("--network", "none", "-v", "big:/big", "demo", "sh", "-c", command)
    running = place.text("run", "-d", "--name", "web", *arguments).strip()
    assert mounted(place) == [f"{place.root}/volumes/big/_mount"]
    kill(place, "apiserver")
    assert place.text("exec", running, "ls", "-A", "/big") == "now\n"
    kill(place, f"runtime.{running}")
    assert "web" in place.text("ps")
    assert mounted(place) == [f"{place.root}/volumes/big/_mount"]
    full = place.run(
        "exec", running, "dd", "if=/dev/zero", "of=/big/f", "bs=1M", "count=20", status=1
    )
    assert b"No space left" in full.stderr
    kill(place, "apiserver")
    place.run("stop", "-t", "0", "web")
    until(lambda: mounted(place) == [])
    place.run("start", "web")
    assert len(mounted(place)) == 1
    kill(place, "apiserver")
    place.run("rm", "-f", "web")
    until(lambda: mounted(place) == [])
    place.run("run", "-d", *arguments)
    place.run("system", "stop", "--containers")
    assert mounted(place) == []
    report = json.loads(place.text("system", "check", "--format", "json"))
    assert report["findings"] == []


def test_the_example_driver_imports_ipc_and_contracts_alone() -> None:
    tree = ast.parse((EXAMPLE / "shelf/bin/shelf").read_text())
    modules = [each.module for each in ast.walk(tree) if isinstance(each, ast.ImportFrom)]
    assert {it for it in modules if it and it.startswith("container")} == {
        "container.ipc",
        "container.contracts.volumes",
    }


def test_a_driver_from_outside_keeps_volumes_whoever_is_killed(
    place: Machine, tmp_path: Path
) -> None:
    place.run("system", "stop")
    place.environment["CONTAINER_PLUGIN_PATH"] = str(EXAMPLE)
    here = os.path.dirname(sys.executable)  # where its `python3` has container
    place.environment["PATH"] = f"{here}:{place.environment['PATH']}"
    place.run("volume", "create", "-d", "shelf", "-o", f"at={tmp_path}/data", "far")
    said = place.refused("volume", "create", "-d", "shelf", "-o", "to=x", "bad", status=1)
    assert "this driver knows --opt at=FOLDER" in said
    run = ("run", "-d", "--network", "none", "-v", "far:/data", "data", "sleep", "1000")
    running = place.text(*run).strip()
    assert (tmp_path / "data/hello").read_text() == "from the image\n"
    users = place.root / "volume-drivers/shelf/far/users"
    assert os.listdir(users) == [running]
    kill(place, "volume.shelf")
    kill(place, "apiserver")
    assert place.text("exec", running, "cat", "/data/hello") == "from the image\n"
    assert os.listdir(users) == [running]
    place.run("rm", "-f", running)
    until(lambda: os.listdir(users) == [])
    size = json.loads(place.text("volume", "inspect", "far"))[0]["size_bytes"]
    assert size >= 4096
    place.run("volume", "rm", "far")
    assert not (tmp_path / "data").exists()
