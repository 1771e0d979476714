"""jeepney at both ends, on Trio, over a private dbus-daemon."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from jeepney import (
    DBusAddress,
    MatchRule,
    message_bus,
    new_method_call,
    new_method_return,
)
from jeepney.io.trio import Proxy, open_dbus_connection, open_dbus_router

from benchmarks.peers.bus import NAME, PATH, address, open_bus
from benchmarks.worker import Loop, Operations

LOOP: Loop = "trio"
ADDRESS = DBusAddress(PATH, bus_name=NAME, interface=NAME)


async def serve(folder: Path) -> None:
    """Serve until killed."""
    with open_bus(folder) as where:
        connection = await open_dbus_connection(where, enable_fds=True)
        async with connection.router() as router:
            rule = MatchRule(type="method_call", path=PATH)
            with router.filter(rule, bufsize=1000) as incoming:
                await Proxy(message_bus, router).RequestName(NAME)
                print("ready", flush=True)
                async for message in incoming:
                    await router.send(new_method_return(message, "(sx)", message.body))


@asynccontextmanager
async def connect(folder: Path) -> AsyncGenerator[Operations]:
    """Hold a connection to the bus."""
    async with open_dbus_router(address(folder), enable_fds=True) as router:

        async def call(i: int) -> None:
            message = new_method_call(ADDRESS, "Echo", "(sx)", (("abcdef", i),))
            reply = await router.send_and_get_reply(message)
            assert reply.body[0][1] == i, reply.body

        yield {"call": call}
