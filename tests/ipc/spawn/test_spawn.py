"""A spawned service is like any other, in a process of its own that ends with its block."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest
import trio

from container.ipc import (
    ContractError,
    Fd,
    InternalError,
    InvalidArgument,
    NotFound,
    PeerGone,
    ProcessExited,
    Zygote,
    open_zygote,
    process_of,
    spawn,
)
from tests.ipc.open_files import pipe_with
from tests.ipc.spawn import services
from tests.ipc.spawn.conftest import alive
from tests.ipc.spawn.services import Bench, BenchService, Ticker, TickerService


async def test_a_service_is_made_in_a_child_and_called(start: Zygote | None) -> None:
    async with spawn(Bench, BenchService, "ab", 2, zygote=start) as bench:
        assert await bench.word() == "abab"
        assert await bench.add(1, 2) == 3
        pid = process_of(bench).pid
        assert pid == (await bench.facts()).pid != os.getpid()
    assert not alive(pid)
    ending = process_of(bench).ending
    assert ending is not None
    assert ending.status == 0


async def test_keywords_defaults_functions_and_descriptors_make_services_too(
    zygote: Zygote,
) -> None:
    async with spawn(Bench, partial(BenchService, times=3), "a", zygote=zygote) as bench:
        assert await bench.word() == "aaa"
    async with spawn(Bench, services.make_bench, "made", zygote=zygote) as bench:
        assert await bench.word() == "made"
        with pipe_with(b"hello") as source:
            assert await bench.read(source) == "hello"


async def test_the_child_has_its_three_descriptors_and_its_sockets_alone(
    start: Zygote | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPAWN_TEST", "seen")
    async with spawn(Bench, BenchService, zygote=start) as bench:
        facts = await bench.facts()
    sockets = [name for name in facts.descriptors.values() if name.startswith("socket:")]
    assert len(sockets) == 6  # two to the parent, and Trio's own two pairs
    others = {n: f for n, f in facts.descriptors.items() if f not in sockets}
    assert others.pop("0") == "/dev/null"
    assert others.pop("1") == os.readlink("/proc/self/fd/1")
    assert others.pop("2") == os.readlink("/proc/self/fd/2")
    own = {"anon_inode:[eventpoll]", "anon_inode:[eventfd]"}
    assert not set(others.values()) - own
    assert facts.session == facts.pid
    assert facts.directory == str(tmp_path)
    assert facts.environment == "seen"
    umask = os.umask(0)
    os.umask(umask)
    assert facts.umask == umask
    assert set(facts.ignored) == {signal.SIGPIPE, signal.SIGXFSZ}


async def test_children_of_one_zygote_make_different_random_choices(zygote: Zygote) -> None:
    seen: list[float] = []
    for _ in range(2):
        async with spawn(Bench, BenchService, zygote=zygote) as bench:
            seen += (await bench.facts()).random
    assert len(set(seen)) == len(seen)


async def test_stderr_can_be_captured(start: Zygote | None) -> None:
    out, into = os.pipe()
    with Fd(out) as source:
        with Fd(into) as sink:
            async with spawn(Bench, BenchService, zygote=start, stderr=sink) as bench:
                await bench.say("heard")
        assert os.read(source.fileno(), 100) == b"heard\n"
        assert os.read(source.fileno(), 100) == b""  # nobody has the other end


async def test_start_up_and_tear_down_run_in_the_child_and_have_ended_with_the_block(
    start: Zygote | None, tmp_path: Path
) -> None:
    async with spawn(Bench, services.Stateful, str(tmp_path), 0.05, zygote=start):
        assert (tmp_path / "begun").exists()
        assert not (tmp_path / "ended").exists()
    assert (tmp_path / "ended").exists()


async def test_a_cancelled_block_ends_the_child_with_its_tear_down(
    zygote: Zygote, tmp_path: Path
) -> None:
    with trio.CancelScope() as scope:
        async with spawn(Bench, services.Stateful, str(tmp_path), 0.05, zygote=zygote):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert (tmp_path / "ended").exists()


async def test_calls_of_other_tasks_end_before_the_child_does(zygote: Zygote) -> None:
    words: list[str] = []

    async def call(bench: Bench) -> None:
        words.append(await bench.sleep(0.05))

    async with trio.open_nursery() as nursery:
        async with spawn(Bench, BenchService, "done", zygote=zygote) as bench:
            nursery.start_soon(call, bench)
            await trio.testing.wait_all_tasks_blocked()
    assert words == ["done"]


async def test_scopes_and_streams_reach_into_the_child(zygote: Zygote) -> None:
    async with spawn(Ticker, TickerService, zygote=zygote) as ticker:
        async with ticker.lease("a") as lease:
            assert lease == f"a of {process_of(ticker).pid}"
            assert await ticker.held() == ("a",)
        assert await ticker.held() == ()
        async with ticker.ticks(3) as ticks:
            assert [tick async for tick in ticks] == [0, 1, 2]


async def test_a_held_scope_ends_when_the_child_dies(zygote: Zygote) -> None:
    with pytest.raises(ProcessExited, match="SIGKILL"):
        async with spawn(Ticker, TickerService, zygote=zygote) as ticker:
            async with ticker.lease("a"):
                process_of(ticker).send_signal(signal.SIGKILL)
                await trio.sleep_forever()


# --- what goes wrong ---


async def test_what_making_the_service_raises_arrives_typed(start: Zygote | None) -> None:
    with pytest.raises(NotFound, match="no such bench") as caught:
        async with spawn(Bench, services.Missing, zygote=start):
            pytest.fail("the block must not begin")
    assert caught.value.hint == "look elsewhere"
    assert caught.value.details["seen"] == 3
    assert caught.value.provenance[0].process == "Missing"


async def test_a_bug_in_the_making_arrives_with_the_id_that_is_in_the_childs_log(
    start: Zygote | None,
) -> None:
    out, into = os.pipe()
    with Fd(out) as source:
        with Fd(into) as sink, pytest.raises(InternalError) as caught:
            async with spawn(Bench, services.Broken, zygote=start, stderr=sink):
                pytest.fail("the block must not begin")
        log = os.read(source.fileno(), 65536).decode()
    assert str(caught.value.details["id"]) in log
    assert "ZeroDivisionError: a bug" in log


async def test_what_the_start_up_raises_arrives_typed(zygote: Zygote) -> None:
    with pytest.raises(NotFound, match="not there"):
        async with spawn(Bench, services.BadStart, zygote=zygote):
            pytest.fail("the block must not begin")


async def test_what_the_tear_down_raises_is_raised_at_the_end_of_the_block(
    zygote: Zygote,
) -> None:
    with pytest.raises(NotFound, match="was gone"):
        async with spawn(Bench, services.BadEnd, zygote=zygote) as bench:
            await bench.word()
    with pytest.raises(ExceptionGroup) as caught:
        async with spawn(Bench, services.BadEnd, zygote=zygote):
            raise KeyError("the block's own")
    assert {type(error) for error in caught.value.exceptions} == {KeyError, NotFound}


async def test_a_failed_background_task_cancels_the_block_and_is_raised_from_it(
    zygote: Zygote, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InternalError) as caught:
        async with spawn(Bench, BenchService, zygote=zygote) as bench:
            await bench.crash()
            await trio.sleep_forever()
    log = capfd.readouterr().err
    assert str(caught.value.details["id"]) in log
    assert "ValueError: a background task failed" in log


async def test_the_blocks_own_error_is_raised_bare(zygote: Zygote) -> None:
    with pytest.raises(KeyError):
        async with spawn(Bench, BenchService, zygote=zygote):
            raise KeyError("mine")


async def test_a_module_that_can_not_be_imported_is_told(
    start: Zygote | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services.make_bench, "__module__", "tests.ipc.spawn.nowhere")
    with pytest.raises(InternalError, match="ModuleNotFoundError"):
        async with spawn(Bench, services.make_bench, "a", zygote=start):
            pytest.fail("the block must not begin")


async def test_what_can_not_travel_is_refused_before_there_is_a_process(zygote: Zygote) -> None:
    class Local(BenchService):
        pass

    with pytest.raises(InvalidArgument, match="can't be imported"):
        async with spawn(Bench, Local, "a", zygote=zygote):
            pass
    with pytest.raises(InvalidArgument, match="can't be imported"):
        async with spawn(Bench, lambda: BenchService("a"), zygote=zygote):
            pass
    with pytest.raises(InvalidArgument, match="no type for 'word'"):
        async with spawn(Bench, services.untyped, "a", zygote=zygote):
            pass
    with pytest.raises(ContractError, match="can't travel"):
        async with spawn(Bench, services.odd, object(), zygote=zygote):
            pass


async def test_an_argument_of_the_wrong_type_is_named(zygote: Zygote) -> None:
    with pytest.raises(InvalidArgument, match="word"):
        async with spawn(Bench, BenchService, 3, zygote=zygote):  # type: ignore[arg-type]
            pytest.fail("the block must not begin")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
async def test_a_call_in_flight_says_with_which_signal_the_child_died(
    zygote: Zygote, number: signal.Signals
) -> None:
    seen: list[str] = []
    with pytest.raises(ProcessExited) as caught:
        async with spawn(Bench, BenchService, zygote=zygote) as bench:
            try:
                await bench.kill(number)
            except PeerGone as error:
                seen.append(error.why)
                raise
    assert seen == [f"closed: died with signal {number.name}"]
    assert caught.value.signal == number
    assert caught.value.status is None
    assert isinstance(caught.value.__cause__, PeerGone)


async def test_a_call_in_flight_says_with_which_status_the_child_ended(
    start: Zygote | None,
) -> None:
    with pytest.raises(ProcessExited, match="exit status 3") as caught:
        async with spawn(Bench, BenchService, zygote=start) as bench:
            await bench.exit(3)
    assert caught.value.status == 3


async def test_a_child_that_dies_cancels_the_block(start: Zygote | None) -> None:
    with pytest.raises(ProcessExited, match="SIGKILL"):
        async with spawn(Bench, BenchService, zygote=start) as bench:
            process_of(bench).send_signal(signal.SIGKILL)
            await trio.sleep_forever()


async def test_a_child_that_is_terminated_ends_with_its_tear_down_and_is_missed(
    zygote: Zygote, tmp_path: Path
) -> None:
    with pytest.raises(ProcessExited) as caught:
        async with spawn(Bench, services.Stateful, str(tmp_path), zygote=zygote) as bench:
            process_of(bench).send_signal(signal.SIGTERM)
            await trio.sleep_forever()
    assert caught.value.status == 0
    assert (tmp_path / "ended").exists()


# --- the zygote ---


async def test_a_zygote_loads_what_it_is_told_and_says_what_it_can_not() -> None:
    with pytest.raises(InvalidArgument, match="nothing_of_that_name"):
        async with open_zygote(["nothing_of_that_name"]):
            pytest.fail("the block must not begin")


async def test_a_zygote_refuses_a_module_that_starts_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "threaded.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(100,), daemon=True).start()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InvalidArgument, match=r"preload threaded: .* starts a thread"):
        async with open_zygote(["threaded"]):
            pytest.fail("the block must not begin")


async def test_a_killed_zygote_is_replaced_and_its_children_live_on() -> None:
    async with open_zygote() as zygote:
        async with spawn(Bench, BenchService, "first", zygote=zygote) as bench:
            before = zygote.pid
            assert before is not None
            os.kill(before, signal.SIGKILL)
            assert await bench.word() == "first"
            async with spawn(Bench, BenchService, "second", zygote=zygote) as other:
                assert await other.word() == "second"
                assert zygote.pid != before
            assert await bench.word() == "first"


async def test_a_zygote_ends_with_its_block_and_its_children_with_theirs() -> None:
    async with open_zygote() as zygote:
        pid = zygote.pid
        assert pid is not None
    assert not alive(pid)


async def test_a_stopped_zygote_does_not_hold_up_a_cancelled_spawn() -> None:
    async with open_zygote() as zygote:
        pid = zygote.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        with trio.move_on_after(0.05) as scope:
            async with spawn(Bench, BenchService, zygote=zygote):
                pytest.fail("the block must not begin")
        assert scope.cancelled_caught
        os.kill(pid, signal.SIGCONT)
        async with spawn(Bench, BenchService, "after", zygote=zygote) as bench:
            assert await bench.word() == "after"


async def test_many_children_start_at_once(zygote: Zygote) -> None:
    words: list[str] = []

    async def one(number: int) -> None:
        async with spawn(Bench, BenchService, str(number), zygote=zygote) as bench:
            words.append(await bench.word())

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(one, number)
    assert sorted(words) == [str(number) for number in range(8)]
