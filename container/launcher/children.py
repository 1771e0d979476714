"""The processes of a launcher: waited for by pidfd, and orphans that became its children.

The launcher is a subreaper: what its services leave behind becomes its child. There are thus two
kinds of children, and only one may be reaped on sight. A service is reaped by whoever waits for
its pidfd; an orphan by `sweep`, which keeps its exit status for a while. While a service is being
forked nobody knows its pid yet, so that sweeps wait until it has been registered.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import OrderedDict
from collections.abc import Generator

import trio
from attrs import define, field

from container.pidfd import wait_status, zombie_status

ORPHAN_BOUND = 1024
"""Exit statuses of orphans that are kept; the oldest is dropped."""

OTHERS_REAPER_BOUND = 3.0
"""Seconds that the parent of an adopted process has to reap it."""


@define(eq=False)
class Process:
    """A process that this launcher started or adopted, held by its pidfd."""

    pid: int
    _pidfd: int
    _children: Children
    status: int | None = None
    """Exit code, or 128+n for a signal, once it has ended; -1 if that can't be known."""

    @property
    def ended(self) -> bool:
        """Whether it was seen to have ended."""
        return self.status is not None

    async def wait(self) -> int:
        """Return the exit status once the process has ended. Several tasks may wait."""
        await trio.lowlevel.checkpoint()
        while self.status is None and self._pidfd >= 0:
            waiter = os.dup(self._pidfd)  # Trio lets one task wait for one descriptor
            try:
                await trio.lowlevel.wait_readable(waiter)
            finally:
                os.close(waiter)
            with trio.move_on_after(OTHERS_REAPER_BOUND):
                while self.status is None and self._unknown():  # noqa: ASYNC110
                    # Another's child that we may not trace: how it ended can be read when its
                    # parent has reaped it, and nothing but that can be waited on.
                    await trio.sleep(0.02)
            if self._unknown():
                self._ended_with(-1)
        return -1 if self.status is None else self.status

    def send(self, number: int) -> None:
        """Send a signal; a process that has ended is no error."""
        if self.status is None and self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def end(self, timeout: float, first: int = signal.SIGTERM) -> int:
        """End the process: SIGTERM, or another first signal, then SIGKILL after `timeout` seconds;
        return its status."""
        self.send(first)
        self.send(signal.SIGCONT)
        with trio.move_on_after(timeout):
            return await self.wait()
        self.send(signal.SIGKILL)
        return await self.wait()

    def close(self) -> None:
        """Let the process go, without waiting for it."""
        fd, self._pidfd = self._pidfd, -1
        if fd >= 0:
            self._children.forget(self)
            os.close(fd)

    def _unknown(self) -> bool:
        """Whether it is not known how this ended process ended; learn it if it can be."""
        if self.status is None and self._pidfd >= 0:
            status = _exit_status(self.pid, self._pidfd)
            if status is not None:
                self._ended_with(status)
        return self.status is None and self._pidfd >= 0

    def _ended_with(self, status: int) -> None:
        if self.status is None:
            self.status = status
            self._children.forget(self)
            self._children.sweep()


def _exit_status(pid: int, pidfd: int) -> int | None:
    """Return how an ended process ended; None if that is not known, or not yet."""
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        assert result is not None
        return _code(result)
    except ChildProcessError:
        pass
    # Adopted, so another's child. Its parent may take its time to reap it, and once it has, newer
    # kernels tell whoever held its pidfd in time.
    code = zombie_status(pid)
    if code is None:
        code = wait_status(pidfd)
    if code is None:
        return None
    return os.waitstatus_to_exitcode(code) if os.WIFEXITED(code) else 128 + os.WTERMSIG(code)


def _code(found: os.waitid_result) -> int:
    return found.si_status + (0 if found.si_code == os.CLD_EXITED else 128)


@define(eq=False)
class Children:
    """All children of this process. `run` must run while there are any."""

    _known: dict[int, Process] = field(factory=dict[int, Process])
    _forking: int = 0
    _orphans: OrderedDict[int, int] = field(factory=OrderedDict[int, int])

    async def run(self) -> None:
        """Reap orphans until cancelled."""
        with trio.open_signal_receiver(signal.SIGCHLD) as ended:
            self.sweep()
            async for _ in ended:
                self.sweep()

    @contextlib.contextmanager
    def forking(self) -> Generator[None]:
        """Hold sweeps back: a child may be there that is not registered yet."""
        self._forking += 1
        try:
            yield
        finally:
            self._forking -= 1
            self.sweep()

    def add(self, pid: int) -> Process:
        """Register a process; inside `forking` for a child, and for another's at any time.

        Raises:
            ProcessLookupError: there is no such process.
        """
        process = Process(pid, os.pidfd_open(pid), self)
        self._known[pid] = process
        return process

    def forget(self, process: Process) -> None:
        """Take a process for an orphan from now on."""
        if self._known.get(process.pid) is process:
            del self._known[process.pid]

    def orphan_status(self, pid: int) -> int | None:
        """Return how an orphan ended, once; None if that is not known."""
        self.sweep()
        if pid not in self._orphans and pid not in self._known and not self._forking:
            # It may have ended and wait behind a service that its own waiter has not reaped yet.
            with contextlib.suppress(ChildProcessError, OverflowError):
                found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
                if found is not None:
                    return _code(found)
        return self._orphans.pop(pid, None)

    def sweep(self) -> None:
        """Reap all orphans that have ended."""
        while not self._forking:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            if found.si_pid in self._known:
                # Its waiter reaps it and sweeps again: the next orphan is behind it in the queue.
                return
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, found.si_pid, os.WEXITED | os.WNOHANG)
            self._orphans[found.si_pid] = _code(found)
            while len(self._orphans) > ORPHAN_BOUND:
                self._orphans.popitem(last=False)
