"""Services that the tests spawn: well-behaved, broken, stubborn."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from abc import abstractmethod
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import trio
from attrs import frozen
from trio.abc import ReceiveChannel

from container.ipc import Actor, Contract, Fd, NotFound, stream


@frozen
class Facts:
    """What a process could have inherited by mistake."""

    pid: int
    parent: int
    session: int
    directory: str
    umask: int
    environment: str
    descriptors: dict[str, str]
    handlers: tuple[int, ...]
    ignored: tuple[int, ...]
    random: tuple[float, ...]
    preloaded: bool


class Bench(Contract, name="bench"):
    """Work, and ways to end."""

    @abstractmethod
    async def facts(self) -> Facts: ...

    @abstractmethod
    async def add(self, one: int, two: int) -> int: ...

    @abstractmethod
    async def say(self, text: str) -> None: ...

    @abstractmethod
    async def word(self) -> str: ...

    @abstractmethod
    async def exit(self, status: int) -> None: ...

    @abstractmethod
    async def kill(self, number: int) -> None: ...

    @abstractmethod
    async def crash(self) -> None: ...

    @abstractmethod
    async def daemon(self) -> int: ...

    @abstractmethod
    async def stubborn(self) -> None: ...

    @abstractmethod
    async def wedge(self, seconds: float) -> None: ...

    @abstractmethod
    async def sleep(self, seconds: float) -> str: ...

    @abstractmethod
    async def overstay(self, seconds: float) -> None: ...

    @abstractmethod
    async def read(self, source: Fd) -> str: ...


class BenchService(Actor, Bench):
    """The well-behaved one, until it is told otherwise."""

    def __init__(self, word: str = "nothing", times: int = 1) -> None:
        self._word = word * times

    async def facts(self) -> Facts:
        descriptors: dict[str, str] = {}
        for number in os.listdir("/proc/self/fd"):
            try:
                descriptors[number] = os.readlink(f"/proc/self/fd/{number}")
            except FileNotFoundError:
                continue
        umask = os.umask(0)
        os.umask(umask)
        handled = [n for n in signal.valid_signals() if callable(signal.getsignal(n))]
        ignored = [n for n in signal.valid_signals() if signal.getsignal(n) == signal.SIG_IGN]
        runner: Any = trio._core._run  # type: ignore[attr-defined]
        return Facts(
            pid=os.getpid(),
            parent=os.getppid(),
            session=os.getsid(0),
            directory=os.getcwd(),
            umask=umask,
            environment=os.environ.get("SPAWN_TEST", ""),
            descriptors=descriptors,
            handlers=tuple(int(n) for n in handled),
            ignored=tuple(int(n) for n in ignored),
            random=(random.random(), runner._r.random()),
            preloaded=os.environ.get("PRELOADED", "") == str(os.getppid()),
        )

    async def add(self, one: int, two: int) -> int:
        return one + two

    async def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    async def word(self) -> str:
        return self._word

    async def exit(self, status: int) -> None:
        sys.exit(status)

    async def kill(self, number: int) -> None:
        os.kill(os.getpid(), number)
        await trio.sleep_forever()

    async def crash(self) -> None:
        async def task() -> None:
            raise ValueError("a background task failed")

        self.nursery.start_soon(task)

    async def daemon(self) -> int:
        """Leave a process behind that has left session, group and parent."""
        program = (
            "import os, sys, time\n"
            "os.fork() and os._exit(0)\n"
            "os.setsid()\n"
            "os.fork() and os._exit(0)\n"
            "print(os.getpid(), flush=True)\n"
            "os.close(1)\n"
            "time.sleep(1000)\n"
        )
        done = await trio.run_process([sys.executable, "-S", "-c", program], capture_stdout=True)
        return int(done.stdout)

    async def stubborn(self) -> None:
        """From now on neither a cancellation nor SIGTERM ends this process."""

        async def task() -> None:
            with trio.CancelScope(shield=True):
                while True:
                    # Set anew each time: the framework gives SIGTERM its default action at a stop.
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                    await trio.sleep(0.005)

        self.nursery.start_soon(task)

    async def wedge(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 (it is meant to block the loop)

    async def sleep(self, seconds: float) -> str:
        await trio.sleep(seconds)
        return self._word

    async def overstay(self, seconds: float) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)

    async def read(self, source: Fd) -> str:
        return os.read(source.fileno(), 100).decode()


class Stateful(BenchService):
    """Has a start-up and a tear-down, told by files."""

    def __init__(self, folder: str, slow: float = 0.0) -> None:
        super().__init__("stateful")
        self._folder = folder
        self._slow = slow

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        self._note("begun")
        yield
        await trio.sleep(self._slow)
        self._note("ended")

    def _note(self, word: str) -> None:
        with open(os.path.join(self._folder, word), "w") as file:
            file.write(str(os.getpid()))


class Missing(BenchService):
    """Fails when it is made, with an error of the contract."""

    def __init__(self) -> None:
        raise NotFound("there is no such bench", hint="look elsewhere", details={"seen": 3})


class Broken(BenchService):
    """Fails when it is made, by a bug."""

    def __init__(self) -> None:
        raise ZeroDivisionError("a bug")


class BadStart(BenchService):
    """Fails when it is opened."""

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        await trio.lowlevel.checkpoint()
        raise NotFound("what it needs is not there")
        yield


class BadEnd(BenchService):
    """Fails when it is closed."""

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        yield
        raise NotFound("what it held was gone")


class Sleepy(BenchService):
    """Never gets ready."""

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        await trio.sleep_forever()
        yield


def make_bench(word: str) -> BenchService:
    """Make one by a function."""
    return BenchService(word)


def untyped(word):  # type: ignore[no-untyped-def]
    """Can't be called from another process: its argument has no type."""
    return BenchService(word)


def odd(thing: object) -> BenchService:
    """Can't be called from another process: nothing checks such an argument."""
    return BenchService(repr(thing))


class Ticker(Contract, name="ticker"):
    """Scopes and channels."""

    @abstractmethod
    def lease(self, key: str) -> AbstractAsyncContextManager[str]: ...

    @abstractmethod
    def ticks(self, count: int) -> AbstractAsyncContextManager[ReceiveChannel[int]]: ...

    @abstractmethod
    async def held(self) -> tuple[str, ...]: ...

    @abstractmethod
    async def process(self) -> int: ...


class TickerService(Actor, Ticker):
    """Leases keys, and counts."""

    def __init__(self) -> None:
        self._held: list[str] = []

    @asynccontextmanager
    async def lease(self, key: str) -> AsyncGenerator[str]:
        self._held.append(key)
        try:
            yield f"{key} of {os.getpid()}"
        finally:
            self._held.remove(key)

    @stream
    async def ticks(self, count: int) -> AsyncGenerator[int]:
        for number in range(count):
            yield number

    async def held(self) -> tuple[str, ...]:
        return tuple(self._held)

    async def process(self) -> int:
        return os.getpid()
