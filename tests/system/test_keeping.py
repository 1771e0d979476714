"""Restart policies, health, pause and events with real containers, and with killed processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

from .conftest import Machine
from .test_survival import gone, service_pids


def inspected(machine: Machine, name: str) -> dict[str, Any]:
    """Return what is known of a container."""
    (found,) = json.loads(machine.text("inspect", name))
    assert isinstance(found, dict)
    return found


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for something that nobody announces outside the system."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


def status(machine: Machine, name: str) -> str:
    """Return the status of a container."""
    found = inspected(machine, name)["status"]
    assert isinstance(found, str)
    return found


def kill_api_server(machine: Machine) -> None:
    """Kill the API server and see it gone."""
    pid = service_pids(machine)["apiserver"]
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)


def test_what_has_a_policy_is_started_again_over_the_deaths_of_api_server_and_system(
    own_machine: Machine,
) -> None:
    run = own_machine.run
    run("run", "-d", "--name", "loop", "--restart", "always", "demo", "sh", "-c", "sleep 1; exit 3")
    run("run", "-d", "--name", "unless", "--restart", "unless-stopped", "demo", "sleep", "1000")
    run("run", "-d", "--name", "stopped", "--restart", "unless-stopped", "demo", "sleep", "1000")
    run("run", "-d", "--name", "plain", "demo", "sleep", "1000")
    run("stop", "-t", "0", "stopped")
    # Its end comes while no API server is there; the next one acts on it.
    pid = inspected(own_machine, "unless")["pid"]
    kill_api_server(own_machine)
    os.kill(pid, signal.SIGKILL)
    until(lambda: inspected(own_machine, "unless")["restart_count"] == 1)
    until(lambda: status(own_machine, "unless") == "running")
    until(lambda: inspected(own_machine, "loop")["restart_count"] >= 2)
    assert status(own_machine, "stopped") == "stopped"

    run("system", "stop", "--containers")
    run("system", "start")
    until(lambda: status(own_machine, "loop") in ("running", "restarting"))
    until(lambda: status(own_machine, "unless") == "running")
    assert status(own_machine, "stopped") == "stopped"
    plain = inspected(own_machine, "plain")
    assert plain["status"] == "stopped"
    assert plain["exit"]["code"] != 0
    run("stop", "-t", "0", "loop")
    assert status(own_machine, "loop") == "stopped"
    run("rm", "-af")


def test_a_paused_a_frozen_and_a_broken_container_can_be_removed(own_machine: Machine) -> None:
    run = own_machine.run
    for name in ("paused", "frozen", "broken", "other"):
        run("run", "-d", "--name", name, "demo", "sleep", "1000")
    run("pause", "paused")
    assert "paused" in own_machine.text("list")
    broken = inspected(own_machine, "broken")["id"]
    frozen = inspected(own_machine, "frozen")["id"]
    helper = service_pids(own_machine)[f"runtime.{frozen}"]
    os.kill(helper, signal.SIGSTOP)
    rows = json.loads(own_machine.text("list", "--format", "json"))
    statuses = {row["name"]: row["status"] for row in rows}
    assert statuses["frozen"] == "unknown"
    assert statuses["other"] == "running"
    run("rm", "-f", "paused", "frozen")
    (own_machine.root / "containers" / broken / "container.json").write_text("{")
    kill_api_server(own_machine)
    assert "container.json" in own_machine.refused("rm", broken, status=1)
    run("rm", "-f", broken)
    run("restart", "-t", "0", "other")
    assert status(own_machine, "other") == "running"
    run("rm", "-f", "other")
    left = own_machine.census()
    assert not left.mounts
    assert not [name for name in left.processes if "runtime" in name]


def test_health_and_events_are_told_over_a_restart_of_the_api_server(own_machine: Machine) -> None:
    watcher = own_machine.start(
        "events",
        "--since",
        "1h",
        "--format",
        "json",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert watcher.stdout is not None
    own_machine.run(
        "run", "-d", "--name", "web", "--health-cmd", "test -e /well || exec sleep 100",
        "--health-interval", "100ms", "--health-timeout", "300ms", "--health-retries", "1",
        "demo", "sleep", "1000",
    )  # fmt: skip
    told = [json.loads(watcher.stdout.readline()) for _ in range(3)]
    assert [event["kind"] for event in told] == ["create", "start", "health_status"]
    assert told[2]["attributes"] == {"status": "unhealthy"}
    (result, *_) = inspected(own_machine, "web")["health_results"]
    assert result["code"] is None
    own_machine.run("exec", "web", "touch", "/well")
    assert json.loads(watcher.stdout.readline())["attributes"] == {"status": "healthy"}
    assert "(healthy)" in own_machine.text("list")
    kill_api_server(own_machine)
    assert json.loads(watcher.stdout.readline())["kind"] == "health_status"
    own_machine.run("rm", "-f", "web")
    kinds = [json.loads(watcher.stdout.readline())["kind"]]
    while kinds[-1] != "destroy":
        kinds.append(json.loads(watcher.stdout.readline())["kind"])
    own_machine.run("system", "stop")
    assert watcher.wait(20) == 0
    assert watcher.stderr is not None
    said = watcher.stderr.read().decode()
    assert "the API server was restarted" in said
    assert said.endswith("the system has stopped\n")
    watcher.stdout.close()
    watcher.stderr.close()
    interrupted = own_machine.start(
        "events", "--since", "1h", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert interrupted.stdout is not None
    assert interrupted.stderr is not None
    own_machine.run("create", "--name", "seen", "demo", "true")
    assert b"create" in interrupted.stdout.readline()
    interrupted.send_signal(signal.SIGINT)
    assert interrupted.wait(20) == 130
    assert b"Traceback" not in interrupted.stderr.read()
    interrupted.stdout.close()
    interrupted.stderr.close()
    own_machine.run("rm", "seen")
