"""The rows of what happens when a part of the system dies or stands still, and of what it holds.

Processes are killed with SIGKILL, as a machine short of memory would; the time is that of the first
right answer afterwards.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import trio

from benchmarks.figures import Comparison, Figure, Goal
from benchmarks.options import Options
from benchmarks.system import IMAGE, System, open_system
from benchmarks.worker import PeerUnavailable
from container.contracts.apiserver import Containers
from container.contracts.runtime import SandboxGate, SandboxPhase
from container.ipc import ContainerError
from container.storage.paths import Paths

HEAL, HEAL_LS, ADOPT = "heal.apiserver", "heal.apiserver.ls", "heal.helper"
MEMORY, HELD, WEDGED = "helper.memory", "held.containers", "wedged.p99"
NAMES = (HEAL, HEAL_LS, ADOPT, MEMORY, HELD, WEDGED)
BETWEEN_KILLS_SECONDS = 4.5
"""A service that fails eight times in 30 s is left failed, and rightly so."""
HEALED_SECONDS = 30.0
"""After which a part that was killed counts as lost."""


def measure(names: Sequence[str], options: Options) -> list[Figure]:
    """Measure the rows of these names."""
    found: dict[str, Figure] = {}
    note = ""
    try:
        with open_system() as system:
            ids = _start(system, options.containers)
            if {HEAL, HEAL_LS} & set(names):
                found |= _heal(system, ids, options.fault_rounds)
            if ADOPT in names:
                found[ADOPT] = _adopt(system, ids, options.fault_rounds)
            if MEMORY in names:
                found[MEMORY] = _memory(system, ids)
            if WEDGED in names:
                found[WEDGED] = _wedged(system, ids, options.fault_rounds)
            if HELD in names:
                found[HELD] = _held(system, len(ids), options.held_containers)
    except PeerUnavailable as error:
        note = str(error)
    return [found.get(name) or Figure(name=name, peer="", note=note) for name in names]


def _alone(name: str, unit: str, values: Sequence[float], goal: Goal, limit: float) -> Figure:
    return Figure(
        name=name, peer="-", unit=unit, ours=tuple(values), goal=goal, limit=limit,
        comparison=Comparison.ALONE,
    )  # fmt: skip


def _start(system: System, number: int) -> list[str]:
    """Start containers that do nothing; return their ids."""
    arguments = ("run", "--detach", "--network", "none", IMAGE, "sleep", "100000")
    return [system.call(*arguments) for _ in range(number)]


def _pid(system: System, service: str) -> int:
    status = json.loads(system.call("system", "status", "--format", "json"))
    for row in status["services"]:
        if row["name"] == service and row["pid"]:
            return int(row["pid"])
    raise PeerUnavailable(f"{service} does not run")


def _all_run(system: System, ids: Sequence[str]) -> bool:
    """Does `ls` answer, and is it right?"""
    done = subprocess.run(
        system.argv("ls", "--format", "json"),
        env=system.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        return False
    running = {row["id"] for row in json.loads(done.stdout) if row["status"] == "running"}
    return running.issuperset(ids)


def _until(what: Callable[[], bool]) -> float:
    """Ask until the answer is yes; return the milliseconds it took."""
    began = time.perf_counter()
    while not what():
        if time.perf_counter() - began > HEALED_SECONDS:
            raise PeerUnavailable(f"not healed in {HEALED_SECONDS:.0f} s")
    return (time.perf_counter() - began) * 1e3


def _heal(system: System, ids: Sequence[str], rounds: int) -> dict[str, Figure]:
    """Kill the API server under running containers; time the first right answer of `ls`."""
    plain: list[float] = []
    healed: list[float] = []
    right = partial(_all_run, system, ids)
    _until(right)
    for _ in range(rounds):
        plain.append(median(_until(right) for _ in range(3)))
        os.kill(_pid(system, "apiserver"), signal.SIGKILL)
        healed.append(_until(right))
        time.sleep(BETWEEN_KILLS_SECONDS)
    return {
        HEAL: _alone(HEAL, "ms", healed, Goal.AT_MOST, 1000),
        HEAL_LS: Figure(
            name=HEAL_LS, peer=f"ls with {len(ids)} containers", unit="ms", ours=tuple(healed),
            theirs=tuple(plain), goal=Goal.AT_MOST, limit=8,
        ),
    }  # fmt: skip


def _adopt(system: System, ids: Sequence[str], rounds: int) -> Figure:
    """Kill a runtime helper; time its successor's word that the container runs."""
    paths = _paths(system)

    async def adopted(container: str) -> bool:
        try:
            async with SandboxGate.connect(paths.runtime_socket(container)) as gate:
                endpoint = await gate.open(None)
                async with endpoint.connect() as sandbox:
                    return (await sandbox.state()).phase is SandboxPhase.RUNNING
        except ContainerError:
            return False

    values: list[float] = []
    for number in range(rounds):
        container = ids[number % len(ids)]
        os.kill(_pid(system, f"runtime.{container}"), signal.SIGKILL)
        values.append(_until(lambda container=container: trio.run(adopted, container)))
    return _alone(ADOPT, "ms", values, Goal.AT_MOST, 150)


def _memory(system: System, ids: Sequence[str]) -> Figure:
    """Return KiB that idle helpers have for themselves."""
    time.sleep(2)
    values: list[float] = []
    for container in ids[-10:]:
        rollup = Path(f"/proc/{_pid(system, f'runtime.{container}')}/smaps_rollup").read_text()
        fields = dict(line.split(":", 1) for line in rollup.splitlines()[1:])
        private = ("Private_Clean", "Private_Dirty")
        values.append(sum(int(fields[name].split()[0]) for name in private))
    return _alone(MEMORY, "KiB", values, Goal.AT_MOST, 8192)


def _wedged(system: System, ids: Sequence[str], rounds: int) -> Figure:
    """Freeze one helper and stop its container; time the answers about the others meanwhile."""
    wedged, *healthy = ids
    frozen = _pid(system, f"runtime.{wedged}")

    async def p99() -> float:
        taken: list[float] = []
        async with Containers.connect(_paths(system).apiserver_socket) as containers:
            for _ in range(4):
                for container in healthy:
                    began = time.perf_counter()
                    await containers.get(container)
                    taken.append((time.perf_counter() - began) * 1e3)
        return sorted(taken)[math.ceil(0.99 * len(taken)) - 1]

    before: list[float] = []
    meanwhile: list[float] = []
    for _ in range(rounds):
        before.append(trio.run(p99))
        os.kill(frozen, signal.SIGSTOP)
        waiting = subprocess.Popen(
            system.argv("kill", "--signal", "WINCH", wedged), env=system.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            meanwhile.append(trio.run(p99))
        finally:
            os.kill(frozen, signal.SIGCONT)
            waiting.wait()
    return Figure(
        name=WEDGED, peer="none stands still", unit="ms", ours=tuple(meanwhile),
        theirs=tuple(before), goal=Goal.AT_MOST, limit=2,
    )  # fmt: skip


def _held(system: System, already: int, number: int) -> Figure:
    """Return how many containers run at once when so many were started."""
    _start(system, number - already)
    rows = json.loads(system.call("ls", "--format", "json"))
    running = sum(row["status"] == "running" for row in rows)
    return _alone(HELD, "", (float(running),), Goal.AT_LEAST, number)


def _paths(system: System) -> Paths:
    return Paths(
        root=Path(system.environment["CONTAINER_ROOT"]),
        run=Path(system.environment["CONTAINER_RUN"]),
    )
