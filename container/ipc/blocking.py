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
                self._portal.start_task_soon(running.interrupt)
                # Bounded: a cancelled call ends with its work, or after its grace.
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
        waiting = asyncio.wrap_future(running.future)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            if not running.future.done():
                self._portal.start_task_soon(running.interrupt)
            await asyncio.wait([waiting])
            if not waiting.cancelled():
                waiting.exception()  # it was looked at: a result that came too late is dropped
            raise


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
    # Entered and left by one thread, which is not the loop's.
    with concurrent.futures.ThreadPoolExecutor(1, "container.ipc") as thread:
        loop = asyncio.get_running_loop()
        starting = from_thread.start_blocking_portal("trio")
        portal = await loop.run_in_executor(thread, starting.__enter__)
        try:
            entered = portal.wrap_async_context_manager(manager)
            value = await loop.run_in_executor(thread, entered.__enter__)
            try:
                yield value, AsyncioCaller(portal, timeout)
            except BaseException as error:
                kind, traceback = type(error), error.__traceback__
                await loop.run_in_executor(thread, entered.__exit__, kind, error, traceback)
                raise
            await loop.run_in_executor(thread, entered.__exit__, None, None, None)
        finally:
            await loop.run_in_executor(thread, starting.__exit__, None, None, None)
