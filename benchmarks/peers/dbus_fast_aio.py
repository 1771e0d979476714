"""dbus-fast at both ends, on asyncio, over a private dbus-daemon."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from dbus_fast import Message, MessageType
from dbus_fast.aio import MessageBus
from dbus_fast.message_bus import BaseMessageBus

from benchmarks.peers.bus import NAME, PATH, address, open_bus
from benchmarks.worker import Loop, Operations

LOOP: Loop = "asyncio"


async def serve(folder: Path) -> None:
    """Serve until killed."""
    with open_bus(folder) as where:
        bus = await MessageBus(bus_address=where, negotiate_unix_fd=True).connect()

        def answer(message: Message) -> Message | None:
            if message.message_type is MessageType.METHOD_CALL and message.path == PATH:
                return Message.new_method_return(message, "(sx)", message.body)
            return None

        assert isinstance(bus, BaseMessageBus)
        bus.add_message_handler(answer)
        await bus.request_name(NAME)
        print("ready", flush=True)
        await bus.wait_for_disconnect()


@asynccontextmanager
async def connect(folder: Path) -> AsyncGenerator[Operations]:
    """Hold a connection to the bus."""
    bus = await MessageBus(bus_address=address(folder), negotiate_unix_fd=True).connect()

    async def call(i: int) -> None:
        reply = await bus.call(
            Message(
                destination=NAME,
                path=PATH,
                interface=NAME,
                member="Echo",
                signature="(sx)",
                body=[["abcdef", i]],
            )
        )
        assert reply is not None
        assert reply.body[0][1] == i, reply.body

    yield {"call": call}
