"""A server under load and abuse: its socket, its bounds, and what a peer can't make it do."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from abc import abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from container.ipc import (
    Actor,
    AlreadyExists,
    Contract,
    ContractError,
    Fate,
    InvalidArgument,
    Limits,
    NotFound,
    Overloaded,
    PeerGone,
    PermissionDenied,
    Unavailable,
    bind,
    connection_of,
    in_memory,
    open_service,
)
from container.ipc.client import connect, connect_contract, connection_proxy, dial
from container.ipc.server import Server
from container.ipc.wire.machine import ErrorReceived, ReplyReceived

from .open_files import few_descriptors


class Echo(Contract, name="echo"):
    @abstractmethod
    async def say(self, data: bytes) -> bytes: ...

    @abstractmethod
    async def hold(self) -> None: ...


class Second(Contract, name="second"):
    @abstractmethod
    async def number(self) -> int: ...


class EchoService(Actor, Echo):
    def __init__(self) -> None:
        self.running = 0
        self.most = 0
        self.go = trio.Event()

    async def say(self, data: bytes) -> bytes:
        return data

    async def hold(self) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.go.wait()
        finally:
            self.running -= 1


class SecondService(Actor, Second):
    async def number(self) -> int:
        return 2


def call(raw: Any, route: str = "echo/say", **arguments: Any) -> bytes:
    body = msgspec.msgpack.encode((route, None, 10**9, None, arguments))
    return raw.machine.call(body)[1]


# --- the socket -----------------------------------------------------------------------------------


async def test_a_service_opens_binds_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s"
    service = EchoService()
    async with open_service(service, at=path):
        assert service.is_open
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        async with Echo.connect(path) as echo:
            assert await echo.say(b"x") == b"x"
    assert not service.is_open
    assert not path.exists()


async def test_several_services_share_a_socket(tmp_path: Path) -> None:
    async with open_service(EchoService(), SecondService(), at=tmp_path / "s"):
        async with connect(tmp_path / "s", Echo, Second) as connection:
            assert await connection_proxy(connection, Echo).say(b"x") == b"x"
            assert await connection_proxy(connection, Second).number() == 2


async def test_an_actor_that_is_open_already_stays_its_owners(tmp_path: Path) -> None:
    async with EchoService() as service:
        async with open_service(service, at=tmp_path / "s"):
            pass
        assert service.is_open


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    bind(path).close()
    assert path.exists()
    async with open_service(EchoService(), at=path), Echo.connect(path) as echo:
        assert await echo.say(b"x") == b"x"


async def test_a_live_socket_is_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with open_service(EchoService(), at=path):
        with pytest.raises(AlreadyExists):
            async with open_service(EchoService(), at=path):
                raise AssertionError("there were two")
        async with Echo.connect(path) as echo:
            assert await echo.say(b"x") == b"x"


async def test_a_file_that_is_no_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(AlreadyExists):
        bind(path)
    assert path.read_text() == "precious"


async def test_the_socket_of_a_successor_is_not_unlinked(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with open_service(EchoService(), at=path):
        os.unlink(path)
        successor = bind(path)
    assert path.exists()
    successor.close()


async def test_a_listening_socket_stays_its_owners(tmp_path: Path) -> None:
    with bind(tmp_path / "s") as listener:
        for _ in range(2):
            async with open_service(EchoService(), at=listener):
                async with Echo.connect(tmp_path / "s") as echo:
                    assert await echo.say(b"x") == b"x"
        assert (tmp_path / "s").exists()
        assert listener.fileno() != -1


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_a_sockets_mode_is_what_was_asked_for_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o077)
    try:
        bind(tmp_path / "s", mode=mode).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == mode


def test_a_path_too_long_for_a_socket_is_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="107 bytes") as caught:
        bind(tmp_path / ("x" * 120))
    assert caught.value.hint
    with pytest.raises(InvalidArgument, match="107 bytes"):
        dial(tmp_path / ("x" * 120))


@pytest.mark.parametrize("how", ["nothing", "stale", "file", "folder missing"])
async def test_where_nobody_listens_the_peer_is_gone_and_the_call_was_refused(
    tmp_path: Path, how: str
) -> None:
    path = tmp_path / "s"
    if how == "stale":
        bind(path).close()
    elif how == "file":
        path.write_text("")
    elif how == "folder missing":
        path = tmp_path / "missing" / "s"
    with pytest.raises(PeerGone) as caught:
        async with Echo.connect(path):
            raise AssertionError("nobody listens")
    assert caught.value.fate is Fate.REFUSED


def test_a_backlog_that_is_full_is_overload(tmp_path: Path) -> None:
    with bind(tmp_path / "s") as listener:
        listener.listen(0)
        with ExitStack() as connected:

            def dial_often() -> None:
                for _ in range(10):
                    connected.enter_context(dial(tmp_path / "s"))

            with pytest.raises(Overloaded):
                dial_often()
            with pytest.raises(AlreadyExists):
                bind(tmp_path / "s")  # it is alive, only busy


async def test_routes_left_out_are_denied_by_name() -> None:
    async with in_memory(EchoService(), routes=["say"]) as echo:
        assert await echo.say(b"x") == b"x"
        with pytest.raises(PermissionDenied, match="echo/hold"):
            await echo.hold()


def test_a_service_must_implement_a_contract() -> None:
    with pytest.raises(ContractError):
        Server((Actor(),))  # type: ignore[arg-type]


# --- what a block raises --------------------------------------------------------------------------


async def test_what_a_block_raises_comes_out_bare(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with pytest.raises(NotFound):
        async with open_service(EchoService(), at=path):
            raise NotFound("x")
    async with open_service(EchoService(), at=path):
        with pytest.raises(NotFound):
            async with Echo.connect(path):
                raise NotFound("x")
    with pytest.raises(NotFound):
        async with in_memory(EchoService()):
            raise NotFound("x")
    with pytest.raises(NotFound):
        async with EchoService():
            raise NotFound("x")


async def test_what_a_block_raises_while_it_is_cancelled_is_not_lost(tmp_path: Path) -> None:
    for held in (lambda: open_service(EchoService(), at=tmp_path / "s"), EchoService):

        async def fail_when_cancelled(held: Any = held) -> None:
            async with held():
                scope.cancel()
                try:
                    await trio.lowlevel.checkpoint()
                finally:
                    raise NotFound("x")

        with trio.CancelScope() as scope, pytest.raises(NotFound):
            await fail_when_cancelled()


async def test_a_background_task_of_an_actor_that_fails_ends_its_block() -> None:
    class Failing(EchoService):
        async def fail(self) -> None:
            raise NotFound("x")

    async def hold() -> None:
        async with Failing() as service:
            service.nursery.start_soon(service.fail)
            await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await hold()
    assert [type(error) for error in caught.value.exceptions] == [NotFound]


# --- bounds ---------------------------------------------------------------------------------------


async def test_a_user_may_hold_so_many_connections_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with open_service(
        EchoService(), at=path, limits=Limits(connections_per_user=2)
    ) as server:
        async with Echo.connect(path), Echo.connect(path):
            with pytest.raises(Overloaded, match="2 connections of this user"):
                async with Echo.connect(path):
                    raise AssertionError("a third was served")
            assert server.statistics().connections == 2
            assert server.statistics().refused == 1
        await trio.testing.wait_all_tasks_blocked()
        async with Echo.connect(path) as echo:
            assert await echo.say(b"x") == b"x"
        assert server.statistics().accepted == 3


async def test_a_server_out_of_descriptors_waits_and_serves_who_is_connected(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s"
    async with open_service(EchoService(), at=path), Echo.connect(path) as echo:
        waiting = socket.socket(socket.AF_UNIX)
        with few_descriptors(0), caplog.at_level(logging.WARNING):
            waiting.connect(str(path))
            await trio.sleep(1)
            assert caplog.text.count(os.strerror(errno.EMFILE)) == 1
            assert await echo.say(b"x") == b"x"
        with waiting:
            await trio.sleep(1)
            async with Echo.connect(path) as late:
                assert await late.say(b"y") == b"y"


async def test_sixty_four_callers_at_once_each_get_their_own_answer(link: Any) -> None:
    service = EchoService()
    async with link(service) as echo:
        answers: dict[int, bytes] = {}

        async def one(index: int) -> None:
            for turn in range(10):
                data = f"{index}/{turn}".encode() * (1 + index * 20)
                assert await echo.say(data) == data
            answers[index] = data

        async with trio.open_nursery() as nursery:
            for index in range(64):
                nursery.start_soon(one, index)
        assert len(answers) == 64


async def test_handlers_of_one_connection_run_at_the_same_time(link: Any) -> None:
    service = EchoService()
    async with link(service) as echo:
        async with trio.open_nursery() as nursery:
            for _ in range(64):
                nursery.start_soon(echo.hold)
            await trio.testing.wait_all_tasks_blocked()
            assert service.running == 64
            assert await echo.say(b"x") == b"x"
            service.go.set()


async def test_more_calls_than_the_peer_takes_wait_here_and_all_are_answered(link: Any) -> None:
    service = EchoService()
    async with link(service, limits=Limits(in_flight=4)) as echo:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(echo.hold)
            await trio.testing.wait_all_tasks_blocked()
            assert service.most == 4
            service.go.set()
        assert not connection_of(echo).lost


async def test_a_caller_that_waits_for_room_may_be_cancelled(link: Any) -> None:
    service = EchoService()
    async with link(service, limits=Limits(in_flight=1)) as echo:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo.hold)
            await trio.testing.wait_all_tasks_blocked()
            scope = trio.CancelScope()
            scope.cancel()
            with scope:
                await echo.hold()
            async with trio.open_nursery() as waiting:
                waiting.start_soon(echo.hold)
                await trio.testing.wait_all_tasks_blocked()
                waiting.cancel_scope.cancel()
            service.go.set()
        assert await echo.say(b"x") == b"x"


async def test_a_peer_that_exceeds_the_unanswered_calls_loses_the_connection(
    raw_peer: Callable[[], Any],
) -> None:
    service = EchoService()
    ours, raw = raw_peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Server((service,), limits=Limits(in_flight=3)).serve, ours)
        await raw.greet_as_client()
        for _ in range(4):
            raw.send(call(raw, "echo/hold"))
        await raw.wait_end()
    assert service.running == 0
    raw.transport.close()


@pytest.mark.parametrize("route", ["echo/say", "echo/nothing"])
async def test_a_peer_that_calls_and_never_reads_can_not_fill_memory(
    raw_peer: Callable[[], Any], route: str
) -> None:
    """Its answers wait until it reads; unread ones count against it, errors included."""
    ours, raw = raw_peer()
    ended = trio.Event()

    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            await Server((EchoService(),), limits=Limits(in_flight=16)).serve(ours)
            ended.set()

        nursery.start_soon(serve)
        await raw.greet_as_client()
        sent = 0
        try:
            while not ended.is_set() and sent < 20_000:
                raw.send(call(raw, route, data=b"x" * 20_000 if route == "echo/say" else b""))
                sent += 1
                await trio.testing.wait_all_tasks_blocked()
        except (BrokenPipeError, ConnectionResetError, BlockingIOError):
            pass
        with trio.fail_after(10):
            await ended.wait()
        assert sent < 20_000
    raw.transport.close()


async def test_a_flood_of_pings_that_nobody_reads_the_answers_of_stays_bounded(
    raw_peer: Callable[[], Any],
) -> None:
    ours, raw = raw_peer()
    async with trio.open_nursery() as nursery:
        server = Server((EchoService(),))
        nursery.start_soon(server.serve, ours)
        await raw.greet_as_client()
        for _ in range(300):
            raw.send(raw.machine.ping() * 64)
            await trio.testing.wait_all_tasks_blocked()
        (connection,) = server._live
        assert connection.statistics().queued_frames <= 64
        raw.send(call(raw, data=b"x"))
        event = await raw.next()
        while not isinstance(event, ReplyReceived):
            event = await raw.next()
        nursery.cancel_scope.cancel()
    raw.transport.close()


async def test_a_flood_on_one_connection_does_not_starve_another(
    make_pair: Callable[[], Any], raw_peer: Callable[[], Any]
) -> None:
    server = Server((EchoService(),))
    theirs, mine = make_pair()
    ours, raw = raw_peer()
    flooding = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, theirs)
        nursery.start_soon(server.serve, ours)
        await raw.greet_as_client()

        async def flood() -> None:
            pings = raw.machine.ping() * 200
            while flooding:
                try:
                    raw.transport.send(memoryview(pings), [])
                except BlockingIOError:
                    pass
                raw.pending_events()
                await trio.lowlevel.checkpoint()

        async with connect_contract(Echo, mine) as echo:
            nursery.start_soon(flood)
            with trio.fail_after(30):
                for _ in range(20):
                    assert await echo.say(b"x") == b"x"
            flooding = False
        nursery.cancel_scope.cancel()
    raw.transport.close()


async def test_two_sides_that_both_send_more_than_fits_do_not_deadlock(
    raw_peer: Callable[[], Any], link: Any
) -> None:
    async with link(EchoService()) as echo:
        big = b"x" * 900_000

        async def one() -> None:
            assert await echo.say(big) == big

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(one)


async def test_a_handler_bound_to_a_mute_client_does_not_delay_others(
    make_pair: Callable[[], Any],
    raw_peer: Callable[[], Any],
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server((EchoService(),))
    theirs, mine = make_pair()
    ours, raw = raw_peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, theirs)
        nursery.start_soon(server.serve, ours)
        await raw.greet_as_client()
        for _ in range(20):
            raw.send(call(raw, data=b"x" * 30_000))
            await trio.testing.wait_all_tasks_blocked()
        async with connect_contract(Echo, mine) as echo:
            with trio.fail_after(10):
                assert await echo.say(b"x") == b"x"
        nursery.cancel_scope.cancel()
    raw.transport.close()


async def test_a_call_that_comes_while_the_server_stops_is_unavailable(
    raw_peer: Callable[[], Any], autojump_clock: trio.testing.MockClock
) -> None:
    class Slow(EchoService):
        async def hold(self) -> None:
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(5)

    ours, raw = raw_peer()
    async with trio.open_nursery() as nursery:
        stop = trio.CancelScope()

        async def serve() -> None:
            with stop:
                await Server((Slow(),)).serve(ours)

        nursery.start_soon(serve)
        await raw.greet_as_client()
        raw.send(call(raw, "echo/hold"))
        await trio.testing.wait_all_tasks_blocked()
        stop.cancel()
        await trio.testing.wait_all_tasks_blocked()
        raw.send(call(raw, data=b"x"))
        late, first = await raw.next(), await raw.next()
        assert (late.id, first.id) == (2, 1)
        for event in (late, first):
            assert isinstance(event, ErrorReceived)
            assert event.error["code"] == Unavailable.code.value
    raw.transport.close()
