"""Connect to a port inside a container's network namespace.

A socket belongs for ever to the namespace in which it was made. So only the making is done inside,
by a short-lived thread of its own (see `namespace.py`). The connecting is done outside, without
blocking.
"""

from __future__ import annotations

import os
import socket

import trio

from container.ipc import Fd, InvalidState, Unavailable
from container.runtime import kernel
from container.runtime.namespace import in_thread

CONNECT_SECONDS = 10.0
_LOOPBACKS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


async def connect_inside(pid: int, port: int) -> Fd:
    """Connect to a TCP port on the loopback addresses that process `pid` sees.

    Raises:
        Unavailable: nobody listens there.
        InvalidState: the process has ended.
    """
    sockets = await trio.to_thread.run_sync(_sockets_inside, pid)
    reasons: list[str] = []
    try:
        for (_, address), plain in zip(_LOOPBACKS, sockets, strict=True):
            if plain is None:
                continue
            connection = trio.socket.from_stdlib_socket(plain)
            try:
                with trio.fail_after(CONNECT_SECONDS):
                    await connection.connect((address, port))
            except (OSError, trio.TooSlowError) as error:
                reasons.append(getattr(error, "strerror", None) or "no answer")
                continue
            connection_fd = plain.detach()
            os.set_blocking(connection_fd, True)
            return Fd(connection_fd)
    finally:
        for plain in sockets:
            if plain is not None:
                plain.close()
    raise Unavailable(
        f"nobody listens on port {port} in the container",
        details={"reasons": list[object](reasons)},
    )


def _sockets_inside(pid: int) -> list[socket.socket | None]:
    try:
        namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise InvalidState("the container has ended") from None

    def inside() -> list[socket.socket | None]:
        kernel.enter_namespace(namespace, kernel.CLONE_NEWNET)
        return [_socket(family) for family, _ in _LOOPBACKS]

    try:
        return in_thread(inside)
    except OSError as error:
        raise Unavailable(f"the container's network can't be entered: {error.strerror}") from error
    finally:
        os.close(namespace)


def _socket(family: socket.AddressFamily) -> socket.socket | None:
    try:
        return socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        return None  # no IPv6 there
