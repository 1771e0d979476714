"""Scopes: a remote `async with`, seen from its holder; and what a body of one may use.

The holder's block and the callee's are one: the callee's clean-up has ended before the holder's
block has, whatever ended it; a failure of the callee reaches the holder's block as a nursery's
child's would; a crash on either side ends both.

    holder's block          sent to the callee          the callee's body
    ends                    close                       goes on after its `yield`
    raises                  close, failed, the grace    gets `HolderFailed` at its `yield`
    is cancelled            cancel, the grace           is cancelled
    is lost                 -                           is cancelled
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, overload

import outcome
import trio

from container.ipc import tracing
from container.ipc.channel import BYTE_CAPACITY, CAPACITY, ReceivingEnd, SendingEnd, open_channel
from container.ipc.context import grace_of_task
from container.ipc.errors import ScopeEnded
from container.ipc.wire.limits import Limits

if TYPE_CHECKING:
    from container.ipc.calling import Calls
    from container.ipc.codec import RouteCodec

T = TypeVar("T")
P = ParamSpec("P")


class RemoteScope(AbstractAsyncContextManager[Any]):
    """A scope that a peer serves. Made by a proxy's method; entered once.

    Entering waits until it is open, at most the caller's deadline. Leaving waits until the callee's
    clean-up has ended; no bound but the holder's own deadline.

    Raises, from `async with`:
        ContainerError: opening failed, the callee failed while the scope was held, or its clean-up
            did. Alone it is raised bare; with an exception of the block, in a group.
        ScopeEnded: the callee ended the scope while it was held.
        PeerGone: the connection ended first.
    """

    def __init__(
        self,
        calls: Calls,
        codec: RouteCodec,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._calls = calls
        self._codec = codec
        self._arguments = args, kwargs
        self._block = trio.CancelScope()
        self._ended: outcome.Outcome[Any] | None = None
        self._entered = False
        self.route = codec.path
        self.number = 0
        """Its id on the connection, once it is open."""
        self.trace: str | None = None
        """W3C trace context that travels with its opening."""
        self._span: tracing.Span | None = None

    async def __aenter__(self) -> Any:
        if self._entered:
            raise RuntimeError(f"{self.route}: a scope is entered once")
        self._entered = True
        self.trace = tracing.current()
        if tracing.sinks:
            self._span = tracing.begin("client", self.route, self.trace)
            self.trace = self._span.traceparent
        try:
            value = await self._calls.open_scope(self, self._codec, *self._arguments)
        except BaseException as error:
            self._finish(error)
            raise
        # No checkpoint since it opened: the callee's end, however early, finds the block.
        self._block.__enter__()
        if self._ended is not None:
            self._block.cancel()
        return value

    def belongs_to(self, calls: Calls) -> None:
        """It is opened, held and left on this connection."""
        self._calls = calls

    def ended(self, result: outcome.Outcome[Any]) -> None:
        """The callee's side has ended, or the connection has, before the holder left."""
        self._ended = result
        self._block.cancel()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        left = self._leave_block(kind, error, traceback)
        cancelled = left is not None and _is_interruption(left)
        failure: BaseException | None = None
        try:
            if self._ended is None:
                if left is None:
                    await self._calls.close_scope(self)
                elif cancelled:
                    await self._calls.cancel_scope(self)
                else:
                    await self._calls.close_scope(self, failed=True)
            else:
                self._ended.unwrap()
                if not cancelled:
                    raise ScopeEnded(
                        f"{self.route}: {self._calls.peer_process or 'the peer'} "
                        "ended the scope while it was held"
                    )
        except BaseException as raised:
            failure = raised
        self._finish(failure or left)
        if failure is None:
            if left is None:
                return True
            if left is error:
                return False
            raise left
        if left is None:
            raise failure
        message = f"{self.route}: the block and the scope failed"
        raise BaseExceptionGroup(message, [left, failure])

    def _finish(self, error: BaseException | None) -> None:
        if self._span is not None:
            tracing.finish(self._span, error)

    def _leave_block(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> BaseException | None:
        """Leave the block's scope; return what the block raised, but our own cancellation."""
        try:
            absorbed = self._block.__exit__(kind, error, traceback)
        except BaseException as rest:
            return rest
        return None if absorbed else error


def _is_interruption(error: BaseException) -> bool:
    """Is this a cancellation, or Ctrl-C, rather than a failure of the block?"""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return all(_is_interruption(leaf) for leaf in group.exceptions)
    return not isinstance(error, Exception)


@contextmanager
def cleanup(seconds: float | None = None) -> Generator[trio.CancelScope]:
    """Let clean-up that awaits run to its end even under a cancellation, for at most the grace.

    ```python
    try:
        yield lease
    finally:
        with cleanup():
            await release(lease)
    ```

    Args:
        seconds: The bound; by default the grace that the served call's caller gives.
    """
    bound = grace_of_task(Limits().grace_seconds) if seconds is None else seconds
    with trio.CancelScope(shield=True, deadline=trio.current_time() + bound) as scope:
        yield scope


Streamed = Callable[P, AbstractAsyncContextManager[trio.abc.ReceiveChannel[T]]]


@overload
def stream(function: Callable[P, AsyncGenerator[T]], /) -> Streamed[P, T]: ...
@overload
def stream(
    *, capacity: int = CAPACITY, byte_capacity: int = BYTE_CAPACITY
) -> Callable[[Callable[P, AsyncGenerator[T]]], Streamed[P, T]]: ...
def stream(
    function: Callable[..., AsyncGenerator[Any]] | None = None,
    /,
    *,
    capacity: int = CAPACITY,
    byte_capacity: int = BYTE_CAPACITY,
) -> Any:
    """Serve a stream, a scope whose value is a channel, by an async generator.

    The generator runs in one task of its own, so it may hold nurseries and cancel scopes across its
    `yield`. Its natural end closes the channel and not the scope; its exception fails the scope, so
    that a block which still reads is cancelled, and sees no natural end; the reader's leaving ends
    it, and is no error.

    Args:
        function: The generator method; left out when options are given.
        capacity: How many items may wait for the reader.
        byte_capacity: How many encoded bytes may wait for it.
    """

    def decorate(function: Callable[..., AsyncGenerator[Any]]) -> Any:
        @functools.wraps(function)
        @asynccontextmanager
        async def serve(*args: Any, **kwargs: Any) -> AsyncGenerator[ReceivingEnd[Any]]:
            sending, receiving = open_channel(
                object, capacity=capacity, byte_capacity=byte_capacity
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_drive, function(*args, **kwargs), sending)
                yield receiving
                nursery.cancel_scope.cancel()

        return serve

    return decorate if function is None else decorate(function)


async def _drive(generator: AsyncGenerator[Any], sending: SendingEnd[Any]) -> None:
    step: Callable[[], Awaitable[Any]] = generator.__anext__
    try:
        while True:
            try:
                item = await step()
            except StopAsyncIteration:
                break
            step = generator.__anext__
            try:
                await sending.send(item)
            except trio.BrokenResourceError:
                return  # the reader has left
            except trio.Cancelled as cancelled:
                # Perhaps of a scope that the generator holds: it is the one to see it, where it is.
                step = functools.partial(generator.athrow, cancelled)
        # Not after an exception: what failed has not ended, and the scope's failure says so.
        await sending.aclose()
    finally:
        # In no scope of its own: those that the generator holds were entered before it, and Trio
        # lets nobody leave an outer one first. What must await then says so, by `cleanup`.
        try:
            await generator.aclose()
        except BaseExceptionGroup as group:
            rest = group.split(GeneratorExit)[1]
            if rest is not None:
                raise rest from None
