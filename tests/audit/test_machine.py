"""A real system: what the kernel holds of it, while it runs and after parts of it were killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from container.audit import Finding, audit, repair
from container.audit.machine import Machine as Look
from container.audit.machine import look
from container.storage.paths import Paths
from container.testing.busybox import write_layout
from tests.system.conftest import Machine, _why_not, private_machine

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(_why_not() is not None, reason=str(_why_not())),
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A system with a container `a` that runs; each test leaves it healed."""
    layout = tmp_path_factory.mktemp("image") / "demo"
    write_layout(layout, name="demo")
    with private_machine("ca-") as machine:
        machine.run("image", "load", "-i", str(layout))
        machine.run("run", "-d", "--name", "a", "demo", "sleep", "1000")
        yield machine
        machine.run("rm", "-f", "a", status=None)


def check(machine: Machine, settle: float = 20) -> dict[str, Finding]:
    """Audit, waiting long for a clean system and briefly for one that is not."""
    paths = Paths(machine.root, machine.run_folder)
    report = trio.run(partial(audit, paths, settle=settle))
    return {finding.kind.value: finding for finding in report.findings}


def seen(machine: Machine) -> Look:
    return look(Paths(machine.root, machine.run_folder))


def kill(machine: Machine, service: str) -> None:
    (process,) = [p for p in seen(machine).processes if p.service == service]
    pidfd = os.pidfd_open(process.pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)

        async def end() -> None:
            with trio.fail_after(10):
                await trio.lowlevel.wait_readable(pidfd)

        trio.run(end)
    finally:
        os.close(pidfd)


def test_a_running_system_is_clean_and_its_parts_are_known(running: Machine) -> None:
    report = json.loads(running.text("system", "check", "--deep", "--format", "json"))
    assert report["clean"]
    assert report["deep"]
    assert report["findings"] == report["repaired"] == []
    now = seen(running)
    services = {process.service for process in now.processes}
    assert services == {"launcher", "zygote", "apiserver", "images", "runtime"}
    assert now.launcher_lock
    assert now.images_lock
    (helper,) = [p for p in now.processes if p.service == "runtime"]
    assert now.groups[helper.container] >= 1
    assert {mount.container for mount in now.mounts} == {helper.container}
    said = running.text("system", "check")
    assert said.startswith("nothing is wrong; the system runs;")


def test_containers_that_run_on_while_the_system_is_down_are_no_finding(running: Machine) -> None:
    running.run("system", "stop")
    assert check(running) == {}
    assert running.text("ls", "-q").split()
    assert check(running) == {}


def test_dead_sockets_are_found_and_repaired_when_the_launcher_was_killed(
    running: Machine,
) -> None:
    kill(running, "launcher")
    said = running.run("system", "check", "--settle", "1s", status=1).stdout.decode()
    assert "nobody listens at this socket" in said, said
    said = running.text("system", "check", "--repair", "--settle", "500ms")
    assert "nothing is wrong" in said, said
    assert "a" in running.text("ls")
    assert check(running) == {}


def test_a_container_without_its_helper_is_found(running: Machine) -> None:
    running.run("system", "stop")
    kill(running, "runtime")
    assert {"helper", "socket"} >= set(check(running, 1)) >= {"helper"}
    assert "a" in running.text("ls")
    assert check(running) == {}


def test_an_empty_group_and_a_mount_of_a_container_that_does_not_run_are_removed(
    running: Machine,
) -> None:
    running.run("run", "--name", "b", "demo", "true")
    end = time.monotonic() + 30
    while len([p for p in seen(running).processes if p.service == "runtime"]) > 1:
        time.sleep(0.1)  # its helper ends in a moment, and tells nobody outside
        assert time.monotonic() < end
    container = json.loads(running.text("inspect", "b"))
    container_id = (container[0] if isinstance(container, list) else container)["id"]
    group = Path("/sys/fs/cgroup/pids") / f"container-{container_id}"
    if not group.parent.is_dir():
        group = Path("/sys/fs/cgroup") / f"container-{container_id}"
    group.mkdir()
    point = running.root / "containers" / container_id / "bundle/rootfs"
    point.mkdir(exist_ok=True, parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", point], check=True)
    found = check(running, 1)
    assert set(found) == {"cgroup", "mount"}
    for finding in found.values():
        assert trio.run(repair, Paths(running.root, running.run_folder), finding)
    assert check(running) == {}
    assert not group.exists()
    assert not os.path.ismount(point)
    running.run("rm", "b")
