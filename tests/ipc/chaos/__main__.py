"""Chaos over a tree of three hops of real processes under load, repeatable by its seed.

Processes are killed and started again, stopped and continued, and connections dropped. Then: each
operation has ended within its deadline and the grace; the tree serves again; no process holds a
descriptor or an operation more than before; nothing hangs.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import trio
from attrs import define, field

from container.ipc import ContainerError, Fd, Limits
from container.ipc.client import connect_contract
from tests.ipc.chaos.tree import Census, Hop

ROOT = Path(__file__).parents[3]
HOPS = 3
WORKERS = 6
DEADLINE = 1.0
"""Seconds of each operation."""
GRACE = 1.0
LATE = 3.0
"""Seconds beyond deadline and grace that a loaded machine may take."""
SETTLED = 30.0
"""Seconds for the tree to be whole again, and at rest."""


class Failed(Exception):
    """An invariant does not hold."""


@define(eq=False)
class Chaos:
    """One run."""

    folder: str
    random: random.Random
    processes: list[trio.Process] = field(factory=list[trio.Process])
    outcomes: Counter[str] = field(factory=Counter[str])
    blows: Counter[str] = field(factory=Counter[str])
    slowest: float = 0.0
    over: bool = False

    def path(self, hop: int) -> str:
        """Return the socket of a hop; the first is what the load is put on."""
        return f"{self.folder}/{hop}"

    async def start(self, hop: int) -> trio.Process:
        """Start the process of a hop; return once it serves."""
        command = [sys.executable, "-m", "tests.ipc.chaos.tree", self.path(hop)]
        if hop + 1 < HOPS:
            command.append(self.path(hop + 1))
        process = await trio.lowlevel.open_process(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout is not None
        with trio.fail_after(SETTLED):
            said = await process.stdout.receive_some()
        await process.stdout.aclose()
        if said != b"ready":
            raise Failed(f"hop {hop} could not be started")
        return process

    async def strike(self) -> None:
        """Do one bad thing to one process."""
        hop = self.random.randrange(HOPS)
        process = self.processes[hop]
        if self.random.random() < 0.5:
            self.blows["killed"] += 1
            process.kill()
            await process.wait()
            if hop + 1 < HOPS:
                await self.until_served(hop + 1)
            self.processes[hop] = await self.start(hop)
        else:
            self.blows["stopped"] += 1
            process.send_signal(signal.SIGSTOP)
            await trio.sleep(self.random.uniform(0.05, 1.5))
            process.send_signal(signal.SIGCONT)

    async def until_served(self, hop: int) -> None:
        """Wait until a hop answers; one that was stopped may need its time."""
        with trio.fail_after(SETTLED):
            async with Hop.connect_named(self.path(hop)) as proxy:
                await proxy.echo(0)

    async def work(self, number: int, seed: int) -> None:
        """Do operations one after the other, on connections that are dropped now and then."""
        choices = random.Random(seed)
        limits = Limits(grace_seconds=GRACE)
        while not self.over:
            try:
                async with connect_contract(Hop, self.path(0), limits=limits) as hop:
                    for _ in range(choices.randrange(1, 40)):
                        if self.over:
                            break
                        if await self.bounded(hop, choices) == "PeerGone":
                            break
                self.outcomes["connection dropped"] += 1
            except (ContainerError, OSError):
                # The first hop is gone for a moment; who starts it again is another task.
                self.outcomes["not connected"] += 1
                await trio.sleep(0.02)

    async def bounded(self, hop: Hop, choices: random.Random) -> str:
        """Do one operation; it must have ended in time. Return what became of it."""
        began = trio.current_time()
        name = choices.choice(["echo", "wait", "read", "hold", "count"])
        deadline = DEADLINE if name != "wait" else choices.uniform(0, 0.2)
        outcome = "deadline"
        with trio.move_on_after(deadline):
            try:
                await self.operate(hop, name, choices)
                outcome = "ok"
            except* (ContainerError, trio.BrokenResourceError) as group:
                leaf: BaseException = group
                while isinstance(leaf, BaseExceptionGroup):
                    leaf = leaf.exceptions[0]
                outcome = type(leaf).__name__
        took = trio.current_time() - began
        self.slowest = max(self.slowest, took)
        self.outcomes[f"{name}: {outcome}"] += 1
        if took > deadline + GRACE + LATE:
            raise Failed(f"{name} took {took:.1f} s, {deadline} s and a grace of {GRACE} s allowed")
        return outcome

    async def operate(self, hop: Hop, name: str, choices: random.Random) -> None:
        """Do one operation and check what it gave."""
        match name:
            case "echo":
                number = choices.randrange(1000)
                if await hop.echo(number) != number:
                    raise Failed("an echo of another call")
            case "wait":
                await hop.wait()
            case "read":
                key = f"{choices.randrange(1000)}"
                with open(os.memfd_create("chaos"), "w+b", buffering=0) as file:  # noqa: ASYNC230
                    file.write(key.encode())
                    if await hop.read(Fd.borrow(file)) != key:
                        raise Failed("the descriptor of another call")
            case "hold":
                async with hop.hold("key"):
                    await trio.sleep(choices.uniform(0, 0.1))
            case _:
                expected = 0
                async with hop.count(choices.randrange(300)) as numbers:
                    async for number in numbers:
                        if number != expected:
                            raise Failed("an item was lost or doubled")
                        expected += 1

    async def at_rest(self) -> list[Census]:
        """Return what each process holds once nothing runs."""
        with trio.fail_after(SETTLED):
            while True:
                try:
                    async with Hop.connect(self.path(0)) as hop:
                        census = await hop.census()
                        if not any(one.operations for one in census):
                            # Twice, since a connection that just ended may still be counted.
                            await trio.sleep(0.2)
                            return await hop.census()
                except ContainerError:
                    pass
                # Nothing tells when the last handler of another process has ended.
                await trio.sleep(0.1)

    async def run(self, seconds: float) -> None:
        """Start the tree, let chaos loose, and look at what is left."""
        own = len(os.listdir("/proc/self/fd"))
        try:
            for hop in reversed(range(HOPS)):
                self.processes.insert(0, await self.start(hop))
            before = await self.at_rest()
            async with trio.open_nursery() as nursery:
                for number in range(WORKERS):
                    nursery.start_soon(self.work, number, self.random.randrange(1 << 30))
                until = time.monotonic() + seconds
                while time.monotonic() < until:
                    await trio.sleep(self.random.uniform(0, 0.6))
                    await self.strike()
                self.over = True
                nursery.cancel_scope.deadline = trio.current_time() + SETTLED
            if nursery.cancel_scope.cancelled_caught:
                raise Failed("a worker hangs")
            await self.until_served(0)
            after = await self.at_rest()
            for hop, (then, now) in enumerate(zip(before, after, strict=True)):
                if now.descriptors > then.descriptors:
                    raise Failed(f"hop {hop} had {then.descriptors} descriptors: {now.descriptors}")
        finally:
            with trio.CancelScope(shield=True):
                for process in self.processes:
                    process.kill()
                    await process.wait()
        left = len(os.listdir("/proc/self/fd"))
        if left > own + 1:  # Trio keeps one for its own children's ends
            raise Failed(f"{own} descriptors before, {left} after")


def main() -> int:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser("scripts/chaos", description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos") as folder:
        chaos = Chaos(folder, random.Random(asked.seed))
        try:
            trio.run(chaos.run, asked.seconds)
        finally:
            print(f"seed {asked.seed}; blows: {dict(chaos.blows)}; slowest {chaos.slowest:.2f} s")
            for outcome, count in sorted(chaos.outcomes.items()):
                print(f"  {count:7} {outcome}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
