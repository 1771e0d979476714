"""Bytes and descriptors of one connection's reads become whole frames.

Descriptors: the kernel glues frames together and hands descriptors over early, never late. So they
are matched by count, in order: at a frame's header all of its descriptors must be here, and those
that are here after the last header belong to that frame, or to one whose header is not whole yet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence

from attrs import define, field

from container.ipc.wire.channels import Channels
from container.ipc.wire.events import (
    CallDropped,
    CallReceived,
    Event,
    ItemDropped,
    ItemReceived,
    OpenedReceived,
    ReplyReceived,
)
from container.ipc.wire.frames import (
    FLAGS,
    FROM_CALLEE,
    HEADER,
    HEADER_BYTES,
    HELLO_BYTES,
    KINDS,
    MAGIC,
    WITH_DESCRIPTORS,
    Kind,
    ProtocolError,
)
from container.ipc.wire.limits import Limits
from container.ipc.wire.states import Budget, State

CARRIERS = (CallReceived, ReplyReceived, CallDropped, OpenedReceived, ItemReceived, ItemDropped)
"""The events that carry descriptors out."""
_ITEM = int(Kind.ITEM)
Payload = bytes | memoryview
SMALL = 4096
"""Smaller reads are put together at once."""
LARGE = 65536
"""Larger payloads are decoded where they are."""


@define(eq=False)
class Framing(ABC):
    """The frames of one end of a connection; what each means is its subclass's.

    Args:
        limits: What this side announces and holds the peer to.
        budget: Partly received bytes, shared with the process's other connections.
    """

    limits: Limits
    budget: Budget
    channels: Channels = field(init=False)
    state: State = State.OPENING
    descriptors_received: int = 0
    descriptors_delivered: int = 0
    _hello_sent: bool = False
    _parts: list[bytes | bytearray] = field(factory=list[bytes | bytearray])
    """What came of a frame that is not whole yet: joined once it is, since large ones take many."""
    _buffer: memoryview | None = None
    """Instead of parts: where a large frame is received to, as long as it is whole."""
    _parts_sender: Hashable = None
    _held: int = 0
    """Bytes in the parts."""
    _wanted: int = 0
    """Bytes that the frame has, or as far as is known, its header."""
    _expected: int | None = None
    """Descriptors of that frame; None while its header is not whole."""
    _accounted: int = 0
    _descriptors: list[int] = field(factory=list[int])
    """A list, since an empty deque takes 760 bytes of each connection."""

    def __attrs_post_init__(self) -> None:
        self.channels = Channels(self.limits.channels)

    @abstractmethod
    def _whole(self, data: bytes, sender: Hashable) -> list[Event]:
        """Take what nearly every read is; nothing of whatever is not just that."""

    @abstractmethod
    def _frame(
        self, kind: Kind, flags: int, number: int, payload: Payload, count: int, sender: Hashable
    ) -> Event | None:
        """Take one frame whose header was found legal."""

    def receive(
        self, data: bytes, descriptors: Sequence[int] = (), sender: Hashable = None
    ) -> list[Event]:
        """Take what one read gave; return what it means.

        Args:
            data: Bytes of one sender, not empty.
            descriptors: Received with them; owned here until an event carries them out.
            sender: Who sent the bytes, from the kernel.

        Raises:
            ProtocolError: the connection must end. Events of this read before the fault are lost
                with it, their descriptors stay here for `abandon()`.
        """
        if descriptors:
            self._descriptors.extend(descriptors)
            self.descriptors_received += len(descriptors)
        if self.state is State.CLOSED:
            return []
        if self._buffer is not None:
            return self._receive_buffered(data, sender)
        if not self._parts and not self._descriptors and self.state is State.OPEN:
            # Nearly every read gives one whole frame of a call without descriptors.
            whole = self._whole(data, sender)
            if whole:
                return whole
        if self._parts:
            if sender != self._parts_sender:
                raise self._fault("one frame came from two senders")
            self._keep(data)
            if self._held < self._wanted:
                self._check_left(self._held, self._expected)
                return []
            data = b"".join(self._parts)
            self._parts.clear()
        return self._take_frames(data, sender)

    @property
    def room(self) -> memoryview | None:
        """Where the rest of a large frame is to be received to, and nothing beyond it; None: as
        bytes, for `receive`."""
        return None if self._buffer is None else self._buffer[self._held :]

    def filled(
        self, count: int, descriptors: Sequence[int] = (), sender: Hashable = None
    ) -> list[Event]:
        """Take what one read gave into `room`; as `receive`.

        Args:
            count: Bytes of one sender, at least 1.
            descriptors: Received with them; owned here until an event carries them out.
            sender: Who sent the bytes, from the kernel.

        Raises:
            ProtocolError: the connection must end.
        """
        if descriptors:
            self._descriptors.extend(descriptors)
            self.descriptors_received += len(descriptors)
        buffer = self._buffer
        if self.state is State.CLOSED or buffer is None:
            return []
        if sender != self._parts_sender:
            raise self._fault("one frame came from two senders")
        self._held += count
        if self._held < self._wanted:
            self._check_left(self._held, self._expected)
            return []
        self._buffer = None
        return self._take_frames(buffer, sender)

    def _receive_buffered(self, data: bytes, sender: Hashable) -> list[Event]:
        # From a transport that can't receive into a buffer: it may have the next frame's beginning.
        room = self.room
        assert room is not None
        here = min(len(data), len(room))
        room[:here] = data[:here]
        events = self.filled(here, (), sender)
        if here < len(data):
            events += self.receive(data[here:], (), sender)
        return events

    def _take_frames(self, data: bytes | memoryview, sender: Hashable) -> list[Event]:
        events: list[Event] = []
        try:
            position = self._frames(data, sender, events)
        except BaseException:
            # Events that never leave give their descriptors back, so that `abandon` hands them out.
            for event in events:
                if isinstance(event, CARRIERS):
                    self.descriptors_delivered -= len(event.descriptors)
                    self._descriptors.extend(event.descriptors)
            raise
        self._held = 0
        if position < len(data):
            rest = data[position:] if position else data
            self._parts_sender = sender
            if self._wanted > LARGE and (buffer := self.budget.buffer(self._wanted)) is not None:
                self._held = len(rest)
                buffer[: self._held] = rest
                self._buffer = buffer
            else:
                self._keep(bytes(rest))
        return events

    @property
    def missing(self) -> int:
        """Bytes that are still to come of a frame of which a part has come."""
        return self._wanted - self._held if self._parts else 0

    def _keep(self, data: bytes) -> None:
        parts = self._parts
        self._held += len(data)
        if len(data) >= SMALL:
            parts.append(data)
        elif parts and type(parts[-1]) is bytearray:
            # A frame that comes a byte at a time must not cost an object a byte.
            parts[-1] += data
        else:
            parts.append(bytearray(data))

    def _frames(self, data: bytes | memoryview, sender: Hashable, events: list[Event]) -> int:
        """Take the whole frames of what is here; return where the rest begins."""
        position, total = 0, len(data)
        self._expected, self._wanted = None, HEADER_BYTES
        view = memoryview(data)
        items = self._hello_sent and self.state is not State.OPENING
        while total - position >= HEADER_BYTES:
            length, code, flags, count, number = HEADER.unpack_from(data, position)
            if code == _ITEM and items and not count and length <= LARGE and flags <= FROM_CALLEE:
                # Items come by the thousand: those that are all right take the short way.
                end = position + HEADER_BYTES + length
                if end <= total:
                    payload = data[position + HEADER_BYTES : end]
                    item = self.channels.plain_item(bool(flags), number, payload, sender)
                    if item is not None:
                        events.append(item)
                        position = end
                        continue
            kind = self._check(length, code, flags, count, number)
            end = position + HEADER_BYTES + length
            if end > total:
                self._expected, self._wanted = count, HEADER_BYTES + length
                break
            # A large payload is not copied: what is decoded from it keeps the whole of it alive.
            part = view[position + HEADER_BYTES : end]
            payload = part if length > LARGE else bytes(part)
            position = end
            event = self._frame(kind, flags, number, payload, count, sender)
            if event is not None:
                events.append(event)
            if self.state is State.CLOSED:
                return total
        self._check_left(total - position, self._expected)
        return position

    def _check_left(self, left: int, expected: int | None) -> None:
        if self._descriptors:
            admitted = self._hello_sent and self.state is not State.OPENING
            most = self.limits.frame_descriptors if left and admitted else 0
            if len(self._descriptors) > (most if expected is None else expected):
                raise self._fault("more descriptors came than the frames said")
        # Small rests are free, so that a few greedy connections can't end all the others.
        counted = max(0, left - self.limits.partial_free_bytes)
        if not self.budget.change(counted - self._accounted):
            raise self._fault("too many partly received bytes in this process")
        self._accounted = counted

    def _check(self, length: int, code: int, flags: int, count: int, number: int) -> Kind:
        # Called at every header, before memory for the payload is taken.
        kind = KINDS.get(code)
        if self.state is State.OPENING:
            if number != (MAGIC if kind is Kind.HELLO else 0) or kind not in (
                Kind.HELLO,
                Kind.ERROR,
            ):
                raise self._fault("this is not the protocol: the first frame is no hello")
            if length > HELLO_BYTES:
                raise self._fault(f"a hello of {length} bytes; {HELLO_BYTES} are allowed")
        elif kind is None:
            raise self._fault(f"unknown frame kind {code}")
        elif not self._hello_sent and kind is not Kind.HELLO:
            raise self._fault(f"a {kind.name.lower()} frame before our hello")
        elif kind is not Kind.HELLO and flags not in FLAGS[kind]:
            raise self._fault(f"a {kind.name.lower()} frame with flags {flags}")
        if length > self.limits.frame_bytes:
            raise self._fault(f"a frame of {length} bytes; {self.limits.frame_bytes} are allowed")
        if count:
            if count > self.limits.frame_descriptors:
                raise self._fault(
                    f"a frame with {count} descriptors; {self.limits.frame_descriptors} are allowed"
                )
            if kind is None or kind not in WITH_DESCRIPTORS:
                raise self._fault(f"frames of kind {code} carry no descriptors")
            if count > len(self._descriptors):
                raise self._fault("fewer descriptors came than the frame said")
        assert kind is not None
        return kind

    def _fault(self, message: str) -> ProtocolError:
        self.state = State.CLOSED
        return ProtocolError(message)

    def _take(self, count: int) -> list[int]:
        if not count:
            return []
        self.descriptors_delivered += count
        taken = self._descriptors[:count]
        del self._descriptors[:count]
        return taken
