"""The least that it can take: 64 bytes there and back over `trio.socket`, no message, no call."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import trio

from benchmarks.worker import Loop, Operations

LOOP: Loop = "trio"
PAYLOAD = b"x" * 64


async def serve(folder: Path) -> None:
    """Echo what comes, each connection in a task of its own."""
    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    await listener.bind(str(folder / "s"))
    listener.listen()
    print("ready", flush=True)
    async with trio.open_nursery() as nursery:
        while True:
            connection, _ = await listener.accept()
            nursery.start_soon(_echo, connection)


async def _echo(connection: trio.socket.SocketType) -> None:
    with connection:
        while data := await connection.recv(4096):
            await connection.send(data)


@asynccontextmanager
async def connect(folder: Path) -> AsyncGenerator[Operations]:
    """Hold one connection."""
    with (
        ExitStack() as idling,
        trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection,
    ):
        await connection.connect(str(folder / "s"))

        async def call(i: int) -> None:
            await connection.send(PAYLOAD)
            await connection.recv(4096)

        async def idle(connections: int) -> int:
            served = 0
            for _ in range(connections):
                another = idling.enter_context(
                    trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                )
                await another.connect(str(folder / "s"))
                await another.send(PAYLOAD)
                served += await another.recv(4096) == PAYLOAD
            return served

        yield {"call": call, "idle": idle}
