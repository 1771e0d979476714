"""`container run` and its relatives, on real containers."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest

from .conftest import Machine, lines


def test_output_and_exit_status_of_a_command_are_passed_on(machine: Machine) -> None:
    done = machine.run(
        "run", "--rm", "demo", "sh", "-c", "echo out; echo err >&2; exit 7", status=7
    )
    assert done.stdout == b"out\n"
    assert done.stderr == b"err\n"


def test_a_pipe_goes_through_a_container(machine: Machine) -> None:
    assert machine.run("run", "--rm", "-i", "demo", "cat", stdin=b"hi\n").stdout == b"hi\n"


def test_a_kept_container_shows_its_output_and_keeps_it_as_its_log(machine: Machine) -> None:
    done = machine.run("run", "--name", "kept", "demo", "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")
    logs = machine.run("logs", "kept")
    assert (logs.stdout, logs.stderr) == (b"out\n", b"err\n")
    machine.run("rm", "kept")


def test_binary_output_survives_the_log(machine: Machine) -> None:
    every_byte = bytes(range(256)) * 40
    done = machine.run("run", "-i", "--name", "binary", "demo", "cat", stdin=every_byte)
    assert done.stdout == every_byte
    assert machine.run("logs", "binary").stdout == every_byte
    machine.run("rm", "binary")


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["nonesuch"], 127),
        (["/etc/passwd"], 126),
        (["sh", "-c", "sh -c 'kill -TERM $$'; exit $?"], 128 + signal.SIGTERM),
        (["sh", "-c", "exit 255"], 255),
    ],
)
def test_exit_statuses_tell_who_failed(machine: Machine, command: list[str], status: int) -> None:
    machine.run("run", "--rm", "demo", *command, status=status)


def test_a_detached_container_is_listed_looked_into_logged_stopped_and_removed(
    machine: Machine,
) -> None:
    made = machine.text("run", "-d", "--name", "web", "demo", "sh", "-c", "echo up; sleep 1000")
    assert len(made.strip()) >= 12
    rows = json.loads(machine.text("list", "--format", "json"))
    row = next(row for row in rows if row["name"] == "web")
    assert row["status"] == "running"
    assert machine.text("exec", "web", "echo", "inside") == "inside\n"
    assert machine.run("exec", "-i", "web", "cat", stdin=b"through").stdout == b"through"
    machine.run("exec", "web", "sh", "-c", "exit 3", status=3)
    machine.run("exec", "web", "nonesuch", status=127)
    assert machine.text("logs", "web") == "up\n"
    machine.run("stop", "-t", "1", "web")
    inspected = json.loads(machine.text("inspect", "web"))[0]
    assert inspected["status"] == "stopped"
    assert inspected["exit"]["code"] == 128 + signal.SIGKILL
    machine.run("rm", "web")
    assert "web" not in machine.text("list", "-a")


def test_a_stopped_container_starts_again(machine: Machine) -> None:
    machine.run("run", "--name", "again", "demo", "sh", "-c", "echo run >> /trace; cat /trace")
    done = machine.run("start", "-a", "again")
    assert done.stdout == b"run\nrun\n"
    machine.run("rm", "again")


def test_a_created_container_waits_to_be_started(machine: Machine) -> None:
    machine.run("create", "--name", "later", "demo", "echo", "now")
    assert "created" in machine.text("list", "-a")
    assert machine.run("start", "-a", "later").stdout == b"now\n"
    machine.run("rm", "later")


def test_a_kill_is_told_by_the_exit_status(machine: Machine) -> None:
    machine.run("run", "-d", "--name", "victim", "demo", "sleep", "1000")
    machine.run("kill", "-s", "KILL", "victim")
    inspected = json.loads(machine.text("inspect", "victim"))[0]
    assert machine.run("wait", "victim").stdout.strip() == b"137"
    assert inspected["name"] == "victim"
    machine.run("rm", "-f", "victim")


def test_ctrl_c_reaches_the_container(machine: Machine) -> None:
    process = machine.start(
        "run",
        "--rm",
        "demo",
        "sh",
        "-c",
        "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done",
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 9
    assert process.stdout.read() == b"caught\n"
    process.stdout.close()


def test_options_reach_the_container(machine: Machine, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_text("shared\n")
    variables = tmp_path / "variables"
    variables.write_text("# a comment\nFROM_FILE=two\n")
    script = (
        "echo $ONE $FROM_FILE; pwd; id -u; cat /data/file; hostname; "
        "touch /data/new || echo read-only; touch /scratch/x && echo scratch; "
        "touch /x || echo root-ro"
    )
    done = machine.run(
        "run", "--rm", "-e", "ONE=1", "--env-file", str(variables), "-w", "/tmp", "-u", "1000",
        "-v", f"{tmp_path}:/data:ro", "--tmpfs", "/scratch:mode=1777", "--read-only",
        "--hostname", "box", "demo", "sh", "-c", script,
    )  # fmt: skip
    assert lines(done.stdout) == [
        "1 two", "/tmp", "1000", "shared", "box", "read-only", "scratch", "root-ro",
    ]  # fmt: skip


def test_limits_hold(machine: Machine) -> None:
    hungry = "x=$(head -c 60000000 /dev/zero | tr '\\0' x); echo ${#x}"
    assert (
        machine.run("run", "--rm", "-m", "16m", "demo", "sh", "-c", hungry, status=None).returncode
        != 0
    )
    many = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 5 & done; wait"
    done = machine.run("run", "--rm", "--pids-limit", "5", "demo", "sh", "-c", many, status=None)
    assert b"fork" in done.stderr or done.returncode != 0


def test_network_none_has_only_loopback_and_host_shares_the_hosts(machine: Machine) -> None:
    alone = machine.text("run", "--rm", "demo", "cat", "/proc/net/dev")
    assert [line.split(":")[0].strip() for line in lines(alone)[2:]] == ["lo"]
    shared = machine.text("run", "--rm", "--network", "host", "demo", "cat", "/proc/net/dev")
    host = Path("/proc/net/dev").read_text()
    assert {line.split(":")[0].strip() for line in lines(shared)[2:]} == {
        line.split(":")[0].strip() for line in lines(host)[2:]
    }


def test_a_terminal_is_a_terminal_inside_and_is_restored_outside(machine: Machine) -> None:
    outer, inner = pty.openpty()
    before = os.get_terminal_size(inner)
    process = machine.start(
        "run",
        "--rm",
        "-it",
        "demo",
        "sh",
        "-c",
        "tty; stty size; read x; echo got $x",
        stdin=inner,
        stdout=inner,
        stderr=inner,
    )
    os.write(outer, b"word\n")
    seen = b""
    end = time.monotonic() + 30
    while b"got word" not in seen and time.monotonic() < end:
        seen += os.read(outer, 4096)
    assert b"/dev/pts" in seen or b"/dev/console" in seen, seen
    assert process.wait(20) == 0
    os.close(inner)
    os.close(outer)
    assert before is not None


def test_a_cidfile_holds_the_id(machine: Machine, tmp_path: Path) -> None:
    cidfile = tmp_path / "cid"
    machine.run("run", "-d", "--cidfile", str(cidfile), "demo", "sleep", "1000")
    machine.run("rm", "-f", cidfile.read_text().strip())


def test_ten_runs_at_once_all_succeed(machine: Machine) -> None:
    started = [
        machine.start("run", "--rm", "demo", "echo", str(n), stdout=subprocess.PIPE)
        for n in range(10)
    ]
    for n, process in enumerate(started):
        output, _ = process.communicate(timeout=90)
        assert (process.returncode, output) == (0, f"{n}\n".encode())


def test_a_client_killed_while_it_runs_a_container_leaves_no_client_behind(
    machine: Machine,
) -> None:
    process = machine.start("run", "--rm", "--name", "orphan", "demo", "sleep", "1000")
    end = time.monotonic() + 20
    while "orphan" not in machine.text("list") and time.monotonic() < end:
        time.sleep(0.05)  # the list is the only thing to look at from outside
    process.kill()
    process.wait()
    machine.run("rm", "-f", "orphan")
