"""Ask a zygote for processes: the owner's end.

A `ZygoteLink` is the conversation alone, for owners that wait for their processes in their own way,
as a subreaper does. `open_zygote` is what a program uses.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from container.ipc.errors import InvalidArgument, Unavailable
from container.ipc.spawning import requests
from container.ipc.spawning.ending import OwnProcess

FORK_BOUND = 30.0
"""Seconds for one fork, the zygote's own start included."""
_START = (
    "with open('/proc/self/comm', 'w') as file: file.write('zygote')\nfrom {} import main\nmain()"
)
"""Named before anything is imported: who looks at the processes sees at once what this one is."""
LEAVE_BOUND = 2.0
"""Seconds that a zygote has to end by itself."""
_ABOVE = 16

_log = logging.getLogger("container.ipc")


def start_zygote(
    module: str,
    arguments: Sequence[str] = (),
    *,
    output: int,
    environment: Mapping[str, str] | None = None,
    further: Sequence[socket.socket] = (),
) -> tuple[int, socket.socket]:
    """Start a zygote; return its pid and the socket of requests. It is this process's child.

    Args:
        module: Its `main` is called.
        arguments: Of it.
        output: A descriptor, for 1 and 2.
        environment: None takes this process's own.
        further: Sockets from descriptor 4 on.

    Raises:
        Unavailable: it can't be started.
    """
    ours, theirs = socket.socketpair()
    opened: list[int] = []
    try:
        # Duplicated above the numbers that they go to, so that none is overwritten before its turn.
        sources = (output, theirs.fileno(), *(sock.fileno() for sock in further))
        opened.extend(fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, _ABOVE) for source in sources)
        actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, opened[0], 1),
            (os.POSIX_SPAWN_DUP2, opened[0], 2),
        ]
        for number, fd in enumerate(opened[1:], 3):
            actions.append((os.POSIX_SPAWN_DUP2, fd, number))
        command = [sys.executable, "-P", "-c", _START.format(module), *arguments]
        given = os.environ if environment is None else environment
        pid = os.posix_spawn(sys.executable, command, given, file_actions=actions)
    except OSError as error:
        ours.close()
        raise Unavailable(f"the zygote can't be started: {error.strerror}") from error
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
        for fd in opened:
            os.close(fd)
    ours.setblocking(False)
    return pid, ours


class ZygoteGone(Unavailable):
    """The zygote ended; whether it had done what it was asked for is not known."""


class ZygoteLink:
    """The socket of requests, used by one task at a time.

    A cancelled wait leaves the answer to be skipped by the next. `broken` is set when the
    conversation can't go on: then only a new zygote helps.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._received = bytearray()
        self._number = 0
        self.broken = False

    async def fork(self, request: requests.Fork, descriptors: Sequence[int]) -> int:
        """Ask for a process; return its pid.

        Raises:
            Unavailable: it can't be forked.
        """
        answer = await self.ask(request, descriptors)
        if "pid" not in answer:
            raise Unavailable(f'"{request.name}" can\'t be started: {answer["error"]}')
        return int(answer["pid"])

    async def ask(
        self, request: requests.Fork | requests.Preload, descriptors: Sequence[int] = ()
    ) -> dict[str, Any]:
        """Send a request and return its answer.

        Raises:
            ZygoteGone: it is gone.
        """
        self._number += 1
        number = self._number
        message = memoryview(requests.pack(number, request))
        try:
            await trio.lowlevel.wait_writable(self._control)
            self.broken = True  # until all of it is out: half a request can't be taken back
            # The descriptors go with the first byte; the rest, if any, without them.
            sent = socket.send_fds(self._control, [message], list(descriptors))
            while sent < len(message):
                await trio.lowlevel.wait_writable(self._control)
                sent += self._control.send(message[sent:])
            self.broken = False
            while True:
                length = int.from_bytes(await self._exactly(4), "big")
                answer = json.loads(await self._exactly(4 + length, skip=4))
                del self._received[: 4 + length]
                if answer["id"] == number:
                    return answer
        except (OSError, EOFError, trio.ClosedResourceError) as error:
            self.broken = True
            raise ZygoteGone("the zygote ended while it was asked for something") from error

    async def _exactly(self, count: int, skip: int = 0) -> bytes:
        """Return so many bytes, kept until the whole answer is here: a cancellation loses none."""
        while len(self._received) < count:
            await trio.lowlevel.wait_readable(self._control)
            try:
                part = self._control.recv(65536)
            except BlockingIOError:
                continue
            if not part:
                raise EOFError
            self._received += part
        return bytes(self._received[skip:count])

    def close(self) -> None:
        """End the conversation, and with it the zygote."""
        self.broken = True
        if self._control.fileno() >= 0:
            trio.lowlevel.notify_closing(self._control)
            self._control.close()


class Zygote:
    """A zygote of this program; made by `open_zygote`. A dead one is replaced at the next fork."""

    def __init__(self, preload: Sequence[str]) -> None:
        self._preload = tuple(preload)
        self._link: ZygoteLink | None = None
        self._process: OwnProcess | None = None
        self._lock = trio.Lock()
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The process, while there is one."""
        return None if self._process is None else self._process.pid

    async def fork(self, request: requests.Fork, descriptors: Sequence[int]) -> int:
        """Ask for a process, which will be the zygote's child; return its pid.

        Cancelled, it may leave a process that nobody asked for any more: what it was given must
        make it end by itself.

        Raises:
            Unavailable: it can't be forked, or the zygote was closed.
        """
        try:
            with trio.fail_after(FORK_BOUND):
                async with self._lock:
                    return await (await self._ready()).fork(request, descriptors)
        except trio.TooSlowError:
            self._kill()
            raise Unavailable(f'"{request.name}" was not forked in {FORK_BOUND:.0f} s') from None

    async def _ready(self) -> ZygoteLink:
        if self._closed:
            raise Unavailable("the zygote was closed")
        link, process = self._link, self._process
        if link is not None and not link.broken and process is not None and not process.ended:
            return link
        await self._end(0)
        pid, control = start_zygote("container.ipc.spawning.zygote", output=2)
        self._process = OwnProcess(pid)
        self._link = link = ZygoteLink(control)
        modules = ("container.ipc.spawning.child", *self._preload)
        try:
            answer = await link.ask(requests.Preload(tuple(sys.path), modules))
        except BaseException:
            link.broken = True
            raise
        for name, problem in answer["failed"].items():
            if name in modules:
                link.broken = True
                raise InvalidArgument(f"the zygote can't preload {name}: {problem}")
        return link

    def _kill(self) -> None:
        if self._link is not None:
            self._link.close()
        if self._process is not None:
            self._process.kill()

    async def _end(self, patience: float) -> None:
        """End the process, if there is one, and wait for its end."""
        link, self._link = self._link, None
        process, self._process = self._process, None
        if link is not None:
            link.close()
        if process is not None:
            await process.end(patience)

    async def start(self) -> None:
        """Start the process and wait until all is loaded.

        Raises:
            Unavailable: it can't be started.
            InvalidArgument: a module can't be imported.
        """
        try:
            with trio.fail_after(FORK_BOUND):
                async with self._lock:
                    await self._ready()
        except trio.TooSlowError:
            raise Unavailable(f"the zygote did not start in {FORK_BOUND:.0f} s") from None

    async def close(self) -> None:
        """End it. What was forked from it goes on. Not ended early by a cancellation."""
        self._closed = True
        await self._end(LEAVE_BOUND)


@asynccontextmanager
async def open_zygote(preload: Sequence[str] = ()) -> AsyncGenerator[Zygote]:
    """Keep a process that has modules loaded, for `spawn(..., zygote=zygote)` to fork from.

    Children start in milliseconds and share its memory. Modules must be importable without side
    effects: no thread, no open descriptor, no event loop. It ends with the block, and with this
    program however that ends.

    Args:
        preload: Names of modules to import; the framework itself is.

    Raises:
        InvalidArgument: a module can't be imported.
        Unavailable: no process can be started.
    """
    zygote = Zygote(preload)
    try:
        await zygote.start()
        yield zygote
    finally:
        await zygote.close()
