"""The child of the zygote that runs one command line for the fast front.

It is forked as soon as a connection is accepted and reads the request itself: bytes that are wrong,
slow or never come cost one child, which ends by an alarm, and never the zygote. The front is served
only if running its command here is what running it there would be: same user, groups, capabilities,
namespaces and root, same code. Otherwise the connection is closed, and the front does the work
itself.

What is taken over: arguments, environment, descriptors 0 to 2, working directory, umask, ignored
signals, resource limits, niceness. What is not: controlling terminal (job control and the
terminal's signals are the front's part), process group, cgroup.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import resource
import select
import signal
import socket
from collections.abc import Callable
from typing import NoReturn

from container.ipc.spawning import offspring
from container.launcher import frontdoor

ENTRY = "container.cli.main:main"
HANDSHAKE_BOUND = 5
"""Seconds to the front's `G`; then the alarm ends this child."""
_STATUS = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")
_INT = array.array("i").itemsize
_LIMITS = 16
"""Resource limits that Linux has."""
_NAMESPACES = ("mnt", "user", "pid", "net", "ipc", "uts", "cgroup")


class Refused(Exception):
    """This command line is for the front's own process."""


def answer(connection: socket.socket) -> NoReturn:
    """Serve one connection in this (forked) process to its end."""
    log = os.dup(2)  # of the zygote, while 2 is not the front's
    try:
        offspring.keep_only([connection.fileno(), log])
        offspring.reset_signals()
        signal.alarm(HANDSHAKE_BOUND)
        arguments, line = _admit(connection)
        os.close(log)
    except BaseException as error:
        offspring.reset_logging()
        os.write(log, f"zygote: a command line was left to its front: {error!r}\n".encode())
        os._exit(128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1)
    status = 1
    try:
        offspring.name_process("container")
        status = offspring.run_entry(ENTRY, arguments)
    finally:
        offspring.leave(status, _teller(connection, line))


def _teller(connection: socket.socket, line: int) -> Callable[[int], None]:
    def tell(status: int) -> None:
        with contextlib.suppress(OSError):
            # The front's end is no hangup any more.
            fcntl.fcntl(line, fcntl.F_SETFL, 0)
            connection.send(frontdoor.EXITED + bytes([status]), socket.MSG_NOSIGNAL)

    return tell


def _admit(connection: socket.socket) -> tuple[list[str], int]:
    """Return the front's arguments, and the line whose end is its end."""
    peer_pid, peer_uid, _ = _peer(connection)
    if peer_uid != os.geteuid():
        raise Refused("another user")
    key, umask, ignored, arguments, environment = frontdoor.unpack(_receive(connection))
    if key != frontdoor.key():
        raise Refused("another version")
    _same_standing(peer_pid)
    _take_limits(peer_pid)

    os.umask(umask & 0o777)
    os.setpgid(0, 0)
    offspring.reset_environment(environment)
    offspring.reset_signals(ignored)
    offspring.reset_random_states()
    offspring.reset_logging()

    me = os.pidfd_open(os.getpid())
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [me]))]
    connection.sendmsg([frontdoor.READY], rights, socket.MSG_NOSIGNAL)
    os.close(me)
    word, descriptors = _read_with_descriptors(connection, 1)
    if word != frontdoor.GO or len(descriptors) != 5:
        raise Refused("the front gave up")
    offspring.place({descriptors[0]: 0, descriptors[1]: 1, descriptors[2]: 2})
    os.fchdir(descriptors[3])
    line = descriptors.pop()
    for fd in descriptors:
        os.close(fd)
    offspring.reset_streams()
    signal.alarm(0)
    # The kernel signals this process when the front's end of the line closes, however the front
    # ended. Nothing else can happen on it; on the connection, bytes are signalled too.
    fcntl.fcntl(line, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(line, F_SETSIG, signal.SIGTERM if signal.SIGHUP in ignored else signal.SIGHUP)
    fcntl.fcntl(line, fcntl.F_SETFL, os.O_ASYNC)
    hangup = select.poll()
    hangup.register(line, 0)  # POLLHUP is always asked for
    if hangup.poll(0):
        raise Refused("the front is gone")
    return [os.fsdecode(argument) for argument in arguments], line


F_SETSIG = 10
"""Source: fcntl(2); Python has no name for it."""


def _peer(connection: socket.socket) -> tuple[int, int, int]:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, gid = array.array("i", raw)
    return pid, uid, gid


def _receive(connection: socket.socket) -> bytes:
    header, _ = _read_with_descriptors(connection, 8)
    if len(header) != 8 or header[:4] != frontdoor.MAGIC:
        raise Refused("no request")
    length = int.from_bytes(header[4:], "big")
    if length > frontdoor.BOUND:
        raise Refused("too long")
    body = bytearray()
    while len(body) < length:
        part = connection.recv(length - len(body))
        if not part:
            raise Refused("cut off")
        body += part
    return bytes(body)


def _read_with_descriptors(connection: socket.socket, count: int) -> tuple[bytes, list[int]]:
    # The listener asks for credentials, so that there is room for them beside the descriptors.
    room = socket.CMSG_SPACE(5 * _INT) + socket.CMSG_SPACE(3 * _INT)
    data, ancillary, flags, _ = connection.recvmsg(count, room, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(content[: len(content) - len(content) % _INT])
    if flags & socket.MSG_CTRUNC:
        raise Refused("too many descriptors")
    return data, list(descriptors)


def _same_standing(peer: int) -> None:
    """Refuse a front whose rights or view of the system are not this process's own.

    Same effective user is not enough: with dropped capabilities, in a mount namespace of its own or
    under another root, the command would do here what it could not do there.
    """
    if _standing(peer) != _standing(os.getpid()):
        raise Refused("another standing")


def _standing(pid: int) -> list[object]:
    seen: list[object] = []
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name == "Groups":
                seen.append(sorted(value.split()))
            elif name in _STATUS or name == "Seccomp":
                seen.append(value)
    seen.extend(os.readlink(f"/proc/{pid}/ns/{name}") for name in _NAMESPACES)
    root = os.stat(f"/proc/{pid}/root")
    return [*seen, root.st_dev, root.st_ino]


def _take_limits(peer: int) -> None:
    for number in range(_LIMITS):
        limits = resource.prlimit(peer, number)
        if limits != resource.getrlimit(number):
            try:
                resource.setrlimit(number, limits)
            except (OSError, ValueError) as error:  # a hard limit above ours
                raise Refused("other limits") from error
    niceness = os.getpriority(os.PRIO_PROCESS, peer)
    if niceness != os.getpriority(os.PRIO_PROCESS, 0):
        try:
            os.setpriority(os.PRIO_PROCESS, 0, niceness)
        except OSError as error:
            raise Refused("another niceness") from error
