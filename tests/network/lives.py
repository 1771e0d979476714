"""Lives of a network helper, each of which ends by SIGKILL, on a host of this process's own.

    python tests/network/lives.py steps [EVERY]      kill it at each step (each EVERYth), then heal
    python tests/network/lives.py cycles COUNT SEED  attach, kill and heal, again and again

A step is what the helper does to the world: a rename, a message to the kernel, a program. Each life
is a fork of this process, which has no threads; helper and holders die together. What was
acknowledged comes back by a pipe, before the holder goes on. After each life the next one must know
all that was acknowledged, and nothing may be there that is not. Says what is wrong and ends with 1.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import trio

from container.contracts.network import AttachmentRequest, Network, PublishedPort
from container.ipc import ContainerError, in_memory
from container.network import namespaces
from container.network.bridge import port_name
from container.network.service import NetworkService
from container.testing.network import NetworkNamespace, network_configuration

STEPS = ("os.rename", "socket.sendto", "socket.bind", "subprocess.Popen", "os.posix_spawn")
LIFE_SECONDS = 60
CONFIGURATION = network_configuration(
    "lives", ("10.89.0.0/27", "fd00::/64"), ("10.89.0.1", "fd00::1")
)

Live = Callable[[Network], Awaitable[None]]


class Wrong(Exception):
    """A life found what must not be."""


class World:
    """The host, the containers, and what was acknowledged to them.

    Args:
        folder: The helper's.
        host: The namespace that this process is in.
    """

    def __init__(self, folder: Path, host: NetworkNamespace) -> None:
        self.folder = folder
        self.host = host
        self.spaces: dict[str, NetworkNamespace] = {}
        self.held: dict[str, list[str]] = {}
        """By key: addresses that were acknowledged, of containers that live."""
        self.leaving: str | None = None
        """Began to leave, and nobody knows whether it is done."""

    def space(self, key: str) -> NetworkNamespace:
        """Return the namespace of a container, made when first asked for."""
        if key not in self.spaces:
            self.spaces[key] = NetworkNamespace().__enter__()
        return self.spaces[key]

    def end(self, key: str) -> None:
        """End a container: its namespace goes, in the kernel's own time."""
        self.spaces.pop(key).__exit__(None, None, None)
        self.held.pop(key, None)

    def live(self, live: Live, kill_at: int | None) -> int | None:
        """Run one life; return the number of its steps, or None if it was killed at one."""
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read_end)
            status = 1
            try:
                status = self._life(live, kill_at, write_end)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(write_end)
        with os.fdopen(read_end, encoding="utf-8") as told:
            steps = self._hear(told)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return None
        if status != 0:
            raise Wrong(f"a life ended with {os.waitstatus_to_exitcode(status)}")
        return steps

    def _hear(self, told: Any) -> int:
        steps = 0
        for line in told:
            word = json.loads(line)
            match word["what"]:
                case "attached":
                    self.held[word["key"]] = word["addresses"]
                    self.leaving = None
                case "leaving":
                    self.leaving = word["key"]
                    self.held.pop(word["key"], None)
                case "left":
                    self.leaving = None
                case "steps":
                    steps = word["count"]
                case _:
                    raise AssertionError(word)
        return steps

    def _life(self, live: Live, kill_at: int | None, told: int) -> int:
        count = 0

        def step(event: str, _: tuple[Any, ...]) -> None:
            nonlocal count
            if event in STEPS:
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        def tell(**word: Any) -> None:
            os.write(told, json.dumps(word).encode() + b"\n")

        async def run() -> None:
            with trio.fail_after(LIFE_SECONDS):
                service = NetworkService(self.folder, CONFIGURATION)
                sys.addaudithook(step)
                async with in_memory(service) as network:
                    await live(network)

        self.tell = tell
        trio.run(run)
        tell(what="steps", count=count)
        return 0

    # --- what a life does ---

    async def attach(self, network: Network, key: str, stack: AsyncExitStack) -> None:
        """Attach, take up if it is held; what is told must be what was told before."""
        request = AttachmentRequest(key=key, interface="eth0", name=key, ports=(PublishedPort(80),))
        space = self.spaces[key]
        attachment = await stack.enter_async_context(network.attach(request, space.duplicate()))
        before = self.held.get(key)
        if before is not None and before != list(attachment.addresses):
            raise Wrong(f"{key} had {before} and has {attachment.addresses}")
        for other, addresses in self.held.items():
            if other != key and set(addresses) & set(attachment.addresses):
                raise Wrong(f"{key} and {other} both have {attachment.addresses}")
        self.held[key] = list(attachment.addresses)
        self.tell(what="attached", key=key, addresses=attachment.addresses)

    async def check(self, network: Network) -> None:
        """Compare what the helper says with what was acknowledged and with the kernel."""
        with trio.move_on_after(10):
            while (found := await self._wrong(network)) is not None:  # noqa: ASYNC110
                await trio.sleep(0.02)  # the kernel ends namespaces in its own time
            return
        raise Wrong(found or "no answer")

    async def _wrong(self, network: Network) -> str | None:
        status = await network.status()
        told = {each.key: list(each.addresses) for each in status.attachments}
        for key, addresses in self.held.items():
            if told.get(key) != addresses:
                return f"{key} holds {addresses}, the helper says {told.get(key)}"
        ghosts = told.keys() - self.spaces.keys()
        if ghosts:
            return f"the helper holds {ghosts}, which are gone"
        ports = {port_name(CONFIGURATION.id, key) for key in told}
        shown = set(interfaces(self.host))
        if {each for each in shown if each.startswith("ctv")} != ports:
            return f"interfaces are {shown}, attachments {told}"
        if status.problems:
            return "; ".join(status.problems)
        return None

    def clean(self) -> None:
        """Check that nothing is left on the host, after a life that ended in order."""
        left = interfaces(self.host)
        tables = self.host.run("nft", "list", "tables").stdout
        state = json.loads((self.folder / "state.json").read_text())
        if left or tables or state["records"]:
            raise Wrong(f"left: {left} {tables} {state['records']}")


def interfaces(host: NetworkNamespace) -> list[str]:
    """Return the names of a host's interfaces, loopback left out."""
    shown = subprocess.run(
        ["ip", "-br", "link"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [name for line in shown if (name := line.split()[0].partition("@")[0]) != "lo"]


def each_step(world: World, every: int, offset: int) -> int:
    """Kill a helper at each step of an attachment's life; heal, check, clean up; count them."""

    async def whole(network: Network) -> None:
        async with AsyncExitStack() as stack:
            await world.attach(network, "web", stack)
            await world.attach(network, "db", stack)
            world.tell(what="leaving", key="db")
            del world.held["db"]
        world.tell(what="left")

    async def heal(network: Network) -> None:
        await world.check(network)
        async with AsyncExitStack() as stack:
            for key in ("db", "web", "new"):
                await world.attach(network, key, stack)
            await world.check(network)
        if (await network.status()).attachments:
            raise Wrong("attachments are there that were left")

    at, tried = 1 + offset, 0
    while True:
        for key in ("web", "db", "new"):
            world.space(key)
        finished = world.live(whole, at)
        world.held.clear()
        if world.live(heal, None) is None:
            raise Wrong("a life that nobody killed was killed")
        world.clean()
        world.held.clear()
        tried += 1
        if finished is not None:
            return tried
        at += every


def cycles(world: World, count: int, seed: int) -> None:
    """Attach, kill and heal."""
    chance = random.Random(seed)
    for number in range(count):
        keys = [f"c{each}" for each in range(6)]
        for key in keys:
            world.space(key)
        acts = [
            (chance.choice(("attach", "attach", "leave")), chance.choice(keys)) for _ in "12345"
        ]

        async def live(network: Network, acts: list[tuple[str, str]] = acts) -> None:
            await world.check(network)
            leave: dict[str, trio.Event] = {}
            left: dict[str, trio.Event] = {}

            async def hold(key: str, *, task_status: trio.TaskStatus[None]) -> None:
                leaving, done = leave[key], left[key] = trio.Event(), trio.Event()
                async with AsyncExitStack() as stack:
                    await world.attach(network, key, stack)
                    task_status.started()
                    await leaving.wait()
                done.set()

            async with trio.open_nursery() as nursery:
                for key in sorted(world.held):
                    await nursery.start(hold, key)
                for act, key in acts:
                    if act == "attach" and key not in leave:
                        await nursery.start(hold, key)
                    elif act == "leave" and key in leave:
                        world.tell(what="leaving", key=key)
                        del world.held[key]
                        leave.pop(key).set()
                        await left.pop(key).wait()
                        world.tell(what="left")
                await world.check(network)
                os.kill(os.getpid(), signal.SIGKILL)

        world.live(live, chance.randrange(1, 160))
        if world.leaving is not None:
            # Left or not: its end is the next life's to find out.
            world.end(world.leaving)
            world.leaving = None
        if chance.random() < 0.3:
            world.end(chance.choice(sorted(world.spaces)))
        if number % 100 == 99:
            print(f"{number + 1} cycles", flush=True)
    for key in sorted(world.spaces):
        world.end(key)

    async def last(network: Network) -> None:
        await world.check(network)

    world.live(last, None)
    world.clean()


def main() -> int:
    """Run what the command line says."""
    signal.alarm(3000)
    what, *numbers = sys.argv[1:]
    with NetworkNamespace() as host, tempfile.TemporaryDirectory() as folder:
        namespaces.enter(host.fileno())
        world = World(Path(folder), host)
        try:
            if what == "steps":
                every, offset = (*map(int, numbers), 1, 0)[:2] if numbers else (1, 0)
                print(f"killed at {each_step(world, every, offset)} steps")
            else:
                cycles(world, int(numbers[0]), int(numbers[1]))
                print(f"{numbers[0]} cycles: nothing is left")
        except (Wrong, ContainerError) as error:
            print(f"wrong: {error}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
