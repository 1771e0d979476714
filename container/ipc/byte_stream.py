"""Streams of bytes as passed sockets: nothing is framed, copied or counted on the way.

```python
stream, theirs = byte_stream()
await service.upload(theirs)            # a plain `Annotated[Fd, FdKind.SOCKET]` of the contract
await stream.send_all(data)
```

The other side has `stream_of(fd)`. Both ends are Trio's own `SocketStream`: backpressure is the
kernel's, `send_eof` closes one direction.
"""

from __future__ import annotations

import socket

import trio

from container.ipc.descriptor import Fd, FdKind
from container.ipc.transport import no_descriptor


def byte_stream() -> tuple[trio.SocketStream, Fd]:
    """Return one end of a fresh pair as a stream, and the other to send: given, closed once sent.

    The stream is the caller's to close. Who never sends the other end closes that.

    Raises:
        Overloaded: there is no descriptor.
    """
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise no_descriptor(error) from error
    return trio.SocketStream(trio.socket.from_stdlib_socket(ours)), Fd.give(theirs.detach())


def stream_of(fd: Fd) -> trio.SocketStream:
    """Return the stream that a received socket is; takes the descriptor.

    Raises:
        ValueError: it is no stream socket, or was closed or taken. It stays its owner's.
    """
    if not FdKind.SOCKET.fits(fd.fileno()):
        raise ValueError(f"{fd!r} is no socket")
    with socket.socket(fileno=fd.duplicate().take()) as probe:
        if probe.type != socket.SOCK_STREAM:
            raise ValueError(f"{fd!r} is no stream socket")
    return trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=fd.take())))
