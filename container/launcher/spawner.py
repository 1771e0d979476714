"""The launcher's end of the zygote: keep one alive, ask it for processes.

The launcher itself never forks: it has threads and a Trio run. All processes but the zygote come
from the zygote, forked or exec'd, with the same descriptors in the same places.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from attrs import define, field, frozen

from container.contracts.launcher import ServiceUnit
from container.ipc import Unavailable
from container.launcher.children import Children, Process
from container.process import open_log

FORK_BOUND = 30.0
"""Seconds for one fork, the zygote's own start included."""
_ABOVE = 16

_log = logging.getLogger(__name__)


@frozen
class Surroundings:
    """What every process of this launcher gets."""

    environment: Mapping[str, str]
    logs: Path
    lifeline: socket.socket
    """Closed at its other end when the launcher dies."""
    owner: socket.socket | None = None
    """In a private system: closed at its other end when the owner dies."""
    preload: bool = True


def start_zygote(
    logs: Path, door: socket.socket | None, preload: bool, environment: Mapping[str, str]
) -> tuple[int, socket.socket]:
    """Start a zygote; return its pid and the control socket. It is this process's child.

    Raises:
        Unavailable: it can't be started.
    """
    ours, theirs = socket.socketpair()
    opened: list[int] = []
    try:
        # Duplicated above the numbers that they go to, so that none is overwritten before its turn.
        opened.append(fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, _ABOVE))
        opened.append(open_log(logs / "zygote.log"))
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, opened[1], 1),
            (os.POSIX_SPAWN_DUP2, opened[1], 2),
            (os.POSIX_SPAWN_DUP2, opened[0], 3),
        ]
        arguments = [sys.executable, "-P", "-m", "container.launcher.zygote"]
        if door is not None:
            opened.append(fcntl.fcntl(door, fcntl.F_DUPFD_CLOEXEC, _ABOVE))
            actions.append((os.POSIX_SPAWN_DUP2, opened[2], 4))
            arguments.append("--door")
        if not preload:
            arguments.append("--no-preload")
        pid = os.posix_spawn(sys.executable, arguments, environment, file_actions=actions)
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
    return pid, ours


@define(eq=False)
class Spawner:
    """Starts processes. Open it with `async with spawner.running():`."""

    children: Children
    surroundings: Surroundings
    door: socket.socket | None = None
    _process: Process | None = None
    _control: trio.SocketStream | None = None
    _raw: socket.socket | None = None
    _lock: trio.Lock = field(factory=trio.Lock)

    @property
    def zygote(self) -> int | None:
        """The zygote's pid, while it lives."""
        process = self._process
        return process.pid if process is not None and not process.ended else None

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Keep a zygote while the block lives; it ends with it."""
        async with self._lock:
            self._ensure()
        try:
            yield
        finally:
            self._drop(kill=False)
            process, self._process = self._process, None
            if process is not None:
                with trio.CancelScope(shield=True):
                    await process.end(2)
                process.close()

    async def keep(self) -> None:
        """Start a new zygote whenever one has ended, until cancelled."""
        delay = 0.1
        while True:
            async with self._lock:
                try:
                    self._ensure()
                except Unavailable as error:
                    _log.error("%s", error.message)
            process = self._process
            started = trio.current_time()
            if process is not None:
                status = await process.wait()
                _log.warning("the zygote ended with status %s", status)
            # Nothing to wait for: the delay keeps a zygote that can't start from using the
            # machine up.
            delay = 0.1 if trio.current_time() - started > 10 else min(delay * 2, 10)
            await trio.sleep(delay)

    async def spawn(self, unit: ServiceUnit, listener: socket.socket | None) -> Process:
        """Start a unit's process; return it registered, past its gate.

        Cancellation, and the zygote's death, leave no process behind.

        Raises:
            Unavailable: it can't be started.
        """
        log_name = unit.name.partition(".")[0]
        log = open_log(self.surroundings.logs / f"{log_name}.log")
        gate_out, gate_in = os.pipe2(os.O_CLOEXEC)
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        try:
            descriptors = [null, log, log, gate_out]
            if listener is not None:
                descriptors.append(listener.fileno())
            lifeline = self._lifeline(unit)
            if lifeline is not None:
                descriptors.append(lifeline.fileno())
            request = {
                "name": unit.name,
                "entry": unit.entry,
                "command": unit.command,
                "environment": {**self.surroundings.environment, **unit.environment},
                "listeners": 0 if listener is None else 1,
            }
            with trio.fail_after(FORK_BOUND):
                async with self._lock:
                    with self.children.forking():
                        process = self.children.add(await self._fork(request, descriptors))
            os.write(gate_in, b"g")
        except trio.TooSlowError:
            raise Unavailable(f'service "{unit.name}" was not forked in {FORK_BOUND} s') from None
        finally:
            for fd in (null, log, gate_out, gate_in):
                os.close(fd)
        return process

    def _lifeline(self, unit: ServiceUnit) -> socket.socket | None:
        if unit.outlives_launcher:
            return self.surroundings.owner
        return self.surroundings.lifeline

    async def _fork(self, request: Mapping[str, object], descriptors: Sequence[int]) -> int:
        self._ensure()
        assert self._control is not None
        assert self._raw is not None
        body = json.dumps(request).encode()
        message = memoryview(len(body).to_bytes(4, "big") + body)
        try:
            await trio.lowlevel.wait_writable(self._raw)
            # The descriptors go with the first byte; the rest, if any, without them.
            sent = socket.send_fds(self._raw, [message], descriptors)
            await self._control.send_all(message[sent:])
            header = await self._exactly(4)
            reply = json.loads(await self._exactly(int.from_bytes(header, "big")))
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, EOFError) as error:
            self._drop()
            raise Unavailable("the zygote ended while it forked a service") from error
        except BaseException:
            self._drop()  # the next reply would be taken for another's
            raise
        if "pid" not in reply:
            raise Unavailable(f'service "{request["name"]}" can\'t be started: {reply["error"]}')
        return int(reply["pid"])

    async def _exactly(self, count: int) -> bytes:
        assert self._control is not None
        data = b""
        while len(data) < count:
            part = await self._control.receive_some(count - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def _ensure(self) -> None:
        if self._process is not None and self._control is not None and not self._process.ended:
            return
        self._drop()
        if self._process is not None:
            self._process.close()
            self._process = None
        with self.children.forking():
            pid, control = start_zygote(
                self.surroundings.logs,
                self.door,
                self.surroundings.preload,
                self.surroundings.environment,
            )
            self._process = self.children.add(pid)
        control.setblocking(False)
        self._raw = control
        self._control = trio.SocketStream(trio.socket.from_stdlib_socket(control))

    def _drop(self, kill: bool = True) -> None:
        """Close the control socket, which ends the zygote; kill it if it might not listen."""
        control, self._control, self._raw = self._control, None, None
        if control is not None:
            control.socket.close()
            if kill and self._process is not None:
                with contextlib.suppress(OSError):
                    self._process.send(9)
