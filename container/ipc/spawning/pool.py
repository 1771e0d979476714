"""`spawn_pool`: one service in as many child processes as there is work for.

For what must leave the process: computing that blocks the event loop, code that may crash or leak.

The pool has the service's own face: each call, and each scope for as long as it is held, has a
worker to itself. What a pool is *not*: a service with state. Two calls reach the same worker only
by chance; who needs that holds one by `pool_of(proxy).worker()`.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Generic, TypeVar, TypeVarTuple, cast

import trio
from attrs import define, evolve, field, frozen

from container.ipc.client import connection_of
from container.ipc.contract import Contract, routes_of
from container.ipc.descriptor import Fd, HasFileno
from container.ipc.errors import Unavailable
from container.ipc.spawning.asking import Zygote, open_zygote
from container.ipc.spawning.ending import StopBounds
from container.ipc.spawning.references import reference
from container.ipc.spawning.spawning import spawn
from container.ipc.wire.limits import Limits

C = TypeVar("C", bound=Contract)
Arguments = TypeVarTuple("Arguments")

_log = logging.getLogger("container.ipc")


@frozen
class PoolStatistics:
    """A look at a pool."""

    workers: int
    """Processes that serve or wait, those that are being started not counted."""
    idle: int
    started: int
    """Since the beginning."""
    failed: int
    """Of these, that ended by themselves or had to be killed."""


@define(eq=False)
class _Worker:
    proxy: Any
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    """Its end is the worker's; its deadline bounds the time that the worker is idle."""
    uses: int = 0

    @property
    def usable(self) -> bool:
        connection = connection_of(self.proxy)
        # A handler that overstayed its grace still runs there, and may for ever.
        return not (
            connection.lost or connection.statistics().abandoned or self.scope.cancel_called
        )


class Pool(Generic[C]):
    """The workers of a pool; `pool_of(proxy)` returns it."""

    def __init__(
        self,
        start: Callable[[], Any],
        nursery: trio.Nursery,
        limiter: trio.CapacityLimiter,
        uses_per_worker: int | None,
        idle_seconds: float,
    ) -> None:
        self._start = start
        self._nursery = nursery
        self._limiter = limiter
        self._uses_per_worker = uses_per_worker
        self._idle_seconds = idle_seconds
        self._idle: list[_Worker] = []
        """The last used at the end: it is used again first, so that others can end."""
        self._all: set[_Worker] = set()
        self._started = 0
        self._failed = 0
        self._closed = False

    def statistics(self) -> PoolStatistics:
        """Return a frozen look."""
        return PoolStatistics(len(self._all), len(self._idle), self._started, self._failed)

    @asynccontextmanager
    async def worker(self) -> AsyncGenerator[C]:
        """Hold one worker for the block; waits while all are held.

        Raises:
            Unavailable: it can't be started, or the pool was closed.
            ContainerError: what making the service raised.
        """
        borrower = object()
        await self._limiter.acquire_on_behalf_of(borrower)
        try:
            worker = self._take() or await self._begin()
            try:
                yield worker.proxy
            finally:
                self._give_back(worker)
        finally:
            self._limiter.release_on_behalf_of(borrower)

    def close(self) -> None:
        """End all workers."""
        self._closed = True
        for worker in self._all:
            worker.scope.cancel()

    def _take(self) -> _Worker | None:
        while self._idle:
            worker = self._idle.pop()
            if worker.usable:
                worker.scope.deadline = math.inf
                return worker
            worker.scope.cancel()
        return None

    async def _begin(self) -> _Worker:
        if self._closed:
            raise Unavailable("the pool was closed")
        return await self._nursery.start(self._work)

    def _give_back(self, worker: _Worker) -> None:
        worker.uses += 1
        if self._closed or worker.uses == self._uses_per_worker or not worker.usable:
            worker.scope.cancel()
        else:
            worker.scope.deadline = trio.current_time() + self._idle_seconds
            self._idle.append(worker)

    async def _work(self, task_status: trio.TaskStatus[_Worker]) -> None:
        """Hold one child. How it ends is the concern of the call that it serves, not the pool's."""
        begun = False
        try:
            async with self._start() as proxy:
                worker = _Worker(proxy)
                self._all.add(worker)
                self._started += 1
                begun = True
                task_status.started(worker)
                try:
                    with worker.scope:
                        await trio.sleep_forever()
                finally:
                    self._all.discard(worker)
                    if worker in self._idle:
                        self._idle.remove(worker)
        except Exception as error:
            if not begun:
                raise
            self._failed += 1
            _log.warning("a worker failed: %s", error)


@asynccontextmanager
async def spawn_pool(
    contract: type[C],
    service: Callable[[*Arguments], C],
    *args: *Arguments,
    workers: int | trio.CapacityLimiter,
    uses_per_worker: int | None = None,
    idle_seconds: float = 60.0,
    zygote: Zygote | None = None,
    name: str | None = None,
    stderr: Fd | HasFileno | None = None,
    bounds: StopBounds | None = None,
    limits: Limits | None = None,
) -> AsyncGenerator[C]:
    """Serve calls by child processes while the block runs, one call a process at a time.

    Workers are started when there is a call and none is idle, and end with the block. One that
    dies fails only the call that it serves (`PeerGone`, with how it died), and another takes its
    place; so does one whose handler overstays the grace of a cancelled call, which is killed.

    Args:
        contract: What is spoken with it.
        service: Makes the service, in each worker; as in `spawn`.
        args: Of `service`.
        workers: How many there may be at once; a limiter may be shared by several pools.
        uses_per_worker: After so many calls a worker ends.
        idle_seconds: After so long without a call it does.
        zygote: Where workers are forked from; by default one of the pool's own, which has the
            service's module loaded.
        name: Of the processes.
        stderr: Of the workers; by default this process's.
        bounds: Of the stop of each worker.
        limits: Of its connections. By default a worker is never taken for dead because it is
            silent: computing blocks its event loop.

    Raises:
        InvalidArgument: `service` can't be imported by another process.
        Unavailable: no process can be started.
    """
    limiter = trio.CapacityLimiter(workers) if isinstance(workers, int) else workers
    limits = limits or evolve(Limits(), liveness_seconds=math.inf)
    async with AsyncExitStack() as stack:
        if zygote is None:
            where = _maker_of(service)
            zygote = await stack.enter_async_context(open_zygote([reference(where).split(":")[0]]))

        def start() -> Any:
            return spawn(
                contract,
                service,
                *args,
                zygote=zygote,
                name=name,
                stderr=stderr,
                bounds=bounds,
                limits=limits,
            )

        raised: BaseException | None = None
        try:
            async with trio.open_nursery() as nursery:
                pool: Pool[C] = Pool(start, nursery, limiter, uses_per_worker, idle_seconds)
                proxy = object.__new__(_pool_class(contract))
                object.__setattr__(proxy, "_pool", pool)
                try:
                    yield cast("C", proxy)
                except BaseException as error:
                    raised = error
                pool.close()
        except BaseException as error:
            # What the block raised is kept: a nursery that is cancelled meanwhile raises its own.
            raised = raised or error
        if raised is not None:
            raise raised


def _maker_of(service: Callable[..., Contract]) -> Callable[..., Contract]:
    while isinstance(service, functools.partial):
        service = cast("functools.partial[Contract]", service).func
    return service


def pool_of(proxy: C) -> Pool[C]:
    """Return the pool of a proxy that `spawn_pool` yielded.

    Raises:
        TypeError: it is no such proxy.
    """
    pool = proxy.__dict__.get("_pool")
    if not isinstance(pool, Pool):
        raise TypeError(f"{type(proxy).__name__} is no proxy of a pool")
    return cast("Pool[C]", pool)


@functools.cache
def _pool_class(contract: type[Contract]) -> type[Contract]:
    methods: dict[str, Any] = {}
    for name, route in routes_of(contract).items():
        method = _scope(name) if getattr(route, "kind", "call") == "scope" else _call(name)
        method.__name__ = name
        method.__doc__ = route.documentation
        methods[name] = method

    def describe(self: Contract) -> str:
        return f"<pool of {contract.contract_name}>"

    methods["__repr__"] = describe
    return cast("type[Contract]", type(f"{contract.__name__}Pool", (contract,), methods))


def _call(name: str) -> Callable[..., Any]:
    async def method(self: Contract, *args: Any, **kwargs: Any) -> Any:
        async with pool_of(self).worker() as worker:
            return await getattr(worker, name)(*args, **kwargs)

    return method


def _scope(name: str) -> Callable[..., Any]:
    @asynccontextmanager
    async def method(self: Contract, *args: Any, **kwargs: Any) -> AsyncGenerator[Any]:
        async with pool_of(self).worker() as worker:
            async with getattr(worker, name)(*args, **kwargs) as value:
                yield value

    return method
