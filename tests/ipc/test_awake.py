"""A loop whose waits were short looks for the next message for a moment before it sleeps."""

from __future__ import annotations

import os
from abc import abstractmethod
from pathlib import Path

import pytest
import trio
from attrs import define, field

from container.ipc import Actor, Contract, awake, open_service, stay_awake
from container.ipc.awake import MOST_SHORT_WAITS, SHORT_WAITS, StayAwake
from tests.ipc.open_files import count

SHORT = 200_000
pytestmark = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="with one core nothing is waited awake"
)


@define
class Loop:
    """Plays Trio's part, in a time of its own that a look makes pass."""

    instrument: StayAwake = field(factory=lambda: StayAwake(SHORT))
    now: int = 1
    looks: int = 0
    comes_at: float = float("inf")

    def perf_counter_ns(self) -> int:
        return self.now

    def poll(self, timeout: float, events: int) -> list[tuple[int, int]]:
        assert timeout == 0
        self.looks += 1
        self.now += 2_000
        return [(0, 1)] if self.now >= self.comes_at else []

    def wait(self, nanoseconds: int, timeout: float = 60.0) -> int:
        """Let a message come after so long; return how often was looked for it."""
        self.looks, before = 0, self.now
        self.comes_at = before + nanoseconds
        self.instrument.before_io_wait(timeout)
        self.now = max(self.now, before + nanoseconds)
        self.instrument.after_io_wait(timeout)
        return self.looks


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    loop = Loop()
    monkeypatch.setattr(awake.time, "perf_counter_ns", loop.perf_counter_ns)
    loop.instrument._epoll.close()  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(loop.instrument, "_epoll", loop)
    return loop


def hot(loop: Loop) -> Loop:
    for _ in range(SHORT_WAITS):
        assert loop.wait(50_000) == 0
    return loop


def test_waits_awake_after_a_few_short_waits_until_the_message_comes(loop: Loop) -> None:
    assert hot(loop).wait(50_000) == 25


def test_a_long_wait_ends_it(loop: Loop) -> None:
    hot(loop).wait(10 * SHORT)
    assert loop.wait(50_000) == 0


def test_looks_no_longer_than_the_short_time(loop: Loop) -> None:
    assert hot(loop).wait(1_000_000_000) == SHORT // 2_000


def test_looks_no_longer_than_the_next_deadline(loop: Loop) -> None:
    assert hot(loop).wait(50_000, timeout=10e-6) == 5


def test_each_look_in_vain_doubles_the_short_waits_that_it_takes(loop: Loop) -> None:
    needed = SHORT_WAITS
    while needed < MOST_SHORT_WAITS:
        for _ in range(needed):
            assert loop.wait(50_000) == 0
        assert loop.wait(10 * SHORT) > 0
        needed = min(2 * needed, MOST_SHORT_WAITS)
    for _ in range(3):
        for _ in range(MOST_SHORT_WAITS):
            assert loop.wait(50_000) == 0
        assert loop.wait(10 * SHORT) > 0


def test_each_look_that_was_worth_it_halves_them_again(loop: Loop) -> None:
    hot(loop).wait(10 * SHORT)
    for _ in range(2 * SHORT_WAITS):
        assert loop.wait(50_000) == 0
    assert loop.wait(50_000) > 0
    loop.wait(10 * SHORT)
    for _ in range(2 * SHORT_WAITS):
        assert loop.wait(50_000) == 0
    assert loop.wait(50_000) > 0


def test_a_loop_with_something_to_do_does_not_look(loop: Loop) -> None:
    hot(loop)
    loop.looks = 0
    loop.instrument.before_io_wait(0)
    loop.instrument.after_io_wait(0)
    assert loop.looks == 0


class Asked(Contract, name="asked"):
    @abstractmethod
    async def ask(self) -> int: ...


class AskedService(Actor, Asked):
    async def ask(self) -> int:
        return 1


async def looking_while_connected(path: Path) -> StayAwake | None:
    async with open_service(AskedService(), at=path), Asked.connect(path) as asked:
        assert await asked.ask() == 1
        return awake.of_run.get()


async def test_a_run_looks_while_it_has_a_connection(tmp_path: Path) -> None:
    before = count()
    first = await looking_while_connected(tmp_path / "s")
    assert first is not None
    assert awake.of_run.get() is None
    assert count() == before
    assert await looking_while_connected(tmp_path / "s") is not first


async def test_it_can_be_turned_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awake, "_nanoseconds", awake._nanoseconds)  # pyright: ignore[reportPrivateUsage]
    stay_awake(0)
    assert await looking_while_connected(tmp_path / "s") is None


async def test_a_process_with_one_core_never_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert await looking_while_connected(tmp_path / "s") is None


async def test_deadlines_and_other_tasks_go_on_while_messages_come_fast(tmp_path: Path) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await trio.sleep(0.001)
            ticks += 1

    async with (
        open_service(AskedService(), at=tmp_path / "s"),
        Asked.connect(tmp_path / "s") as asked,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(tick)
        with pytest.raises(trio.TooSlowError), trio.fail_after(0.2):
            while True:
                await asked.ask()
        nursery.cancel_scope.cancel()
    assert ticks > 1
