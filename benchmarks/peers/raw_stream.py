"""The least that it can take: bytes over `trio.SocketStream` at both ends."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from benchmarks.worker import Loop, Operations

LOOP: Loop = "trio"
PIECE = 1 << 20
WORD = 8


async def serve(folder: Path) -> None:
    """Send as many MiB as the only client asks for, until killed."""
    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    await listener.bind(str(folder / "s"))
    listener.listen()
    print("ready", flush=True)
    connection, _ = await listener.accept()
    piece = b"x" * PIECE
    async with trio.SocketStream(connection) as stream:
        while asked := await stream.receive_some(WORD):
            for _ in range(int.from_bytes(asked)):
                await stream.send_all(piece)


@asynccontextmanager
async def connect(folder: Path) -> AsyncGenerator[Operations]:
    """Hold one connection."""
    async with await trio.open_unix_socket(str(folder / "s")) as stream:

        async def pieces(count: int) -> None:
            await stream.send_all(count.to_bytes(WORD))
            missing = count * PIECE
            while missing:
                missing -= len(await stream.receive_some(PIECE))

        yield {"bytes": pieces}
