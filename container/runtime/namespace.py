"""Network namespaces: made without a name, held by a descriptor, gone with the last who holds it.

A thread enters a namespace for ever: what is done inside one is done by a short-lived thread of its
own, since a worker of Trio's that can't come back would do others' work there. Nothing is mounted
and nothing is named, so a helper that is killed leaves no namespace behind but that in which its
container runs.

Source: network_namespaces(7), ioctl_nsfs(2), netdevice(7).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

from container.ipc import Fd, InvalidArgument, InvalidState, Unavailable, Unsupported
from container.runtime import kernel

T = TypeVar("T")

_NS_GET_NSTYPE = 0xB703
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_INTERFACE_FLAGS = "16sh22x"
"""`struct ifreq`, its flags."""


class NetworkNamespaces(ABC):
    """Makes and finds network namespaces. All methods block, for milliseconds."""

    @abstractmethod
    def make(self) -> Fd:
        """Return a new one, in which nothing is but loopback, which is up (`::1` too).

        Raises:
            Unsupported: we may not.
            Unavailable: the kernel has no room for one.
        """
        ...

    @abstractmethod
    def of(self, pid: int) -> Fd:
        """Return the one that a process is in.

        Raises:
            InvalidState: the process has ended.
        """
        ...

    def path(self, namespace: Fd) -> str:
        """Return where other processes find it as long as this descriptor is open."""
        return f"/proc/{os.getpid()}/fd/{namespace.fileno()}"

    @abstractmethod
    def check(self, namespace: Fd) -> None:
        """Refuse a descriptor of anything else.

        Raises:
            InvalidArgument: it is of no network namespace.
        """
        ...

    @abstractmethod
    def has_processes(self, namespace: Fd) -> bool:
        """Return whether any process that we can see is in it."""
        ...


class KernelNamespaces(NetworkNamespaces):
    """The real ones."""

    def make(self) -> Fd:
        try:
            return Fd(in_thread(_make))
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES):
                raise Unsupported(
                    "a network namespace can't be made without being root",
                    hint="run it as root; containers of other users are not supported yet",
                ) from error
            raise Unavailable(f"no network namespace can be made: {error.strerror}") from error

    def of(self, pid: int) -> Fd:
        try:
            return Fd(_open(f"/proc/{pid}/ns/net"))
        except OSError:
            raise InvalidState("the container has ended") from None

    def check(self, namespace: Fd) -> None:
        try:
            kind = fcntl.ioctl(namespace.fileno(), _NS_GET_NSTYPE)
        except OSError:
            kind = 0
        if kind != kernel.CLONE_NEWNET:
            raise InvalidArgument("the descriptor is of no network namespace")

    def has_processes(self, namespace: Fd) -> bool:
        mine = os.fstat(namespace.fileno()).st_ino
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.stat(f"/proc/{entry}/ns/net").st_ino == mine:
                    return True
            except OSError:
                pass  # it ended meanwhile, or is not ours to look at
        return False


def _make() -> int:
    kernel.unshare(kernel.CLONE_NEWNET)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        answer = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack(_INTERFACE_FLAGS, b"lo", 0))
        flags = struct.unpack(_INTERFACE_FLAGS, answer)[1] | _IFF_UP
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack(_INTERFACE_FLAGS, b"lo", flags))
    return _open("/proc/thread-self/ns/net")


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def in_thread(work: Callable[[], T]) -> T:
    """Do some work in a thread that ends with it, and return what it returns. Blocking.

    Raises:
        OSError: what the work raised.
    """
    done: list[T] = []
    failures: list[OSError] = []

    def inside() -> None:
        try:
            done.append(work())
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=inside, name="inside", daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return done[0]
