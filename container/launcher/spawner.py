"""The launcher's end of the zygote: keep one alive, ask it for processes.

The launcher itself never forks: it has threads and a Trio run. All processes but the zygote come
from the zygote, forked or exec'd, with the same descriptors in the same places.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import trio
from attrs import define, field, frozen

from container.contracts.launcher import ServiceUnit
from container.ipc import Backoff, Supervised, Unavailable
from container.ipc.spawning.asking import FORK_BOUND, ZygoteLink, start_zygote
from container.ipc.spawning.requests import Fork
from container.launcher.children import Children, Process
from container.launcher.descriptors import DescriptorStore
from container.launcher.limits import limit, limit_open_files
from container.launcher.logfiles import Logs


@frozen
class Surroundings:
    """What every process of this launcher gets."""

    environment: Mapping[str, str]
    logs: Logs
    lifeline: socket.socket
    """Closed at its other end when the launcher dies."""
    owner: socket.socket | None = None
    """In a private system: closed at its other end when the owner dies."""
    preload: bool = True
    open_files: int = 1024
    """RLIMIT_NOFILE of a service whose unit does not say."""


@define(eq=False)
class Spawner:
    """Starts processes. Open it with `async with spawner.running():`."""

    children: Children
    surroundings: Surroundings
    descriptors: DescriptorStore
    door: socket.socket | None = None
    _process: Process | None = None
    _link: ZygoteLink | None = None
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
        # Never given up: each start of a service tries by itself too, and says why it can't be.
        zygote = Supervised[None](
            self._live, name="zygote", backoff=Backoff(0.2, calm=10.0), intensity=None
        )
        await zygote.run()

    async def _live(self) -> None:
        async with self._lock:
            self._ensure()
        assert self._process is not None
        status = await self._process.wait()
        raise Unavailable(f"it ended with status {status}")

    async def spawn(self, unit: ServiceUnit, listener: socket.socket | None) -> Process:
        """Start a unit's process; return it registered, past its gate.

        Cancellation, and the zygote's death, leave no process behind.

        Raises:
            Unavailable: it can't be started.
        """
        log = self.surroundings.logs.open(unit.name)
        gate_out, gate_in = os.pipe2(os.O_CLOEXEC)
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with self.descriptors.lent(unit.name) as kept:
                given = [] if listener is None else [(unit.name, listener.fileno())]
                given += kept.items()
                descriptors = [null, log, log, gate_out, *(fd for _, fd in given)]
                environment = self._environment(unit)
                if given:
                    environment["LISTEN_FDS"] = str(len(given))
                    environment["LISTEN_FDNAMES"] = ":".join(name for name, _ in given)
                lifeline = self._lifeline(unit)
                if lifeline is not None:
                    environment["CONTAINER_LIFELINE_FD"] = str(3 + len(given))
                    descriptors.append(lifeline.fileno())
                request = Fork(
                    name=unit.name,
                    command=tuple(unit.command),
                    environment=environment,
                    entry=unit.entry if self.surroundings.preload else None,
                    gated=True,
                    detached=True,
                    pid_variable="LISTEN_PID" if given else None,
                )
                process = await self._fork(request, descriptors)
            limit(unit, process.pid, self.surroundings.open_files)
            os.write(gate_in, b"g")
        except trio.TooSlowError:
            self._drop()
            raise Unavailable(f'service "{unit.name}" was not forked in {FORK_BOUND} s') from None
        finally:
            for fd in (null, log, gate_out, gate_in):
                os.close(fd)
        return process

    def _environment(self, unit: ServiceUnit) -> dict[str, str]:
        environment = {**self.surroundings.environment, **unit.environment}
        if unit.watchdog is not None:
            environment["WATCHDOG_USEC"] = str(int(unit.watchdog * 1e6))
        if unit.idle_timeout is not None:
            environment["CONTAINER_IDLE_SECONDS"] = str(unit.idle_timeout)
        return environment

    async def _fork(self, request: Fork, descriptors: list[int]) -> Process:
        with trio.fail_after(FORK_BOUND):
            async with self._lock:
                with self.children.forking():
                    self._ensure()
                    assert self._link is not None
                    return self.children.add(await self._link.fork(request, descriptors))

    def _lifeline(self, unit: ServiceUnit) -> socket.socket | None:
        if unit.outlives_launcher:
            return self.surroundings.owner
        return self.surroundings.lifeline

    def _ensure(self) -> None:
        link = self._link
        if self._process is not None and not self._process.ended and link and not link.broken:
            return
        self._drop()
        if self._process is not None:
            self._process.close()
            self._process = None
        with self.children.forking():
            log = self.surroundings.logs.open("zygote")
            try:
                arguments = [] if self.door is None else ["--door"]
                if not self.surroundings.preload:
                    arguments.append("--no-preload")
                pid, control = start_zygote(
                    "container.launcher.zygote",
                    arguments,
                    output=log,
                    environment=self.surroundings.environment,
                    further=() if self.door is None else (self.door,),
                )
            finally:
                os.close(log)
            self._process = self.children.add(pid)
        with contextlib.suppress(OSError):  # its end is noticed elsewhere
            # Command lines are forked from it too, and are not to have the launcher's own.
            limit_open_files(pid, self.surroundings.open_files)
        self._link = ZygoteLink(control)

    def _drop(self, kill: bool = True) -> None:
        """End the conversation, which ends the zygote; kill it if it might not listen."""
        link, self._link = self._link, None
        if link is not None:
            link.close()
            if kill and self._process is not None:
                with contextlib.suppress(OSError):
                    self._process.send(signal.SIGKILL)
