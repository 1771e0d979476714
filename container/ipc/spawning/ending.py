"""How processes end: the bounds of a stop, the word for an end, the wait for one's own child."""

from __future__ import annotations

import contextlib
import os
import signal

import trio
from attrs import frozen

from container.ipc.errors import Unavailable

UNBORN_BOUND = 1.0
"""Seconds for a process to go that was asked for and is not wanted any more: it sees an end of
file. Longer, and the zygote that would make it is stopped."""
KILL_BOUND = 5.0
"""Seconds for killed processes to go: those in an uninterruptible system call may not."""


@frozen
class StopBounds:
    """How long each step of stopping a child may take, in seconds. Each begins when the one before
    it has not sufficed; the sum bounds the stop."""

    drain: float = 5.0
    """For calls that other tasks have in flight; not when the block failed or was cancelled."""
    cleanup: float = 5.0
    """For the service to clean up by itself: the tear-down of its `lifespan`. Then it is
    cancelled."""
    cancel: float = 2.0
    """From the cancellation of the service to its process's end. Then SIGTERM."""
    terminate: float = 2.0
    """From SIGTERM, to all processes of the tree, to SIGKILL."""


@frozen
class Ending:
    """How a process ended. Both are None if that is not known."""

    status: int | None = None
    signal: int | None = None
    survivors: int = 0
    """Descendants that could not be ended."""

    def __str__(self) -> str:
        if self.signal is not None:
            try:
                return f"died with signal {signal.Signals(self.signal).name}"
            except ValueError:
                return f"died with signal {self.signal}"
        if self.status is not None:
            return f"died with exit status {self.status}"
        return "died in an unknown way"


class ProcessExited(Unavailable):
    """The child process of a block ended by itself, or had to be killed.

    `status` is its exit status, `signal` the signal that ended it; both are None if that is not
    known.
    """

    def __init__(self, name: str, ending: Ending, *, hint: str | None = None) -> None:
        details = {"status": ending.status, "signal": ending.signal}
        super().__init__(f"{name} {ending}", hint=hint, details=details)
        self.ending = ending
        self.status = ending.status
        self.signal = ending.signal


class OwnProcess:
    """A child of this very process, to be waited for. Holds a pidfd until it was reaped."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError as error:  # no more descriptors: it can't be held, so it must not be
            self._pidfd = -1
            os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            raise Unavailable(f"a process can't be started: {error.strerror}") from error

    @property
    def ended(self) -> bool:
        """Whether it has ended; reaps it."""
        return self._pidfd < 0 or self._reap()

    def kill(self) -> None:
        """Send SIGKILL; a process that has ended is no error."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def end(self, patience: float) -> None:
        """Wait for its end, kill it after `patience` seconds, reap it. Shielded, and bounded."""
        with trio.CancelScope(shield=True):
            with trio.move_on_after(patience):
                await self._wait()
            if self._pidfd >= 0:
                self.kill()
                with trio.move_on_after(KILL_BOUND):
                    await self._wait()
            if self._pidfd >= 0:
                os.close(self._pidfd)
                self._pidfd = -1

    async def _wait(self) -> None:
        while not self.ended:
            await trio.lowlevel.wait_readable(self._pidfd)

    def _reap(self) -> bool:
        try:
            if os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG) is None:
                return False
        except ChildProcessError:
            pass  # somebody else here reaps all children
        os.close(self._pidfd)
        self._pidfd = -1
        return True
