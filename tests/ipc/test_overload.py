"""More than a side can take: one call or one connection is refused, typed, and nothing else."""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
import sys
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

import container.ipc.connection as connection_module
from container.ipc import (
    Actor,
    Contract,
    Fate,
    Fd,
    Limits,
    Overloaded,
    PeerGone,
    connection_of,
    issue,
    open_service,
)
from container.ipc.client import connect_contract, dial
from container.ipc.server import Server
from container.ipc.transport import (
    READ_BYTES,
    MemoryTransport,
    SocketTransport,
    Transport,
    memory_pair,
)
from container.ipc.wire.frames import HEADER, HEADER_BYTES, Kind
from container.ipc.wire.machine import Budget

from .conftest import RawPeer
from .open_files import few_descriptors, same_count


class Files(Contract, name="files"):
    @abstractmethod
    async def size(self, note: bytes, source: Fd | None = None) -> int: ...

    @abstractmethod
    async def open(self, size: int) -> tuple[Fd, bytes]: ...

    @abstractmethod
    async def look(self) -> int: ...


class FilesService(Actor, Files):
    async def size(self, note: bytes, source: Fd | None = None) -> int:
        return len(note)

    async def open(self, size: int) -> tuple[Fd, bytes]:
        return Fd(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)), b"x" * size

    async def look(self) -> int:
        return 1


class Crowded(Transport):
    """A transport whose kernel takes no descriptors while `full` is set."""

    pings = False

    def __init__(self, inner: MemoryTransport) -> None:
        self.inner = inner
        self.full = True

    def send(self, data: bytes | memoryview, descriptors: Sequence[int]) -> int:
        if descriptors and self.full:
            raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
        return self.inner.send(memoryview(data), descriptors)

    def receive(self, room: int = READ_BYTES, /) -> Any:
        return self.inner.receive(room)

    async def wait_readable(self) -> None:
        await self.inner.wait_readable()

    async def wait_writable(self) -> None:
        await self.inner.wait_writable()

    def admit_descriptors(self) -> None:
        self.inner.admit_descriptors()

    def close(self) -> None:
        self.inner.close()


@asynccontextmanager
async def crowded_pair(side: str, room: int) -> AsyncGenerator[tuple[Any, Crowded]]:
    theirs, ours = memory_pair(room)
    crowded = Crowded(ours if side == "client" else theirs)
    async with trio.open_nursery() as nursery:
        server = crowded if side == "server" else theirs
        nursery.start_soon(Server((FilesService(),)).serve, server)
        client = crowded if side == "client" else ours
        async with connect_contract(Files, client) as files:
            yield files, crowded
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("room", [212_992, 512])
async def test_a_call_with_descriptors_is_overloaded_and_the_connection_lives(room: int) -> None:
    """At once, and (in a small room) when it has waited behind another frame."""
    before = len(os.listdir("/proc/self/fd"))
    async with crowded_pair("client", room) as (files, crowded):
        seen: list[Any] = []

        async def call(note: bytes, source: Fd | None) -> None:
            try:
                seen.append(await files.size(note, source))
            except Overloaded as error:
                seen.append(error.code.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, b"x" * 5000, None)
            await trio.lowlevel.checkpoint()
            null = os.open("/dev/null", os.O_RDONLY)
            nursery.start_soon(call, b"", Fd.give(null))
        assert sorted(map(str, seen)) == ["5000", "overloaded"]
        assert await files.look() == 1
        assert connection_of(files).statistics().pending == 0
        crowded.full = False
        assert await files.size(b"xyz", Fd.give(os.open("/dev/null", os.O_RDONLY))) == 3
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("room", [212_992, 512])
async def test_a_reply_with_descriptors_that_can_not_leave_is_overloaded(room: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with crowded_pair("server", room) as (files, crowded):
        seen: list[Any] = []

        async def call(size: int) -> None:
            try:
                fd, _ = await files.open(size)
                fd.close()
            except Overloaded as error:
                seen.append(error.code.value)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(call, 3000)
        assert seen == ["overloaded"] * 3
        assert await files.look() == 1
        crowded.full = False
        fd, data = await files.open(7)
        fd.close()
        assert data == b"x" * 7
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def make_raw() -> Callable[[Path], RawPeer]:
    """Connect to a service as a peer that is played frame by frame."""
    return lambda path: RawPeer(SocketTransport(dial(path)))


# --- over real sockets ----------------------------------------------------------------------------


class Work(Contract, name="work"):
    @abstractmethod
    async def hold(self) -> None: ...

    @abstractmethod
    async def look(self) -> int: ...

    @abstractmethod
    async def fill(self, size: int) -> bytes: ...

    @abstractmethod
    async def count(self, files: tuple[Fd, ...]) -> int: ...


class WorkService(Actor, Work):
    def __init__(self) -> None:
        self.running = 0
        self.go = trio.Event()

    async def hold(self) -> None:
        self.running += 1
        try:
            await self.go.wait()
        finally:
            self.running -= 1

    async def look(self) -> int:
        return 7

    async def fill(self, size: int) -> bytes:
        return b"x" * size

    async def count(self, files: tuple[Fd, ...]) -> int:
        return len(files)


async def test_many_connections_beyond_the_limit_are_told_so_however_the_hello_races(
    tmp_path: Path,
) -> None:
    """The server may have closed before the client has said its hello, or after."""
    path = tmp_path / "s"
    async with (
        same_count(),
        open_service(WorkService(), at=path, limits=Limits(connections_per_user=3)) as server,
        AsyncExitStack() as stack,
    ):
        held = [await stack.enter_async_context(Work.connect(path)) for _ in range(3)]
        refused: list[Overloaded] = []

        async def one() -> None:
            with pytest.raises(Overloaded) as caught:
                await stack.enter_async_context(Work.connect(path))
            refused.append(caught.value)

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(one)
        early = socket.socket(socket.AF_UNIX)
        early.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        early.connect(str(path))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Overloaded):  # it is closed already when the hello is written
            async with connect_contract(Work, SocketTransport(early)):
                raise AssertionError("it was served")
        assert len(refused) == 50
        assert server.statistics().refused == 51
        assert [await work.look() for work in held] == [7, 7, 7]


async def test_handlers_of_all_connections_are_bounded_and_one_more_is_overloaded(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s"
    service = WorkService()
    async with open_service(service, at=path, limits=Limits(handlers=3)) as server:
        async with Work.connect(path) as one, Work.connect(path) as two:
            async with trio.open_nursery() as nursery:
                for proxy in (one, two, one):
                    nursery.start_soon(proxy.hold)
                    await trio.testing.wait_all_tasks_blocked()
                for proxy in (one, two):
                    with pytest.raises(Overloaded, match="work/look: 3 calls run here already"):
                        await proxy.look()
                assert (service.running, server.statistics().running) == (3, 3)
                service.go.set()
            assert await two.look() == 7
            assert server.statistics().running == 0


@pytest.mark.parametrize("how", ["answer", "cancelled", "lost"])
async def test_a_handler_that_has_ended_makes_room_however_it_did(tmp_path: Path, how: str) -> None:
    path = tmp_path / "s"
    service = WorkService()
    async with open_service(service, at=path, limits=Limits(handlers=1)) as server:
        async with Work.connect(path) as work, trio.open_nursery() as nursery:
            if how == "lost":
                nursery.start_soon(hold_until_lost, path)
            else:
                nursery.start_soon(work.hold)
            await trio.testing.wait_all_tasks_blocked()
            assert service.running == 1
            if how == "answer":
                service.go.set()
            else:
                nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert server.statistics().running == 0
        async with Work.connect(path) as work:
            assert await work.look() == 7


async def hold_until_lost(path: Path) -> None:
    async with Work.connect(path) as work:
        await work.hold()


def work_call(raw: Any, method: str, *arguments: Any) -> bytes:
    names = ("size",)
    body = msgspec.msgpack.encode(
        (f"work/{method}", None, 10**9, None, dict(zip(names, arguments, strict=False)))
    )
    return raw.machine.call(body)[1]


async def test_a_peer_that_lets_bytes_of_answers_pile_up_loses_its_connection(
    raw_peer: Callable[[], Any],
) -> None:
    ours, raw = raw_peer()
    server = Server((WorkService(),), limits=Limits(answer_bytes=1_000_000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, ours)
        await raw.greet_as_client()
        # One answer may wait, however large it is.
        raw.send(work_call(raw, "fill", 3_000_000))
        await trio.testing.wait_all_tasks_blocked()
        (connection,) = server._live
        assert not connection.lost
        raw.send(work_call(raw, "fill", 100_000))
        await trio.testing.wait_all_tasks_blocked()
        assert connection.lost
        await raw.wait_end()
    raw.transport.close()


async def test_answers_that_are_read_never_count(raw_peer: Callable[[], Any]) -> None:
    ours, raw = raw_peer()
    server = Server((WorkService(),), limits=Limits(answer_bytes=1_000_000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, ours)
        await raw.greet_as_client()
        for _ in range(20):
            for _ in range(3):
                raw.send(work_call(raw, "fill", 300_000))
            for _ in range(3):
                assert type(await raw.next()).__name__ == "ReplyReceived"
        (connection,) = server._live
        assert not connection.lost
        nursery.cancel_scope.cancel()
    raw.transport.close()


# --- bytes that come slowly, or lie ---------------------------------------------------------------


async def test_a_hello_one_byte_at_a_time_ends_at_its_deadline(
    raw_peer: Callable[[], Any], autojump_clock: trio.testing.MockClock
) -> None:
    ours, raw = raw_peer()
    server = Server((WorkService(),), limits=Limits(hello_seconds=3))
    hello = raw.machine.hello({}, "slow", "0")
    assert len(hello) > 30
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, ours)
        began = trio.current_time()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for index in range(len(hello)):
                raw.send(hello[index : index + 1])
                await trio.sleep(0.2)
        assert 3 <= trio.current_time() - began <= 3.4
    raw.transport.close()


async def test_frames_one_byte_at_a_time_are_served_and_hold_up_nobody(
    tmp_path: Path, make_raw: Callable[[Path], Any]
) -> None:
    path = tmp_path / "s"
    async with open_service(WorkService(), at=path), Work.connect(path) as work:
        raw = make_raw(path)
        await raw.greet_as_client()
        for byte in work_call(raw, "fill", 3):
            raw.send(bytes([byte]))
            assert await work.look() == 7
        reply = await raw.next()
        assert msgspec.msgpack.decode(reply.value) == b"xxx"
        raw.transport.close()


async def test_partly_sent_frames_of_many_connections_share_one_budget(
    tmp_path: Path, make_raw: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "_partial", Budget(500_000))
    path = tmp_path / "s"
    async with open_service(WorkService(), at=path) as server, Work.connect(path) as work:
        greedy = [make_raw(path) for _ in range(5)]
        part = HEADER.pack(16_000_000, Kind.CALL, 0, 0, 1) + b"x" * 150_000
        for raw in greedy:
            await raw.greet_as_client()
        for raw in greedy:
            await send_what_is_taken(raw.transport, part)
        await trio.testing.wait_all_tasks_blocked()
        # (150,000 - 65,536 that are free) * 5 are fewer than the budget.
        assert server.statistics().connections == 6
        for raw in greedy:
            await send_what_is_taken(raw.transport, b"x" * 150_000)
        await trio.testing.wait_all_tasks_blocked()
        assert 2 <= server.statistics().connections <= 3
        assert await work.look() == 7
        for raw in greedy:
            raw.transport.close()
        await trio.testing.wait_all_tasks_blocked()
        assert connection_module._partial.used == 0


async def send_what_is_taken(transport: SocketTransport, data: bytes) -> None:
    while data:
        try:
            data = data[transport.send(data, ()) :]
        except BlockingIOError:
            await transport.wait_writable()
        except OSError:
            return


@pytest.mark.parametrize("length", [16 * 1024 * 1024 + 1, 0xFFFF_FFFF])
async def test_a_length_beyond_the_limit_ends_the_connection_at_its_header(
    tmp_path: Path, make_raw: Callable[[Path], Any], length: int
) -> None:
    path = tmp_path / "s"
    async with open_service(WorkService(), at=path) as server, Work.connect(path) as work:
        raw = make_raw(path)
        await raw.greet_as_client()
        raw.send(HEADER.pack(length, Kind.CALL, 0, 0, 1))
        with trio.fail_after(30):
            await raw.wait_end()
        raw.transport.close()
        await trio.testing.wait_all_tasks_blocked()
        assert server.statistics().connections == 1
        assert await work.look() == 7


async def test_a_hello_that_says_it_is_long_is_not_waited_for(
    tmp_path: Path, make_raw: Callable[[Path], Any]
) -> None:
    path = tmp_path / "s"
    async with open_service(WorkService(), at=path):
        raw = make_raw(path)
        hello = raw.machine.hello({}, "liar", "0")
        raw.send(struct.pack("<I", 16_000_000) + hello[4:HEADER_BYTES])
        with trio.fail_after(5):  # the hello's own deadline is 10 s
            await raw.wait_end()
        raw.transport.close()


# --- descriptors run out --------------------------------------------------------------------------


async def test_descriptors_that_find_no_room_end_that_connection_alone(tmp_path: Path) -> None:
    """The kernel drops what does not fit, and says so (MSG_CTRUNC): the rest is not trusted."""
    path = tmp_path / "s"
    async with (
        same_count(),
        open_service(WorkService(), at=path),
        Work.connect(path) as one,
        Work.connect(path) as two,
    ):
        files = tuple(Fd(os.open("/dev/null", os.O_RDONLY)) for _ in range(8))
        assert await one.count(files) == 8
        with few_descriptors(3):
            with pytest.raises(PeerGone) as caught:
                await one.count(files)
            assert caught.value.fate is Fate.UNKNOWN
            assert connection_of(one).lost
            assert await two.look() == 7
        assert await two.count(files) == 8
        for file in files:
            file.close()


async def test_a_side_without_free_descriptors_still_sends_those_it_has(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with open_service(WorkService(), at=path), Work.connect(path) as work:
        files = tuple(Fd(os.open("/dev/null", os.O_RDONLY)) for _ in range(4))
        with few_descriptors(4):  # as many as the receiving end needs, which is this process too
            assert await work.count(files) == 4
        for file in files:
            file.close()


async def test_to_connect_or_issue_without_a_free_descriptor_is_overloaded(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with (
        same_count(),
        open_service(WorkService(), at=path),
        Work.connect(path) as work,
        trio.open_nursery() as nursery,
    ):
        with few_descriptors(0):
            with pytest.raises(Overloaded):
                async with Work.connect(path):
                    raise AssertionError("there was room")
            with pytest.raises(Overloaded):
                issue(nursery, Work, WorkService())
            assert await work.look() == 7


# --- processes that are stopped -------------------------------------------------------------------

CLIENT = """
import os, sys, trio
from abc import abstractmethod
from container.ipc import Contract, Limits
from container.ipc.client import connect_contract

class Work(Contract, name="work"):
    @abstractmethod
    async def hold(self) -> None: ...
    @abstractmethod
    async def look(self) -> int: ...
    @abstractmethod
    async def fill(self, size: int) -> bytes: ...

async def main():
    limits = Limits(liveness_seconds=0.4)
    async with connect_contract(Work, sys.argv[1], limits=limits) as work:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work.hold)
            await work.look()
            os.write(1, b"held")
        os.write(1, str(await work.look()).encode())

trio.run(main)
"""


async def test_a_client_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    """Longer than either side's liveness: who is awaited must answer, who waits need not."""
    path = tmp_path / "s"
    service = WorkService()
    async with open_service(service, at=path, limits=Limits(liveness_seconds=0.4)):
        child = await trio.lowlevel.open_process([sys.executable, "-c", CLIENT, path], stdout=-1)
        assert child.stdout is not None
        try:
            with trio.fail_after(60):
                assert await child.stdout.receive_some() == b"held"
                child.send_signal(signal.SIGSTOP)
                await trio.sleep(1)  # real time: the kernel stops a process, no clock does
                assert service.running == 1
                child.send_signal(signal.SIGCONT)
                await trio.sleep(0.2)
                service.go.set()
                assert await child.stdout.receive_some() == b"7"
                assert await child.wait() == 0
        finally:
            child.kill()
            with trio.CancelScope(shield=True):
                await child.wait()
                await child.stdout.aclose()
