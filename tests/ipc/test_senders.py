"""Who sent a message, by the kernel's word, and what the policies make of it.

Other users are played by child processes, which only root can make.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
from abc import abstractmethod
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from container.ipc import (
    Actor,
    Contract,
    NotFound,
    Peer,
    PermissionDenied,
    Policy,
    bind,
    current_call,
    groups,
    open_service,
    same_user,
    same_user_or_root,
    users,
)
from container.ipc.client import asked, connect_contract
from container.ipc.peer import admits
from container.ipc.server import Server
from container.ipc.transport import SocketTransport, socket_pair
from container.ipc.wire.frames import EndedBy
from container.ipc.wire.limits import Limits
from container.ipc.wire.machine import Budget, ErrorReceived, Event, Machine, ReplyReceived
from container.ipc.wire_errors import from_wire

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can play another user")


class Who(Contract, name="who"):
    @abstractmethod
    async def am_i(self) -> tuple[int, int, int]: ...

    @abstractmethod
    async def secret(self) -> str: ...


class WhoService(Actor, Who):
    async def am_i(self) -> tuple[int, int, int]:
        peer = current_call().peer
        return peer.pid, peer.uid, peer.gid

    async def secret(self) -> str:
        return "secret"


# --- policies -------------------------------------------------------------------------------------

ME = Peer(pid=os.getpid(), uid=os.geteuid(), gid=os.getegid())
OTHER = Peer(pid=1, uid=os.geteuid() + 1, gid=os.getegid() + 1)


@pytest.mark.parametrize(
    ("policy", "me", "other"),
    [
        (same_user, True, False),
        (same_user_or_root, True, False),
        (users([OTHER.uid]), False, True),
        (users([]), False, False),
        (groups([ME.gid]), True, False),
        (groups([ME.gid, OTHER.gid]), True, True),
    ],
)
def test_a_policy_admits_whom_it_names(policy: Policy, me: bool, other: bool) -> None:
    assert policy(ME, None) is me
    assert policy(OTHER, "who/am_i") is other


def test_the_sender_and_the_one_who_connected_must_both_be_admitted() -> None:
    passed = Peer(pid=1, uid=ME.uid, gid=ME.gid, connected_uid=OTHER.uid)
    assert not admits(same_user, passed, None)
    assert not admits(users([OTHER.uid]), passed, None)
    assert admits(users([OTHER.uid, ME.uid]), passed, None)


async def test_a_call_names_its_sender(link: Any) -> None:
    async with link(WhoService()) as who:
        assert await who.am_i() == (os.getpid(), os.geteuid(), os.getegid())


async def test_who_is_not_admitted_at_all_is_told_so_at_hello(link: Any) -> None:
    with pytest.raises(PermissionDenied) as caught:
        async with link(WhoService(), policy=users([OTHER.uid])):
            raise AssertionError("it was admitted")
    assert f"user {os.geteuid()} is not admitted" in caught.value.message
    assert "runs as user" in str(caught.value.hint)


async def test_a_policy_may_judge_each_route_and_the_connection_lives(link: Any) -> None:
    def policy(peer: Peer, route: str | None) -> bool:
        return route != "who/secret"

    async with link(WhoService(), policy=policy) as who:
        with pytest.raises(PermissionDenied, match="who/secret"):
            await who.secret()
        assert (await who.am_i())[0] == os.getpid()


async def test_a_client_judges_the_server_too() -> None:
    ours, theirs = socket_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Server((WhoService(),)).serve, SocketTransport(ours))
        with pytest.raises(PermissionDenied):
            async with connect_contract(Who, SocketTransport(theirs), users([OTHER.uid])):
                raise AssertionError("it was admitted")


# --- other processes ------------------------------------------------------------------------------

WRITE = """
import os, sys
uid, fd, data = int(sys.argv[1]), int(sys.argv[2]), bytes.fromhex(sys.argv[3])
os.setresuid(uid, uid, uid)
os.write(fd, data)
"""


async def written_by_child(sock: socket.socket, data: bytes, uid: int | None = None) -> int:
    """Let a child process write to our socket; return its pid."""
    fd = sock.fileno()
    user = os.getuid() if uid is None else uid
    command = [sys.executable, "-I", "-S", "-c", WRITE, str(user), str(fd), data.hex()]
    child = await trio.lowlevel.open_process(command, pass_fds=[fd])
    with trio.fail_after(30):
        assert await child.wait() == 0
    return child.pid


class Raw:
    """A client on a socket pair, played by the test; other processes may write to it too."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.setblocking(False)
        self.machine = Machine(Limits(), Budget(1 << 20))
        self._events: list[Event] = []

    def call(self, route: str) -> bytes:
        body = msgspec.msgpack.encode((route, None, 10**9, None, {}))
        return self.machine.call(body)[1]

    async def next(self) -> Any:
        while not self._events:
            await trio.lowlevel.wait_readable(self.socket)
            data = self.socket.recv(65536)
            if not data:
                return None
            self._events += self.machine.receive(data)
        return self._events.pop(0)

    async def value(self) -> Any:
        event = await self.next()
        if isinstance(event, ErrorReceived):
            return from_wire(event.error)
        assert isinstance(event, ReplyReceived)
        return msgspec.msgpack.decode(event.value)


@asynccontextmanager
async def served_pair(policy: Policy = same_user) -> AsyncGenerator[Raw]:
    ours, theirs = socket_pair()
    with theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Server((WhoService(),), policy).serve, SocketTransport(ours))
            raw = Raw(theirs)
            theirs.send(raw.machine.hello({}, "raw", "0"))
            await raw.next()
            yield raw
            nursery.cancel_scope.cancel()


async def test_each_message_names_its_true_sender_after_the_socket_was_passed_on() -> None:
    async with served_pair() as raw:
        raw.socket.send(raw.call("who/am_i"))
        assert (await raw.value())[0] == os.getpid()
        pid = await written_by_child(raw.socket, raw.call("who/am_i"))
        assert (await raw.value())[0] == pid
        raw.socket.send(raw.call("who/am_i"))
        assert (await raw.value())[0] == os.getpid()


@as_root
async def test_a_message_of_another_user_is_refused_and_the_connection_lives() -> None:
    async with served_pair() as raw:
        await written_by_child(raw.socket, raw.call("who/am_i"), NOBODY)
        error = await raw.value()
        assert isinstance(error, PermissionDenied)
        assert f"user {NOBODY}" in str(error)
        raw.socket.send(raw.call("who/am_i"))
        assert (await raw.value())[0] == os.getpid()


@as_root
async def test_a_policy_for_several_users_sees_which_of_them_sent_each_message() -> None:
    async with served_pair(users([0, NOBODY])) as raw:
        pid = await written_by_child(raw.socket, raw.call("who/am_i"), NOBODY)
        assert (await raw.value())[:2] == [pid, NOBODY]


async def test_a_frame_in_two_parts_from_two_processes_ends_the_connection() -> None:
    async with served_pair() as raw:
        data = raw.call("who/am_i")
        raw.socket.send(data[:20])
        await written_by_child(raw.socket, data[20:])
        assert await raw.next() is None


async def test_a_cancel_from_another_process_than_the_caller_ends_the_connection() -> None:
    class Slow(WhoService):
        async def secret(self) -> str:
            await trio.sleep_forever()
            raise AssertionError

    ours, theirs = socket_pair()
    with theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Server((Slow(),)).serve, SocketTransport(ours))
            raw = Raw(theirs)
            theirs.send(raw.machine.hello({}, "raw", "0"))
            await raw.next()
            theirs.send(raw.call("who/secret"))
            await written_by_child(theirs, raw.machine.cancel(1, 10**9))
            assert await raw.next() is None


@as_root
@pytest.mark.parametrize("kind", ["reply", "error"])
async def test_an_answer_of_another_user_than_the_client_admits_is_not_believed(kind: str) -> None:
    ours, theirs = socket_pair()
    with theirs:
        raw = Raw(theirs)
        async with trio.open_nursery() as nursery:

            async def play() -> None:
                await raw.next()
                theirs.send(raw.machine.hello(asked(Who), "raw", "0"))
                for uid in (NOBODY, None):
                    call = await raw.next()
                    if kind == "reply":
                        data = raw.machine.reply(call.id, msgspec.msgpack.encode(("true",)))
                    else:
                        error = {"code": "not-found", "message": "a lie"}
                        data = raw.machine.error(call.id, EndedBy.ITSELF, error)
                    await written_by_child(theirs, data, uid)

            nursery.start_soon(play)
            async with connect_contract(Who, SocketTransport(ours)) as who:
                with pytest.raises(PermissionDenied, match=f"user {NOBODY}"):
                    await who.secret()
                if kind == "reply":
                    assert await who.secret() == "true"
                else:
                    with pytest.raises(NotFound):
                        await who.secret()


CLIENT = """
import json, os, sys, trio
from abc import abstractmethod
from container.ipc import Actor, Contract, ContainerError, in_memory

class Who(Contract, name="who"):
    @abstractmethod
    async def am_i(self) -> tuple[int, int, int]: ...
    @abstractmethod
    async def secret(self) -> str: ...

class Here(Actor, Who):
    async def am_i(self) -> tuple[int, int, int]:
        return 0, 0, 0
    async def secret(self) -> str:
        return ""

async def main():
    async with in_memory(Here()) as who:  # all modules are loaded before the user changes
        await who.am_i()
    become, path, moment = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
    if moment == "before":
        os.setresgid(*become["gid"])
        os.setresuid(*become["uid"])
    try:
        async with Who.connect(path) as who:
            if moment == "after":
                os.setresuid(*become["uid"])
            print(json.dumps(await who.am_i()))
    except ContainerError as error:
        print(json.dumps(error.code.value))

trio.run(main)
"""


async def as_other(
    path: Path,
    uid: tuple[int, int, int] = (0, 0, 0),
    gid: tuple[int, int, int] = (0, 0, 0),
    moment: str = "before",
) -> Any:
    """Call `am_i` from a child process with these real, effective and saved ids."""
    become = json.dumps({"uid": uid, "gid": gid})
    with trio.fail_after(30):
        done = await trio.run_process(
            [sys.executable, "-c", CLIENT, become, path, moment], capture_stdout=True
        )
    return json.loads(done.stdout)


@pytest.fixture
def public(tmp_path: Path) -> Iterator[Path]:
    """A socket's path that any user can reach."""
    with tempfile.TemporaryDirectory(prefix="ipc-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder) / "s"


@asynccontextmanager
async def served(path: Path, policy: Policy) -> AsyncGenerator[None]:
    with bind(path, mode=0o666) as listener:
        async with open_service(WhoService(), at=listener, policy=policy):
            yield


@as_root
async def test_another_user_is_refused_at_hello(public: Path) -> None:
    async with served(public, same_user):
        assert await as_other(public, uid=(NOBODY,) * 3) == "permission-denied"
        assert (await as_other(public))[1] == 0


@as_root
async def test_a_socket_that_the_file_system_closes_to_a_user_is_permission_denied(
    public: Path,
) -> None:
    with bind(public, mode=0o600) as listener:
        async with open_service(WhoService(), at=listener, policy=users([0, NOBODY])):
            assert await as_other(public, uid=(NOBODY,) * 3) == "permission-denied"
            os.chmod(public, 0o666)
            assert (await as_other(public, uid=(NOBODY,) * 3))[1] == NOBODY


@as_root
async def test_the_effective_user_is_meant_where_it_differs_from_the_real_one(
    public: Path,
) -> None:
    async with served(public, same_user):
        assert await as_other(public, uid=(0, NOBODY, 0)) == "permission-denied"
    # The client expects a server of its own effective user, or root's: here that is root.
    async with served(public, users([NOBODY])):
        seen = await as_other(public, uid=(0, NOBODY, 0))
        assert seen[1] == NOBODY


@as_root
async def test_who_connected_as_another_user_and_then_became_root_is_refused(
    public: Path,
) -> None:
    """The kernel's word at `connect` counts as well as its word on each message."""
    async with served(public, same_user):
        plain = (
            "import os, socket, sys\n"
            f"os.setresuid(0, {NOBODY}, 0)\n"
            "s = socket.socket(socket.AF_UNIX)\n"
            "s.connect(sys.argv[1])\n"
            "os.setresuid(0, 0, 0)\n"
            "s.send(bytes.fromhex(sys.argv[2]))\n"
            "while s.recv(4096): pass\n"
        )
        hello = Machine(Limits(), Budget(1)).hello({}, "raw", "0")
        with trio.fail_after(30):
            done = await trio.run_process(
                [sys.executable, "-I", "-S", "-c", plain, public, hello.hex()]
            )
        assert done.returncode == 0  # cut off: it read to the end


@as_root
async def test_a_client_that_becomes_another_user_is_refused_from_then_on(public: Path) -> None:
    async with served(public, same_user):
        seen = await as_other(public, uid=(NOBODY,) * 3, moment="after")
        assert seen == "permission-denied"


@as_root
async def test_a_group_is_admitted_by_its_effective_id(public: Path) -> None:
    async with served(public, groups([12345])):
        assert (await as_other(public, gid=(0, 12345, 0)))[2] == 12345
        assert await as_other(public, gid=(12345, 0, 0)) == "permission-denied"
