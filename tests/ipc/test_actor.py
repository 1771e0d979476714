"""The owner of some state: its start and end, its tasks, its names."""

from __future__ import annotations

import re
import subprocess
import sys
from abc import abstractmethod
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from container.ipc import Actor, Contract, ContractError, in_memory
from container.ipc.actor import actor_statistics


class Recorder(Actor):
    def __init__(self) -> None:
        self.events: list[str] = []

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        self.events.append("start")
        try:
            yield
        finally:
            self.events.append("end")

    async def tick(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.events.append("task ended")


async def test_background_tasks_end_before_what_the_lifespan_holds() -> None:
    async with Recorder() as actor:
        actor.nursery.start_soon(actor.tick)
        await trio.testing.wait_all_tasks_blocked()
        assert actor_statistics(actor).tasks == 1
    assert actor.events == ["start", "task ended", "end"]


async def test_a_lifespan_that_fails_leaves_the_actor_closed() -> None:
    class Failing(Actor):
        @asynccontextmanager
        async def lifespan(self) -> AsyncGenerator[None]:
            raise RuntimeError("no")
            yield

    actor = Failing()
    with pytest.raises(RuntimeError, match="no"):
        await actor.__aenter__()
    assert not actor.is_open


async def test_an_actor_that_is_not_open_has_no_nursery_and_may_be_opened_again() -> None:
    actor = Recorder()
    with pytest.raises(RuntimeError, match="is not open"):
        _ = actor.nursery
    for _ in range(2):
        async with actor:
            assert actor.is_open
        assert not actor.is_open
    assert actor.events == ["start", "end"] * 2


async def test_an_actor_may_end_its_own_tasks_and_its_block() -> None:
    async with Recorder() as actor:
        actor.nursery.cancel_scope.cancel()
        await trio.sleep_forever()
    assert actor.events == ["start", "end"]


async def test_what_begins_last_has_the_nursery_and_may_fail_as_the_block_may() -> None:
    class Beginning(Recorder):
        async def begin(self) -> None:
            self.nursery.start_soon(self.tick)
            await trio.testing.wait_all_tasks_blocked()
            raise LookupError("can't")

    actor = Beginning()
    with pytest.raises(LookupError, match="can't"):
        await actor.__aenter__()
    assert actor.events == ["start", "task ended", "end"]
    assert not actor.is_open
    with pytest.raises(RuntimeError, match="is not open"):
        _ = actor.nursery


async def test_a_failing_task_ends_the_block_and_is_raised_beside_what_the_block_raises() -> None:
    async def fail() -> None:
        raise ValueError

    async def live(last: type[Exception] | None = None) -> None:
        async with Recorder() as actor:
            actor.nursery.start_soon(fail)
            try:
                await trio.sleep_forever()
            finally:
                if last is not None:
                    raise last

    with pytest.raises(ExceptionGroup) as caught:
        await live()
    assert [type(error) for error in caught.value.exceptions] == [ValueError]
    with pytest.raises(ExceptionGroup) as caught:
        await live(last=LookupError)
    assert [type(error) for error in caught.value.exceptions] == [LookupError, ValueError]


async def test_a_route_of_any_name_but_the_actors_own_few_is_the_services() -> None:
    class Counting(Contract, name="counting"):
        @abstractmethod
        async def statistics(self) -> int: ...

    class CountingService(Actor, Counting):
        async def statistics(self) -> int:
            return len(actor_statistics(self).sections)

    service = CountingService()
    async with in_memory(service) as counting, service.exclusive("a"):
        assert await counting.statistics() == 1
        assert actor_statistics(service).is_open

    class Grasping(Contract, name="grasping"):
        @abstractmethod
        async def exclusive(self, key: str) -> None: ...

    with pytest.raises(ContractError, match="grasping/exclusive can't be served by an actor"):

        class GraspingService(Actor, Grasping):  # pyright: ignore
            pass


def test_the_program_of_the_how_to_prints_what_it_says() -> None:
    text = (Path(__file__).parents[2] / "docs/how-to/actors.md").read_text()
    (program,) = re.findall(r"```python\n(from __future__.*?)```", text, re.DOTALL)
    (output,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.sub(r"process \d+", "process 4711", done.stdout) == output
    assert "the book is on fire; again in 0.01 s" in done.stderr
