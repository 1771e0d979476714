"""A peer that no longer answers is found; one that is only slow, or a frozen self, is not."""

from __future__ import annotations

import os
import signal
import sys
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from container.ipc import Actor, Contract, Fate, Limits, PeerGone, connection_of, open_service
from container.ipc.client import connect_contract
from container.ipc.liveness import Liveness
from container.ipc.server import Server
from container.ipc.wire.machine import CallReceived, PingReceived


class Slow(Contract, name="slow"):
    @abstractmethod
    async def think(self, seconds: float) -> int: ...

    @abstractmethod
    async def pid(self) -> int: ...


class SlowService(Actor, Slow):
    async def think(self, seconds: float) -> int:
        await trio.sleep(seconds)
        return 42

    async def pid(self) -> int:
        return os.getpid()


async def test_a_slow_handler_of_a_live_peer_is_waited_for(
    link: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async with link(SlowService(), limits=Limits(liveness_seconds=3)) as slow:
        assert await slow.think(100) == 42


async def test_nothing_is_pinged_while_nothing_is_awaited(
    raw_peer: Callable[[], Any], autojump_clock: trio.testing.MockClock
) -> None:
    ours, raw = raw_peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raw.greet_as_server, Slow)
        async with connect_contract(Slow, ours, limits=Limits(liveness_seconds=3)) as slow:
            await trio.sleep(1000)
            assert raw.pending_events() == []
            assert not connection_of(slow).lost
    raw.transport.close()


async def answer_late(raw: Any) -> None:
    call = await raw.next()
    await trio.sleep(1000)
    raw.send(raw.machine.reply(call.id, msgspec.msgpack.encode((7,))))


async def test_a_mute_peer_is_unresponsive_after_the_bound(
    raw_peer: Callable[[], Any], autojump_clock: trio.testing.MockClock
) -> None:
    ours, raw = raw_peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raw.greet_as_server, Slow)
        async with connect_contract(Slow, ours, limits=Limits(liveness_seconds=3)) as slow:
            if not ours.pings:
                # A memory pair sends none: both ends share one loop, a ping could tell nothing.
                nursery.start_soon(answer_late, raw)
                assert await slow.think(0) == 7
                assert raw.pending_events() == []
                return
            with pytest.raises(PeerGone) as caught:
                await slow.think(0)
            assert (caught.value.fate, caught.value.why) == (Fate.UNKNOWN, "unresponsive")
            assert trio.current_time() == pytest.approx(3, abs=0.1)
            events = raw.pending_events()
            assert isinstance(events[0], CallReceived)
            assert [type(event) for event in events[1:]] == [PingReceived, PingReceived]
    raw.transport.close()


async def test_any_byte_is_life(autojump_clock: trio.testing.MockClock, raw_peer: Any) -> None:
    ours, raw = raw_peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raw.greet_as_server, Slow)
        async with connect_contract(Slow, ours, limits=Limits(liveness_seconds=3)) as slow:

            async def mumble() -> None:
                for _ in range(100):
                    await trio.sleep(1.5)
                    raw.send(raw.machine.ping())
                    raw.pending_events()

            nursery.start_soon(mumble)
            with trio.move_on_after(100) as scope:
                await slow.think(0)
            assert scope.cancelled_caught
            assert not connection_of(slow).lost
            nursery.cancel_scope.cancel()
    raw.transport.close()


async def test_a_timer_that_woke_late_says_nothing_of_the_peer(
    mock_clock: trio.testing.MockClock,
) -> None:
    lost: list[str] = []
    pings: list[float] = []
    liveness = Liveness(
        3, [1], lambda: pings.append(trio.current_time()), lost.append, lambda: None
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(liveness.watch)
        for _ in range(20):
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(60)  # this process was frozen for a minute
        await trio.testing.wait_all_tasks_blocked()
        assert lost == []
        assert pings == []
        for _ in range(40):
            mock_clock.jump(0.1)  # and now the peer is
            await trio.testing.wait_all_tasks_blocked()
        assert lost == ["unresponsive"]
        assert len(pings) == 2


SERVER = """
import sys, os, trio
from abc import abstractmethod
from container.ipc import Actor, Contract, open_service

class Slow(Contract, name="slow"):
    @abstractmethod
    async def think(self, seconds: float) -> int: ...
    @abstractmethod
    async def pid(self) -> int: ...

class SlowService(Actor, Slow):
    async def think(self, seconds: float) -> int:
        await trio.sleep(seconds)
        return 42
    async def pid(self) -> int:
        return os.getpid()

async def main():
    async with open_service(SlowService(), at=sys.argv[1]):
        os.write(1, b"ready")
        await trio.sleep_forever()

trio.run(main)
"""


async def test_a_process_stopped_by_a_signal_is_unresponsive(tmp_path: Path) -> None:
    path = tmp_path / "s"
    child = await trio.lowlevel.open_process([sys.executable, "-c", SERVER, path], stdout=-1)
    assert child.stdout is not None
    try:
        with trio.fail_after(60):
            assert await child.stdout.receive_some() == b"ready"
            async with connect_contract(Slow, path, limits=Limits(liveness_seconds=1.5)) as slow:
                assert await slow.pid() == child.pid
                child.send_signal(signal.SIGSTOP)
                with pytest.raises(PeerGone) as caught:
                    await slow.think(0)
                assert caught.value.why == "unresponsive"
    finally:
        child.kill()
        with trio.CancelScope(shield=True):
            await child.wait()
            await child.stdout.aclose()


async def test_a_server_never_cuts_off_a_client_for_being_stopped(
    raw_peer: Callable[[], Any], autojump_clock: trio.testing.MockClock
) -> None:
    """A terminal program that was stopped reads its answers when it goes on."""
    ours, raw = raw_peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Server((SlowService(),), limits=Limits(liveness_seconds=3)).serve, ours)
        await raw.greet_as_client()
        await trio.sleep(10_000)
        raw.send(raw.machine.ping())
        await raw.next()
        nursery.cancel_scope.cancel()
    raw.transport.close()


async def test_open_service_lives_while_its_client_thinks(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_service(SlowService(), at=tmp_path / "s"):
        async with Slow.connect(tmp_path / "s") as slow:
            await trio.sleep(10_000)
            assert await slow.think(1) == 42
