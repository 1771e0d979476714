"""The table of a service's life, line by line, on a clock that jumps, with obedient processes."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing
from attrs import define, field

from container.contracts.launcher import Ready, Restart, ServiceState, ServiceUnit
from container.ipc import Unavailable
from container.launcher.logfiles import Logs
from container.launcher.spawner import Spawner
from container.launcher.supervision import Service

Clock = trio.testing.MockClock


@define(eq=False)
class FakeProcess:
    """A process that ends when it is told to."""

    pid: int
    lives_for: float
    exit_status: int
    status: int | None = None
    gone: trio.Event = field(factory=trio.Event)
    closed: bool = False

    async def wait(self) -> int:
        with trio.move_on_after(self.lives_for):
            await self.gone.wait()
        self.status = self.exit_status if self.status is None else self.status
        self.gone.set()
        return self.status

    async def end(self, timeout: float, first: int = signal.SIGTERM) -> int:
        await trio.lowlevel.checkpoint()
        self.status = 128 + first
        self.gone.set()
        return self.status

    def close(self) -> None:
        self.closed = True


@define(eq=False)
class FakeSpawner:
    """Starts processes that end as planned (seconds of life, exit status); later ones live."""

    plan: list[tuple[float, int] | Unavailable] = field(factory=list[Any])
    serve: bool = True
    """Take the connection that a process was started for."""
    starts: list[float] = field(factory=list[float])
    made: list[FakeProcess] = field(factory=list[FakeProcess])
    surroundings: SimpleNamespace = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.surroundings = SimpleNamespace(logs=Logs(Path(tempfile.gettempdir()) / "no-logs"))

    async def spawn(self, unit: ServiceUnit, listener: socket.socket | None) -> FakeProcess:
        await trio.lowlevel.checkpoint()
        self.starts.append(round(trio.current_time(), 6))
        life: tuple[float, int] | Unavailable = float("inf"), 0
        if len(self.starts) <= len(self.plan):
            life = self.plan[len(self.starts) - 1]
        if isinstance(life, Unavailable):
            raise life
        if self.serve and listener is not None:
            with contextlib.suppress(BlockingIOError):
                listener.accept()[0].close()
        self.made.append(FakeProcess(len(self.starts), *life))
        return self.made[-1]


@pytest.fixture
def path() -> Iterator[Path]:
    """A socket's path, which has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ct") as folder:
        yield Path(folder) / "s"


@asynccontextmanager
async def served(path: Path, spawner: FakeSpawner, **options: Any) -> AsyncGenerator[Service]:
    """Run a service that listens at a path."""
    await trio.Path(path).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.setblocking(False)
    listener.bind(str(path))
    listener.listen()
    unit = ServiceUnit(name="one", command=("one",), listen="s", **options)
    service = Service(unit, path, listener, None, cast("Spawner", spawner))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run)
        await trio.testing.wait_all_tasks_blocked()
        yield service
        service.supervision.cancel()
        await service.ended.wait()
    service.close()
    assert all(process.closed for process in spawner.made)


@contextlib.contextmanager
def connection(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        client.connect(str(path))
        yield client


async def closed_without_an_answer(path: Path) -> bool:
    with connection(path) as client:
        with trio.move_on_after(1):
            await trio.lowlevel.wait_readable(client)
            return client.recv(1) == b""
    return False


async def test_failures_wait_longer_each_time_and_at_most_ten_seconds(
    path: Path, autojump_clock: Clock
) -> None:
    spawner = FakeSpawner([(20.0, 1)] * 8)
    async with served(path, spawner, restart_delay=1.0, restart_limit=9) as service:
        await service.start()
        await trio.sleep(300)
        pauses = [b - a - 20 for a, b in zip(spawner.starts, spawner.starts[1:], strict=False)]
        assert pauses == pytest.approx([1, 2, 4, 8, 10, 10, 10, 10])
        assert service.status().restarts == 8
        assert service.state is ServiceState.RUNNING


async def test_after_a_calm_life_the_delays_begin_anew(path: Path, autojump_clock: Clock) -> None:
    spawner = FakeSpawner([(1.0, 1), (1.0, 1), (31.0, 1), (1.0, 1)])
    async with served(path, spawner, restart_delay=1.0) as service:
        await service.start()
        await trio.sleep(100)
        assert spawner.starts == pytest.approx([0, 2, 5, 37, 40])


async def test_too_many_failures_leave_it_failed_until_a_connection_half_a_minute_later(
    path: Path, autojump_clock: Clock
) -> None:
    spawner = FakeSpawner([(0.5, 3)] * 3)
    async with served(path, spawner, restart_limit=3) as service:
        await service.start()
        await trio.sleep(2)
        assert service.state is ServiceState.FAILED
        assert len(spawner.starts) == 3
        failed_at = 0.5 * 3 + 0.1 + 0.2
        assert await closed_without_an_answer(path)
        assert len(spawner.starts) == 3
        await trio.sleep(failed_at + 30 - trio.current_time() - 0.1)
        assert await closed_without_an_answer(path)
        assert len(spawner.starts) == 3
        await trio.sleep(0.2)
        with connection(path):
            await trio.sleep(0.1)
        assert service.state is ServiceState.RUNNING
        assert (len(spawner.starts), service.status().restarts) == (4, 3)


async def test_who_connects_ends_a_delay_after_a_life_that_served(
    path: Path, autojump_clock: Clock
) -> None:
    spawner = FakeSpawner([(3.0, 137), (20.0, 1)])
    async with served(path, spawner, ready=Ready.NOTIFY, restart_delay=8.0) as service:
        with connection(path):
            await trio.sleep(0.5)
        service.hear({"READY": "1"})
        await trio.sleep(4.5)
        assert service.state is ServiceState.BACKOFF
        with connection(path):
            await trio.testing.wait_all_tasks_blocked()
            assert (service.state, spawner.starts) == (ServiceState.RUNNING, [0, 5])
        await trio.sleep(21)  # it never says that it is ready, and fails
        with connection(path):
            await trio.sleep(8)
            assert service.state is ServiceState.BACKOFF
            await trio.sleep(2)
        assert spawner.starts == [0, 5, 35]


async def test_a_life_that_served_makes_its_failure_the_first_of_a_row_but_it_counts(
    path: Path, autojump_clock: Clock
) -> None:
    spawner = FakeSpawner([(2.0, 137)] * 9)
    async with served(path, spawner, ready=Ready.NOTIFY, restart_limit=4) as service:
        with connection(path):
            await trio.sleep(0.05)
        for _ in range(4):
            service.hear({"READY": "1"})
            await trio.sleep(2.1)
        assert spawner.starts == pytest.approx([0, 2.1, 4.2, 6.3])
        assert service.state is ServiceState.FAILED


async def test_what_fails_as_soon_as_it_is_ready_waits_longer_each_time_whoever_connects(
    path: Path, autojump_clock: Clock
) -> None:
    spawner = FakeSpawner([(0.5, 1)] * 3)
    async with served(path, spawner, ready=Ready.NOTIFY, restart_delay=1.0) as service:
        for seconds in (0.05, 1.5, 2.5):
            with connection(path):
                await trio.sleep(seconds)
            service.hear({"READY": "1"})
        assert spawner.starts == pytest.approx([0, 1.5, 4])


async def test_start_tries_again_at_once_in_a_delay_and_when_failed(
    path: Path, autojump_clock: Clock
) -> None:
    spawner = FakeSpawner([(1.0, 1), (1.0, 1), (1.0, 1)])
    async with served(path, spawner, restart_delay=5.0, restart_limit=2) as service:
        await service.start()
        await trio.sleep(2)
        assert service.state is ServiceState.BACKOFF
        await service.start()  # its failures are forgiven: the second is a first one
        assert spawner.starts[-1] == 2
        await trio.sleep(2)
        assert service.state is ServiceState.BACKOFF
        await trio.sleep(6)
        assert service.state is ServiceState.FAILED
        await service.start()
        assert (service.state, spawner.starts[-1]) == (ServiceState.RUNNING, 10)


async def test_stop_ends_a_delay_and_a_failed_state_and_waits_for_the_next_connection(
    path: Path, autojump_clock: Clock
) -> None:
    spawner = FakeSpawner([(1.0, 1)] * 2)
    async with served(path, spawner, restart_delay=5.0, restart_limit=1) as service:
        await service.start()
        await trio.sleep(2)
        assert service.state is ServiceState.FAILED
        await service.stop()
        await trio.sleep(60)
        assert (service.state, len(spawner.starts)) == (ServiceState.LISTENING, 1)

    spawner = FakeSpawner([(1.0, 1)])
    async with served(path, spawner, restart_delay=5.0) as service:
        await service.start()
        await trio.sleep(2)
        assert service.state is ServiceState.BACKOFF
        await service.stop()
        await trio.sleep(60)
        assert (service.state, len(spawner.starts)) == (ServiceState.LISTENING, 1)
        with connection(path):
            await trio.sleep(0.1)
        assert service.state is ServiceState.RUNNING
        await service.stop()
        assert (service.state, service.last_exit) == (ServiceState.LISTENING, 143)


@pytest.mark.parametrize(
    ("restart", "status", "state"),
    [
        (Restart.NO, 0, ServiceState.LISTENING),
        (Restart.NO, 1, ServiceState.LISTENING),
        (Restart.ON_FAILURE, 0, ServiceState.LISTENING),
        (Restart.ON_FAILURE, 1, ServiceState.BACKOFF),
        (Restart.ALWAYS, 0, ServiceState.BACKOFF),
    ],
)
async def test_the_unit_says_which_ends_lead_to_a_restart(
    path: Path, autojump_clock: Clock, restart: Restart, status: int, state: ServiceState
) -> None:
    spawner = FakeSpawner([(1.0, status)])
    async with served(path, spawner, restart=restart, restart_delay=5.0) as service:
        await service.start()
        await trio.sleep(2)
        assert (service.state, service.last_exit) == (state, status)
        await trio.sleep(10)
        assert len(spawner.starts) == (2 if state is ServiceState.BACKOFF else 1)


async def test_without_restarts_too_many_failures_still_leave_it_failed(
    path: Path, autojump_clock: Clock
) -> None:
    spawner = FakeSpawner([(0.1, 1)] * 9)
    async with served(path, spawner, restart=Restart.NO, restart_limit=3) as service:
        for _ in range(5):
            with connection(path):
                await trio.sleep(1)
        assert (service.state, len(spawner.starts)) == (ServiceState.FAILED, 3)


async def test_an_end_that_leaves_its_connection_unserved_is_a_failure(
    path: Path, autojump_clock: Clock
) -> None:
    spawner = FakeSpawner([(0.1, 0)] * 9, serve=False)
    async with served(path, spawner, restart_limit=3) as service:
        with connection(path):
            await trio.sleep(10)
        assert (service.state, len(spawner.starts)) == (ServiceState.FAILED, 3)


async def test_a_service_that_was_ready_may_end_while_somebody_connects(
    path: Path, autojump_clock: Clock
) -> None:
    # As an idle one does: the connection that comes just then is the next process's.
    spawner = FakeSpawner([(1.0, 0)] * 3)
    async with served(path, spawner, ready=Ready.NOTIFY, restart_delay=5.0) as service:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.start)
            await trio.testing.wait_all_tasks_blocked()
            service.hear({"READY": "1"})
        service.hear({"STOPPING": "1"})
        with connection(path):
            await trio.sleep(1.5)
            assert spawner.starts == [0, 1]
            assert (service.status().restarts, service.status().problem) == (0, "")


async def test_a_silent_service_is_aborted_and_started_again_with_the_reason_told(
    path: Path, autojump_clock: Clock
) -> None:
    spawner = FakeSpawner()
    async with served(path, spawner, ready=Ready.NOTIFY, watchdog=4.0) as service:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.start)
            await trio.testing.wait_all_tasks_blocked()
            assert not service.status().ready
            service.hear({"READY": "1", "STATUS": "at work"})
        assert (service.status().ready, service.status().said) == (True, "at work")
        await trio.sleep(3)
        service.hear({"WATCHDOG": "1"})
        await trio.sleep(6)
        assert spawner.starts == pytest.approx([0, 7.1])
        status = service.status()
        assert (status.problem, status.last_exit) == ("it gave no sign of life for 4 s", 134)
        assert (status.said, status.ready, status.restarts) == ("", False, 1)


async def test_what_it_needs_is_prepared_first_and_its_failure_is_the_start_s(
    path: Path, autojump_clock: Clock
) -> None:
    spawner = FakeSpawner()
    problems = [Unavailable("the other one failed")]

    async def prepare(unit: ServiceUnit) -> None:
        await trio.sleep(1)
        if problems:
            raise problems.pop()

    async with served(path, spawner, restart_delay=2.0) as service:
        service.prepare = prepare
        with pytest.raises(Unavailable, match="the other one failed"):
            await service.start()
        assert (service.state, spawner.starts) == (ServiceState.BACKOFF, [])
        await trio.sleep(4)
        assert (service.state, spawner.starts) == (ServiceState.RUNNING, [4.0])


async def test_what_cant_be_started_is_told_and_tried_again(
    path: Path, autojump_clock: Clock
) -> None:
    spawner = FakeSpawner([Unavailable("no room"), Unavailable("no room")])
    async with served(path, spawner, restart_delay=1.0) as service:
        with pytest.raises(Unavailable, match="no room"):
            await service.start()
        assert service.state is ServiceState.BACKOFF
        await trio.sleep(10)
        assert spawner.starts == pytest.approx([0, 1, 3])
        assert service.state is ServiceState.RUNNING


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_is_asked_of_it_in_whatever_order_each_question_has_an_answer(
    path: Path, autojump_clock: Clock, seed: int
) -> None:
    chance = random.Random(seed)
    lives: list[tuple[float, int] | Unavailable] = [
        Unavailable("no room")
        if chance.random() < 0.1
        else (chance.choice([0.0, 0.1, 3.0, 100.0]), chance.choice([0, 0, 1, 137]))
        for _ in range(500)
    ]
    spawner = FakeSpawner(lives)
    options = {"restart_delay": 0.5, "start_timeout": 2.0, "watchdog": 2.0, "stop_timeout": 1.0}
    ready = chance.choice(list(Ready))
    if ready is Ready.STARTED:
        del options["watchdog"]
    async with served(path, spawner, ready=ready, restart_limit=4, **options) as service:

        async def prepare(unit: ServiceUnit) -> None:
            await trio.sleep(chance.choice([0, 0, 1]))
            if chance.random() < 0.2:
                raise Unavailable("the other one failed")

        service.prepare = prepare
        words = [{"READY": "1"}, {"WATCHDOG": "1"}, {"STOPPING": "1"}, {"WATCHDOG": "trigger"}]

        async def ask() -> None:
            for _ in range(30):
                await trio.sleep(chance.choice([0, 0.05, 0.7, 5]))
                match chance.randrange(5):
                    case 0:
                        with contextlib.suppress(Unavailable):
                            await service.start()
                            # Stopping may follow at once, but it was ready.
                    case 1:
                        await service.stop()
                    case 2:
                        with contextlib.suppress(BlockingIOError), connection(path):
                            await trio.sleep(0.3)
                    case _:
                        if service.process is not None:
                            service.hear(chance.choice(words))
                status = service.status()
                assert (status.pid is None) == (service.process is None)

        with trio.fail_after(3600):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(ask)
            await service.stop()
        assert service.process is None
        alive = [one for one in spawner.made if not one.closed]
        assert alive == []
