"""Kill and heal: create and start a container, kill one process of the system, go on, delete.

`python -m tests.faults.heal [CYCLES] [--seed N] [--seconds S]`, or `scripts/heal`. The victim is
one of launcher, API server, images helper, runtime helper and the container's first process, each
as likely. Then the next commands must heal the system by themselves: the container runs on (unless
it was the victim), its exit status is the true one, and it can be deleted. Before and after are
counted: processes, descriptors, mounts, control groups, namespaces and files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import trio
from attrs import frozen

from container.audit import audit
from container.audit.machine import group_folders, look
from container.storage.paths import Paths
from container.testing.busybox import write_layout
from container.testing.network import NetworkNamespace
from tests.system.conftest import COMMAND, Machine, private_machine

VICTIMS = ("launcher", "apiserver", "images", "runtime", "container")
END_SECONDS = 30.0
AT_REST = 5
"""So many looks in a row, 0.2 s apart, must see the same."""
TRAP = "trap 'exit 7' TERM; while :; do sleep 0.05; done"


@frozen
class Count:
    """What a system at rest has of everything."""

    processes: int
    descriptors: tuple[tuple[str, int], ...]
    """Of each long-lived process, by service."""
    mounts: int
    groups: int
    namespaces: int
    """Network and mount namespaces of the machine that our processes are in."""
    files: int


def count(machine: Machine, ids: set[str]) -> Count:
    """Count once."""
    paths = Paths(machine.root, machine.run_folder)
    now = look(paths)
    descriptors: list[tuple[str, int]] = []
    namespaces: set[str] = set()
    for process in now.processes:
        with contextlib.suppress(OSError):
            descriptors.append((process.service, len(os.listdir(f"/proc/{process.pid}/fd"))))
            for kind in ("net", "mnt"):
                namespaces.add(os.readlink(f"/proc/{process.pid}/ns/{kind}"))
    files = sum(
        1 for path in machine.root.rglob("*") if "logs" not in path.relative_to(machine.root).parts
    )
    return Count(
        len(now.processes),
        tuple(sorted(descriptors)),
        len(now.mounts),
        sum(bool(group_folders(container_id)) for container_id in ids),
        len(namespaces),
        files,
    )


def cycle(machine: Machine, victim: str, number: int, ids: set[str]) -> list[str]:
    """Do one cycle; return what was wrong."""
    problems: list[str] = []
    name = f"c{number}"
    done = machine.run("run", "-d", "--name", name, "demo", "sh", "-c", TRAP, status=None)
    if done.returncode:
        return [f"run: {done.returncode} {done.stderr.decode()[:300]}"]
    container_id = done.stdout.decode().strip()
    ids.add(container_id)
    if not kill(machine, victim, container_id):
        problems.append(f"there is no {victim}")
    listed = machine.run("ls", "-a", "--format", "json", status=None)
    rows = json.loads(listed.stdout) if not listed.returncode else []
    status = next((row["status"] for row in rows if row["id"] == container_id), "not there")
    if victim == "container":
        # Its end may be heard of a moment later.
        if status not in ("running", "stopped"):
            problems.append(f"ls says {status}")
    else:
        if status != "running":
            problems.append(f"ls says {status} {listed.stderr.decode()[:200]}")
        inside = machine.run("exec", name, "sh", "-c", "exit 5", status=None)
        if inside.returncode != 5:
            problems.append(f"exec: {inside.returncode} {inside.stderr.decode()[:200]}")
        stopped = machine.run("stop", name, status=None)
        if stopped.returncode:
            problems.append(f"stop: {stopped.returncode} {stopped.stderr.decode()[:200]}")
    wanted = 137 if victim == "container" else 7
    waited = machine.run("wait", name, status=None)
    if waited.stdout.decode().strip() != str(wanted):
        problems.append(
            f"wait says {waited.stdout.decode().strip()!r} for {wanted} "
            f"{waited.stderr.decode()[:200]}"
        )
    removed = machine.run("rm", "-f", name, status=None)
    if removed.returncode:
        problems.append(f"rm: {removed.returncode} {removed.stderr.decode()[:200]}")
    return problems


def kill(machine: Machine, victim: str, container_id: str) -> bool:
    """Kill one process and wait for its end; return whether there was one."""
    if victim == "container":
        members = [
            int(text)
            for folder in group_folders(container_id)
            for text in (folder / "cgroup.procs").read_text().split()
        ]
        pids = sorted(set(members))[:1]
    else:
        pids = [
            process.pid
            for process in look(Paths(machine.root, machine.run_folder)).processes
            if process.service == victim
            and (victim != "runtime" or process.container == container_id)
        ]
    if not pids:
        return False
    try:
        pidfd = os.pidfd_open(pids[0])
    except ProcessLookupError:
        return False
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)

        async def end() -> None:
            with trio.fail_after(END_SECONDS):
                await trio.lowlevel.wait_readable(pidfd)

        trio.run(end)
    finally:
        os.close(pidfd)
    return True


def settled(machine: Machine, ids: set[str], wanted: Count | None, seconds: float = 40) -> Count:
    """Return a count equal to the wanted one, or the last; without one, of a system at rest.

    At rest, no helper is there and nothing changes any more: a descriptor of a child that just
    ended or of the command that asked last must not be counted as part of the system.
    """
    machine.run("ls")
    machine.run("image", "list")
    paths = Paths(machine.root, machine.run_folder)
    end = time.monotonic() + seconds
    alike = 0
    last: Count | None = None
    while True:
        now = count(machine, ids)
        if now == wanted or time.monotonic() > end:
            return now
        alike = alike + 1 if now == last else 0
        last = now
        helpers = [p for p in look(paths).processes if p.service == "runtime"]
        if wanted is None and not helpers and alike >= AT_REST:
            return now
        time.sleep(0.2)  # helpers end by themselves, and tell nobody outside


def run(cycles: int, seed: int, seconds: float = float("inf")) -> int:
    """Run cycles and print what came of them; return how many things were wrong."""
    chance = random.Random(seed)
    print(f"seed {seed}", flush=True)
    wrong = 0
    histogram: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    ids: set[str] = set()
    with NetworkNamespace() as outside, outside.entered(), private_machine("ch-") as machine:
        layout = machine.folder / "demo"
        write_layout(layout, name="demo")
        machine.run("image", "load", "-i", str(layout))
        machine.run("run", "--rm", "demo", "true")
        machine.run("system", "stop")
        before = settled(machine, ids, None)
        began = time.monotonic()
        for number in range(cycles):
            if time.monotonic() - began > seconds:
                break
            victim = chance.choice(VICTIMS)
            histogram[victim] += 1
            problems = cycle(machine, victim, number, ids)
            failed[victim] += bool(problems)
            wrong += len(problems)
            for problem in problems:
                print(f"cycle {number}, {victim} killed: {problem}", flush=True)
        took = time.monotonic() - began
        machine.run("system", "stop")
        after = settled(machine, ids, before)
        if after != before:
            wrong += 1
            print(f"before {before}\nafter  {after}")
        report = trio.run(partial(audit, Paths(machine.root, machine.run_folder), also=ids))
        for finding in report.findings:
            wrong += 1
            print(f"check: {finding.kind.value} {finding.subject}: {finding.what}")
    for victim in VICTIMS:
        print(f"{victim:<10} {histogram[victim]:>5} killed {failed[victim]:>4} not healed")
    print(f"{histogram.total()} cycles in {took:.0f} s, {wrong} things wrong; {after}")
    return wrong


def main(arguments: Sequence[str]) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(
        prog="scripts/heal", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("cycles", type=int, nargs="?", default=1000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    options = parser.parse_args(arguments)
    if not Path(COMMAND).exists() or os.geteuid() != 0:
        print("needs root and an installed container command")
        return 2
    return 1 if run(options.cycles, options.seed, options.seconds) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
