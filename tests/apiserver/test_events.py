"""Events: what is told of a container's life, to whom, and what a slow subscriber gets."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import trio

from container.apiserver.events import REMEMBERED, WAITING, EventLog
from container.contracts.apiserver import (
    Containers,
    Event,
    EventFilter,
    EventKind,
    RestartCondition,
    RestartPolicy,
)
from container.contracts.runtime import INIT, ExitStatus, ProcessState, Stdio, StopOptions
from container.ipc import in_memory

EVERYTHING = EventFilter()
PAST = EventFilter(after=0)


async def told(service: Any, wanted: EventFilter = PAST) -> list[Event]:
    """Return the events that are remembered."""
    found: list[Event] = []
    async with service.events(wanted) as events:
        with trio.move_on_after(0.1):
            async for event in events:
                found.append(event)  # noqa: PERF401 (what came before the end is wanted)
    return found


def kinds(events: list[Event]) -> list[str]:
    return [event.kind.value for event in events]


async def test_a_whole_life_is_told_in_order(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers, name="web")
    await containers.pause("web")
    await containers.unpause("web")
    await containers.kill("web", "HUP")
    await containers.stop("web", StopOptions())
    await containers.delete("web")
    events = await told(containers)
    assert kinds(events) == [
        "create", "start", "pause", "unpause", "kill", "die", "stop", "destroy",
    ]  # fmt: skip
    assert {(event.container, event.name, event.image) for event in events} == {
        (made.id, "web", "localhost/demo:latest")
    }
    assert events[4].attributes == {"signal": "SIGHUP"}
    assert events[5].attributes == {"exit_code": "143", "restarts": "no"}
    numbers = [event.sequence for event in events]
    assert numbers == sorted(set(numbers))


async def test_what_is_removed_while_it_runs_dies_first(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    made = await world.started(containers)
    await containers.delete(made.id, force=True)
    events = await told(containers)
    assert kinds(events) == ["create", "start", "die", "destroy"]
    assert events[2].attributes == {"exit_code": "unknown", "restarts": "no"}


async def test_restarts_memory_and_unknown_ends_are_told(
    autojump_clock: Any, world: Any, containers: Any
) -> None:
    policy = RestartPolicy(RestartCondition.ALWAYS)
    made = await world.started(containers, restart=policy)
    world.sandboxes[made.id].init(
        state=ProcessState.EXITED, pid=None, exit=ExitStatus(137, 9, out_of_memory=True)
    )
    await trio.sleep(1)
    events = await told(containers)
    assert kinds(events) == ["create", "start", "oom", "die", "start", "restart"]
    assert events[3].attributes == {"exit_code": "137", "restarts": "yes"}
    world.kernel.forgets = True
    world.launcher.kill(f"runtime.{made.id}")
    await trio.sleep(0.09)
    (died,) = await told(containers, EventFilter(after=events[-1].sequence, kinds=(EventKind.DIE,)))
    assert died.attributes["exit_code"] == "unknown"


async def test_a_start_past_the_server_is_told_while_somebody_listens(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await containers.create(options())
    async with containers.events(EVERYTHING) as events:
        endpoint = await containers.bootstrap(made.id, Stdio())
        async with endpoint.connect() as sandbox:
            await sandbox.start(INIT)
        with trio.fail_after(0.2):
            assert (await events.receive()).kind is EventKind.START


async def test_a_start_past_the_server_that_nobody_noticed_is_told_before_its_end(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await containers.create(options())
    endpoint = await containers.bootstrap(made.id, Stdio())
    async with endpoint.connect() as sandbox:
        await sandbox.start(INIT)
    await trio.sleep(3)
    world.sandboxes[made.id].exit(0)
    await trio.sleep(3)
    _, start, die = await told(containers)
    assert (start.kind, die.kind) == (EventKind.START, EventKind.DIE)
    assert die.time - start.time == timedelta(seconds=3), "each has the time when it happened"


async def test_filters_choose_containers_kinds_and_times(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    one = await containers.create(options(name="one"))
    await trio.sleep(10)
    await containers.create(options(name="two"))
    await containers.start("one")
    found = await told(containers, EventFilter(after=0, containers=("one",)))
    assert kinds(found) == ["create", "start"]
    assert await told(containers, EventFilter(after=0, containers=(one.id[:4],))) == found
    only = EventFilter(after=0, kinds=(EventKind.CREATE,))
    assert [event.name for event in await told(containers, only)] == ["one", "two"]
    later = EventFilter(since=found[0].time + timedelta(seconds=1))
    assert kinds(await told(containers, later)) == ["create", "start"]
    assert await told(containers) != await told(containers, EVERYTHING) == []


async def test_a_stream_with_an_end_ends_at_that_time(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await containers.create(options())
    until = made.created_at + timedelta(seconds=60)
    async with containers.events(EventFilter(after=0, until=until)) as events:
        found = [event async for event in events]
    assert kinds(found) == ["create"]
    assert 59 < trio.current_time() - 0 < 61
    async with containers.events(EventFilter(after=0, until=made.created_at)) as events:
        with trio.fail_after(1):
            assert len([event async for event in events]) == 1


async def test_subscribers_over_the_wire_get_the_same_and_leave_nothing(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    async with in_memory(containers, Containers) as client:
        async with client.events(EVERYTHING) as one, client.events(PAST) as two:
            made = await client.create(options())
            assert await one.receive() == await two.receive()
            await client.delete(made.id)
        assert not containers._events.followed


async def test_a_slow_subscriber_is_told_how_many_it_missed_and_delays_nobody(
    autojump_clock: Any, world: Any, containers: Any, options: Any, image: Callable[..., Any]
) -> None:
    log: EventLog = containers._events
    made = await containers.create(options())
    async with containers.events(EVERYTHING) as slow, containers.events(EVERYTHING) as quick:
        for number in range(WAITING + 300):
            log.publish(EventKind.KILL, made, signal=str(number))
            assert (await quick.receive()).attributes == {"signal": str(number)}
        missed, read, last = 0, 0, ""
        with trio.move_on_after(1):
            async for event in slow:
                missed += event.missed
                read += 1
                last = event.attributes["signal"]
        assert missed > 0
        assert missed + read == WAITING + 300
        assert last == str(WAITING + 299), "the newest are never lost"


async def test_what_is_remembered_is_bounded(
    autojump_clock: Any, world: Any, containers: Any, options: Any
) -> None:
    made = await containers.create(options())
    for _ in range(REMEMBERED + 10):
        containers._events.publish(EventKind.KILL, made)
    assert len(await told(containers)) == REMEMBERED


async def test_sequence_numbers_grow_over_a_restart_of_the_server(
    autojump_clock: Any, world: Any, options: Any
) -> None:
    async with world.server() as first:
        await first.create(options())
        (before,) = await told(first)
    await trio.sleep(1)
    async with world.server() as second:
        await second.create(options())
        (after,) = await told(second, EventFilter(after=before.sequence))
        assert after.sequence > before.sequence


@pytest.mark.parametrize("named", ["", "nobody"])
async def test_a_name_that_fits_nothing_chooses_nothing(
    autojump_clock: Any, world: Any, containers: Any, options: Any, named: str
) -> None:
    await containers.create(options())
    assert await told(containers, EventFilter(after=0, containers=(named,))) == []
