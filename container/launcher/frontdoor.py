"""The protocol between the fast command line and the zygote that runs it.

Imported by the console script before anything else, so it imports nothing that costs. One
connection is one command:

| from | bytes | descriptors |
|---|---|---|
| front | magic, length (u32), body: fields joined by NUL | |
| child | `R`: ready, all was checked | a pidfd of itself |
| front | `G`: go; from here on the command has begun | 0, 1, 2, working directory, line |
| child | `X` and the exit status, or (the zygote) `S` and the signal that ended it | |

The body's fields: key, umask, ignored signals, number of arguments, arguments, environment. Until
`G` either side may close the connection, and the front runs the command in its own process
instead. The line is the reading end of a pipe of which only the front has the other end, and on
which nothing is ever written: its end, however the front ended, is a hangup to the child. The
connection could not tell that: the kernel may report the bytes of `G` after they were read.
"""

from __future__ import annotations

import os
import sys

MAGIC = b"CLI1"
BOUND = 2 * 2**20
"""Bytes of a body; a longer command line runs in its own process."""
READY_BOUND = 3.0
"""Seconds from the connection to `R`."""
READY, GO, EXITED, SIGNALED = b"R", b"G", b"X", b"S"


def key() -> bytes:
    """Return what must be equal at both ends: version, place and time of the code, interpreter."""
    import container

    place = os.path.realpath(container.__file__ or "")
    try:
        changed = os.stat(place).st_mtime_ns
    except OSError:
        changed = 0
    encoding = sys.getfilesystemencoding()
    parts = (container.__version__, place, changed, sys.hexversion, encoding)
    return "\n".join(map(str, parts)).encode("utf-8", "surrogateescape")


def pack(
    arguments: list[bytes], environment: dict[bytes, bytes], umask: int, ignored: list[int]
) -> bytes:
    """Return a request: header and body."""
    fields = [
        key(),
        b"%o" % umask,
        b",".join(b"%d" % number for number in ignored),
        b"%d" % len(arguments),
        *arguments,
        *(name + b"=" + value for name, value in environment.items()),
    ]
    body = b"\0".join(fields)
    return MAGIC + len(body).to_bytes(4, "big") + body


def unpack(body: bytes) -> tuple[bytes, int, list[int], list[bytes], dict[bytes, bytes]]:
    """Return key, umask, ignored signals, arguments and environment of a body.

    Raises:
        ValueError: it is no request.
    """
    fields = body.split(b"\0")
    if len(fields) < 4:
        raise ValueError("too few fields")
    count = int(fields[3])
    arguments = fields[4 : 4 + count]
    if count < 1 or len(arguments) != count:
        raise ValueError("too few arguments")
    environment: dict[bytes, bytes] = {}
    for field in fields[4 + count :]:
        name, equals, value = field.partition(b"=")
        if not equals or not name:
            raise ValueError("an environment variable without a name")
        environment[name] = value
    ignored = [int(number) for number in fields[2].split(b",") if number]
    return fields[0], int(fields[1], 8), ignored, arguments, environment
