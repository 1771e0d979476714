"""The writer of a connection: frames go out whole, in order, control frames first.

A frame is sent at once if nothing is queued before it, else it waits in a queue that one task
empties. The rules that keep it right: nothing here waits for the kernel but that task; a frame of
which no byte was sent can be withdrawn; one begun is finished by the connection, never by the task
that made it.
"""

from __future__ import annotations

import errno
import logging
from collections import deque
from collections.abc import Callable, Sequence

import trio
from attrs import define

from container.ipc.transport import Transport

logger = logging.getLogger("container.ipc")

TOO_MANY_DESCRIPTORS = (errno.ETOOMANYREFS, errno.EMFILE)
"""The kernel takes no more descriptors of this user now; nothing was written."""
BATCH_BYTES = 65536
"""So many bytes of small frames are sent at once without waiting for more."""


@define(slots=True, eq=False)
class Frame:
    """Bytes to be sent, whole and in order, with their descriptors at the first byte."""

    view: memoryview
    """What is still to be sent; empty once all of it has left."""
    descriptors: Sequence[int]
    begun: bool = False
    answer: bool = False
    """It ends a call of the peer's, which still counts against the peer until this has left."""
    counted: int = 0
    """Bytes of it that count against the peer, which asked for them, until it has left."""
    written: trio.Event | None = None
    """Set once the frame has left, or never will."""
    refused: Callable[[], None] | None = None
    """Called when the kernel takes no more descriptors and nothing was written."""


_NOTHING: deque[Frame] = deque()
"""The queue of a connection on which nothing has waited yet: a deque of its own takes 760 bytes."""


class Writer:
    """Send the frames of one connection.

    Args:
        transport: Where they go.
        lose: Called with the reason when the transport takes nothing any more.
        start: Called when there is something for `run` to do for the first time: most connections
            never wait to be written to, and have no task for it.
        answer_bytes: Answers that may wait here before the peer's connection ends.
    """

    def __init__(
        self,
        transport: Transport,
        lose: Callable[[str], None],
        start: Callable[[], None],
        answer_bytes: int,
    ) -> None:
        self._transport = transport
        self._lose = lose
        self._start = start
        self._started = False
        self._control: deque[Frame] = _NOTHING
        self._queue: deque[Frame] = _NOTHING
        self._wake = trio.Event()
        self._ended = False
        self._batch: list[bytes] = []
        self._batched = 0
        self.answers = 0
        """Terminal frames that wait here."""
        self._answer_bytes = answer_bytes
        self._counted = 0

    def __len__(self) -> int:
        return len(self._control) + len(self._queue)

    @property
    def started(self) -> bool:
        """True once there was something for `run` to do."""
        return self._started

    @property
    def control_frames(self) -> int:
        """Control frames that wait here."""
        return len(self._control)

    def send_control(self, data: bytes, *, answer: bool = False) -> None:
        """Send a frame before those that are not control frames. Never waits."""
        self.transmit(data, (), answer=answer, control=True)

    def batch(self, data: bytes) -> None:
        """Send a small frame with others of this step of the running task. Never waits."""
        if self._ended:
            return
        self._batch.append(data)
        self._batched += len(data)
        if self._batched >= BATCH_BYTES:
            self._flush()
        elif len(self._batch) == 1:
            self._rouse()

    def _flush(self) -> None:
        data = b"".join(self._batch)
        self._batch.clear()
        self._batched = 0
        self.transmit(data, ())

    def transmit(
        self,
        data: bytes | bytearray,
        descriptors: Sequence[int],
        *,
        answer: bool = False,
        control: bool = False,
    ) -> Frame | None:
        """Send a frame at once if nothing is queued, else queue it. Never waits.

        Returns:
            The frame if it, or a part of it, waits here. Nearly always the kernel takes all at
            once: then no frame is made. Nor is one after the end.

        Raises:
            OSError: the kernel takes no more descriptors of this user; nothing was written.
        """
        if self._ended:
            return None
        if self._batch:
            self._flush()
        taken = 0
        if not self._control and not self._queue:
            try:
                taken = self._transport.send(data, descriptors)
            except BlockingIOError:
                pass
            except OSError as error:
                if error.errno in TOO_MANY_DESCRIPTORS:
                    raise
                self._lose(f"closed: {error.strerror}")
                return None
            if taken == len(data):
                return None
        frame = Frame(memoryview(data)[taken:], descriptors, begun=taken > 0, answer=answer)
        if taken:
            frame.descriptors = ()
        if control:
            if self._control is _NOTHING:
                self._control = deque()
            self._control.append(frame)
        else:
            if self._queue is _NOTHING:
                self._queue = deque()
            self._queue.append(frame)
        if frame.answer:
            self.answers += 1
            self.count(frame)
        self._rouse()
        return None if self._ended else frame

    def count(self, frame: Frame) -> None:
        """Count a frame that waits against the peer; too many bytes end its connection.

        The peer asks for more than it reads, and these bytes would fill memory. It can't be told:
        it would have to read what waits first.
        """
        frame.counted = len(frame.view)
        waited, self._counted = self._counted, self._counted + frame.counted
        if waited and self._counted > self._answer_bytes:
            logger.warning("a peer lets more than %s bytes of answers wait", self._answer_bytes)
            self._lose(f"overloaded: more than {self._answer_bytes} bytes of answers wait")

    def _rouse(self) -> None:
        self._wake.set()
        if not self._started:
            self._started = True
            self._start()

    def withdraw(self, frame: Frame) -> bool:
        """Take back a frame; False if a byte of it was sent already."""
        if frame.begun or frame not in self._queue:
            return False
        self._queue.remove(frame)
        self._left(frame)
        return True

    def _left(self, frame: Frame) -> None:
        self._counted -= frame.counted
        if frame.answer:
            self.answers -= 1

    def end(self) -> None:
        """Drop what is queued and wake who waits for it; nothing is sent any more."""
        self._ended = True
        for frame in (*self._control, *self._queue):
            if frame.written is not None:
                frame.written.set()
        self._queue.clear()
        self._control.clear()
        self._batch.clear()
        self.answers = self._counted = 0

    async def drain(self) -> None:
        """Wait until all that is queued has left, or the connection has ended."""
        if self._batch:
            self._flush()
        while self._control or self._queue:
            frame = (self._queue or self._control)[-1]
            if frame.written is None:
                frame.written = trio.Event()
            await frame.written.wait()

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Empty the queues until the connection ends."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            if self._batch:
                self._flush()
            while self._control or self._queue:
                # A frame begun is finished first; then control frames, then the others.
                begun = bool(self._queue) and self._queue[0].begun
                queue = self._queue if begun or not self._control else self._control
                frame = queue[0]
                refused = False
                try:
                    self._push(frame)
                except BlockingIOError:
                    await self._transport.wait_writable()
                    continue
                except OSError as error:
                    if error.errno not in TOO_MANY_DESCRIPTORS or frame.begun:
                        self._lose(f"closed: {error.strerror}")
                        return
                    refused = True
                queue.popleft()
                self._left(frame)
                if refused:
                    if frame.refused is not None:
                        frame.refused()
                    if frame.written is not None:
                        frame.written.set()

    def _push(self, frame: Frame) -> None:
        while frame.view:
            taken = self._transport.send(frame.view, frame.descriptors)
            frame.begun = True
            frame.descriptors = ()
            frame.view = frame.view[taken:]
        if frame.written is not None:
            frame.written.set()
