"""The least that it can take: 64 bytes there and back over `trio.socket`, no message, no call."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from benchmarks.worker import Call, Loop

LOOP: Loop = "trio"
PAYLOAD = b"x" * 64


async def serve(folder: Path) -> None:
    """Echo what comes on one connection after another."""
    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    await listener.bind(str(folder / "s"))
    listener.listen()
    print("ready", flush=True)
    while True:
        connection, _ = await listener.accept()
        with connection:
            while data := await connection.recv(4096):
                await connection.send(data)


@asynccontextmanager
async def connect(folder: Path) -> AsyncGenerator[Call]:
    """Hold one connection."""
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        await connection.connect(str(folder / "s"))

        async def call(i: int) -> None:
            await connection.send(PAYLOAD)
            await connection.recv(4096)

        yield call
