"""The two processes of a peer, and how they are asked: a server, and a client told to measure.

Each peer is a module of `benchmarks.peers` with an `async def serve(folder)`, which says that it
listens by printing `ready`, an `@asynccontextmanager async def connect(folder)` that holds the
coroutine function `call(i)`, and `LOOP`, the event loop that both run under. The client reads one
order a line (`sequential N`, `concurrent N CALLERS`) and answers each with the seconds it took.
Between orders both processes sleep, so that peers measured in turns do not disturb each other.

    python -m benchmarks.worker PEER serve|client FOLDER
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

Loop = Literal["trio", "asyncio", "capnp"]
Call = Callable[[int], Awaitable[Any]]


class PeerUnavailable(Exception):
    """A peer can't be measured here; the message says what is missing."""


class Peer:
    """A peer's client process, ready to be asked.

    Args:
        client: The process; its server is ended with it by `open_peer`.
    """

    def __init__(self, client: subprocess.Popen[str]) -> None:
        self._client = client

    def sequential(self, calls: int) -> float:
        """Return microseconds a call, one call after another."""
        return self._ask(f"sequential {calls}") / calls * 1e6

    def concurrent(self, calls: int, callers: int) -> float:
        """Return calls a second of so many callers at once on one connection."""
        return calls / self._ask(f"concurrent {calls} {callers}")

    def _ask(self, order: str) -> float:
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        print(order, file=self._client.stdin, flush=True)
        answer = self._client.stdout.readline()
        if not answer:
            raise PeerUnavailable(f"the client ended with status {self._client.wait()}")
        return float(answer)


@contextmanager
def open_peer(name: str, folder: Path) -> Generator[Peer]:
    """Hold a peer's server and client, both processes of their own.

    Args:
        name: A module of `benchmarks.peers`.
        folder: A short path for its sockets and generated files; it must be empty.

    Raises:
        PeerUnavailable: it did not come up; the message is the last line that it said.
    """
    with _process(name, "serve", folder) as server:
        _await_ready(name, server)
        with _process(name, "client", folder) as client:
            _await_ready(name, client)
            yield Peer(client)


@contextmanager
def _process(name: str, side: str, folder: Path) -> Generator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.worker", name, side, str(folder)],
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
    """Be the server or the client of one peer."""
    name, side, folder = sys.argv[1:]
    try:
        module = importlib.import_module(f"benchmarks.peers.{name}")
    except ImportError as error:
        print(f"{error.name} is not installed", flush=True)
        return 1
    _run(module, module.serve if side == "serve" else _client(module), Path(folder))
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
        async with module.connect(folder) as call:
            await _sequential(call, 50)
            print("ready", flush=True)
            # Blocking on purpose: between orders the client must cost nothing.
            while line := sys.stdin.readline():
                order, *numbers = line.split()
                calls = int(numbers[0])
                started = time.perf_counter()
                if order == "sequential":
                    await _sequential(call, calls)
                else:
                    await _concurrent(module.LOOP, call, calls, int(numbers[1]))
                print(time.perf_counter() - started, flush=True)

    return client


async def _sequential(call: Call, calls: int) -> None:
    for i in range(calls):
        await call(i)


async def _concurrent(loop: Loop, call: Call, calls: int, callers: int) -> None:
    numbers = iter(range(calls))

    async def caller() -> None:
        for i in numbers:
            await call(i)

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
