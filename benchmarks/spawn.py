"""The rows of spawned processes: from asking for one to its first reply, and what it keeps itself.

A round of ours forks a child from a zygote that has its service loaded, makes the service and calls
it once. Beside it stands what no process can do without, a bare `os.fork` whose child ends at once;
and the same child started afresh, which imports what the zygote has loaded, and no more.
"""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections.abc import Sequence

import trio

from benchmarks.figures import Comparison, Figure, Goal
from benchmarks.options import Options
from container.ipc import Actor, Contract, Zygote, open_zygote, process_of, spawn

FORKED, FRESH, MEMORY = "ipc.spawn.forked", "ipc.spawn.fresh", "ipc.spawn.memory"
NAMES = (FORKED, FRESH, MEMORY)
FRESH_ROUNDS = 10
SETTLED = 0.1
"""Seconds after the first reply at which a child is idle."""


class Echo(Contract, name="benchmark-echo"):
    """One call."""

    @abstractmethod
    async def echo(self, word: str) -> str:
        """Return the word."""


class EchoService(Actor, Echo):
    """What the children serve."""

    async def echo(self, word: str) -> str:
        return word


def measure(names: Sequence[str], options: Options) -> list[Figure]:
    """Return milliseconds to the first reply, and MiB of private memory."""
    return trio.run(_measure, names, options)


async def _measure(names: Sequence[str], options: Options) -> list[Figure]:
    ours: list[float] = []
    bare: list[float] = []
    memory: list[float] = []
    fresh: list[float] = []
    async with open_zygote([__name__]) as zygote:
        for number in range(options.rounds):
            bare.append(_bare_fork())
            first_reply, private = await _spawned(zygote)
            ours.append(first_reply)
            memory.append(private)
            if FRESH in names and number < FRESH_ROUNDS:
                fresh.append((await _spawned(None))[0])
    figures = {
        FORKED: Figure(
            name=FORKED,
            peer="os.fork and wait",
            unit="ms",
            ours=tuple(ours),
            theirs=tuple(bare),
            goal=Goal.AT_MOST,
            limit=20,
            comparison=Comparison.DIFFERENCE,
        ),
        FRESH: Figure(
            name=FRESH,
            peer="a fresh interpreter",
            unit="ms",
            ours=tuple(ours[: len(fresh)]),
            theirs=tuple(fresh),
            goal=Goal.AT_MOST,
            limit=0.1,
            comparison=Comparison.RATIO,
        ),
        MEMORY: Figure(
            name=MEMORY,
            peer="a limit",
            unit="MiB",
            ours=tuple(memory),
            goal=Goal.AT_MOST,
            limit=5,
            comparison=Comparison.ALONE,
            note="of an idle child; its keeper has about 2",
        ),
    }
    return [figures[name] for name in names]


async def _spawned(zygote: Zygote | None) -> tuple[float, float]:
    begun = time.perf_counter()
    async with spawn(Echo, EchoService, zygote=zygote) as echo:
        await echo.echo("word")
        first_reply = time.perf_counter() - begun
        await trio.sleep(SETTLED)
        return first_reply * 1e3, _private(process_of(echo).pid)


def _bare_fork() -> float:
    begun = time.perf_counter()
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return (time.perf_counter() - begun) * 1e3


def _private(process: int) -> float:
    """Return MiB that a process shares with no other. Source: proc_pid_smaps(5)."""
    total = 0
    with open(f"/proc/{process}/smaps_rollup", encoding="ascii") as file:
        for line in file:
            if line.startswith(("Private_Clean:", "Private_Dirty:")):
                total += int(line.split()[1])
    return total / 1024
