"""Terminals: the socket on which an OCI runtime hands over a pty's master, and its size."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
import termios
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from attrs import frozen

from container.contracts.runtime import TerminalSize
from container.ipc import Unavailable

_HANDOVER_SECONDS = 10.0
CELLS_MAX = 0xFFFF


@frozen
class ConsoleSocket:
    """A listening socket in a bundle."""

    name: str
    """In the bundle, where the OCI runtime runs: a socket's path has at most 107 bytes."""
    listener: trio.socket.SocketType

    async def receive(self) -> int:
        """Return the descriptor of the pty's master; the caller closes it.

        Raises:
            Unavailable: none came within ten seconds of being asked for.
        """
        try:
            with trio.fail_after(_HANDOVER_SECONDS):
                connection, _ = await self.listener.accept()
                with connection:
                    return await _receive_descriptor(connection)
        except trio.TooSlowError:
            raise Unavailable("the OCI runtime handed over no terminal") from None


@asynccontextmanager
async def console_socket(bundle: Path, name: str) -> AsyncGenerator[ConsoleSocket]:
    """Listen for one terminal while the block lasts."""
    folder = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with listener:
            await listener.bind(f"/proc/self/fd/{folder}/{name}")
            listener.listen(1)
            yield ConsoleSocket(name, listener)
    finally:
        os.close(folder)
        (bundle / name).unlink(missing_ok=True)


async def _receive_descriptor(connection: trio.socket.SocketType) -> int:
    size = array.array("i").itemsize
    _, ancillary, _, _ = await connection.recvmsg(
        4096, socket.CMSG_SPACE(size), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS and len(data) >= size:
            return array.array("i", data[:size])[0]
    raise Unavailable("the OCI runtime handed over no terminal")


def set_size(terminal: int, size: TerminalSize) -> None:
    """Set a terminal's window size; its foreground processes get SIGWINCH."""
    rows = min(max(size.height, 0), CELLS_MAX)
    columns = min(max(size.width, 0), CELLS_MAX)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
