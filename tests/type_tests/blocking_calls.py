"""What threads and asyncio programs call is checked as the proxy's own methods are."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import assert_type

from trio.abc import ReceiveChannel

from container.ipc import Contract, blocking


class Greeter(Contract, name="types.blocking"):
    @abstractmethod
    async def greet(self, name: str, times: int = 1) -> str: ...

    @abstractmethod
    def ticks(self, every: float) -> AbstractAsyncContextManager[ReceiveChannel[int]]: ...


def in_a_thread(path: Path) -> None:
    with blocking.connect(Greeter.connect(path), timeout=5) as (greeter, call):
        assert_type(greeter, Greeter)
        assert_type(call(greeter.greet, "ada"), str)
        assert_type(call(greeter.greet, name="ada", times=2), str)
        call(greeter.greet)  # pyright: ignore[reportCallIssue]
        call(greeter.greet, 3)  # pyright: ignore[reportArgumentType]
        call(greeter.greet, "ada", often=2)  # pyright: ignore[reportCallIssue]
        with call.scope(greeter.ticks(1.0)) as ticks:
            assert_type(ticks, ReceiveChannel[int])
            for tick in call.each(ticks):
                assert_type(tick, int)


async def in_asyncio(path: Path) -> None:
    async with blocking.connect_asyncio(Greeter.connect(path)) as (greeter, call):
        assert_type(await call(greeter.greet, "ada"), str)
        await call(greeter.greet)  # pyright: ignore[reportCallIssue]
        await call(greeter.greet, 3)  # pyright: ignore[reportArgumentType]
        async with call.scope(greeter.ticks(1.0)) as ticks:
            async for tick in call.each(ticks):
                assert_type(tick, int)
