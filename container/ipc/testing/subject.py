"""What the promises are asked of: a contract with a route for each, and a service without state.

A handler is watched through a `witness`: the writing end of a pipe that it was given. What it
writes there is seen by the other end in whatever process, and that it let go of it too.

`python -m container.ipc.testing.subject SOCKET` serves it, for promises over real processes.
"""

from __future__ import annotations

import enum
import os
import sys
import uuid
from abc import abstractmethod
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime

import trio
from attrs import field, frozen
from trio.abc import ReceiveChannel, SendChannel

from container.ipc import issue
from container.ipc.actor import Actor
from container.ipc.channel import open_channel, relay
from container.ipc.context import current_call
from container.ipc.contract import Contract
from container.ipc.descriptor import Fd
from container.ipc.endpoint import Endpoint
from container.ipc.errors import (
    AlreadyExists,
    CallCancelled,
    DataLoss,
    DeadlineExceeded,
    HolderFailed,
    InvalidState,
    NotFound,
)
from container.ipc.scope import cleanup, stream
from container.ipc.server import open_service


class Task(enum.Enum):
    """What becomes of a handler, or of a scope's body, once it has begun."""

    RETURN = "return"
    WAIT = "wait for ever"
    CLEAN_UP = "wait for ever, and take a while to clean up"
    FINISH = "not be cancelled for a while, and return"
    FAIL_TO_CLEAN_UP = "wait for ever, and raise when cancelled"
    OVERSTAY = "not end for long when cancelled"
    NOT_FOUND = "raise an error of the contract"
    SAY_CANCELLED = "raise the error that says cancelled"
    SAY_DEADLINE = "raise the error that says deadline"
    BREAK = "raise what no contract has"
    GROUP = "raise two errors at once"
    CAUSE = "raise an error that has a cause"


class Hold(enum.Enum):
    """What becomes of a scope."""

    PLAIN = "nothing"
    OPEN_SLOWLY = "it takes long to open"
    REFUSE = "it does not open"
    SWALLOW = "its body swallows its holder's failure"
    BREAK_CLEAN_UP = "its clean-up fails"
    REVOKE = "it fails when told to, by its holder's end of a pipe"
    END = "it ends when told to, without an error"


@frozen
class Everything:
    """A value of every type that travels."""

    whole: int
    large: int
    real: float
    text: str
    data: bytes
    truth: bool
    moment: datetime
    identity: uuid.UUID
    color: Hold
    nothing: None = None
    maybe: int | None = None
    row: tuple[int, ...] = ()
    table: dict[str, tuple[str, ...]] = field(factory=dict[str, tuple[str, ...]])

    @classmethod
    def example(cls) -> Everything:
        """Return one with the edges of each type."""
        return cls(
            whole=-(2**63),
            large=2**64 - 1,
            real=0.1,
            text="täxt \U0001f9ea",
            data=bytes(range(256)),
            truth=True,
            moment=datetime(1999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
            identity=uuid.UUID(int=2**128 - 1),
            color=Hold.SWALLOW,
            maybe=0,
            row=(0, 127, 128, 65536),
            table={"": (), "key": ("a", "b")},
        )


@frozen
class Streams:
    """Descriptors among other values."""

    input: Fd
    outputs: tuple[Fd, ...] = ()
    note: bytes = b""


@frozen
class Parcel:
    """An item that gives something away."""

    file: Fd | None = None
    words: ReceiveChannel[str] | None = None


class Subject(Contract, name="container-testing-subject"):
    """A route for each promise."""

    @abstractmethod
    async def add(self, one: int, two: int) -> int: ...

    @abstractmethod
    async def echo(self, value: Everything) -> Everything: ...

    @abstractmethod
    async def size(self, data: bytes) -> int: ...

    @abstractmethod
    async def bytes_of(self, size: int) -> bytes: ...

    @abstractmethod
    async def work(self, task: Task, witness: Fd) -> int: ...

    @abstractmethod
    async def time_left(self) -> float | None: ...

    @abstractmethod
    async def read(self, source: Fd) -> bytes: ...

    @abstractmethod
    async def swap(self, streams: Streams) -> Streams: ...

    @abstractmethod
    async def keep(self, release: Fd, witness: Fd) -> None: ...

    @abstractmethod
    async def open(self, given: bool, witness: Fd) -> Fd: ...

    @abstractmethod
    async def endpoint(self, routes: tuple[str, ...] | None = None) -> Endpoint[Subject]: ...

    @abstractmethod
    async def through(self, inner: Endpoint[Subject], task: Task, witness: Fd) -> int: ...

    @abstractmethod
    def hold(
        self, how: Hold, witness: Fd, told: Fd | None = None
    ) -> AbstractAsyncContextManager[int]: ...

    @abstractmethod
    def hold_through(
        self, inner: Endpoint[Subject], how: Hold, witness: Fd, told: Fd | None = None
    ) -> AbstractAsyncContextManager[int]: ...

    @abstractmethod
    def file(self, file: Fd) -> AbstractAsyncContextManager[Fd]: ...

    @abstractmethod
    async def count(self, items: int, to: SendChannel[int], witness: Fd) -> int: ...

    @abstractmethod
    async def total(self, numbers: ReceiveChannel[int]) -> int: ...

    @abstractmethod
    def ticks(
        self, count: int, witness: Fd, fails: bool = False
    ) -> AbstractAsyncContextManager[ReceiveChannel[int]]: ...

    @abstractmethod
    def words(
        self, words: ReceiveChannel[str]
    ) -> AbstractAsyncContextManager[ReceiveChannel[str]]: ...

    @abstractmethod
    def blobs(
        self, size: int, count: int, witness: Fd
    ) -> AbstractAsyncContextManager[ReceiveChannel[bytes]]: ...

    @abstractmethod
    def parcels(
        self, file: Fd, count: int
    ) -> AbstractAsyncContextManager[ReceiveChannel[Parcel]]: ...


def tell(witness: Fd, what: str) -> None:
    """Write a line to a witness; one that nobody reads any more hears nothing."""
    with suppress(BrokenPipeError):
        os.write(witness.fileno(), f"{what}\n".encode())


WHILE = 0.02
"""Seconds that a slow clean-up takes."""
LONG = 60.0


class SubjectService(Actor, Subject):
    """Does what it is told; remembers nothing between calls."""

    async def add(self, one: int, two: int) -> int:
        return one + two

    async def echo(self, value: Everything) -> Everything:
        return value

    async def size(self, data: bytes) -> int:
        return len(data)

    async def bytes_of(self, size: int) -> bytes:
        return b"x" * size

    async def work(self, task: Task, witness: Fd) -> int:
        tell(witness, "begun")
        match task:
            case Task.RETURN:
                return 42
            case Task.WAIT:
                try:
                    await trio.sleep_forever()
                finally:
                    tell(witness, "ended")
            case Task.CLEAN_UP:
                try:
                    await trio.sleep_forever()
                finally:
                    with trio.CancelScope(shield=True):
                        await trio.sleep(WHILE)
                    tell(witness, "ended")
            case Task.FINISH:
                with trio.CancelScope(shield=True):
                    await trio.sleep(WHILE * 2)
                tell(witness, "ended")
                return 42
            case Task.FAIL_TO_CLEAN_UP:
                try:
                    await trio.sleep_forever()
                finally:
                    raise InvalidState("the mount is busy", hint="stop what uses it")
            case Task.OVERSTAY:
                with trio.CancelScope(shield=True):
                    await trio.sleep(WHILE * 6)
                tell(witness, "ended")
            case Task.NOT_FOUND:
                raise NotFound("no 'alpin'", hint="did you mean 'alpine'?", details={"n": 1})
            case Task.SAY_CANCELLED:
                raise CallCancelled("somebody else cancelled the pull")
            case Task.SAY_DEADLINE:
                raise DeadlineExceeded("the registry took too long")
            case Task.BREAK:
                raise ZeroDivisionError("secret")
            case Task.GROUP:
                raise ExceptionGroup("two", [NotFound("a"), DataLoss("b")])
            case Task.CAUSE:
                raise NotFound("no image") from DataLoss("the index is torn")
        return 0

    async def time_left(self) -> float | None:
        left = current_call().deadline - trio.current_time()
        return None if left == float("inf") else left

    async def read(self, source: Fd) -> bytes:
        await trio.lowlevel.wait_readable(source.fileno())
        return os.read(source.fileno(), 100)

    async def swap(self, streams: Streams) -> Streams:
        outputs = tuple(fd.duplicate() for fd in reversed(streams.outputs))
        return Streams(Fd(streams.input.take()), outputs, streams.note)

    async def keep(self, release: Fd, witness: Fd) -> None:
        self.nursery.start_soon(self._keep, Fd(release.take()), Fd(witness.take()))

    async def _keep(self, release: Fd, witness: Fd) -> None:
        with release, witness:
            tell(witness, "kept")
            await trio.lowlevel.wait_readable(release.fileno())
            tell(witness, "released")

    async def open(self, given: bool, witness: Fd) -> Fd:
        tell(witness, "begun")
        await trio.lowlevel.checkpoint()
        fd = os.dup(witness.fileno())
        return Fd.give(fd) if given else Fd(fd)

    async def endpoint(self, routes: tuple[str, ...] | None = None) -> Endpoint[Subject]:
        endpoint, _ = issue(self.nursery, Subject, self, routes=routes)
        return endpoint

    async def through(self, inner: Endpoint[Subject], task: Task, witness: Fd) -> int:
        async with inner.connect() as subject:
            return await subject.work(task, witness)

    @asynccontextmanager
    async def hold(self, how: Hold, witness: Fd, told: Fd | None = None) -> AsyncGenerator[int]:
        tell(witness, "opening")
        if how is Hold.REFUSE:
            raise AlreadyExists("it is leased")
        if how is Hold.OPEN_SLOWLY:
            try:
                await trio.sleep(LONG)
            finally:
                tell(witness, "not opened")
        try:
            if told is None:
                yield 7
            else:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._end_when_told, nursery, how, told)
                    yield 7
                    nursery.cancel_scope.cancel()
            tell(witness, "left")
        except HolderFailed:
            # Its scope is not cancelled: what it awaits is not cut.
            await trio.sleep(WHILE)
            tell(witness, "failed")
            if how is not Hold.SWALLOW:
                raise
        except trio.Cancelled:
            tell(witness, "cancelled")
            raise
        finally:
            with cleanup():
                await trio.sleep(WHILE)
            tell(witness, "cleaned up")
            if how is Hold.BREAK_CLEAN_UP:
                raise DataLoss("the lease was torn")

    async def _end_when_told(self, nursery: trio.Nursery, how: Hold, told: Fd) -> None:
        await trio.lowlevel.wait_readable(told.fileno())
        if how is Hold.REVOKE:
            raise InvalidState("the lease was revoked")
        nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def hold_through(
        self, inner: Endpoint[Subject], how: Hold, witness: Fd, told: Fd | None = None
    ) -> AsyncGenerator[int]:
        async with inner.connect() as subject, subject.hold(how, witness, told) as value:
            yield value

    @asynccontextmanager
    async def file(self, file: Fd) -> AsyncGenerator[Fd]:
        yield file.duplicate()

    async def count(self, items: int, to: SendChannel[int], witness: Fd) -> int:
        try:
            for number in range(items):
                await to.send(number)
                tell(witness, f"sent {number}")
        except trio.BrokenResourceError:
            tell(witness, "broken")
            return -1
        if items == 13:
            raise DataLoss("unlucky")
        return items

    async def total(self, numbers: ReceiveChannel[int]) -> int:
        found = 0
        async for number in numbers:
            if number < 0:
                await numbers.aclose()
                return found
            found += number
        return found

    @stream(capacity=4)
    async def ticks(self, count: int, witness: Fd, fails: bool = False) -> AsyncGenerator[int]:
        try:
            for number in range(count):
                tell(witness, f"tick {number}")
                yield number
            if fails:
                raise DataLoss("unlucky")
        finally:
            tell(witness, "ended")

    @asynccontextmanager
    async def words(self, words: ReceiveChannel[str]) -> AsyncGenerator[ReceiveChannel[str]]:
        sending, receiving = open_channel(str, capacity=2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, words, sending)
            yield receiving
            nursery.cancel_scope.cancel()

    @stream(byte_capacity=1000)
    async def blobs(self, size: int, count: int, witness: Fd) -> AsyncGenerator[bytes]:
        for number in range(count):
            tell(witness, f"blob {number}")
            yield bytes([number % 256]) * size

    @stream(capacity=2)
    async def parcels(self, file: Fd, count: int) -> AsyncGenerator[Parcel]:
        for _ in range(count):
            yield Parcel(file=Fd.give(os.dup(file.fileno())))
        sending, receiving = open_channel(str)
        yield Parcel(words=receiving)
        with suppress(trio.BrokenResourceError):  # nobody received the parcel
            await sending.send("hello")
        await sending.aclose()


async def serve(path: str) -> None:
    """Serve at a path, and say so on stdout; end when stdin ends."""
    async with open_service(SubjectService(), at=path):
        sys.stdout.write("serving\n")
        sys.stdout.flush()
        await trio.lowlevel.wait_readable(0)


if __name__ == "__main__":
    trio.run(serve, sys.argv[1])
