"""What a zygote is asked for, and how: a length (u32), JSON, and descriptors with the first byte.

Each request has a number, and its answer has the same one: who gave up waiting leaves an answer
behind that the next one skips. JSON and not the framework's own frames, since a zygote must do
nothing that could start a thread or keep state that a child would inherit.
"""

from __future__ import annotations

import json
import socket
from typing import Any

from attrs import asdict, frozen

REQUEST_BOUND = 8 * 2**20
DESCRIPTOR_BOUND = 72
"""Of one request: standard ones, sockets, what a launcher keeps. The kernel takes 253."""


@frozen
class Fork:
    """Ask for a process.

    The descriptors are, in order: 0, 1, 2, the gate if there is one, and those from 3 on.
    """

    name: str
    """As ps(1) shows it; 15 bytes of it."""
    command: tuple[str, ...]
    """`sys.argv`; without an entry, what is exec'd."""
    environment: dict[str, str]
    entry: str | None = None
    """`package.module:function`, called in the forked process. None execs the command."""
    directory: str = "/"
    umask: int = 0o022
    gated: bool = False
    """The process ends, having done nothing, unless `g` can be read from its gate."""
    detached: bool = False
    """Forked twice: it is an orphan from the beginning, for the subreaper above the zygote."""
    pid_variable: str | None = None
    """An environment variable that is to have the process's own id."""


@frozen
class Preload:
    """Ask to import modules before anything is forked; answered when that is done."""

    path: tuple[str, ...]
    """`sys.path` from now on."""
    modules: tuple[str, ...]


def pack(number: int, request: Fork | Preload) -> bytes:
    """Return a request as bytes."""
    body = {"id": number, "do": type(request).__name__, **asdict(request)}
    return _frame(json.dumps(body).encode())


def answer(number: int, **values: object) -> bytes:
    """Return an answer as bytes."""
    return _frame(json.dumps({"id": number, **values}).encode())


def _frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def receive(control: socket.socket) -> tuple[int, Fork | Preload, list[int]]:
    """Read one request with its number and its descriptors; waits for it.

    Raises:
        EOFError: the other end is gone, or what it sent is no request.
    """
    try:
        header, descriptors, flags, _ = socket.recv_fds(
            control, 4, DESCRIPTOR_BOUND, socket.MSG_CMSG_CLOEXEC | socket.MSG_WAITALL
        )
    except OSError as error:
        raise EOFError from error
    length = int.from_bytes(header, "big")
    if len(header) != 4 or flags & socket.MSG_CTRUNC or length > REQUEST_BOUND:
        raise EOFError
    body = read_exactly(control, length)
    values: dict[str, Any] = json.loads(body)
    number, kind = values.pop("id"), values.pop("do")
    if kind == "Preload":
        return number, Preload(tuple(values["path"]), tuple(values["modules"])), descriptors
    values["command"] = tuple(values["command"])
    return number, Fork(**values), descriptors


def read_exactly(control: socket.socket, length: int) -> bytes:
    """Read so many bytes from a blocking socket.

    Raises:
        EOFError: it ended before.
    """
    body = bytearray()
    while len(body) < length:
        try:
            part = control.recv(length - len(body))
        except OSError as error:
            raise EOFError from error
        if not part:
            raise EOFError
        body += part
    return bytes(body)
