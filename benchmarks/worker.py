"""The processes of a peer, and how they are asked: servers, and a client told to measure.

Each peer is a module of `benchmarks.peers` with an `async def serve(folder)`, which says that it
listens by printing `ready`, an `@asynccontextmanager async def connect(folder)` that holds its
operations by name, and `LOOP`, the event loop that both run under. The client reads one order a
line and answers each with one line:

    sequential OPERATION N          run operation(0) to operation(N - 1): the seconds it took
    concurrent OPERATION N CALLERS  the same by so many tasks: the seconds it took
    once OPERATION N                operation(N) alone: what it returned, or the seconds it took

Between orders all processes sleep, so that peers measured in turns do not disturb each other.

    python -m benchmarks.worker PEER client|SERVER FOLDER [CPU]
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

Loop = Literal["trio", "asyncio", "capnp"]
Operation = Callable[[int], Awaitable[Any]]
Operations = Mapping[str, Operation]
"""What a client can be told to do. The first one warms it up."""


class PeerUnavailable(Exception):
    """A peer can't be measured here; the message says what is missing."""


class Peer:
    """A peer's processes, ready to be asked.

    Args:
        client: The process that measures; it is ended by `open_peer`, as the servers are.
        servers: Process ids, in the order in which they were started.
    """

    def __init__(self, client: subprocess.Popen[str], servers: Sequence[int]) -> None:
        self._client = client
        self.servers = servers

    def sequential(self, calls: int, operation: str = "call") -> float:
        """Return microseconds a call, one call after another."""
        return self._ask("sequential", operation, calls) / calls * 1e6

    def concurrent(self, calls: int, callers: int, operation: str = "call") -> float:
        """Return calls a second of so many callers at once on one connection."""
        return calls / self._ask("concurrent", operation, calls, callers)

    def once(self, operation: str, number: int) -> Any:
        """Return what an operation returns; if that is nothing, the seconds it took."""
        return self._ask("once", operation, number)

    def _ask(self, *order: str | int) -> Any:
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        print(*order, file=self._client.stdin, flush=True)
        answer = self._client.stdout.readline()
        if not answer:
            said = self._client.stderr.read() if self._client.stderr else ""
            last = (said.strip().splitlines() or ["it said nothing"])[-1]
            raise PeerUnavailable(f"the client ended with {self._client.wait()}: {last}")
        return json.loads(answer)


@contextmanager
def open_peer(
    name: str, folder: Path, *, servers: Sequence[str] = ("serve",), cpu: int | None = None
) -> Generator[Peer]:
    """Hold a peer's servers and client, each a process of its own.

    Args:
        name: A module of `benchmarks.peers`.
        folder: A short path for its sockets and generated files; it must be empty.
        servers: Coroutine functions of the module, each run by a process once those before it are
            ready.
        cpu: Keep all of them on this processor; None leaves it to the kernel.

    Raises:
        PeerUnavailable: it did not come up; the message is the last line that it said.
    """
    with ExitStack() as stack:
        started: list[int] = []
        for side in (*servers, "client"):
            process = stack.enter_context(_process(name, side, folder, cpu))
            _await_ready(name, process)
            started.append(process.pid)
        yield Peer(process, started[:-1])


@contextmanager
def _process(
    name: str, side: str, folder: Path, cpu: int | None
) -> Generator[subprocess.Popen[str]]:
    arguments = [name, side, str(folder), *([] if cpu is None else [str(cpu)])]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.worker", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if side == "client" else subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _await_ready(name: str, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if line != "ready":
        said = process.stderr.read().strip().splitlines() if process.stderr else []
        raise PeerUnavailable(line or (said[-1] if said else f"{name} did not come up"))


def main() -> int:
    """Be a server or the client of one peer."""
    name, side, folder, *cpu = sys.argv[1:]
    if cpu:
        os.sched_setaffinity(0, {int(cpu[0])})
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        module = importlib.import_module(f"benchmarks.peers.{name}")
    except ModuleNotFoundError as error:
        print(f"{error.name} is not installed", flush=True)
        return 1
    except ImportError as error:
        print(error, flush=True)
        return 1
    _run(module, _client(module) if side == "client" else getattr(module, side), Path(folder))
    return 0


def _run(module: ModuleType, function: Callable[[Path], Awaitable[None]], folder: Path) -> None:
    loop: Loop = module.LOOP
    if loop == "trio":
        import trio

        trio.run(function, folder)
        return
    import asyncio

    async def under_asyncio() -> None:
        if loop == "capnp":
            import capnp

            async with capnp.kj_loop():
                await function(folder)
        else:
            await function(folder)

    asyncio.run(under_asyncio())


def _client(module: ModuleType) -> Callable[[Path], Awaitable[None]]:
    async def client(folder: Path) -> None:
        async with module.connect(folder) as operations:
            await _sequential(next(iter(operations.values())), 50)
            print("ready", flush=True)
            # Blocking on purpose: between orders the client must cost nothing.
            while line := sys.stdin.readline():
                order, name, *numbers = line.split()
                operation, (number, *rest) = operations[name], map(int, numbers)
                made = None
                started = time.perf_counter()
                if order == "sequential":
                    await _sequential(operation, number)
                elif order == "concurrent":
                    await _concurrent(module.LOOP, operation, number, rest[0])
                else:
                    made = await operation(number)
                taken = time.perf_counter() - started
                print(json.dumps(taken if made is None else made), flush=True)

    return client


async def _sequential(operation: Operation, calls: int) -> None:
    for i in range(calls):
        await operation(i)


async def _concurrent(loop: Loop, operation: Operation, calls: int, callers: int) -> None:
    numbers = iter(range(calls))

    async def caller() -> None:
        for i in numbers:
            await operation(i)

    if loop == "trio":
        import trio

        async with trio.open_nursery() as nursery:
            for _ in range(callers):
                nursery.start_soon(caller)
    else:
        import asyncio

        await asyncio.gather(*(caller() for _ in range(callers)))


if __name__ == "__main__":
    sys.exit(main())
