"""The two ends of a TCP stream: one sends pieces of 1 MiB, the other takes them.

    python tcp_stream.py send ADDRESS PORT MIB | receive PORT

A program by itself, which imports nothing of ours: it starts in network namespaces, often.
"""

from __future__ import annotations

import socket
import sys
import time

PIECE = 1 << 20


def _send(address: str, port: int, mib: int) -> None:
    """Send, and print the seconds until the other side has taken all."""
    piece = bytes(PIECE)
    with socket.create_connection((address, port)) as stream:
        # Both have their buffers, and the path is known.
        stream.sendall(piece)
        stream.recv(1)
        began = time.perf_counter()
        for _ in range(mib):
            stream.sendall(piece)
        stream.shutdown(socket.SHUT_WR)
        stream.recv(1)
        print(time.perf_counter() - began)


def _receive(port: int) -> None:
    room = memoryview(bytearray(PIECE))
    with socket.create_server(("0.0.0.0", port)) as listener:
        print(flush=True)
        while True:
            stream, _ = listener.accept()
            with stream:
                first = 0
                while first < PIECE:
                    first += stream.recv_into(room)
                stream.sendall(b"1")
                while stream.recv_into(room):
                    pass
                stream.sendall(b"2")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["send", address, port, mib]:
            _send(address, int(port), int(mib))
        case ["receive", port]:
            _receive(int(port))
        case _:
            sys.exit(__doc__)
