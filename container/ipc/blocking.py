"""Call services from code that is not Trio's: plain threads, and asyncio programs.

Trio runs in a thread of its own, by AnyIO's portal, for as long as the block is held:

```python
with blocking.connect(Greeter.connect(path)) as (greeter, call):
    print(call(greeter.greet, "ada"))

async with blocking.connect_asyncio(Greeter.connect(path)) as (greeter, call):
    print(await call(greeter.greet, "ada"))
```

What a call promises holds here too: a call that is interrupted (Ctrl-C, asyncio's cancellation, the
timeout) is cancelled at its callee, and ends when its work has ended, or after the grace.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from typing import Any, Generic, ParamSpec, TypeVar

import trio
from anyio import from_thread
from anyio.from_thread import BlockingPortal

from container.ipc.errors import DeadlineExceeded

P = ParamSpec("P")
T = TypeVar("T")


class _Portal:
    """The way into the thread in which Trio runs."""

    def __init__(self, portal: BlockingPortal, timeout: float | None) -> None:
        self._portal = portal
        self._timeout = timeout

    def _begin(self, function: Callable[..., Awaitable[T]], args: Any, kwargs: Any) -> _Running[T]:
        running: _Running[T] = _Running()
        self._portal.start_task_soon(running.run, function, args, kwargs, self._timeout)
        return running

    def _interrupt(self, running: _Running[Any]) -> None:
        with suppress(RuntimeError):  # the portal has stopped, and the call with it
            self._portal.start_task_soon(running.interrupt)


class _Running(Generic[T]):
    """A call that runs in Trio's thread."""

    def __init__(self) -> None:
        self.future: concurrent.futures.Future[T] = concurrent.futures.Future()
        """Done when the call has ended, however it did."""
        self._scope = trio.CancelScope()

    async def run(
        self,
        function: Callable[..., Awaitable[T]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None,
    ) -> None:
        try:
            if timeout is not None:
                self._scope.deadline = trio.current_time() + timeout
            with self._scope:
                result = await function(*args, **kwargs)
                self.future.set_result(result)
                return
            if self._interrupted:
                self.future.set_exception(concurrent.futures.CancelledError())
            else:
                self.future.set_exception(DeadlineExceeded(f"not done within {timeout} s"))
        except BaseException as error:
            self.future.set_exception(error)
            if not isinstance(error, Exception):
                raise

    _interrupted = False

    def interrupt(self) -> None:
        """Cancel the call; in Trio's thread."""
        self._interrupted = True
        self._scope.cancel()


class Caller(_Portal):
    """Call from a thread that may block; safe to use from several at once."""

    def __call__(
        self, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call an async function of Trio's, a proxy's method usually, and wait for its result.

        Raises: what the function raises.
            DeadlineExceeded: the time that `connect` was given passed.
            KeyboardInterrupt: the call was cancelled, and has ended.
        """
        running = self._begin(function, args, kwargs)
        try:
            return running.future.result()
        except BaseException:
            if not running.future.done():
                self._interrupt(running)
            while not running.future.done():
                # Bounded: a cancelled call ends with its work, or after its grace. A second Ctrl-C
                # can't shorten that.
                with suppress(KeyboardInterrupt):
                    concurrent.futures.wait([running.future])
            raise

    def scope(self, manager: AbstractAsyncContextManager[T]) -> AbstractContextManager[T]:
        """Hold a scope while a `with` block runs.

        The block runs in this thread: a failure of the callee is raised at its end.
        """
        return self._portal.wrap_async_context_manager(manager)

    def each(self, channel: trio.abc.ReceiveChannel[T]) -> Generator[T]:
        """Receive until the channel ends."""
        while True:
            try:
                item = self(channel.receive)
            except trio.EndOfChannel:
                return
            yield item


class AsyncioCaller(_Portal):
    """Call from tasks of an asyncio loop."""

    async def __call__(
        self, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call an async function of Trio's, a proxy's method usually, and wait for its result.

        A cancelled asyncio task cancels the call at its callee, and waits for its end.

        Raises: what the function raises.
            DeadlineExceeded: the time that `connect_asyncio` was given passed.
        """
        running = self._begin(function, args, kwargs)
        future = asyncio.wrap_future(running.future)
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            self._interrupt(running)
            await _ended(future)
            raise
        return future.result()

    @asynccontextmanager
    async def scope(self, manager: AbstractAsyncContextManager[T]) -> AsyncGenerator[T]:
        """Hold a scope while an `async with` block of asyncio's runs.

        The block is asyncio's: a failure of the callee is raised at its end.
        """
        holding = _Holding(manager)
        value = await self._hold(holding)
        raised: BaseException | None = None
        try:
            yield value
        except BaseException as error:
            raised = error
        await self._let_go(holding, raised)
        if raised is not None:
            raise raised
        assert holding.ended is not None
        holding.ended.result()

    async def each(self, channel: trio.abc.ReceiveChannel[T]) -> AsyncGenerator[T]:
        """Receive until the channel ends."""
        while True:
            try:
                item = await self(channel.receive)
            except trio.EndOfChannel:
                return
            yield item

    async def _hold(self, holding: _Holding[T]) -> T:
        """Enter a context manager in a task of Trio's; return its value."""
        running = self._begin(holding.run, (), {})
        holding.ended = asyncio.wrap_future(running.future)
        entered = asyncio.wrap_future(holding.entered)
        try:
            await asyncio.wait([entered, holding.ended], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._interrupt(running)
            await _ended(holding.ended)
            raise
        if holding.ended.done():
            holding.ended.result()
        return entered.result()

    async def _let_go(self, holding: _Holding[Any], error: BaseException | None) -> None:
        """Leave the context manager, with what the block raised."""
        assert holding.ended is not None
        with suppress(RuntimeError):
            self._portal.start_task_soon(holding.leave, error)
        await _ended(holding.ended)


class _Holding(Generic[T]):
    """A context manager that one task of Trio's enters, holds and leaves."""

    def __init__(self, manager: AbstractAsyncContextManager[T]) -> None:
        self._manager = manager
        self._leaving = trio.Event()
        self._error: BaseException | None = None
        self.entered: concurrent.futures.Future[T] = concurrent.futures.Future()
        self.ended: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Hold it until told to leave; raises what entering or leaving raises."""
        error: BaseException | None = None
        try:
            async with self._manager as value:
                self.entered.set_result(value)
                await self._leaving.wait()
                error = self._error
                if error is not None:
                    raise error
        except BaseException as raised:
            if raised is not error:
                raise

    def leave(self, error: BaseException | None) -> None:
        """End the hold; in Trio's thread."""
        self._error = error if isinstance(error, Exception) else None
        self._leaving.set()


async def _ended(future: asyncio.Future[Any]) -> None:
    """Wait for a future, however often this task is cancelled meanwhile; its outcome is looked at.

    Bounded by what it waits for: a cancelled call ends with its work, or after its grace.
    """
    while not future.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([future])
    if not future.cancelled():
        future.exception()


@contextmanager
def connect(
    manager: AbstractAsyncContextManager[T], *, timeout: float | None = None
) -> Generator[tuple[T, Caller]]:
    """Enter an async context manager of Trio's, `Contract.connect(path)` usually, for the block.

    Args:
        manager: What to enter; its value is the first of the two that the block gets.
        timeout: Seconds that each call may take; None for no bound.

    Raises: what entering raises.
    """
    with from_thread.start_blocking_portal("trio") as portal:
        with portal.wrap_async_context_manager(manager) as value:
            yield value, Caller(portal, timeout)


@asynccontextmanager
async def connect_asyncio(
    manager: AbstractAsyncContextManager[T], *, timeout: float | None = None
) -> AsyncGenerator[tuple[T, AsyncioCaller]]:
    """Enter an async context manager of Trio's for a block of an asyncio program.

    Args:
        manager: What to enter; its value is the first of the two that the block gets.
        timeout: Seconds that each call may take; None for no bound.

    Raises: what entering raises.
    """
    loop = asyncio.get_running_loop()
    # The portal is started and stopped by one thread, which is not the loop's.
    with concurrent.futures.ThreadPoolExecutor(1, "container.ipc") as thread:
        starting = from_thread.start_blocking_portal("trio")
        started = loop.run_in_executor(thread, starting.__enter__)
        try:
            await asyncio.wait([started])
            caller = AsyncioCaller(started.result(), timeout)
            async with caller.scope(manager) as value:
                yield value, caller
        finally:
            await _ended(started)
            if started.exception() is None:
                stopping = loop.run_in_executor(thread, starting.__exit__, None, None, None)
                await _ended(stopping)
