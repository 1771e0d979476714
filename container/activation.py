"""The receiving side of `LISTEN_FDS`: what a process was handed at its start, by name.

A launcher, or systemd, passes the listening socket first, then what it kept for the service. Each
has a name in `LISTEN_FDNAMES`. What this is *not*: it decides nothing about what is received.

Source: sd_listen_fds(3).
"""

from __future__ import annotations

import os
import socket

from container.ipc.descriptor import Fd
from container.ipc.errors import InvalidArgument

FIRST_LISTEN_FD = 3
"""Where the first descriptor is (`SD_LISTEN_FDS_START`)."""
LISTEN_FDS_BOUND = 1024
UNNAMED = "unknown"
"""The name of a descriptor that has none."""


def handed_over() -> list[tuple[str, Fd]]:
    """Return the descriptors that the parent passed, with their names, and unset its variables.

    Without them, or with those of another process, the list is empty. They are made close-on-exec;
    the caller owns them.

    Raises:
        InvalidArgument: the variables are there, but what they name is not open.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_PIDFDID", None)
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if not pid or not count or pid != str(os.getpid()):
        return []
    if not count.isascii() or not count.isdigit() or int(count) > LISTEN_FDS_BOUND:
        raise InvalidArgument(f"LISTEN_FDS is {count!r}, not a small number")
    numbers = range(FIRST_LISTEN_FD, FIRST_LISTEN_FD + int(count))
    for fd in numbers:
        try:
            os.set_inheritable(fd, False)
        except OSError as error:
            raise InvalidArgument(f"descriptor {fd} from LISTEN_FDS: {error.strerror}") from error
    names += [UNNAMED] * len(numbers)
    return [(name or UNNAMED, Fd(fd)) for name, fd in zip(names, numbers, strict=False)]


def as_listener(given: Fd) -> socket.socket | None:
    """Return a listening socket, which owns the descriptor from now on; None if it is another."""
    try:
        sock = socket.socket(fileno=given.fileno())
    except OSError:
        return None
    try:
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError:
        listening = 0
    if not listening:
        sock.detach()
        return None
    given.take()
    return sock


def sort_out(handed: list[tuple[str, Fd]]) -> tuple[socket.socket | None, dict[str, Fd]]:
    """Return the listening socket, if the first is one, and the others by name.

    Of several with one name the last stays and the others are closed.
    """
    listener: socket.socket | None = None
    kept: dict[str, Fd] = {}
    for number, (name, given) in enumerate(handed):
        if number == 0 and (listener := as_listener(given)) is not None:
            continue
        if name in kept:
            kept[name].close()
        kept[name] = given
    return listener, kept
