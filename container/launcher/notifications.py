"""The socket on which services say how they are: systemd's protocol, on a socket of our own.

A datagram is lines of `NAME=value`, with descriptors; the kernel says whose it is. The socket has a
path in the run directory, which is the launcher's user's alone, so that a service that outlives
this launcher says to the next one that it lives.

Source: sd_notify(3), unix(7) SO_PASSCRED.
"""

from __future__ import annotations

import array
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path

import trio
from attrs import frozen

from container.ipc import ContainerError, Fd, Unavailable

SOCKET_NAME = "notify.sock"
MESSAGE_BOUND = 4096
"""Bytes of a datagram, as systemd takes them; a longer one counts for nothing."""
DESCRIPTORS_BOUND = 253
"""Source: SCM_MAX_FD of the kernel."""
_CREDENTIALS = struct.Struct("=iII")

_log = logging.getLogger(__name__)


@frozen
class Notification:
    """One datagram."""

    pid: int
    """Of its sender, by the kernel's word."""
    fields: dict[str, str]
    descriptors: list[Fd]
    """Closed when it was heard, if they were not taken."""


@contextlib.contextmanager
def notify_socket(path: Path) -> Generator[socket.socket]:
    """Hold the bound socket for the block, in the place of one that a dead launcher left.

    Raises:
        Unavailable: the kernel refused.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            path.unlink(missing_ok=True)
            sock.bind(str(path))
            path.chmod(0o600)
        except OSError as error:
            raise Unavailable(f"can't listen at {path}: {error.strerror}") from error
        try:
            yield sock
        finally:
            path.unlink(missing_ok=True)


async def listen(sock: socket.socket, hear: Callable[[Notification], Awaitable[None]]) -> None:
    """Hear each datagram, one after the other, until cancelled.

    A bad one is told in the log and changes nothing.
    """
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            notification = receive(sock)
        except BlockingIOError:
            continue
        except OSError as error:
            # Out of descriptors, say: the datagram is gone, its sender may try again.
            _log.warning("a notification can't be received: %s", error.strerror)
            continue
        if notification is None:
            continue
        try:
            await hear(notification)
        except ContainerError as error:
            _log.warning("process %s: %s", notification.pid, error.message)
        except Exception:
            _log.exception("a notification of process %s failed", notification.pid)
        finally:
            for fd in notification.descriptors:
                fd.close()


def receive(sock: socket.socket) -> Notification | None:
    """Read one datagram; None if it is none of this protocol."""
    room = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(4 * DESCRIPTORS_BOUND)
    data, ancillary, flags, _ = sock.recvmsg(MESSAGE_BOUND, room, socket.MSG_CMSG_CLOEXEC)
    pid, uid = 0, -1
    descriptors: list[int] = []
    for level, kind, raw in ancillary:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(raw[: len(raw) - len(raw) % numbers.itemsize])
            descriptors += numbers
        elif kind == socket.SCM_CREDENTIALS:
            pid, uid, _ = _CREDENTIALS.unpack(raw[: _CREDENTIALS.size])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or pid <= 0 or uid not in (0, os.geteuid()):
        _log.warning("a notification of process %s was too long, or of user %s", pid, uid)
        for fd in descriptors:
            os.close(fd)
        return None
    return Notification(pid, parse(data), [Fd(fd) for fd in descriptors])


def parse(data: bytes) -> dict[str, str]:
    """Return the fields of a datagram; of one that is there twice, the last."""
    fields: dict[str, str] = {}
    for line in data.decode(errors="replace").split("\n"):
        name, equals, value = line.partition("=")
        if equals and name:
            fields[name] = value
    return fields
