"""Restarting a service loses no new call; what may have run twice does not run twice unasked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from container.ipc import (
    Actor,
    Contract,
    Fate,
    Fd,
    PeerGone,
    bind,
    idempotent,
    open_service,
)


class Counter(Contract, name="counter"):
    @abstractmethod
    async def count(self) -> int: ...

    @abstractmethod
    @idempotent
    async def look(self) -> int: ...

    @abstractmethod
    async def slow(self, seconds: float) -> int: ...

    @abstractmethod
    @idempotent
    async def die(self) -> int: ...

    @abstractmethod
    async def die_once(self) -> int: ...

    @abstractmethod
    async def keep(self, file: Fd) -> int: ...

    @abstractmethod
    def hold(self) -> AbstractAsyncContextManager[int]: ...


class CounterService(Actor, Counter):
    """An instance, by number."""

    def __init__(self, number: int, deaths: Path | None = None) -> None:
        self.number = number
        self.calls = 0
        self.deaths = deaths

    async def count(self) -> int:
        self.calls += 1
        await trio.lowlevel.checkpoint()
        return self.number

    async def look(self) -> int:
        return self.number

    async def slow(self, seconds: float) -> int:
        await trio.sleep(seconds)
        return self.number

    async def die(self) -> int:
        assert self.deaths is not None
        if not self.deaths.exists():
            self.deaths.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        return self.number

    async def die_once(self) -> int:
        return await self.die()

    async def keep(self, file: Fd) -> int:
        return self.number

    @asynccontextmanager
    async def hold(self) -> AsyncGenerator[int]:
        yield self.number


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


async def test_a_service_that_is_restarted_under_load_loses_no_new_call(tmp_path: Path) -> None:
    results: list[int] = []
    failures: list[Exception] = []
    stop = False

    async def hammer(counter: Counter) -> None:
        while not stop:
            try:
                results.append(await counter.count())
            except PeerGone as gone:
                failures.append(gone)

    async def instance(service: CounterService, retire: trio.Event) -> None:
        async with open_service(service, at=listener) as server:
            await retire.wait()
            await server.drain(5)

    services = [CounterService(number) for number in range(8)]
    with bind(tmp_path / "s") as listener:
        async with trio.open_nursery() as instances:
            retire = trio.Event()
            instances.start_soon(instance, services[0], retire)
            async with Counter.connect_named(tmp_path / "s") as counter:
                async with trio.open_nursery() as load:
                    for _ in range(8):
                        load.start_soon(hammer, counter)
                    for service in services[1:]:
                        await until(lambda number=service.number - 1: number in results)
                        retire.set()
                        retire = trio.Event()
                        instances.start_soon(instance, service, retire)
                    await until(lambda: 7 in results)
                    stop = True
            retire.set()
    assert failures == []
    assert len(results) == sum(service.calls for service in services)


async def test_what_runs_when_a_server_drains_is_finished(tmp_path: Path) -> None:
    async with open_service(CounterService(1), at=tmp_path / "s") as server:
        async with Counter.connect(tmp_path / "s") as counter, trio.open_nursery() as nursery:
            found: list[int] = []

            async def call() -> None:
                found.append(await counter.slow(0.2))

            nursery.start_soon(call)
            await trio.sleep(0.05)
            await server.drain(5)
            with pytest.raises(PeerGone) as caught:
                await counter.count()
            assert (caught.value.fate, caught.value.why) == (Fate.NOT_SENT, "draining")
    assert found == [1]


async def test_draining_is_bounded(tmp_path: Path) -> None:
    async with open_service(CounterService(1), at=tmp_path / "s") as server:
        async with Counter.connect(tmp_path / "s") as counter:
            with trio.move_on_after(5) as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(counter.slow, 60)
                    await trio.sleep(0.05)
                    await server.drain(0.1)
                    nursery.cancel_scope.cancel()
            assert not scope.cancelled_caught


async def test_scopes_go_to_the_instance_that_serves(tmp_path: Path) -> None:
    with bind(tmp_path / "s") as listener:
        async with open_service(CounterService(1), at=listener) as server:
            async with Counter.connect_named(tmp_path / "s") as counter:
                async with counter.hold() as number:
                    assert number == 1
                await server.drain(5)
                async with open_service(CounterService(2), at=listener):
                    async with counter.hold() as number:
                        assert number == 2
                    assert await counter.count() == 2


async def test_nobody_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(PeerGone, match="nobody listens"):
        async with Counter.connect_named(tmp_path / "s"):
            pass
    async with open_service(CounterService(1), at=tmp_path / "s") as server:
        async with Counter.connect_named(tmp_path / "s") as counter:
            assert await counter.count() == 1
            await server.drain(1)
            os.unlink(tmp_path / "s")
            with pytest.raises(PeerGone, match="nobody listens"):
                await counter.count()


INSTANCE = """
import sys, socket, trio
from pathlib import Path
sys.path.insert(0, {root!r})
from container.ipc import open_service
from tests.ipc.test_named import CounterService
async def main():
    listener = socket.socket(fileno=int(sys.argv[1]))
    async with open_service(CounterService(int(sys.argv[2]), Path(sys.argv[3])), at=listener):
        await trio.sleep_forever()
trio.run(main)
"""


@contextmanager
def two_instances(folder: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run two processes that serve one listening socket."""
    source = INSTANCE.format(root=str(Path(__file__).parents[2]))
    with bind(folder / "s") as listener:
        number = str(listener.fileno())
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", source, number, name, folder / "died"],
                pass_fds=[listener.fileno()],
            )
            for name in "01"
        ]
        try:
            yield processes
        finally:
            for process in processes:
                process.kill()
                process.wait()


@pytest.mark.parametrize("method", ["die", "die_once"])
async def test_of_an_unknown_fate_only_what_is_idempotent_is_repeated(
    tmp_path: Path, method: str
) -> None:
    with two_instances(tmp_path) as processes, trio.fail_after(20):
        async with Counter.connect_named(tmp_path / "s") as counter:
            if method == "die":
                assert await counter.die() in (0, 1)
            else:
                with pytest.raises(PeerGone) as caught:
                    await counter.die_once()
                assert caught.value.fate is Fate.UNKNOWN
                assert await counter.count() in (0, 1)
        assert sorted(str(process.poll()) for process in processes) == ["-9", "None"]
