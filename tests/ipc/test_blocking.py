"""Plain threads and asyncio programs call services, and what a call promises holds for them."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
import threading
import time
from abc import abstractmethod
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.abc import ReceiveChannel

from container.ipc import (
    Actor,
    Contract,
    DeadlineExceeded,
    NotFound,
    PeerGone,
    blocking,
    open_service,
    stream,
)


class Greeter(Contract, name="greeter"):
    @abstractmethod
    async def greet(self, name: str) -> str: ...

    @abstractmethod
    async def wait(self) -> None: ...

    @abstractmethod
    async def waiting(self) -> int: ...

    @abstractmethod
    def lease(self, key: str) -> AbstractAsyncContextManager[str]: ...

    @abstractmethod
    def ticks(self, count: int) -> AbstractAsyncContextManager[ReceiveChannel[int]]: ...


class GreeterService(Actor, Greeter):
    def __init__(self) -> None:
        self.count = 0
        self.leased: list[str] = []

    async def greet(self, name: str) -> str:
        if name == "nobody":
            raise NotFound("nobody is here")
        return f"hello {name}"

    async def wait(self) -> None:
        self.count += 1
        try:
            await trio.sleep_forever()
        finally:
            self.count -= 1

    async def waiting(self) -> int:
        return self.count

    @asynccontextmanager
    async def lease(self, key: str) -> AsyncGenerator[str]:
        self.leased.append(key)
        yield key.upper()
        self.leased.remove(key)

    @stream
    async def ticks(self, count: int) -> AsyncGenerator[int]:
        for number in range(count):
            yield number


class Served:
    """A service in a thread of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.service = GreeterService()
        self._ready = threading.Event()
        self._stop: trio.CancelScope | None = None
        self._thread = threading.Thread(target=trio.run, args=(self._serve,))
        self._thread.start()
        self._ready.wait(10)

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as self._stop:
            async with open_service(self.service, at=self.path):
                self._ready.set()
                await trio.sleep_forever()

    def stop(self) -> None:
        if self._thread.is_alive():
            assert self._stop is not None
            self._token.run_sync_soon(self._stop.cancel)
            self._thread.join(10)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path / "s")
    yield served
    served.stop()


# --- threads ----------------------------------------------------------------------------------


def test_a_thread_calls(served: Served) -> None:
    with blocking.connect(Greeter.connect(served.path)) as (greeter, call):
        assert call(greeter.greet, "ada") == "hello ada"
        with pytest.raises(NotFound, match="nobody is here"):
            call(greeter.greet, "nobody")


def test_several_threads_call_at_once(served: Served) -> None:
    found: list[str] = []
    with blocking.connect(Greeter.connect(served.path)) as (greeter, call):
        threads = [
            threading.Thread(
                target=lambda number=number: found.append(call(greeter.greet, f"{number}"))
            )
            for number in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found) == sorted(f"hello {number}" for number in range(20))


def test_a_call_that_takes_too_long_is_cancelled_and_has_ended(served: Served) -> None:
    with blocking.connect(Greeter.connect(served.path), timeout=0.2) as (greeter, call):
        with pytest.raises(DeadlineExceeded):
            call(greeter.wait)
        assert call(greeter.waiting) == 0


def test_a_thread_holds_a_scope_and_reads_a_stream(served: Served) -> None:
    with blocking.connect(Greeter.connect(served.path)) as (greeter, call):
        with call.scope(greeter.lease("a")) as lease:
            assert lease == "A"
            assert served.service.leased == ["a"]
        assert served.service.leased == []
        with call.scope(greeter.ticks(30)) as ticks:
            assert list(call.each(ticks)) == list(range(30))


def test_a_server_that_is_gone_is_told(served: Served) -> None:
    with blocking.connect(Greeter.connect(served.path)) as (greeter, call):
        served.stop()
        with pytest.raises(PeerGone):
            call(greeter.greet, "ada")
    with pytest.raises(PeerGone, match="nobody listens"):
        with blocking.connect(Greeter.connect(served.path)):
            pass


PROGRAM = """
import sys
sys.path.insert(0, {root!r})
from container.ipc import blocking
from tests.ipc.test_blocking import Greeter
with blocking.connect(Greeter.connect(sys.argv[1])) as (greeter, call):
    print("connected", flush=True)
    try:
        call(greeter.wait)
    except KeyboardInterrupt:
        print("interrupted", call(greeter.waiting), flush=True)
"""


def test_ctrl_c_cancels_the_call_and_waits_for_its_end(served: Served) -> None:
    program = PROGRAM.format(root=str(Path(__file__).parents[2]))
    with subprocess.Popen(
        [sys.executable, "-c", program, served.path], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "connected\n"
        deadline = time.monotonic() + 10
        while served.service.count == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted 0\n"
        assert process.wait(10) == 0


# --- asyncio ----------------------------------------------------------------------------------


def test_an_asyncio_program_calls(served: Served) -> None:
    async def main() -> list[str]:
        async with blocking.connect_asyncio(Greeter.connect(served.path)) as (greeter, call):
            return await asyncio.gather(*(call(greeter.greet, name) for name in ("ada", "bob")))

    assert asyncio.run(main()) == ["hello ada", "hello bob"]


def test_asyncio_s_cancellation_cancels_the_call_and_waits_for_its_end(served: Served) -> None:
    async def main() -> int:
        async with blocking.connect_asyncio(Greeter.connect(served.path)) as (greeter, call):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await call(greeter.wait)
            return await call(greeter.waiting)

    assert asyncio.run(main()) == 0


def test_an_exception_of_an_asyncio_block_comes_out_of_it(served: Served) -> None:
    async def main() -> None:
        async with blocking.connect_asyncio(Greeter.connect(served.path)) as (greeter, call):
            with pytest.raises(NotFound):
                await call(greeter.greet, "nobody")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        asyncio.run(main())


async def run_until_ended() -> None:
    """Work whose end takes a moment after a cancellation."""
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.3)
        ENDED.append("ended")


ENDED: list[str] = []


def test_a_second_cancellation_waits_for_the_end_too() -> None:
    ENDED.clear()

    @asynccontextmanager
    async def nothing() -> AsyncGenerator[None]:
        yield

    async def main() -> None:
        async with blocking.connect_asyncio(nothing()) as (_, call):
            task = asyncio.create_task(call(run_until_ended))
            await asyncio.sleep(0.1)
            task.cancel()
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert ENDED == ["ended"]

    asyncio.run(main())


def test_cancelling_the_connecting_leaves_no_thread() -> None:
    left: list[str] = []

    @asynccontextmanager
    async def slow() -> AsyncGenerator[None]:
        try:
            await trio.sleep_forever()
            yield
        finally:
            left.append("left")

    async def main() -> None:
        async def connect() -> None:
            async with blocking.connect_asyncio(slow()):
                raise AssertionError("entered")

        for seconds in (0, 0.001, 0.5):
            task = asyncio.create_task(connect())
            await asyncio.sleep(seconds)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    before = threading.active_count()
    asyncio.run(asyncio.wait_for(main(), 20))
    assert threading.active_count() == before
    assert left


def test_three_lines_are_enough(served: Served) -> None:
    program = textwrap.dedent(
        f"""
        import asyncio, sys
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from container.ipc import blocking
        from tests.ipc.test_blocking import Greeter
        async def main():
            async with blocking.connect_asyncio(Greeter.connect(sys.argv[1])) as (greeter, call):
                print(await call(greeter.greet, "ada"))
        asyncio.run(main())
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program, served.path],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("hello ada\n", "")


def test_an_asyncio_program_holds_a_scope_and_reads_a_stream(served: Served) -> None:
    async def main() -> None:
        async with blocking.connect_asyncio(Greeter.connect(served.path)) as (greeter, call):
            async with call.scope(greeter.lease("a")) as lease:
                assert lease == "A"
                assert served.service.leased == ["a"]
            assert served.service.leased == []
            async with call.scope(greeter.ticks(30)) as ticks:
                assert [tick async for tick in call.each(ticks)] == list(range(30))
            with pytest.raises(KeyError):
                async with call.scope(greeter.lease("b")):
                    raise KeyError("b")
            assert await call(greeter.greet, "ada") == "hello ada"

    asyncio.run(main())
