"""multiprocessing.connection: pickled dictionaries one way, blocking at both ends, no credit."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from multiprocessing.connection import Client, Listener
from pathlib import Path

from benchmarks.worker import Loop, Operations

LOOP: Loop = "trio"


async def serve(folder: Path) -> None:
    """Send what the only client asks for, until killed."""
    with Listener(str(folder / "s"), "AF_UNIX") as listener:
        print("ready", flush=True)
        with listener.accept() as connection:
            while count := connection.recv():
                for number in range(count):
                    connection.send({"id": "abcdef", "number": number})


@asynccontextmanager
async def connect(folder: Path) -> AsyncGenerator[Operations]:
    """Hold a connection."""
    with Client(str(folder / "s"), "AF_UNIX") as connection:

        async def items(count: int) -> None:
            if count:
                connection.send(count)
            for number in range(count):
                assert connection.recv()["number"] == number

        yield {"items": items}
