"""Processes of the system die, stop and start; containers run on, nothing stays of what ended."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

from .conftest import Census, Machine, private_machine

NOTHING = Census(frozenset(), frozenset(), frozenset(), frozenset(), ())


def service_pids(machine: Machine) -> dict[str, int]:
    """Return the pids of the launcher and its services, by name."""
    status = json.loads(machine.text("system", "status", "--format", "json"))
    pids = {row["name"]: row["pid"] for row in status["services"] if row["pid"]}
    return {**pids, "launcher": status["pid"]}


def gone(pid: int, seconds: float = 10) -> bool:
    """Wait for the end of a process that is not our child."""
    descriptor = os.pidfd_open(pid)
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def running(machine: Machine, name: str) -> bool:
    """Whether a container runs, as `list` says."""
    rows = json.loads(machine.text("list", "--format", "json"))
    return any(row["name"] == name and row["status"] == "running" for row in rows)


def test_a_container_runs_on_when_the_system_stops_and_the_next_one_finds_it(
    own_machine: Machine,
) -> None:
    own_machine.run("run", "-d", "--name", "lasting", "demo", "sh", "-c", "sleep 1000; exit 4")
    before = service_pids(own_machine)
    own_machine.run("system", "stop")
    assert running(own_machine, "lasting")
    after = service_pids(own_machine)
    assert after["launcher"] != before["launcher"]
    assert own_machine.text("exec", "lasting", "echo", "still") == "still\n"
    own_machine.run("exec", "lasting", "sh", "-c", "kill -KILL $(pidof sleep)")
    assert own_machine.text("wait", "lasting").strip() == "4"
    own_machine.run("rm", "lasting")


def test_containers_outlive_a_killed_launcher_and_register_with_the_next(
    own_machine: Machine,
) -> None:
    own_machine.run("run", "-d", "--name", "lasting", "demo", "sleep", "1000")
    pids = service_pids(own_machine)
    os.kill(pids["launcher"], signal.SIGKILL)
    for name in ("apiserver", "images"):
        try:
            assert gone(pids[name]), name
        except ProcessLookupError:
            pass
    assert running(own_machine, "lasting")
    assert own_machine.text("exec", "lasting", "echo", "still") == "still\n"
    assert any(name.startswith("runtime.") for name in service_pids(own_machine))
    own_machine.run("rm", "-f", "lasting")


def test_the_api_server_killed_is_started_again_and_knows_its_containers(
    own_machine: Machine,
) -> None:
    own_machine.run("run", "-d", "--name", "lasting", "demo", "sh", "-c", "sleep 1000; exit 6")
    os.kill(service_pids(own_machine)["apiserver"], signal.SIGKILL)
    assert running(own_machine, "lasting")
    own_machine.run("exec", "lasting", "sh", "-c", "kill -KILL $(pidof sleep)")
    assert own_machine.text("wait", "lasting").strip() == "6"
    own_machine.run("rm", "lasting")


def test_an_attached_client_outlives_the_api_server(own_machine: Machine) -> None:
    client = own_machine.start(
        "run", "--name", "attached", "demo", "sh", "-c",
        "echo up; while [ ! -e /go ]; do sleep 0.05; done; echo done; exit 5",
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert client.stdout is not None
    assert client.stdout.readline() == b"up\n"
    os.kill(service_pids(own_machine)["apiserver"], signal.SIGKILL)
    own_machine.run("exec", "attached", "touch", "/go")
    assert client.wait(30) == 5
    assert client.stdout.read() == b"done\n"
    client.stdout.close()
    own_machine.run("rm", "attached")


def test_many_runs_with_no_system_up_start_one_launcher(layout: Path) -> None:
    with private_machine() as machine:
        # The image is loaded, and the system that loaded it is gone again.
        machine.run("image", "load", "-i", str(layout))
        machine.run("system", "stop")
        assert machine.settled(NOTHING).processes == frozenset()
        clients = [
            machine.start(
                "run", "--rm", "demo", "echo", str(n),
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )
            for n in range(30)
        ]  # fmt: skip
        for n, client in enumerate(clients):
            output, _ = client.communicate(timeout=110)
            assert (client.returncode, output) == (0, f"{n}\n".encode())
        launchers = [p for p in machine.census().processes if "launcher.process" in p]
        assert len(launchers) == 1


def test_a_private_system_ends_with_its_killed_owner(layout: Path, tmp_path: Path) -> None:
    program = f"""
import os, sys, trio, container
async def main():
    async with container.open_system() as system:
        await system.load({str(layout)!r})
        async with system.run("demo", ["sleep", "1000"]) as c:
            print(system.paths.run, system.paths.root, c.id, flush=True)
            await trio.sleep_forever()
trio.run(main)
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CONTAINER_R")}
    owner = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment
    )
    assert owner.stdout is not None
    run, root, container_id = owner.stdout.readline().decode().split()
    machine = Machine(Path(root), {"CONTAINER_RUN": run, "CONTAINER_ROOT": root})
    assert len(machine.census().processes) >= 4  # launcher, zygote, API server, images, helper
    owner.kill()
    owner.wait()
    owner.stdout.close()
    left = machine.settled(NOTHING, 30)
    assert left.processes == frozenset()
    assert left.mounts == frozenset()
    assert not list(Path("/sys/fs/cgroup").glob(f"**/*{container_id}*"))
    subprocess.run(["rm", "-rf", root, run], check=True)
