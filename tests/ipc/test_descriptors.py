"""Descriptors in messages: every one that was sent is claimed or closed, on every path."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import sys
from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any

import attrs
import msgspec
import pytest
import trio
import trio.testing

from container.ipc import (
    Actor,
    Contract,
    Fd,
    FdKind,
    Incompatible,
    InvalidArgument,
    Limits,
    PeerGone,
    PermissionDenied,
    UnknownRoute,
    connection_of,
    users,
)
from container.ipc.client import connect_contract
from container.ipc.contract import fingerprint
from container.ipc.peer import Peer
from container.ipc.server import Server
from container.ipc.transport import SocketTransport, memory_pair, socket_pair
from container.ipc.wire.machine import Budget, Machine, State

from .open_files import count, pipe_with, same_count


@attrs.frozen
class Streams:
    input: Fd
    outputs: tuple[Fd, ...] = ()
    note: bytes = b""


class Files(Contract, name="files"):
    @abstractmethod
    async def read(self, source: Fd) -> bytes: ...

    @abstractmethod
    async def keep(self, streams: Streams) -> int: ...

    @abstractmethod
    async def swap(self, streams: Streams) -> Streams: ...

    @abstractmethod
    async def open(self, how: str) -> Fd: ...

    @abstractmethod
    async def hold(self, source: Fd, how: str) -> None: ...

    @abstractmethod
    async def maybe(self, source: Fd | None) -> bool: ...


class FilesService(Actor, Files):
    def __init__(self) -> None:
        self.kept: list[int] = []
        self.mine = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self.started = trio.Event()

    def close(self) -> None:
        for fd in (*self.kept, self.mine):
            os.close(fd)
        self.kept.clear()

    async def read(self, source: Fd) -> bytes:
        return os.read(source.fileno(), 100)

    async def keep(self, streams: Streams) -> int:
        self.kept.append(streams.input.take())
        self.kept.extend(fd.take() for fd in streams.outputs)
        return len(self.kept)

    async def swap(self, streams: Streams) -> Streams:
        outputs = tuple(fd.duplicate() for fd in reversed(streams.outputs))
        return Streams(Fd(streams.input.take()), outputs, streams.note)

    async def open(self, how: str) -> Fd:
        match how:
            case "owned":
                return Fd(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
            case "given":
                return Fd.give(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
            case "closed":
                fd = Fd(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
                fd.close()
                return fd
            case _:
                return Fd.borrow(self.mine)

    async def hold(self, source: Fd, how: str) -> None:
        self.started.set()
        await trio.sleep_forever()

    async def maybe(self, source: Fd | None) -> bool:
        return source is not None


@pytest.fixture
def files() -> Iterator[FilesService]:
    service = FilesService()
    yield service
    service.close()


# --- the matrix -----------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [1, 7, 64, 1000])
async def test_in_buffers_smaller_than_the_message(files: FilesService, room: int) -> None:
    theirs, ours = memory_pair(room)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Server((files,)).serve, theirs)
        async with connect_contract(Files, ours) as proxy:
            async with same_count():
                with pipe_with(b"x") as one, pipe_with(b"y") as two:
                    back = await proxy.swap(Streams(one, (two,), b"n" * 500))
                    with back.input, back.outputs[0]:
                        assert os.read(back.outputs[0].fileno(), 9) == b"y"


async def test_zero(link: Any, files: FilesService) -> None:
    async with link(files) as proxy:
        async with same_count():
            assert await proxy.maybe(None) is False
            with pipe_with(b"") as fd:
                assert await proxy.maybe(fd) is True


async def test_too_many_in_a_result_is_the_handlers_error(link: Any, files: FilesService) -> None:
    class Greedy(FilesService):
        async def swap(self, streams: Streams) -> Streams:
            return Streams(Fd.borrow(self.mine), tuple(Fd(os.dup(self.mine)) for _ in range(40)))

    greedy = Greedy()
    async with link(greedy) as proxy:
        async with same_count():
            with pipe_with(b"") as fd, pytest.raises(InvalidArgument):
                await proxy.swap(Streams(fd))
    greedy.close()


@pytest.mark.parametrize("accepted", [False, True])
async def test_not_enabled_before_the_hello_was_admitted(
    files: FilesService, accepted: bool
) -> None:
    """With its hello a stranger can't make us hold descriptors."""
    before = count()
    ours, theirs = socket_pair()
    hello = Machine(Limits(), Budget(1)).hello({}, "raw", "0")
    transport = SocketTransport(ours, accepted=accepted)
    with theirs, pipe_with(b"") as fd:
        rights = array.array("i", [fd.fileno()] * 5)
        try:
            theirs.sendmsg([hello], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        except PermissionError:  # a kernel that has SO_PASSRIGHTS
            assert accepted
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Server((files,)).serve, transport)
            await trio.testing.wait_all_tasks_blocked()
            # The two ends of the pair, of the pipe, and what the loop waits awake with.
            assert count() <= before + 4
            nursery.cancel_scope.cancel()
    assert count() == before


# --- every path -----------------------------------------------------------------------------------


async def test_they_close_when_the_route_is_unknown_or_refused(
    raw_peer: Any, files: FilesService
) -> None:
    def policy(peer: Peer, route: str | None) -> bool:
        return route != "files/hold"

    ours, raw = raw_peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Server((files,), policy).serve, ours)
        await raw.greet_as_client()
        for route in ("files/hold", "files/nothing", "other/read"):
            async with same_count():
                with pipe_with(b"") as fd:
                    body = msgspec.msgpack.encode((route, None, 10**9, None, {}))
                    raw.send(raw.machine.call(body, 3)[1], [fd.fileno()] * 3)
                    await raw.next()
        nursery.cancel_scope.cancel()
    raw.transport.close()


async def test_they_close_when_the_caller_is_cancelled_at_any_step(
    link: Any, files: FilesService
) -> None:
    async with link(files) as proxy:
        for steps in range(25):
            async with same_count():
                with pipe_with(b"") as fd:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(proxy.hold, fd, "for ever")
                        for _ in range(steps):
                            await trio.lowlevel.checkpoint()
                        nursery.cancel_scope.cancel()


async def test_they_close_when_the_peer_ends_in_the_middle(
    raw_peer: Any, files: FilesService
) -> None:
    before = count()
    ours, raw = raw_peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Server((files,)).serve, ours)
        await raw.greet_as_client()
        with pipe_with(b"") as fd:
            body = msgspec.msgpack.encode(
                ("files/hold", None, 10**9, None, {"how": "", "source": None})
            )
            data = raw.machine.call(body, 5)[1]
            raw.send(data[:-1], [fd.fileno()] * 5)
            await trio.testing.wait_all_tasks_blocked()
        raw.transport.close()
    assert count() == before


async def test_they_close_when_the_peer_is_killed(files: FilesService) -> None:
    program = (
        "import array, os, socket, sys\n"
        "s = socket.socket(fileno=int(sys.argv[1]))\n"
        "hello, call = map(bytes.fromhex, sys.argv[2:])\n"
        "s.send(hello); s.recv(4096)\n"
        "pipe = os.pipe()\n"
        "rights = array.array('i', [pipe[0]] * 4)\n"
        "s.sendmsg([call], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])\n"
        "os.kill(os.getpid(), 9)\n"
    )
    machine = Machine(Limits(), Budget(1))
    hello = machine.hello({}, "raw", "0")
    machine.state = State.OPEN
    arguments = {"how": "for ever", "source": msgspec.msgpack.Ext(2, b"\x00")}
    body = msgspec.msgpack.encode(("files/hold", None, 10**9, None, arguments))
    before = count()
    ours, theirs = socket_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Server((files,)).serve, SocketTransport(ours))
        command = [sys.executable, "-I", "-S", "-c", program, str(theirs.fileno())]
        child = await trio.lowlevel.open_process(
            [*command, hello.hex(), machine.call(body, 4)[1].hex()], pass_fds=[theirs.fileno()]
        )
        theirs.close()
        with trio.fail_after(30):
            assert await child.wait() == -9
    assert count() == before


async def test_they_close_when_a_reply_cannot_be_decoded(raw_peer: Any) -> None:
    ours, raw = raw_peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raw.greet_as_server, Files)
        async with connect_contract(Files, ours) as proxy:

            async def play(value: Any, number: int) -> None:
                call = await raw.next()
                with pipe_with(b"") as fd:
                    reply = raw.machine.reply(call.id, msgspec.msgpack.encode((value,)), number)
                    raw.send(reply, [fd.fileno()] * number)

            zero = msgspec.msgpack.Ext(2, b"\x00")
            for value, number in (("text", 3), (msgspec.msgpack.Ext(2, b"\x05"), 2)):
                async with same_count():
                    nursery.start_soon(play, value, number)
                    with pytest.raises(Incompatible):
                        await proxy.open("x")
            # More came than the value names: the rest is closed.
            before = count()
            nursery.start_soon(play, zero, 3)
            with await proxy.open("x"):
                assert count() == before + 1
    raw.transport.close()


async def test_they_close_when_arguments_name_one_twice_or_none(
    raw_peer: Any, files: FilesService
) -> None:
    ours, raw = raw_peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Server((files,)).serve, ours)
        await raw.greet_as_client()
        zero = msgspec.msgpack.Ext(2, b"\x00")
        for streams in (
            {"input": zero, "outputs": [zero]},
            {"input": msgspec.msgpack.Ext(2, b"\x09")},
            {"input": 0},
            {"input": zero, "outputs": "no"},
        ):
            async with same_count():
                with pipe_with(b"") as fd:
                    body = msgspec.msgpack.encode(
                        ("files/keep", None, 10**9, None, {"streams": streams})
                    )
                    raw.send(raw.machine.call(body, 2)[1], [fd.fileno()] * 2)
                    error = await raw.next()
                    assert error.error["code"] == "invalid-argument"
        nursery.cancel_scope.cancel()
    raw.transport.close()
    assert files.kept == []


async def test_given_ones_close_when_the_call_is_withdrawn_or_the_connection_is_lost(
    raw_peer: Any,
) -> None:
    ours, raw = raw_peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raw.greet_as_server, Files)
        async with connect_contract(Files, ours) as proxy:
            before = count()

            async def call(note: bytes) -> None:
                null = Fd.give(os.open("/dev/null", os.O_RDONLY))
                with pytest.raises(PeerGone):
                    await proxy.keep(Streams(null, (), note))

            async with trio.open_nursery() as calls:
                calls.start_soon(call, b"x" * 900_000)
                await trio.testing.wait_all_tasks_blocked()
                scope = trio.CancelScope()
                with scope:
                    async with trio.open_nursery() as withdrawn:
                        withdrawn.start_soon(call, b"")
                        await trio.testing.wait_all_tasks_blocked()
                        withdrawn.cancel_scope.cancel()
                calls.start_soon(call, b"")
                await trio.testing.wait_all_tasks_blocked()
                raw.transport.close()
            assert count() <= before  # the raw end, on a socket, is closed as well


async def test_given_ones_close_when_nothing_is_sent_at_all(raw_peer: Any) -> None:
    ours, raw = raw_peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raw.greet_as_server, Files)
        async with connect_contract(Files, ours) as proxy:
            async with same_count():
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await proxy.read(Fd.give(os.open("/dev/null", os.O_RDONLY)))
            raw.transport.close()
            await connection_of(proxy).wait_lost()
            async with same_count():
                with pytest.raises(PeerGone):
                    await proxy.keep(Streams(Fd.give(os.open("/dev/null", os.O_RDONLY))))


async def test_an_argument_passed_on_to_a_third_service_arrives_there(
    link: Any, files: FilesService
) -> None:
    class Relay(FilesService):
        def __init__(self, inner: Files) -> None:
            super().__init__()
            self.inner = inner

        async def read(self, source: Fd) -> bytes:
            return await self.inner.read(source)

    async with link(files) as inner:
        relay = Relay(inner)
        async with link(relay) as proxy:
            async with same_count():
                with pipe_with(b"over two hops") as fd:
                    assert await proxy.read(fd) == b"over two hops"
        relay.close()


async def test_a_stranger_is_told_no_and_its_descriptors_close(
    link: Any, files: FilesService
) -> None:
    async with same_count():
        with pytest.raises(PermissionDenied):
            async with link(files, policy=users([])):
                raise AssertionError("it was admitted")


async def test_an_unknown_route_closes_them_for_a_newer_client(link: Any) -> None:
    class Older(Contract, name="files"):
        @abstractmethod
        async def hold(self, source: Fd, how: str) -> None: ...

    class OlderService(Actor, Older):
        async def hold(self, source: Fd, how: str) -> None: ...

    theirs, ours = memory_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Server((OlderService(),)).serve, theirs)
        async with connect_contract(Files, ours) as proxy:
            async with same_count():
                with pipe_with(b"") as fd, pytest.raises(UnknownRoute):
                    await proxy.read(fd)


# --- what kind of descriptor it is ----------------------------------------------------------------


@attrs.frozen
class Job:
    output: Annotated[Fd, FdKind.PIPE_WRITE] | None = None
    layers: tuple[Annotated[Fd, FdKind.FILE], ...] = ()


class Kinds(Contract, name="kinds"):
    @abstractmethod
    async def pipe(self, source: Annotated[Fd, FdKind.PIPE_READ]) -> int: ...

    @abstractmethod
    async def write(self, source: Annotated[Fd, FdKind.PIPE_WRITE]) -> int: ...

    @abstractmethod
    async def sock(self, source: Annotated[Fd, FdKind.SOCKET]) -> int: ...

    @abstractmethod
    async def file(self, source: Annotated[Fd, FdKind.FILE]) -> int: ...

    @abstractmethod
    async def sealed(self, source: Annotated[Fd, FdKind.SEALED_MEMORY]) -> int: ...

    @abstractmethod
    async def job(self, job: Job) -> int: ...

    @abstractmethod
    async def wrong(self) -> Annotated[Fd, FdKind.SOCKET]: ...


class KindsService(Actor, Kinds):
    async def pipe(self, source: Fd) -> int:
        return 1

    async def write(self, source: Fd) -> int:
        return 1

    async def sock(self, source: Fd) -> int:
        return 1

    async def file(self, source: Fd) -> int:
        return 1

    async def sealed(self, source: Fd) -> int:
        return 1

    async def job(self, job: Job) -> int:
        return 1

    async def wrong(self) -> Fd:
        return Fd(os.open("/dev/null", os.O_RDONLY))


def one_of_each() -> dict[str, int]:
    read, write = os.pipe()
    one, two = socket.socketpair()
    two.close()
    plain = os.memfd_create("plain", os.MFD_ALLOW_SEALING)
    sealed = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
    fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, seals)
    return {
        "pipe": read,
        "write": write,
        "sock": one.detach(),
        "plain": plain,
        "sealed": sealed,
        "file": os.open(__file__, os.O_RDONLY),
        "null": os.open("/dev/null", os.O_RDWR),
    }


FITS = {"pipe": {"pipe"}, "write": {"write"}, "sock": {"sock"}, "sealed": {"sealed"}}
FITS["file"] = {"file", "plain", "sealed"}


@pytest.mark.parametrize("route", FITS)
async def test_a_descriptor_of_another_kind_is_refused_and_closed(link: Any, route: str) -> None:
    async with link(KindsService()) as kinds, same_count():
        for name, number in one_of_each().items():
            call = getattr(kinds, route)(Fd.give(number))
            if name in FITS[route]:
                assert await call == 1
            else:
                with pytest.raises(InvalidArgument, match="source: expected a"):
                    await call


async def test_kinds_hold_in_fields_too_and_are_the_same_on_the_wire(link: Any) -> None:
    async with link(KindsService()) as kinds, same_count():
        for name, number in one_of_each().items():
            with Fd(number) as fd:
                if name == "write":
                    assert await kinds.job(Job(output=fd)) == 1
                else:
                    with pytest.raises(InvalidArgument, match="output: expected a pipe to write"):
                        await kinds.job(Job(output=fd))
        with pipe_with(b"") as pipe, pytest.raises(InvalidArgument, match="a regular file"):
            await kinds.job(Job(layers=(pipe,)))
        with pytest.raises(Incompatible, match="expected a socket"):
            await kinds.wrong()

    class Plain(Contract, name="kinds"):
        @abstractmethod
        async def pipe(self, source: Fd) -> int: ...

    class Kind(Contract, name="kinds"):
        @abstractmethod
        async def pipe(self, source: Annotated[Fd, FdKind.PIPE_READ]) -> int: ...

    assert fingerprint(Plain) == fingerprint(Kind)
