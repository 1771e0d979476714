"""The parent's side of a child and its keeper: start them, learn how they ended, end them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import NoReturn

import trio

from container.ipc.errors import InvalidArgument, Unavailable
from container.ipc.spawning import orders
from container.ipc.spawning.asking import Zygote, ZygoteGone
from container.ipc.spawning.ending import KILL_BOUND, UNBORN_BOUND, Ending, OwnProcess
from container.ipc.spawning.requests import Fork
from container.ipc.transport import (
    READ_BYTES,
    Received,
    ReceivedInto,
    SocketTransport,
    Transport,
    socket_pair,
)

MODULE = "container.ipc.spawning.child"
STATUS_BOUND = 1.0
"""Seconds from the end of a child's socket to the word on how it ended: longer, and it lives on."""
SLACK = 1.0
_ABOVE = 16


class ChildProcess:
    """A child of `spawn`; `process_of(proxy)` returns it."""

    def __init__(self, order: orders.Order, control: socket.socket, sock: socket.socket) -> None:
        self.name = order.name
        self.pid = 0
        """0 until it is born."""
        self.ending: Ending | None = None
        """How it ended, once it has."""
        self.ended = trio.Event()
        self.killed = False
        """Whether it had to be ended by signals."""
        self._bounds = order.bounds
        control.setblocking(False)
        self._control = control
        self._socket = sock
        self._keeper: OwnProcess | None = None
        self._pidfds: list[int] = []
        """Of the child and of the keeper, once it is born."""

    def send_signal(self, number: int) -> None:
        """Send a signal to the child; one that has ended is no error."""
        if self._pidfds and self.ending is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfds[0], number)

    def take_socket(self) -> SocketTransport:
        """Return the parent's end of the socket that the child was born with, once."""
        return SocketTransport(self._socket)

    async def start(self, order: orders.Order, given: Sequence[int], zygote: Zygote | None) -> None:
        """Start keeper and child; return when the child is born.

        Args:
            order: What to run.
            given: Descriptors 0 to `orders.CHILD` of the new processes.
            zygote: Where to fork from; None executes the interpreter.

        Raises:
            Unavailable: it can't be started.
            InvalidArgument: the order is too large.
        """
        message = orders.pack_order(order)
        if len(message) > orders.ORDER_BOUND:
            raise InvalidArgument("sys.path is too long for a child to be told of")
        command = (sys.executable, "-P", "-m", MODULE, order.service)
        if zygote is None:
            await trio.lowlevel.checkpoint()
            self._keeper = OwnProcess(_execute(command, given))
        else:
            await zygote.fork(_fork_request(order, command), given)
        view = memoryview(message)
        while view:
            await trio.lowlevel.wait_writable(self._control)
            try:
                view = view[self._control.send(view) :]
            except OSError:
                break  # how it ended is read next
        await trio.lowlevel.wait_readable(self._control)
        try:
            word, self._pidfds, _, _ = socket.recv_fds(self._control, 1, 2, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            word = b""
        if word != orders.BORN or len(self._pidfds) != 2:
            raise Unavailable(f"{self.name} can't be started: {self._complaint(word)}")
        self.pid = _pid_of(self._pidfds[0])

    def _complaint(self, word: bytes) -> str:
        if word == orders.FAILED:
            number = int.from_bytes(self._control.recv(2), "big")
            return os.strerror(number)
        return "its process ended before it had begun"

    async def listen(self) -> None:
        """Wait until the child and all below it have ended. Cancelled, it may be called again."""
        while self.ending is None:
            await trio.lowlevel.wait_readable(self._control)
            try:
                # A word is written at once, so that all of it is here or none.
                word = self._control.recv(orders.ENDING_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                word = b""
            if len(word) == orders.ENDING_BYTES:
                self.ending = orders.unpack_ending(word)
            elif self._pidfds:
                # The keeper was killed, and with it, by the kernel, the child.
                self.send_signal(signal.SIGKILL)
                with trio.move_on_after(KILL_BOUND):
                    await trio.lowlevel.wait_readable(self._pidfds[0])
                self.ending = Ending()
            else:
                self.ending = Ending()
        self.ended.set()

    async def end(self) -> None:
        """Wait for the end, hasten it as the bounds say, and let go of all. Shielded, bounded."""
        self._socket.close()  # its end is the child's, if no connection was made of it
        with trio.CancelScope(shield=True):
            try:
                if self._pidfds:
                    await self._end_child()
                else:
                    await self._end_unborn()
                if self._keeper is not None:
                    await self._keeper.end(SLACK if self._pidfds else 0)
            finally:
                for fd in self._pidfds:
                    os.close(fd)
                self._pidfds = []
                self._control.close()

    async def _end_child(self) -> None:
        with trio.move_on_after(self._bounds.cancel):
            await self.listen()
        if self.ending is None:
            self.killed = True
            with contextlib.suppress(OSError):
                self._control.send(orders.TERMINATE, socket.MSG_NOSIGNAL)
            with trio.move_on_after(self._bounds.terminate + KILL_BOUND + SLACK):
                await self.listen()
        if self.ending is None:
            # The keeper is wedged itself: stopped, or in a system call that does not end.
            for pidfd in self._pidfds:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            with trio.move_on_after(KILL_BOUND):
                await self.listen()

    async def _end_unborn(self) -> None:
        # Nobody waits for it: an end of file says so, and one comes back when the last process
        # that has the other end is gone.
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)
        if self._keeper is not None:
            self._keeper.kill()
        with trio.move_on_after(UNBORN_BOUND), contextlib.suppress(OSError):
            while True:
                await trio.lowlevel.wait_readable(self._control)
                data, descriptors, _, _ = socket.recv_fds(self._control, 64, 2)
                for fd in descriptors:
                    os.close(fd)
                if not data:
                    return


def _pid_of(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        for line in file:
            if line.startswith("Pid:"):
                return int(line.split()[1])
    return 0


def _fork_request(order: orders.Order, command: tuple[str, ...]) -> Fork:
    try:
        directory = os.getcwd()
    except FileNotFoundError:
        directory = "/"
    return Fork(
        name=order.name,
        command=command[3:],
        environment=dict(os.environ),
        entry=f"{MODULE}:main",
        directory=directory,
        umask=_umask(),
    )


def _umask() -> int:
    # umask(2) can only be read by setting it, which other threads would see.
    with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022


def _execute(command: Sequence[str], given: Sequence[int]) -> int:
    opened: list[int] = []
    try:
        opened.extend(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE) for fd in given)
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(opened)]
        return os.posix_spawn(
            sys.executable,
            list(command),
            os.environ,
            file_actions=actions,
            setsigmask=(),
            setsigdef=[signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM],
        )
    except OSError as error:
        raise Unavailable(f"{MODULE} can't be started: {error.strerror}") from error
    finally:
        for fd in opened:
            os.close(fd)


async def _begin(order: orders.Order, zygote: Zygote | None, stderr: int) -> ChildProcess:
    with contextlib.ExitStack() as theirs:
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        theirs.callback(os.close, null)
        control, their_control = map(theirs.enter_context, socket.socketpair())
        sock, their_sock = map(theirs.enter_context, socket_pair())
        # From here on the child owns our two ends.
        child = ChildProcess(
            order, *(socket.socket(fileno=end.detach()) for end in (control, sock))
        )
        given = (null, 1, stderr, their_control.fileno(), their_sock.fileno())
        try:
            await child.start(order, given, zygote)
        except BaseException:
            theirs.close()  # so that the end of file comes when nobody has the other ends
            await child.end()
            raise
    return child


@asynccontextmanager
async def open_child(
    order: orders.Order, zygote: Zygote | None, stderr: int
) -> AsyncGenerator[ChildProcess]:
    """Hold a child; at the end of the block its end is awaited, and hastened as the bounds say.

    It should be on its way then: closing its socket ends it.
    """
    try:
        try:
            child = await _begin(order, zygote, stderr)
        except ZygoteGone:
            # It may have been dead for a while, unnoticed. What it may have forked has ended.
            child = await _begin(order, zygote, stderr)
    except OSError as error:
        raise Unavailable(f"{order.name} can't be started: {error.strerror}") from error
    try:
        yield child
    finally:
        await child.end()


class ServiceTransport(SocketTransport):
    """A socket to a child. Its end is told only when it is known how the child ended, so that a
    call in flight can say so."""

    def __init__(self, sock: socket.socket, child: ChildProcess) -> None:
        super().__init__(sock)
        self._child = child
        self._broken: OSError | None = None
        self._told = False

    def send(self, data: bytes | bytearray | memoryview, descriptors: Sequence[int]) -> int:
        self._check()
        try:
            return super().send(data, descriptors)
        except (BrokenPipeError, ConnectionResetError) as error:
            return self._break(error)

    def receive(self, room: int = READ_BYTES, /) -> Received:
        self._check()
        try:
            received = super().receive(room)
        except ConnectionResetError as error:
            return self._break(error)
        if not received.data:
            return self._break(ConnectionResetError("closed"))
        return received

    def receive_into(self, room: memoryview, /) -> ReceivedInto:
        return Transport.receive_into(self, room)

    def _check(self) -> None:
        if self._broken is not None:
            self._break(self._broken)

    def _break(self, error: OSError) -> NoReturn:
        self._broken = error
        if self._child.ending is not None:
            raise ConnectionResetError(error.errno, str(self._child.ending))
        if self._told:
            raise error
        raise BlockingIOError

    async def wait_readable(self) -> None:
        await (super().wait_readable() if self._broken is None else self._wait_told())

    async def wait_writable(self) -> None:
        await (super().wait_writable() if self._broken is None else self._wait_told())

    async def _wait_told(self) -> None:
        with trio.move_on_after(STATUS_BOUND):
            await self._child.ended.wait()
        self._told = True
