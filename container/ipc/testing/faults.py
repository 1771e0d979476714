"""Faults of a transport, asked for by name: dropped, delayed, split, cut off, frozen.

```python
transport = FaultyTransport(memory_pair()[0], seed=7)
transport.faults.split(1, 64)
async with connect(transport, Greeter) as connection: ...
```

They happen at the end that is wrapped; wrap both for both. What is random is drawn from the seed,
so that a run can be repeated.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import trio

from container.ipc.transport import READ_BYTES, Received, Transport


class FaultyTransport(Transport):
    """One end of a connection where things go wrong, once `faults` is told so.

    Args:
        inner: What moves the bytes; this owns it.
        seed: Of the sizes that `faults.split` draws.
        pings: Whether the connection pings its peer; as over `inner` if left out. Over a memory
            pair there are no pings, since one loop has both ends: with a frozen end there is
            something to find out.
    """

    def __init__(self, inner: Transport, *, seed: int = 0, pings: bool | None = None) -> None:
        self._inner = inner
        self._ripe = False
        """`wait_readable` has waited for as long as a read is delayed."""
        self.pings = inner.pings if pings is None else pings
        self.connected_uid = inner.connected_uid
        self.faults = Faults(inner, random.Random(seed))
        """What goes wrong."""

    def send(self, data: bytes | bytearray | memoryview, descriptors: Sequence[int]) -> int:
        faults = self.faults
        if faults.closed:
            raise BrokenPipeError("the connection was cut")
        if faults.frozen:
            raise BlockingIOError
        if faults.dropping:
            return len(data)
        most = faults.piece(len(data))
        if faults.left is not None:
            most = min(most, faults.left)
        taken = self._inner.send(memoryview(data)[:most], descriptors)
        if faults.left is not None:
            faults.close(after=faults.left - taken)
        return taken

    def receive(self, room: int = READ_BYTES, /) -> Received:
        faults = self.faults
        if faults.closed:
            return Received(b"", [], None)
        if faults.frozen or (faults.delayed and not self._ripe):
            raise BlockingIOError
        self._ripe = False
        return self._inner.receive(faults.piece(room))

    async def wait_readable(self) -> None:
        await self.faults.thawed()
        if self.faults.closed:
            return
        try:
            await self._inner.wait_readable()
        except trio.ClosedResourceError:
            if not self.faults.closed:
                raise
        await self.faults.thawed()
        if self.faults.delayed:
            await trio.sleep(self.faults.delayed)
            self._ripe = True

    async def wait_writable(self) -> None:
        await self.faults.thawed()
        if self.faults.closed:
            return
        try:
            await self._inner.wait_writable()
        except trio.ClosedResourceError:
            if not self.faults.closed:
                raise

    def admit_descriptors(self) -> None:
        self._inner.admit_descriptors()

    def close(self) -> None:
        self._inner.close()


class Faults:
    """What goes wrong at one end of a connection; nothing does until it is asked for."""

    def __init__(self, transport: Transport, chance: random.Random) -> None:
        self._transport = transport
        self._chance = chance
        self._pieces: tuple[int, int] | None = None
        self._thawed: trio.Event | None = None
        self.dropping = False
        self.delayed = 0.0
        """Seconds."""
        self.left: int | None = None
        """Bytes that still leave before the connection is cut; None if it is not to be."""

    def split(self, smallest: int, largest: int | None = None) -> None:
        """Move no more than so many bytes at once, sent or received.

        Args:
            smallest: Bytes of a piece, at least 1.
            largest: Draw each piece's size between the two.
        """
        largest = smallest if largest is None else largest
        if not 1 <= smallest <= largest:
            raise ValueError(f"no piece has {smallest} to {largest} bytes")
        self._pieces = smallest, largest

    def drop(self) -> None:
        """Let what is sent from now on vanish: the peer hears nothing more, not even the end."""
        self.dropping = True

    def delay(self, seconds: float) -> None:
        """Let what comes be read only so long after it could have been; 0 ends that."""
        self.delayed = seconds

    def close(self, *, after: int = 0) -> None:
        """Cut the connection once so many more bytes have left; both ends then see its end."""
        self.left = after
        if after == 0:
            self._transport.close()

    def freeze(self) -> None:
        """Stop this end as SIGSTOP stops a process: it lives, and neither reads nor writes."""
        if self._thawed is None:
            self._thawed = trio.Event()

    def thaw(self) -> None:
        """Let a frozen end go on."""
        thawed, self._thawed = self._thawed, None
        if thawed is not None:
            thawed.set()

    @property
    def closed(self) -> bool:
        """The connection was cut."""
        return self.left == 0

    @property
    def frozen(self) -> bool:
        """This end is stopped."""
        return self._thawed is not None

    async def thawed(self) -> None:
        """Wait until this end is not frozen."""
        while self._thawed is not None:
            await self._thawed.wait()

    def piece(self, size: int) -> int:
        """Return how many of `size` bytes are moved at once."""
        return size if self._pieces is None else min(size, self._chance.randint(*self._pieces))
