"""The console script `container`: hand the command line to a warm process, or run it here.

Importing the framework costs more than most commands do. A running system has a process with all of
it imported, which forks a child for a command line of the same user and gives it this process's
arguments, environment, working directory and descriptors (`container.launcher.frontdoor`). This
process then waits, passes signals on, stops and continues with the child, and ends as the child
did. Whatever goes wrong before the child has begun: the command runs here, as if nothing had been
tried.

It imports nothing that costs: no `socket`, `signal` or `pathlib`, but C modules.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, NoReturn

# Numbers of Linux on all architectures but MIPS, HPPA and SPARC, where the front falls back.
SIGHUP, SIGINT, SIGQUIT, SIGKILL, SIGUSR1, SIGUSR2, SIGTERM = 1, 2, 3, 9, 10, 12, 15
SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGWINCH = 18, 19, 20, 21, 22, 28
FORWARDED = (SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGTERM, SIGWINCH, SIGCONT)
IGNORABLE = (*FORWARDED[:6], SIGTSTP, SIGTTIN, SIGTTOU)
LOST = 125
"""Exit status when the child's own can't be known any more."""
_SO_PEERCRED, _SCM_RIGHTS, _MSG_CMSG_CLOEXEC, _MSG_NOSIGNAL = 17, 1, 0x40000000, 0x4000


def script() -> NoReturn:
    """Be the console script (`bin/container`, which starts the interpreter without `site`)."""
    status = _hand_on()
    if status is not None:
        # All was written elsewhere: nobody waits for what an interpreter does at its end.
        os._exit(status)
    if sys.flags.no_site and "site" not in sys.modules:
        import site

        site.main()
    sys.exit(_run_here())


def main() -> int:
    """Run the command line and return its exit status."""
    status = _hand_on()
    return _run_here() if status is None else status


def _run_here() -> int:
    if sys.argv[1:] == ["--version"]:
        from container import __version__

        print(f"container {__version__}")
        return 0
    from container.cli.main import main as run

    return run()


def _hand_on() -> int | None:
    """Return how the command ended elsewhere; None if it is to be run here."""
    if sys.argv[1:] == ["--version"] or os.environ.get("CONTAINER_NO_FRONT"):
        return None
    try:
        return _ask()
    except KeyboardInterrupt:  # before our handlers were there
        return 128 + SIGINT


def door_path() -> str:
    """Return where the zygote of this user's system listens: `Paths.default().cli_socket`."""
    run = os.environ.get("CONTAINER_RUN")
    if not run:
        if os.geteuid() == 0:
            return "/run/container/cli.sock"
        runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/container-{os.geteuid()}"
        run = f"{runtime}/container"
    return os.path.abspath(f"{run}/cli.sock")


def _ask() -> int | None:
    """Have the command run by the zygote; None: nothing has been done, and it is ours to run."""
    if sys.stdin is None or sys.stdout is None or sys.stderr is None:
        return None  # one was closed: its number may be anything's by now
    path = door_path()
    try:
        found = os.lstat(path)
        if found.st_uid != os.geteuid() or found.st_mode & 0o170000 != 0o140000:
            return None
        if os.isatty(0) and os.tcgetpgrp(0) != os.getpgrp():
            return None  # in the background of a terminal, where reading it must stop us
    except OSError:
        return None

    try:
        import _signal  # pyright: ignore[reportMissingImports]
        import _socket
        import select
    except ImportError:
        return None
    from container.launcher import frontdoor

    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.settimeout(frontdoor.READY_BOUND)
        connection.connect(path)
        if _peer_uid(connection, _socket) != os.geteuid():
            return None
        pidfd = _hand_over(connection, _socket, _signal, frontdoor)
        if pidfd is None:
            return None
    except OSError:
        return None
    else:
        return _attend(connection, pidfd, _socket, _signal, select, frontdoor)
    finally:
        connection.close()


def _peer_uid(connection: Any, sockets: Any) -> int:
    raw = connection.getsockopt(sockets.SOL_SOCKET, _SO_PEERCRED, 12)
    return int.from_bytes(raw[4:8], sys.byteorder)


def _hand_over(connection: Any, sockets: Any, signals: Any, door: Any) -> int | None:
    """Send the command line; return the child's pidfd when it is ready to begin."""
    umask = os.umask(0)
    os.umask(umask)
    ignored = [number for number in IGNORABLE if signals.getsignal(number) == signals.SIG_IGN]
    arguments = [os.fsencode(argument) for argument in sys.argv]
    request = door.pack(arguments, dict(os.environb), umask, ignored)
    if len(request) > door.BOUND:
        return None
    connection.sendall(request, _MSG_NOSIGNAL)
    room = sockets.CMSG_SPACE(4)
    word, ancillary, _, _ = connection.recvmsg(1, room, _MSG_CMSG_CLOEXEC)
    if word != door.READY or len(ancillary) != 1 or len(ancillary[0][2]) != 4:
        return None
    return int.from_bytes(ancillary[0][2], sys.byteorder)


def _begin(connection: Any, sockets: Any, door: Any) -> int:
    """Give the child our descriptors, and with them the word to begin.

    Not with the request: what is in the queue of a process that is stuck stays open for as long.

    Returns:
        Our end of the line: while it is open, we are there.
    """
    theirs, ours = os.pipe()
    try:
        here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (0, 1, 2, here, theirs))
            ancillary = [(sockets.SOL_SOCKET, _SCM_RIGHTS, rights)]
            connection.sendmsg([door.GO], ancillary, _MSG_NOSIGNAL)
        finally:
            os.close(here)
    except OSError:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    return ours


def _attend(
    connection: Any, pidfd: int, sockets: Any, signals: Any, select: Any, door: Any
) -> int | None:
    """Let the child begin, and wait for its end."""

    def tell(number: int) -> None:
        try:
            signals.pidfd_send_signal(pidfd, number)
        except OSError:
            pass  # it has just ended

    def forward(number: int, _: FrameType | None) -> None:
        tell(number)

    def stop(number: int, _: FrameType | None) -> None:
        tell(SIGSTOP)
        signals.signal(number, signals.SIG_DFL)
        os.kill(os.getpid(), number)
        # Continued (or never stopped, where nobody could continue us).
        signals.signal(number, stop)
        tell(SIGCONT)

    # A signal that comes between Python's look for one and a system call that waits would be acted
    # on when the call returns, so never: each writes a byte here, and that is waited for too.
    woken, waker = os.pipe()
    for end in (woken, waker):
        os.set_blocking(end, False)
    signals.set_wakeup_fd(waker, warn_on_full_buffer=False)
    before: dict[int, object] = {}
    for number in (*FORWARDED, SIGTSTP):
        if signals.getsignal(number) != signals.SIG_IGN:
            before[number] = signals.signal(number, stop if number == SIGTSTP else forward)
    connection.settimeout(None)
    try:
        line = _begin(connection, sockets, door)
    except OSError:
        for number, handler in before.items():
            signals.signal(number, handler)
        signals.set_wakeup_fd(-1)
        os.close(woken)
        os.close(waker)
        return None
    word = b""
    try:
        poll = select.poll()
        for source in (connection.fileno(), woken):
            poll.register(source, select.POLLIN)
        while len(word) < 2:
            ready = [source for source, _ in poll.poll()]
            if woken in ready:
                os.read(woken, 4096)
            if connection.fileno() in ready:
                part = connection.recv(2 - len(word))
                if not part:
                    break
                word += part
    except OSError:
        pass
    finally:
        os.close(line)
    if len(word) != 2:
        sys.stderr.write("container: the command ended, but its exit status was lost\n")
        return LOST
    kind, value = word[:1], word[1]
    if kind == door.EXITED:
        return value
    try:
        signals.signal(value, signals.SIG_DFL)
    except OSError:
        pass  # SIGKILL, which has no other action
    os.kill(os.getpid(), value)
    return 128 + value  # a signal that does not end us


if __name__ == "__main__":
    sys.exit(main())
