"""A client written from the specification alone, with a socket and a MessagePack library.

It imports nothing of ours but the server that it talks to, and blocks, in a thread of its own.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from abc import abstractmethod
from pathlib import Path
from typing import Any

import msgspec
import trio

from container.ipc import Actor, Contract, Fd, NotFound, open_service

HEADER = struct.Struct("<IBBHQ")
MAGIC = int.from_bytes(b"ctr-ipc\n", "little")
HELLO, CALL, REPLY, ERROR, CANCEL, PING, PONG, GOODBYE = 1, 2, 3, 4, 5, 12, 13, 14
Extension = msgspec.msgpack.Ext


class Stranger:
    """A client of another make."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.socket.settimeout(10)
        self.socket.connect(str(path))
        self.descriptors: list[int] = []

    def send(
        self, kind: int, number: int, payload: object = None, fds: tuple[int, ...] = ()
    ) -> None:
        """Send a frame, descriptors with its first byte."""
        body = b"" if payload is None else msgspec.msgpack.encode(payload)
        frame = HEADER.pack(len(body), kind, 0, len(fds), number) + body
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self.socket.sendmsg([frame], rights)
        if sent < len(frame):  # sending nothing would fail where the server has cut us off
            self.socket.sendall(frame[sent:])

    def receive(self) -> tuple[int, int, int, Any, list[int]]:
        """Return kind, flags, id, payload and descriptors of the next frame."""
        length, kind, flags, count, number = HEADER.unpack(self._exactly(HEADER.size))
        body = self._exactly(length)
        fds, self.descriptors = self.descriptors[:count], self.descriptors[count:]
        return kind, flags, number, msgspec.msgpack.decode(body) if body else None, fds

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            room = socket.CMSG_SPACE(12) + socket.CMSG_SPACE(4 * 253)
            more, ancillary, flags, _ = self.socket.recvmsg(
                count - len(data), room, socket.MSG_CMSG_CLOEXEC
            )
            if not more:
                raise EOFError
            assert not flags & socket.MSG_CTRUNC
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    self.descriptors += array.array("i", content)
            data += more
        return data

    def greet(self) -> list[Any]:
        """Exchange hellos; return the server's."""
        limits = {"frame_bytes": 65536, "frame_descriptors": 4, "in_flight": 8}
        self.send(HELLO, MAGIC, [1, 1, limits, {"greeter": [1, "?"]}, "stranger", "9"])
        kind, _, number, hello, _ = self.receive()
        assert (kind, number) == (HELLO, MAGIC)
        return hello

    def call(
        self, number: int, method: str, arguments: dict[str, Any], fds: tuple[int, ...] = ()
    ) -> None:
        """Send a call without a deadline, with a grace of 5 s."""
        self.send(CALL, number, [f"greeter/{method}", None, 5 * 10**9, None, arguments], fds)


class Greeter(Contract, name="greeter"):
    """What the stranger knows from documentation."""

    @abstractmethod
    async def greet(self, name: str, times: int = 1) -> str: ...
    @abstractmethod
    async def swap(self, source: Fd) -> Fd: ...
    @abstractmethod
    async def fail(self) -> None: ...
    @abstractmethod
    async def sleep(self) -> None: ...


class GreeterService(Actor, Greeter):
    """Does it."""

    async def greet(self, name: str, times: int = 1) -> str:
        return f"hello {name}" * times

    async def swap(self, source: Fd) -> Fd:
        reading, writing = os.pipe()
        with Fd(writing):
            os.write(writing, os.read(source.fileno(), 100).upper())
        return Fd(reading)

    async def fail(self) -> None:
        raise NotFound("no such name", hint="try another")

    async def sleep(self) -> None:
        await trio.sleep_forever()


def converse(path: Path) -> None:
    """Say everything that the specification has words for."""
    it = Stranger(path)
    with it.socket:
        lowest, highest, limits, contracts, *_ = it.greet()
        assert lowest <= 1 <= highest
        assert limits["frame_descriptors"] >= 1
        assert contracts["greeter"][0] == 1

        it.call(1, "greet", {"name": "ada", "times": 2})
        assert it.receive() == (REPLY, 1, 1, ["hello adahello ada"], [])

        it.call(5, "greet", {"name": 3})
        kind, flags, number, (ended_by, error), _ = it.receive()
        assert (kind, flags, number, ended_by) == (ERROR, 1, 5, 0)
        assert error["code"] == "invalid-argument"
        assert error["message"] == "greeter/greet: name: expected str, found int"

        it.call(6, "fail", {})
        _, _, _, (_, error), _ = it.receive()
        assert (error["code"], error["hint"]) == ("not-found", "try another")
        assert error["hops"][0][1:] == [os.getpid(), "greeter/fail"]

        it.call(7, "sleep", {})
        it.send(PING, 1)
        assert it.receive() == (PONG, 0, 1, None, [])
        it.send(CANCEL, 7, [5 * 10**9])
        kind, _, number, (ended_by, error), _ = it.receive()
        assert (kind, number, ended_by, error["code"]) == (ERROR, 7, 1, "cancelled")

        it.send(CALL, 8, ["greeter/sleep", 10**7, 5 * 10**9, None, {}])
        _, _, number, (ended_by, error), _ = it.receive()
        assert (number, ended_by, error["code"]) == (8, 2, "deadline")

        reading, writing = os.pipe()
        os.write(writing, b"shout")
        it.call(9, "swap", {"source": Extension(2, b"\x00")}, (reading,))
        os.close(reading)
        os.close(writing)
        kind, _, number, (value,), fds = it.receive()
        assert (kind, number, value) == (REPLY, 9, Extension(2, b"\x00"))
        assert os.read(fds[0], 100) == b"SHOUT"
        os.close(fds[0])

        it.send(CALL, 10, "no call at all")
        _, _, number, (_, error), _ = it.receive()
        assert (number, error["code"]) == (10, "invalid-argument")
        it.call(11, "dance", {})
        _, _, number, (_, error), _ = it.receive()
        assert (number, error["code"]) == (11, "unknown-route")
        it.send(GOODBYE, 0, [0, 0])


def break_it(path: Path) -> None:
    """Send what is refused, and see that it is the end."""
    it = Stranger(path)
    with it.socket:
        it.send(HELLO, MAGIC, [7, 9, {}, {}, "newcomer", "99"])
        kind, _, number, (_, error), _ = it.receive()
        assert (kind, number, error["code"]) == (ERROR, 0, "incompatible")
        assert "7 to 9" in error["message"]
        assert _ended(it)
    it = Stranger(path)
    with it.socket:
        it.greet()
        it.send(77, 1)
        assert _ended(it)


def _ended(it: Stranger) -> bool:
    try:
        while it.receive()[0] in (GOODBYE, ERROR):
            pass
    except (EOFError, ConnectionResetError):
        return True
    return False


async def test_a_client_written_from_the_specification_is_understood(tmp_path: Path) -> None:
    async with open_service(GreeterService(), at=tmp_path / "greeter.sock"):
        await trio.to_thread.run_sync(converse, tmp_path / "greeter.sock")


async def test_a_client_that_breaks_the_specification_is_told_or_cut_off(tmp_path: Path) -> None:
    async with open_service(GreeterService(), at=tmp_path / "greeter.sock"):
        await trio.to_thread.run_sync(break_it, tmp_path / "greeter.sock")
        await trio.to_thread.run_sync(converse, tmp_path / "greeter.sock")
