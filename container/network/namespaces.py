"""Network namespaces: make one, and do something inside of one.

A namespace is a thread's. What runs in another one runs in a thread of its own, which ends with it:
a thread of a pool that did not come back would take the next one's work into the wrong place. A
socket stays in the namespace in which it was made, whatever thread uses it.

Source: network_namespaces(7), setns(2), unshare(2).
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import TypeVar

import outcome

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def enter(namespace: int) -> None:
    """Move this thread into a network namespace.

    Raises:
        OSError: it is none, or it is not permitted.
    """
    if _libc.setns(namespace, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def current() -> int:
    """Return a new descriptor of this thread's network namespace."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def identity(namespace: int) -> str:
    """Return what a namespace is told apart by while it lives."""
    found = os.fstat(namespace)
    return f"{found.st_dev}:{found.st_ino}"


def new() -> int:
    """Make a network namespace and return the descriptor that keeps it; nothing is up in it.

    Raises:
        OSError: it is not permitted, or there are too many.
    """

    def make() -> int:
        if _libc.unshare(CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return current()

    return in_thread(make)


def inside(namespace: int, function: Callable[[], T]) -> T:
    """Call a function in a network namespace; what it returns or raises comes back. Blocking."""

    def work() -> T:
        enter(namespace)
        return function()

    return in_thread(work)


def in_thread(function: Callable[[], T]) -> T:
    """Call a function in a thread of its own, and wait for it."""
    results: list[outcome.Outcome[T]] = []
    thread = threading.Thread(target=lambda: results.append(outcome.capture(function)))
    thread.start()
    thread.join()
    return results[0].unwrap()
