"""Start a launcher, if none is there: what the command line and embedding programs call.

However many start one at once, one starts it and the others wait for it: they meet at the lock
`starting.lock`. A start is over when the launcher says so on a pipe, or when the pipe ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys

import trio

from container.ipc import ErrorCode, InvalidState, Unavailable
from container.ipc.errors import ERROR_CLASSES
from container.launcher.rundir import make_root, prepare_run_directory, somebody_listens
from container.process import open_log
from container.storage.locks import lock
from container.storage.paths import Paths

STARTING_BOUND = 60.0
"""Seconds for a start, waiting for an earlier launcher's end included."""
LOG_LINES = 5
WORD_BOUND = 64 * 1024
_ABOVE = 16
_OTHERS = (
    "CONTAINER_LIFELINE_FD",
    "CONTAINER_OWNED",
    "CONTAINER_IDLE_SECONDS",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
)
"""Variables that were meant for the process that starts a launcher."""


async def ensure_running(paths: Paths) -> bool:
    """Make sure that a launcher runs for `paths`; return True if it was started by this call.

    Cancellation leaves no launcher that is half started.

    Raises:
        PermissionDenied: the run directory is not ours.
        Unavailable: it did not start; the message has the last line of its log.
    """
    await trio.lowlevel.checkpoint()
    prepare_run_directory(paths.run)
    if somebody_listens(paths.launcher_socket):
        return False
    try:
        with trio.fail_after(STARTING_BOUND):
            with await lock(paths.run / "starting.lock") as held:
                if somebody_listens(paths.launcher_socket):
                    return False
                await _start(paths, None)
                held.release(remove=True)
                return True
    except trio.TooSlowError:
        raise Unavailable(
            f"the launcher did not start within {STARTING_BOUND:.0f} s", hint=_look_at(paths)
        ) from None


async def start_private(paths: Paths) -> socket.socket:
    """Start a launcher that belongs to the caller, and return the caller's lifeline.

    When the lifeline is closed, by whatever end of the caller, the launcher stops its services and
    containers and ends. The run directory must have no launcher.

    Raises:
        InvalidState: a launcher works there already.
        PermissionDenied: the run directory is not ours.
        Unavailable: it did not start.
    """
    await trio.lowlevel.checkpoint()
    prepare_run_directory(paths.run)
    if somebody_listens(paths.launcher_socket):
        raise InvalidState(f"a launcher works in {paths.run} already")
    ours, theirs = socket.socketpair()
    try:
        with theirs, trio.fail_after(STARTING_BOUND):
            await _start(paths, theirs)
    except trio.TooSlowError:
        ours.close()
        raise Unavailable(
            f"the launcher did not start within {STARTING_BOUND:.0f} s", hint=_look_at(paths)
        ) from None
    except BaseException:
        ours.close()
        raise
    return ours


async def wait_stopped(paths: Paths) -> None:
    """Return once no launcher process is left; the caller's scope bounds the wait."""
    if not paths.run.is_dir():
        await trio.lowlevel.checkpoint()
        return
    held = await lock(paths.run / "launcher.lock")
    held.release(remove=True)


async def _start(paths: Paths, owner: socket.socket | None) -> None:
    """Start the process and wait for its word; without a reader of its word it ends by itself."""
    make_root(paths.root)
    ready_out, ready_in = os.pipe2(os.O_CLOEXEC)
    async with trio.lowlevel.FdStream(ready_out) as pipe:
        try:
            middle = _spawn(paths, ready_in, owner)
        finally:
            os.close(ready_in)
        with contextlib.suppress(ChildProcessError):
            # It forks the launcher and ends: the launcher is no child of this program, which would
            # otherwise have to wait for it one day.
            await trio.to_thread.run_sync(os.waitpid, middle, 0)
        said = b""
        while len(said) < WORD_BOUND and (part := await pipe.receive_some(4096)):
            said += part
    try:
        word = json.loads(said)
    except ValueError:
        raise Unavailable(
            f"the launcher ended while it started: {_last_lines(paths)}", hint=_look_at(paths)
        ) from None
    if "ready" not in word:
        kind = ERROR_CLASSES.get(ErrorCode(word["code"]), Unavailable)
        raise kind(word["message"], hint=word["hint"])


def _spawn(paths: Paths, ready: int, owner: socket.socket | None) -> int:
    """Start the middle process, which forks the launcher into a session of its own."""
    opened: list[int] = []
    try:
        # Duplicated above the numbers that they go to, so that none is overwritten before its turn.
        opened.append(open_log(paths.logs / "launcher.log"))
        opened.append(fcntl.fcntl(ready, fcntl.F_DUPFD_CLOEXEC, _ABOVE))
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, opened[0], 1),
            (os.POSIX_SPAWN_DUP2, opened[0], 2),
            (os.POSIX_SPAWN_DUP2, opened[1], 3),
        ]
        arguments = [sys.executable, "-P", "-c", _MIDDLE, "--ready-fd", "3"]
        if owner is not None:
            opened.append(fcntl.fcntl(owner, fcntl.F_DUPFD_CLOEXEC, _ABOVE))
            actions.append((os.POSIX_SPAWN_DUP2, opened[2], 4))
            arguments += ["--owner-fd", "4"]
        environment = {**os.environ, **paths.environment(), "CONTAINER_LOG": "-"}
        for name in _OTHERS:
            environment.pop(name, None)
        return os.posix_spawn(
            sys.executable,
            arguments,
            environment,
            file_actions=actions,
            setsigmask=(),
            setsigdef=[signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM],
        )
    except OSError as error:
        raise Unavailable(f"the launcher can't be started: {error.strerror}") from error
    finally:
        for fd in opened:
            os.close(fd)


_MIDDLE = (
    "import os, sys\n"
    "os.setsid(); os.chdir('/'); os.umask(0o022)\n"
    "os.fork() and os._exit(0)\n"
    "from container.launcher.process import main\n"
    "sys.exit(main())"
)


def _last_lines(paths: Paths) -> str:
    try:
        text = (paths.logs / "launcher.log").read_text(errors="replace")
    except OSError:
        return "it left no log"
    return " | ".join(text[-4096:].splitlines()[-LOG_LINES:]) or "its log is empty"


def _look_at(paths: Paths) -> str:
    return f"see {paths.logs / 'launcher.log'}"
