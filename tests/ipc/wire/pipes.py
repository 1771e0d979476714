"""A model of what the kernel does to frames on a Unix stream socket: glue, split, hand over early.

Descriptors come with the read that takes the first byte they were sent with. A read stops after
bytes that carried descriptors, not before them, so that it may begin with frames that had none.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass
class Pipe:
    """One direction of a stream socket."""

    buffers: deque[tuple[bytes, list[int]]] = field(default_factory=deque)

    def send(self, data: bytes, descriptors: list[int] | None = None) -> None:
        """Send what one `sendmsg` took whole."""
        self.buffers.append((data, list(descriptors or ())))

    def read(self, most: int) -> tuple[bytes, list[int]]:
        """Return what one `recvmsg` with room for `most` bytes gives."""
        taken = bytearray()
        while self.buffers and len(taken) < most:
            data, descriptors = self.buffers.popleft()
            part = data[: most - len(taken)]
            taken += part
            if len(part) < len(data):
                self.buffers.appendleft((data[len(part) :], []))
            if descriptors:
                return bytes(taken), descriptors
        return bytes(taken), []

    @property
    def in_flight(self) -> list[int]:
        """Descriptors that nobody has read yet."""
        return [number for _, descriptors in self.buffers for number in descriptors]
