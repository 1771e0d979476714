"""What the launcher keeps for services: descriptors by service and name.

As systemd's descriptor store, in the launcher's own memory: it ends with the launcher, and what
runs on sends it again to the next one. A descriptor is kept until it is dropped, replaced or its
service removed; one that has hung up too, since what was written before its end is still in it.

Who may keep for a service is no question of authority: all callers are of the launcher's own user,
and may kill the service besides. It protects against mistakes. The kernel says which process sent
the call; it must be the service's, or have it among its ancestors.

Source: sd_pid_notify_with_fds(3), systemd.service(5) FileDescriptorStoreMax=.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Callable, Generator

from attrs import define, field

from container.ipc import Fd, InvalidArgument, Overloaded
from container.ipc.spawning.requests import DESCRIPTOR_BOUND

OTHERS = 6
"""What a process is given beside what was kept: 0, 1, 2, gate, listening socket, lifeline."""
SERVICE_BOUND = min(64, DESCRIPTOR_BOUND - OTHERS)
"""Descriptors of one service."""
BOUND = 8192
"""Descriptors in all; never more than half of what this process may open."""
NAME_BOUND = 128
"""Characters: with the service's name before it, it is a name in systemd's store, of 255."""
ANCESTORS_BOUND = 64


def _bound() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return BOUND if soft == resource.RLIM_INFINITY else min(BOUND, soft // 2)


@define(eq=False)
class DescriptorStore:
    """Descriptors by service and name, in the order in which they came."""

    bound: int = field(factory=_bound)
    _kept: dict[str, dict[str, int]] = field(factory=dict[str, dict[str, int]])
    _count: int = 0

    def keep(self, service: str, name: str, given: Fd) -> None:
        """Take a descriptor; one of the same name is closed.

        Raises:
            InvalidArgument: the name can't be passed on.
            Overloaded: it would be too many; the store is as it was.
        """
        check_name(service, name)
        mine = self._kept.get(service, {})
        if name not in mine:
            if len(mine) >= SERVICE_BOUND:
                raise Overloaded(f'{SERVICE_BOUND} descriptors are kept for "{service}" already')
            if self._count >= self.bound:
                raise Overloaded(f"{self.bound} descriptors are kept already")
        self.drop(service, name)
        self._kept.setdefault(service, {})[name] = given.take()
        self._count += 1

    def drop(self, service: str, name: str | None = None) -> None:
        """Close one descriptor of a service, or all of them; those that are not there are none."""
        mine = self._kept.get(service, {})
        for each in tuple(mine) if name is None else (name,):
            fd = mine.pop(each, None)
            if fd is not None:
                self._count -= 1
                os.close(fd)
        if not mine:
            self._kept.pop(service, None)

    def names(self, service: str) -> tuple[str, ...]:
        """Return the names of what is kept for a service."""
        return tuple(self._kept.get(service, ()))

    @contextlib.contextmanager
    def lent(self, service: str) -> Generator[dict[str, int]]:
        """Lend duplicates for the block: what is dropped meanwhile is still there in it."""
        with contextlib.ExitStack() as stack:
            lent: dict[str, int] = {}
            for name, fd in self._kept.get(service, {}).items():
                lent[name] = os.dup(fd)
                stack.callback(os.close, lent[name])
            yield lent

    def close(self) -> None:
        """Close all."""
        for service in tuple(self._kept):
            self.drop(service)


def check_name(service: str, name: str) -> None:
    """Refuse a name that `LISTEN_FDNAMES` can't carry, or that is the listening socket's.

    Raises:
        InvalidArgument: the message says the rule.
    """
    if not (0 < len(name) <= NAME_BOUND and name.isascii() and name.isprintable()) or ":" in name:
        raise InvalidArgument(
            f"a descriptor can't be kept under the name {name!r}",
            hint=f"1 to {NAME_BOUND} printable ASCII characters, no colon",
        )
    if name == service:
        raise InvalidArgument(f'"{name}" is the name of the service\'s listening socket')


def listens(fd: int) -> bool:
    """Whether a descriptor is a listening socket."""
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False


def parent(pid: int) -> int:
    """Return the parent of a process; 0 if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return 0


def ancestry(pid: int, parent_of: Callable[[int], int] = parent) -> tuple[int, ...]:
    """Return a process and those above it, without the first process of the machine."""
    found: list[int] = []
    while pid > 1 and len(found) < ANCESTORS_BOUND:
        found.append(pid)
        pid = parent_of(pid)
    return tuple(found)
