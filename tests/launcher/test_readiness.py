"""One life, phase by phase on a clock that jumps; then services that say it over a real socket."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from attrs import evolve

from container.contracts.launcher import Launcher, Ready, Restart, ServiceState, ServiceUnit
from container.ipc import InvalidArgument, NotFound, Unavailable
from container.launcher.readiness import Life

from .conftest import System, ask, unit, until

Clock = trio.testing.MockClock


def life(**options: Any) -> Life:
    """Return the life of a unit that says when it is ready."""
    options.setdefault("ready", Ready.NOTIFY)
    return Life(ServiceUnit(name="one", command=("one",), **options))


async def overdue(of: Life, within: float) -> tuple[float, str] | None:
    """Return when, and why, something is overdue."""
    with trio.move_on_after(within):
        reason = await of.until_overdue()
        return round(trio.current_time(), 6), reason
    return None


async def test_a_unit_that_says_nothing_is_ready_when_it_runs(autojump_clock: Clock) -> None:
    one = life(ready=Ready.STARTED)
    one.begin()
    assert (one.ready, one.decided.is_set(), one.problem) == (True, True, None)
    assert await overdue(one, 100) is None


async def test_what_is_not_ready_in_time_is_overdue(autojump_clock: Clock) -> None:
    one = life(start_timeout=5.0)
    one.begin()
    assert not one.decided.is_set()
    assert await overdue(one, 100) == (5.0, "it was not ready within 5 s")


async def test_a_start_that_asks_for_more_time_gets_it(autojump_clock: Clock) -> None:
    one = life(start_timeout=5.0)
    one.begin()
    one.hear({"EXTEND_TIMEOUT_USEC": "9000000"})
    one.hear({"EXTEND_TIMEOUT_USEC": "nonsense"})
    found = await overdue(one, 100)
    assert found is not None
    assert found[0] == 9.0


async def test_signs_of_life_are_due_from_readiness_on(autojump_clock: Clock) -> None:
    one = life(watchdog=2.0, start_timeout=50.0)
    one.begin()
    one.hear({"WATCHDOG": "1"})
    await trio.sleep(20)
    one.hear({"READY": "1", "STATUS": "well\tdone"})
    assert (one.ready, one.said) == (True, "well done")

    async def pulse() -> None:
        for _ in range(3):
            await trio.sleep(1.5)
            one.hear({"WATCHDOG": "1"})

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pulse)
        assert await overdue(one, 100) == (26.5, "it gave no sign of life for 2 s")


async def test_it_may_say_itself_that_it_hangs(autojump_clock: Clock) -> None:
    one = life(watchdog=20.0)
    one.begin()
    one.hear({"READY": "1"})
    async with trio.open_nursery() as nursery:

        async def trigger() -> None:
            await trio.sleep(1)
            one.hear({"WATCHDOG": "trigger"})

        nursery.start_soon(trigger)
        assert await overdue(one, 100) == (1.0, "it said itself that it hangs")


async def test_what_says_that_it_stops_has_its_stop_timeout(autojump_clock: Clock) -> None:
    one = life(watchdog=20.0, stop_timeout=3.0)
    one.begin()
    one.hear({"READY": "1"})
    one.hear({"STOPPING": "1"})
    one.hear({"WATCHDOG": "1"})
    found = await overdue(one, 100)
    assert found == (3.0, "it said that it stops and did not end within 3 s")


async def test_who_wakes_late_was_frozen_itself_and_judges_nobody(mock_clock: Clock) -> None:
    one = life(watchdog=2.0)
    one.begin()
    one.hear({"READY": "1"})
    reasons: list[str] = []
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            reasons.append(await one.until_overdue())

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(30)
        await trio.testing.wait_all_tasks_blocked()
        assert reasons == []
        mock_clock.jump(2)
        await trio.testing.wait_all_tasks_blocked()
        assert len(reasons) == 1


# --- real services ---


def telling(name: str, *say: str | float, **options: Any) -> ServiceUnit:
    """Return the unit of a service that says these datagrams."""
    environment = {"SAY": json.dumps(say), **options.pop("environment", {})}
    options.setdefault("listen", None)
    return unit(name, "telling", environment=environment, ready=Ready.NOTIFY, **options)


async def test_a_start_returns_when_the_service_is_ready(system: System) -> None:
    await system.launcher.register(telling("one", 0.3, "READY=1\nSTATUS=at work", listen="s"))
    status = await system.launcher.start("one")
    assert (status.state, status.ready, status.said) == (ServiceState.RUNNING, True, "at work")


async def test_a_start_that_is_never_ready_fails_with_the_last_lines_of_its_log(
    system: System,
) -> None:
    await system.launcher.register(telling("one", listen="s", start_timeout=1.5, restart_limit=1))
    with pytest.raises(Unavailable) as caught:
        await system.launcher.start("one")
    assert "not ready within 1.5 s" in caught.value.message
    assert "about to say something" in caught.value.message
    status = await system.service("one")
    assert "not ready within 1.5 s" in status.problem
    assert status.problem_at is not None
    assert "killed: it was not ready" in (system.paths.logs / "one.log").read_text()


async def test_a_service_that_ends_before_it_is_ready_fails_whoever_started_it(
    system: System,
) -> None:
    one = telling("one", listen="s", environment={"STATUS": "3"}, restart_limit=1)
    await system.launcher.register(one)
    with pytest.raises(Unavailable, match=r"status 3.*about to say something"):
        await system.launcher.start("one")


async def test_nobody_but_the_service_itself_can_say_that_it_is_ready(system: System) -> None:
    await system.launcher.register(telling("one", listen="s"))
    async with trio.open_nursery() as nursery:

        async def start() -> None:
            with pytest.raises(Unavailable, match="was stopped before it was ready"):
                await system.launcher.start("one")

        nursery.start_soon(start)
        await system.until("one", ServiceState.RUNNING)
        with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_DGRAM) as sock:
            await sock.sendto(b"READY=1", str(system.paths.run / "notify.sock"))
        launcher_log = system.paths.logs / "launcher.log"
        await until(lambda: "is no service's" in launcher_log.read_text())
        assert not (await system.service("one")).ready
        await system.launcher.stop("one")


async def test_a_frozen_service_is_killed_and_comes_back_with_the_reason_told(
    system: System,
) -> None:
    one = unit("one", "proper", ready=Ready.NOTIFY, watchdog=2.0)
    path = await system.launcher.register(one)
    pid = (await system.launcher.start("one")).pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    assert (await ask(path))["pid"] != pid
    status = await system.service("one")
    assert (status.restarts, status.problem) == (1, "it gave no sign of life for 2 s")
    log = (system.paths.logs / "one.log").read_text()
    assert "killed: it gave no sign of life for 2 s" in log


async def test_a_wedged_event_loop_is_found_and_its_place_is_in_the_log(system: System) -> None:
    one = unit("one", "proper", ready=Ready.NOTIFY, watchdog=2.0, core_size=0)
    path = await system.launcher.register(one)
    await system.launcher.start("one")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_ask_in_vain, path)
        await until(lambda: "in _block" in (system.paths.logs / "one.log").read_text())
    await ask(path)  # answered by its next process
    assert (await system.service("one")).last_exit == 128 + signal.SIGABRT


async def _ask_in_vain(path: str) -> None:
    async with await trio.open_unix_socket(path) as stream:
        await stream.send_all(b"block\n")
        try:
            assert await stream.receive_some(10) == b""
        except trio.BrokenResourceError:
            pass


async def test_a_service_that_is_well_lives_on_under_its_watchdog(system: System) -> None:
    one = unit("one", "proper", ready=Ready.NOTIFY, watchdog=2.0)
    path = await system.launcher.register(one)
    pid = (await ask(path))["pid"]
    await trio.sleep(2.5)
    assert (await ask(path))["pid"] == pid
    assert (await system.service("one")).restarts == 0


async def test_an_idle_service_ends_and_the_next_connection_starts_it_again(
    system: System,
) -> None:
    one = unit("one", "idle", ready=Ready.NOTIFY, idle_timeout=1.0)
    path = await system.launcher.register(one)
    async with Launcher.connect(path) as proxy:
        await proxy.status()
        first = await system.service("one")
        assert first.state is ServiceState.RUNNING
        await system.until("one", ServiceState.LISTENING)
    async with Launcher.connect(path) as proxy:
        await proxy.status()
    again = await system.service("one")
    assert again.pid not in (None, first.pid)
    assert (again.restarts, again.problem) == (0, "")


async def test_descriptors_come_and_go_by_the_notification_socket_too(
    system: System, tmp_path: Path
) -> None:
    program = tmp_path / "store.py"
    note = tmp_path / "note"
    program.write_text(
        "import os, socket, time\n"
        f"with open({str(note)!r}, 'a') as file:\n"
        "    print(os.environ.get('LISTEN_FDNAMES'), file=file)\n"
        "sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "sock.connect(os.environ['NOTIFY_SOCKET'])\n"
        "def say(text, *fds): socket.send_fds(sock, [text.encode()], fds)\n"
        "if 'LISTEN_FDS' not in os.environ:\n"
        "    say('FDSTORE=1\\nFDNAME=a', 0)\n"
        "    say('FDSTORE=1\\nFDNAME=b', 0)\n"
        "    say('FDSTORE=1\\nFDNAME=c:d', 0)\n"
        "    say('FDSTOREREMOVE=1\\nFDNAME=a')\n"
        "    ours, theirs = os.pipe()\n"
        "    say('BARRIER=1', theirs)\n"
        "    os.close(theirs)\n"
        "    os.read(ours, 1)\n"
        "    raise SystemExit(1)\n"
        "time.sleep(100)\n"
    )
    one = evolve(unit("one", listen=None), entry=None, command=(sys.executable, str(program)))
    await system.launcher.register(one)
    await until(lambda: note.exists() and note.read_text() == "None\nb\n")
    assert (await system.service("one")).kept == 1


# --- order ---


async def test_what_is_required_is_started_before_and_ready(system: System) -> None:
    await system.launcher.register(telling("a", 0.2, "READY=1", listen="a.sock"))
    await system.launcher.register(telling("b", 0.2, "READY=1", listen="b.sock"))
    await system.launcher.register(unit("c", requires=("a", "b")))
    await ask(system.paths.run / "c.sock")
    for name in ("a", "b", "c"):
        status = await system.service(name)
        assert (status.state, status.ready) == (ServiceState.RUNNING, True)
    await system.launcher.stop("a")
    assert (await system.service("b")).state is ServiceState.RUNNING
    for name in ("a", "c"):
        assert (await system.service(name)).state is ServiceState.LISTENING


async def test_a_required_service_that_fails_fails_its_dependent_with_its_reason(
    system: System,
) -> None:
    bad = telling("bad", listen="bad.sock", environment={"STATUS": "4"}, restart=Restart.NO)
    await system.launcher.register(bad)
    await system.launcher.register(unit("middle", requires=("bad",), restart=Restart.NO))
    await system.launcher.register(unit("top", requires=("middle",), restart=Restart.NO))
    with pytest.raises(Unavailable, match=r'"top" needs another one: service "middle" needs.*4'):
        await system.launcher.start("top")
    assert (await system.service("top")).pid is None
    assert "status 4" in (await system.service("top")).problem
    await system.launcher.register(unit("lost", requires=("nobody",), restart=Restart.NO))
    with pytest.raises(NotFound, match='"lost" needs another one: there is no service "nobody"'):
        await system.launcher.start("lost")


async def test_a_circle_of_services_is_refused_by_name(system: System) -> None:
    await system.launcher.register(unit("a", requires=("b",)))
    with pytest.raises(InvalidArgument, match="a → b → a"):
        await system.launcher.register(unit("b", after=("a",)))
    await system.launcher.register(unit("b"))


async def test_a_start_that_waits_for_another_can_be_stopped(system: System) -> None:
    await system.launcher.register(telling("slow", listen="slow.sock"))
    await system.launcher.register(unit("one", requires=("slow",)))
    async with trio.open_nursery() as nursery:

        async def start() -> None:
            with pytest.raises(Unavailable, match="was stopped before it was started"):
                await system.launcher.start("one")

        nursery.start_soon(start)
        await system.until("slow", ServiceState.RUNNING)
        await system.launcher.stop("one")
    assert (await system.service("one")).state is ServiceState.LISTENING
