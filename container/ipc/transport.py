"""Transports: move bytes, descriptors and credentials without blocking.

A transport knows no frame. `send` and `receive` never wait; `wait_readable` and `wait_writable` do.
Two of them: a Unix stream socket, and a memory pair inside one process that behaves the same,
descriptors included, so that a test needs no socket.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import trio
from attrs import define, field

from container.ipc.errors import Overloaded
from container.ipc.peer import Sender

READ_BYTES = 65536
DESCRIPTORS_ROOM = 253
"""Room for all descriptors that the kernel can put in one message: less is MSG_CTRUNC."""
SEND_BYTES = 1 << 20
"""What the kernel is asked to take of large frames before they are read; it may take less."""
SO_PASSRIGHTS = 83
_UCRED = struct.Struct("iII")
_CTRUNC = int(socket.MSG_CTRUNC)
"""Plain ints: a flag enum's `&` costs more than the system call it follows."""
_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)
_ANCILLARY_BYTES = socket.CMSG_SPACE(_UCRED.size) + socket.CMSG_SPACE(4 * DESCRIPTORS_ROOM)
_PLAIN = socket.CMSG_SPACE(_UCRED.size)


class TransportBroken(Exception):
    """What came can't be trusted any more: descriptors or credentials were lost."""


class Received(NamedTuple):
    """What one read gave; no bytes means the end."""

    data: bytes
    descriptors: list[int]
    sender: Sender | None


class ReceivedInto(NamedTuple):
    """What one read gave into a buffer; a size of 0 means the end."""

    size: int
    descriptors: list[int]
    sender: Sender | None


class Transport(ABC):
    """One end of a connected pair."""

    connected_uid: int | None = None
    """Effective uid of who connected, where this process accepted."""
    descriptor: int | None = None
    """Of the socket whose readability says that `receive` has something; None if there is none."""
    pings: bool = True
    """False where both ends share one loop: a ping could tell nothing."""

    @abstractmethod
    def send(self, data: bytes | bytearray | memoryview, descriptors: Sequence[int]) -> int:
        """Send what the kernel takes now, descriptors with the first byte; return how many bytes.

        Raises:
            BlockingIOError: nothing was taken.
            OSError: the peer is gone.
        """

    @abstractmethod
    def receive(self, room: int = READ_BYTES, /) -> Received:
        """Return what is here, at most `room` bytes.

        Raises:
            BlockingIOError: nothing is.
            TransportBroken: descriptors were lost, or the sender is not known.
            OSError: the connection was reset.
        """

    def receive_into(self, room: memoryview, /) -> ReceivedInto:
        """Receive into `room`, at most what it holds; as `receive`."""
        data, descriptors, sender = self.receive(len(room))
        room[: len(data)] = data
        return ReceivedInto(len(data), descriptors, sender)

    @abstractmethod
    async def wait_readable(self) -> None:
        """Wait until `receive` has something to say."""

    @abstractmethod
    async def wait_writable(self) -> None:
        """Wait until `send` may take something."""

    @abstractmethod
    def admit_descriptors(self) -> None:
        """Accept descriptors from now on: the peer's hello was admitted."""

    @abstractmethod
    def close(self) -> None:
        """Close this end; closing twice does nothing."""


class SocketTransport(Transport):
    """A connected AF_UNIX stream socket with SO_PASSCRED set. Owns the socket.

    Args:
        sock: Connected; made non-blocking.
        accepted: This process accepted it: SO_PEERCRED then names who connected.
    """

    def __init__(self, sock: socket.socket, *, accepted: bool = False) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket = sock
        self.descriptor = sock.fileno()
        self._large = False
        self._explicit: list[tuple[int, int, bytes]] = []
        self._ancillary = _ANCILLARY_BYTES
        self._plain: list[tuple[int, int, bytes]] | None = None
        """What came beside the last message without descriptors: its judged credentials."""
        self._plain_sender: Sender | None = None
        if os.geteuid() != os.getuid() or os.getegid() != os.getgid():
            # The kernel fills in the real ids by itself: say the effective ones.
            ucred = _UCRED.pack(os.getpid(), os.geteuid(), os.getegid())
            self._explicit = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, ucred)]
        if accepted:
            raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            self.connected_uid = _UCRED.unpack(raw)[1]
            try:
                sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
            except OSError:
                pass  # an older kernel: the machine refuses descriptors before hello by count

    def send(self, data: bytes | bytearray | memoryview, descriptors: Sequence[int]) -> int:
        if not descriptors and not self._explicit:
            taken = self._socket.send(data)
            if taken < len(data) and not self._large and len(data) > READ_BYTES:
                self._expect_large()
            return taken
        ancillary: list[tuple[int, int, bytes | array.array[int]]] = list(self._explicit)
        if descriptors:
            rights = array.array("i", descriptors)
            ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, rights))
        return self._socket.sendmsg([data], ancillary)

    def receive(self, room: int = READ_BYTES, /) -> Received:
        data, ancillary, flags, _ = self._socket.recvmsg(room, self._ancillary, _CLOEXEC)
        if ancillary == self._plain and not flags & _CTRUNC:
            # Nearly every message: without descriptors, from who sent the one before.
            return Received(data, [], self._plain_sender)
        return Received(data, *self._judged(len(data), ancillary, flags))

    def receive_into(self, room: memoryview, /) -> ReceivedInto:
        count, ancillary, flags, _ = self._socket.recvmsg_into([room], self._ancillary, _CLOEXEC)
        if ancillary == self._plain and not flags & _CTRUNC:
            return ReceivedInto(count, [], self._plain_sender)
        return ReceivedInto(count, *self._judged(count, ancillary, flags))

    def _judged(
        self, count: int, ancillary: list[tuple[int, int, bytes]], flags: int
    ) -> tuple[list[int], Sender | None]:
        """Return the descriptors and the sender of what was received beside `count` bytes."""
        descriptors: list[int] = []
        sender: Sender | None = None
        for level, kind, content in ancillary:
            if level != socket.SOL_SOCKET:
                continue
            if kind == socket.SCM_CREDENTIALS:
                sender = Sender(*_UCRED.unpack(content[: _UCRED.size]))
            elif kind == socket.SCM_RIGHTS:
                whole = len(content) - len(content) % 4
                descriptors.extend(array.array("i", content[:whole]))
        if count and (flags & _CTRUNC or sender is None or sender.pid == 0):
            for descriptor in descriptors:
                os.close(descriptor)
            raise TransportBroken(
                "the kernel could not deliver all descriptors"
                if flags & _CTRUNC
                else "the sender of a message is not known"
            )
        if count and len(ancillary) == 1:
            self._plain, self._plain_sender = ancillary, sender
        return descriptors, sender

    def _expect_large(self) -> None:
        # With the usual buffer a frame of 1 MiB takes both sides five turns of their loops.
        self._large = True
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)

    async def wait_readable(self) -> None:
        await trio.lowlevel.wait_readable(self._socket)

    async def wait_writable(self) -> None:
        await trio.lowlevel.wait_writable(self._socket)

    def admit_descriptors(self) -> None:
        if self.connected_uid is not None:
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 1)
            except OSError:
                pass

    def close(self) -> None:
        if self._socket.fileno() != -1:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


@define(eq=False)
class _Lane:
    """One direction of a memory pair: at most `room` bytes that were sent and not received."""

    room: int
    chunks: deque[tuple[bytes, list[int]]] = field(factory=deque[tuple[bytes, list[int]]])
    size: int = 0
    writer_closed: bool = False
    reader_closed: bool = False
    changed: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)


class MemoryTransport(Transport):
    """One end of a memory pair: same limits, descriptors duplicated as the kernel does."""

    pings = False

    def __init__(self, incoming: _Lane, outgoing: _Lane) -> None:
        self._in = incoming
        self._out = outgoing
        self._sender = Sender(os.getpid(), os.geteuid(), os.getegid())
        self._closed = False

    def send(self, data: bytes | bytearray | memoryview, descriptors: Sequence[int]) -> int:
        lane = self._out
        if self._closed or lane.reader_closed:
            raise BrokenPipeError("the other end is closed")
        taken = min(len(data), lane.room - lane.size)
        if taken <= 0:
            raise BlockingIOError
        lane.chunks.append((bytes(data[:taken]), [os.dup(fd) for fd in descriptors]))
        lane.size += taken
        lane.changed.unpark_all()
        return taken

    def receive(self, room: int = READ_BYTES, /) -> Received:
        lane = self._in
        if self._closed:
            raise OSError("this end is closed")
        if not lane.chunks:
            if lane.writer_closed:
                return Received(b"", [], self._sender)
            raise BlockingIOError
        data, descriptors = lane.chunks.popleft()
        if len(data) > room:
            lane.chunks.appendleft((data[room:], []))
            data = data[:room]
        lane.size -= len(data)
        lane.changed.unpark_all()
        return Received(data, descriptors, self._sender)

    async def wait_readable(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._in.chunks and not self._in.writer_closed and not self._closed:
            await self._in.changed.park()

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        lane = self._out
        while lane.size >= lane.room and not lane.reader_closed and not self._closed:
            await lane.changed.park()

    def admit_descriptors(self) -> None:
        pass

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._out.writer_closed = True
        self._in.reader_closed = True
        for _, descriptors in self._in.chunks:
            for descriptor in descriptors:
                os.close(descriptor)
        self._in.chunks.clear()
        self._in.size = 0
        for lane in (self._in, self._out):
            lane.changed.unpark_all()


def memory_pair(room: int = 212992) -> tuple[MemoryTransport, MemoryTransport]:
    """Return two connected ends inside this process; `room` bytes fit in each direction."""
    one, two = _Lane(room), _Lane(room)
    return MemoryTransport(one, two), MemoryTransport(two, one)


def no_descriptor(error: OSError) -> Overloaded:
    """Return the error for a socket that could not be made. Source: socket(2)."""
    return Overloaded(
        f"no socket can be made: {error.strerror}",
        hint="close descriptors, or raise the limit (ulimit -n)",
    )


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return a connected pair, credentials asked for on both ends before anything can be sent."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return pair
