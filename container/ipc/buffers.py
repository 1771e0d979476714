"""Memory that large frames are received into, used again and again.

Fresh memory of this size is mapped and unmapped by the allocator each time, and the page faults
cost more than the copying of what is received. So a few buffers are kept for the whole process. A
buffer is free when nobody holds a view of it: a frame's value that is still to be decoded does.
"""

from __future__ import annotations

import threading

BUFFER_BYTES = (1 << 20) + 65536
"""A frame with an item of 1 MiB fits."""
BUFFERS = 4


class Buffers:
    """At most `BUFFERS` buffers, made when they are first needed."""

    def __init__(self) -> None:
        self._buffers: list[bytearray] = []
        # Loops in several threads share what the process has.
        self._lock = threading.Lock()

    def take(self, size: int) -> memoryview | None:
        """Return `size` bytes to fill, in use while a view of them lives; None if there are none.

        Whoever gets None has the frame's parts joined instead.
        """
        if size > BUFFER_BYTES:
            return None
        with self._lock:
            for buffer in self._buffers:
                try:
                    buffer.append(0)  # refused while there is a view of it
                except BufferError:
                    continue
                buffer.pop()
                return memoryview(buffer)[:size]
            if len(self._buffers) < BUFFERS:
                self._buffers.append(bytearray(BUFFER_BYTES))
                return memoryview(self._buffers[-1])[:size]
        return None
