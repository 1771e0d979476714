"""pycapnp's RPC over a Unix socket."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import capnp

from benchmarks.worker import Loop, Operations

LOOP: Loop = "capnp"
SCHEMA = """
@0xb1c2d3e4f5a69788;
struct Item { id @0 :Text; number @1 :Int64; }
interface Echo { echo @0 (item :Item) -> (item :Item); }
"""


def _schema(folder: Path) -> Any:
    path = folder / "echo.capnp"
    if not path.exists():
        path.write_text(SCHEMA)
    return capnp.load(str(path))


async def serve(folder: Path) -> None:
    """Serve until killed."""
    schema = _schema(folder)

    class Echo(schema.Echo.Server):  # type: ignore[misc,name-defined]
        async def echo(self, item: Any, _context: Any, **rest: Any) -> None:
            _context.results.item = {"id": item.id, "number": item.number}

    async def connection(stream: Any) -> None:
        await capnp.TwoPartyServer(stream, bootstrap=Echo()).on_disconnect()

    server = await capnp.AsyncIoStream.create_unix_server(connection, str(folder / "s"))
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


@asynccontextmanager
async def connect(folder: Path) -> AsyncGenerator[Operations]:
    """Hold the bootstrap object of one connection."""
    schema = _schema(folder)
    stream = await capnp.AsyncIoStream.create_unix_connection(str(folder / "s"))
    echo = capnp.TwoPartyClient(stream).bootstrap().cast_as(schema.Echo)

    async def call(i: int) -> None:
        reply = await echo.echo(item={"id": "abcdef", "number": i})
        assert reply.item.number == i

    yield {"call": call}
