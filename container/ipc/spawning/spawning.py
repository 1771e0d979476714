"""`spawn`: a contract served by a child process that cannot outlive the block."""

from __future__ import annotations

import functools
import logging
import socket
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, TypeVarTuple, cast

import trio
from attrs import define, field, frozen

from container.ipc.client import connect, connect_contract, connection_of, connection_proxy
from container.ipc.connection import Connection
from container.ipc.contract import Contract
from container.ipc.descriptor import Fd, HasFileno
from container.ipc.error_groups import leaves
from container.ipc.errors import ContainerError, PeerGone, Unavailable, UnknownRoute
from container.ipc.spawning.asking import Zygote
from container.ipc.spawning.ending import Ending, ProcessExited, StopBounds
from container.ipc.spawning.orders import Life, Order
from container.ipc.spawning.process import (
    STATUS_BOUND,
    ChildProcess,
    ServiceTransport,
    open_child,
)
from container.ipc.spawning.references import Maker, making, reference
from container.ipc.wire.limits import Limits

C = TypeVar("C", bound=Contract)
Arguments = TypeVarTuple("Arguments")

DRAIN_STEP = 0.01

_log = logging.getLogger("container.ipc")


@asynccontextmanager
async def spawn(
    contract: type[C],
    service: Callable[[*Arguments], C],
    *args: *Arguments,
    zygote: Zygote | None = None,
    name: str | None = None,
    stderr: Fd | HasFileno | None = None,
    bounds: StopBounds | None = None,
    limits: Limits | None = None,
) -> AsyncGenerator[C]:
    """Make a service in a child process, and hold a proxy of it while the block runs.

    The child ends with the block, and within the bounds with this process, however that ends; so
    does every process below the child, daemons included. An actor is opened in the child, and its
    tear-down has ended when the block has.

    The block is cancelled when the child ends first. A block left normally waits for calls that
    other tasks have in flight; then, and in any other case at once, the service is told to end:
    `bounds` says how long it may take before it is cancelled, and its processes terminated and
    killed. None of this is cut short by a cancellation.

    Args:
        contract: What is spoken with it.
        service: A class or function at the top of a module that makes the service. Keyword
            arguments go in a `functools.partial` around it.
        args: Of `service`. They travel as arguments of a call do, by the types of its signature.
        zygote: Where to fork the child from; None starts a fresh interpreter.
        name: The child's, in logs, errors and ps(1); by default `service`'s.
        stderr: The child's; by default this process's.
        bounds: Of the stop.
        limits: Of its connections. A service that blocks its event loop for longer than
            `liveness_seconds` is taken for dead.

    Raises:
        ContainerError: what making or running the service raised; a bug as `InternalError`.
        ProcessExited: it ended by itself, or had to be killed at the end of the block.
        Unavailable: no process can be started.
        InvalidArgument: `service` can't be imported by another process, or an argument is not of
            its type.
        ExceptionGroup: the block has failed as well as the child.
    """
    made = _Made.of(service, args)
    order = Order(
        service=reference(made.maker),
        name=name or made.maker.__name__,
        path=tuple(sys.path),
        bounds=bounds or StopBounds(),
        limits=limits or Limits(),
    )
    making(made.maker)  # a wrong signature is told before there is a process
    run = _Run()
    try:
        async with open_child(order, zygote, 2 if stderr is None else stderr.fileno()) as child:
            async with trio.open_nursery() as nursery:
                run.child = child
                nursery.start_soon(run.listen)
                try:
                    async with connect(child.take_socket(), Life, limits=limits) as connection:
                        try:
                            transport = ServiceTransport(await made.make(connection), child)
                            run.made = True
                            nursery.start_soon(run.watch, connection)
                            async with connect_contract(contract, transport, limits=limits) as it:
                                object.__setattr__(it, "_process", child)
                                run.service = connection_of(it)
                                with run.body:
                                    yield it
                                    await _drain(run.service, order.bounds.drain)
                        except BaseException as error:
                            run.raised = error
                        await run.stop(connection, order.bounds, nursery)
                finally:
                    await run.settle()
    except BaseException as error:
        # What the block raised is kept: a nursery that is cancelled meanwhile raises its own.
        run.raised = run.raised or error
    run.conclude(order.name)


def process_of(proxy: Contract) -> ChildProcess:
    """Return the child process of a proxy that `spawn` yielded.

    Raises:
        TypeError: it is no such proxy.
    """
    process = proxy.__dict__.get("_process")
    if not isinstance(process, ChildProcess):
        raise TypeError(f"{type(proxy).__name__} is no proxy of a spawned service")
    return process


def _all_of(error: BaseException, *kinds: type[BaseException]) -> bool:
    return all(isinstance(leaf, kinds) for leaf in leaves(error))


async def _ask_to_stop(connection: Connection) -> None:
    with trio.CancelScope(shield=True):
        try:
            await connection_proxy(connection, Life).stop()
        except (ContainerError, trio.ClosedResourceError):
            pass  # it ended by itself at this moment, or does not listen


async def _drain(connection: Connection, bound: float) -> None:
    with trio.move_on_after(bound):
        # Nothing tells when the last of another task's calls has ended.
        while connection.statistics().pending:  # noqa: ASYNC110
            await trio.sleep(DRAIN_STEP)


@frozen
class _Made:
    """What makes the service, and of what."""

    maker: Maker
    args: tuple[Any, ...]
    keywords: dict[str, Any]

    @classmethod
    def of(cls, service: Callable[..., Contract], args: tuple[Any, ...]) -> _Made:
        keywords: dict[str, Any] = {}
        while isinstance(service, functools.partial):
            partial = cast("functools.partial[Contract]", service)
            args = (*partial.args, *args)
            keywords = {**partial.keywords, **keywords}
            service = partial.func
        return cls(service, args, keywords)

    async def make(self, connection: Connection) -> socket.socket:
        """Have the child make it; return the socket on which it is served."""
        maker: Any = connection_proxy(connection, making(self.maker))
        try:
            fd: Fd = await maker.make(*self.args, **self.keywords)
        except UnknownRoute:
            await connection_proxy(connection, Life).load()
            raise
        return socket.socket(fileno=fd.take())


@define(eq=False)
class _Run:
    """What happens while a child lives, and what is made of it in the end."""

    child: ChildProcess | None = None
    made: bool = False
    """The service was made."""
    service: Connection | None = None
    """On which it is called."""
    body: trio.CancelScope = field(factory=trio.CancelScope)
    raised: BaseException | None = None
    """By the block, or on the way to it."""
    failure: Exception | None = None
    """What the service raised."""
    unasked: bool = False
    """It ended while nobody had asked it to."""
    _asked: bool = False
    _over: trio.Event = field(factory=trio.Event)
    """The service has ended, or will never be heard of again."""
    _listening: trio.CancelScope = field(factory=lambda: trio.CancelScope(shield=True))

    async def listen(self) -> None:
        """Wait for the child's end."""
        assert self.child is not None
        with self._listening:
            await self.child.listen()
            self.unasked = self.unasked or not self._asked
            if self.service is not None:
                # Calls in flight say how the child ended; a cancellation would come before them.
                with trio.move_on_after(STATUS_BOUND):
                    await self.service.wait_lost()
            self.body.cancel()

    async def watch(self, connection: Connection) -> None:
        """Wait for the service's end; ends with the connection."""
        with trio.CancelScope(shield=True):
            lost: PeerGone | None = None
            try:
                await connection_proxy(connection, Life).live()
                self.unasked = self.unasked or not self._asked
            except trio.ClosedResourceError:
                pass  # it did not end in time
            except PeerGone as error:
                lost = error
            except Exception as error:
                self.failure = error
            self._over.set()
            if lost is not None and not await self._lives_on():
                return  # `listen` tells how it ended
            self.failure = self.failure or lost
        self.body.cancel()

    async def _lives_on(self) -> bool:
        """Is the child there still, now that its connection is lost?"""
        assert self.child is not None
        with trio.move_on_after(STATUS_BOUND):
            await self.child.ended.wait()
        return self.child.ending is None and not self._asked

    async def stop(self, connection: Connection, bounds: StopBounds, nursery: trio.Nursery) -> None:
        """Have the service end, and wait for it within the bounds. Shielded."""
        with trio.CancelScope(shield=True):
            if isinstance(self.raised, PeerGone) and connection.lost:
                await self._lives_on()
            self._asked = True
            if not self.made or self._over.is_set() or connection.lost:
                return
            # Not waited for: a call that is cancelled takes its grace, and the bounds are these.
            nursery.start_soon(_ask_to_stop, connection)
            with trio.move_on_after(bounds.cleanup + bounds.cancel):
                await self._over.wait()

    async def settle(self) -> None:
        """Stop listening: from here on the end of the child is awaited by its block."""
        assert self.child is not None
        if isinstance(self.raised, PeerGone) and not self._asked:
            with trio.CancelScope(shield=True):
                await self._lives_on()
        self._asked = True
        self._listening.cancel()

    def conclude(self, name: str) -> None:
        """Raise what is to be raised, now that the child has ended."""
        failure, ending = self.failure, None if self.child is None else self.child.ending
        if failure is None and self.child is not None and self.child.pid:
            ending = ending or Ending()
            if self.unasked or ending.status != 0:
                hint = "it did not end within its bounds" if self.child.killed else None
                failure = ProcessExited(name, ending, hint=hint)
            if ending.survivors:
                _log.error("%s left %s processes that can't be ended", name, ending.survivors)
        raised, self.raised = self.raised, None
        if raised is None:
            if failure is not None:
                raise failure
        elif failure is None:
            raise raised
        elif _all_of(raised, trio.Cancelled):
            if self.failure is None:
                _log.warning("%s", failure)
                raise raised
            raise failure
        elif _all_of(raised, PeerGone, Unavailable, trio.Cancelled):
            raise failure from raised  # what the block saw of the child's end
        else:
            raise BaseExceptionGroup("the block and its child have failed", [raised, failure])
