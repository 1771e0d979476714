"""No handler runs on when its caller has ended, however it ended, over any number of hops."""

from __future__ import annotations

import signal
import sys
from abc import abstractmethod
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from container.ipc import (
    Actor,
    Contract,
    Fate,
    Limits,
    PeerGone,
    Unavailable,
    in_memory,
    open_service,
)
from container.ipc.client import connect_contract
from container.ipc.server import Server
from container.ipc.transport import memory_pair


class Holder(Contract, name="holder"):
    @abstractmethod
    async def hold(self) -> None: ...

    @abstractmethod
    async def touch(self) -> int: ...


class Leaf(Actor, Holder):
    def __init__(self) -> None:
        self.running = 0
        self.started = trio.Event()
        self.ended = trio.Event()

    async def hold(self) -> None:
        self.running += 1
        self.started.set()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            self.running -= 1
            self.ended.set()

    async def touch(self) -> int:
        return self.running


class Relay(Leaf):
    def __init__(self, inner: Holder, counts: Leaf) -> None:
        super().__init__()
        self.inner = inner
        self.counts = counts

    async def hold(self) -> None:
        self.counts.running += 1
        try:
            await self.inner.hold()
        finally:
            self.counts.running -= 1


@asynccontextmanager
async def chain(link: Any, leaf: Leaf, hops: int = 3) -> AsyncGenerator[Any]:
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(link(leaf))
        for _ in range(hops - 1):
            proxy = await stack.enter_async_context(link(Relay(proxy, leaf)))
        yield proxy


async def test_a_cancelled_caller_leaves_no_handler_running_over_three_hops(link: Any) -> None:
    leaf = Leaf()
    async with chain(link, leaf) as holder:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(holder.hold)
            await leaf.started.wait()
            assert leaf.running == 3
            nursery.cancel_scope.cancel()
        assert leaf.running == 0


async def test_a_caller_that_times_out_leaves_no_handler_running_over_three_hops(
    link: Any, autojump_clock: trio.testing.MockClock
) -> None:
    leaf = Leaf()
    async with chain(link, leaf) as holder:
        with trio.move_on_after(5) as scope:
            await holder.hold()
        assert scope.cancelled_caught
        assert leaf.started.is_set()
        assert leaf.running == 0


async def test_a_caller_that_finishes_leaves_no_handler_running_over_three_hops(
    link: Any,
) -> None:
    class Finishing(Leaf):
        async def hold(self) -> None:
            self.started.set()

    leaf = Finishing()
    async with chain(link, leaf) as holder:
        await holder.hold()
        assert leaf.started.is_set()
        assert leaf.running == 0


async def test_many_calls_cancelled_at_once_all_end(link: Any) -> None:
    leaf = Leaf()
    async with chain(link, leaf) as holder:
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(holder.hold)
            await trio.testing.wait_all_tasks_blocked()
            assert leaf.running == 150
            nursery.cancel_scope.cancel()
        assert leaf.running == 0


CALLER = """
import sys, trio
from abc import abstractmethod
from container.ipc import Contract

class Holder(Contract, name="holder"):
    @abstractmethod
    async def hold(self) -> None: ...
    @abstractmethod
    async def touch(self) -> int: ...

async def main():
    async with Holder.connect(sys.argv[1]) as holder:
        await holder.hold()

trio.run(main)
"""


async def test_a_caller_killed_by_sigkill_leaves_no_handler_running_over_three_hops(
    link: Any, tmp_path: Path
) -> None:
    leaf = Leaf()
    path = tmp_path / "front.sock"
    async with chain(link, leaf, 2) as inner:
        front = Relay(inner, leaf)
        async with open_service(front, at=path):
            child = await trio.lowlevel.open_process([sys.executable, "-c", CALLER, path])
            try:
                with trio.fail_after(30):
                    await leaf.started.wait()
                assert leaf.running == 3
                child.send_signal(signal.SIGKILL)
                with trio.fail_after(30):
                    await leaf.ended.wait()
            finally:
                child.kill()
                with trio.CancelScope(shield=True):
                    await child.wait()
            await trio.testing.wait_all_tasks_blocked()
            assert leaf.running == 0


MIDDLE = """
import os, sys, trio
from abc import abstractmethod
from container.ipc import Actor, Contract, open_service

class Holder(Contract, name="holder"):
    @abstractmethod
    async def hold(self) -> None: ...
    @abstractmethod
    async def touch(self) -> int: ...

class Relay(Actor, Holder):
    def __init__(self, inner):
        self.inner = inner
    async def hold(self) -> None:
        await self.inner.hold()
    async def touch(self) -> int:
        return await self.inner.touch()

async def main():
    async with Holder.connect(sys.argv[1]) as inner, open_service(Relay(inner), at=sys.argv[2]):
        os.write(1, b"ready")
        await trio.sleep_forever()

trio.run(main)
"""


@asynccontextmanager
async def middle_process(leaf: Leaf, folder: Path) -> AsyncGenerator[tuple[Any, trio.Process]]:
    """Hold a proxy whose calls go through another process and come back to `leaf`."""
    async with open_service(leaf, at=folder / "leaf"):
        command = [sys.executable, "-c", MIDDLE, folder / "leaf", folder / "middle"]
        child = await trio.lowlevel.open_process(command, stdout=-1)
        assert child.stdout is not None
        try:
            with trio.fail_after(30):
                assert await child.stdout.receive_some() == b"ready"
            async with Holder.connect(folder / "middle") as holder:
                yield holder, child
        finally:
            child.kill()
            with trio.CancelScope(shield=True):
                await child.wait()
                await child.stdout.aclose()


async def test_a_process_killed_in_the_middle_ends_its_callers_and_its_callees(
    tmp_path: Path,
) -> None:
    leaf = Leaf()
    with trio.fail_after(60):
        async with middle_process(leaf, tmp_path) as (holder, child):
            async with trio.open_nursery() as nursery:

                async def kill() -> None:
                    await leaf.started.wait()
                    child.send_signal(signal.SIGKILL)

                nursery.start_soon(kill)
                with pytest.raises(PeerGone) as caught:
                    await holder.hold()
                assert caught.value.fate is Fate.UNKNOWN
            await leaf.ended.wait()
            assert leaf.running == 0
            with pytest.raises(PeerGone) as caught:
                await holder.touch()
            assert caught.value.fate is Fate.NOT_SENT


async def test_a_cancellation_crosses_another_process_and_waits_for_the_far_end(
    tmp_path: Path,
) -> None:
    leaf = Leaf()
    with trio.fail_after(60):
        async with middle_process(leaf, tmp_path) as (holder, _):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(holder.hold)
                await leaf.started.wait()
                nursery.cancel_scope.cancel()
            assert leaf.running == 0
            assert await holder.touch() == 0


async def test_a_server_that_shuts_down_ends_its_handlers_as_unavailable(link: Any) -> None:
    leaf = Leaf()
    seen: list[Exception] = []

    theirs, ours = memory_pair()
    async with trio.open_nursery() as nursery:
        stop = trio.CancelScope()

        async def serve() -> None:
            with stop:
                await Server((leaf,)).serve(theirs)

        async def call(holder: Holder) -> None:
            try:
                await holder.hold()
            except Unavailable as error:
                seen.append(error)

        nursery.start_soon(serve)
        async with connect_contract(Holder, ours) as holder:
            async with trio.open_nursery() as calls:
                for _ in range(5):
                    calls.start_soon(call, holder)
                await trio.testing.wait_all_tasks_blocked()
                stop.cancel()
    assert len(seen) == 5
    assert "is stopping" in str(seen[0])
    assert leaf.running == 0


async def test_terminal_frames_leave_though_the_servers_buffers_are_full_when_it_is_cancelled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Big(Contract, name="big"):
        @abstractmethod
        async def get(self) -> bytes: ...

        @abstractmethod
        async def hold(self) -> None: ...

    class BigService(Actor, Big):
        async def get(self) -> bytes:
            return b"x" * 300_000

        async def hold(self) -> None:
            await trio.sleep_forever()

    theirs, ours = memory_pair(4096)
    server = Server((BigService(),))
    stop = trio.CancelScope()
    seen: list[Any] = []

    async def serve() -> None:
        with stop:
            await server.serve(theirs)

    def replies_wait() -> bool:
        live = server._live  # pyright: ignore[reportPrivateUsage]
        return any(connection.statistics().queued_frames for connection in live)

    async def call(method: Any) -> None:
        try:
            seen.append(len(await method()))
        except Unavailable as error:
            seen.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with connect_contract(Big, ours) as big:
            async with trio.open_nursery() as calls:
                calls.start_soon(call, big.hold)
                await trio.testing.wait_all_tasks_blocked()
                for _ in range(3):
                    calls.start_soon(call, big.get)
                while not replies_wait():
                    await trio.lowlevel.checkpoint()
                stop.cancel()
    assert len(seen) == 4
    assert all(item == 300_000 or isinstance(item, Unavailable) for item in seen)
    assert 300_000 in seen
    assert any(isinstance(item, Unavailable) for item in seen)


async def test_a_server_does_not_wait_for_ever_for_a_client_that_does_not_read(
    raw_peer: Any, autojump_clock: trio.testing.MockClock
) -> None:
    class Big(Contract, name="big"):
        @abstractmethod
        async def get(self) -> bytes: ...

    class BigService(Actor, Big):
        async def get(self) -> bytes:
            return b"x" * 3_000_000

    ours, raw = raw_peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Server((BigService(),), limits=Limits(drain_seconds=2)).serve, ours)
        await raw.greet_as_client()
        body = msgspec.msgpack.encode(("big/get", None, 10**9, None, {}))
        raw.send(raw.machine.call(body)[1])
        await trio.testing.wait_all_tasks_blocked()
        start = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - start <= 4.1
    raw.transport.close()


@pytest.mark.parametrize("when", ["greeting", "calling"])
async def test_a_connect_block_cancelled_from_outside_never_hangs(
    link: Any, when: str, autojump_clock: trio.testing.MockClock
) -> None:
    leaf = Leaf()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:

            async def use() -> None:
                async with link(leaf) as holder:
                    await holder.hold()

            nursery.start_soon(use)
            if when == "calling":
                await leaf.started.wait()
            else:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    assert leaf.running == 0
    assert trio.current_time() < 1


async def test_a_call_cancelled_at_any_step_of_the_loop_leaves_nothing_running(
    link: Any,
) -> None:
    leaf = Leaf()
    async with chain(link, leaf, 2) as holder:
        for steps in range(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(holder.hold)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            assert leaf.running == 0, steps
        assert await holder.touch() == 0


def test_ctrl_c_ends_the_handler_and_then_comes_out_as_itself() -> None:
    leaf = Leaf()
    seen: list[int] = []

    @trio.lowlevel.enable_ki_protection  # else it would be raised here
    async def interrupt() -> None:
        await leaf.started.wait()
        signal.raise_signal(signal.SIGINT)

    async def main() -> None:
        async with in_memory(leaf) as holder:
            try:
                await holder.hold()
            except KeyboardInterrupt:
                seen.append(leaf.running)
                raise

    async def outer() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interrupt)
            # trio.run's own task is the one that a Ctrl-C reaches.
            await main()

    with pytest.raises(BaseException) as caught:
        trio.run(outer)
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, KeyboardInterrupt)
    assert seen == [0]


def test_ctrl_c_comes_out_of_a_connect_block_bare() -> None:
    leaf = Leaf()

    async def main() -> None:
        async with leaf, trio.open_nursery() as nursery:

            @trio.lowlevel.enable_ki_protection
            async def interrupt() -> None:
                await leaf.started.wait()
                signal.raise_signal(signal.SIGINT)

            nursery.start_soon(interrupt)
            try:
                async with in_memory(leaf) as holder:
                    await holder.hold()
            except KeyboardInterrupt:
                return

    trio.run(main)


async def test_a_lost_connection_cancels_the_handlers_of_its_calls(link: Any) -> None:
    leaf = Leaf()
    async with leaf, trio.open_nursery() as nursery:

        async def call(holder: Holder) -> None:
            with pytest.raises((trio.ClosedResourceError, PeerGone)):
                await holder.hold()

        async with link(leaf) as holder:
            nursery.start_soon(call, holder)
            await leaf.started.wait()
            assert leaf.running == 1
    assert leaf.running == 0
