"""The table of containers: what exists, what runs, and how both come to their end.

`ContainerTable` is the part of the actor that keeps its state right: loading it, adopting what an
earlier API server left running, watching each run, cleaning up after it, removing. The operations
that a caller asks for are in `containers`, built on this.

What an operation did is undone when it fails or is cancelled; a removal that was begun is finished.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import trio
from attrs import evolve

from container.apiserver.links import Caller, together
from container.apiserver.names import resolve
from container.apiserver.records import Record, Run
from container.apiserver.runs import RunWatch
from container.apiserver.sandboxes import OpenGate, Sandboxes, Timeouts
from container.apiserver.store import ContainerStore
from container.contracts.apiserver import (
    ContainerStatus,
    Plugin,
    Plugins,
)
from container.contracts.images import Images
from container.contracts.launcher import Launcher
from container.contracts.runtime import (
    ExitStatus,
    Sandbox,
    SandboxPhase,
)
from container.ipc import (
    Actor,
    ContainerError,
    DataLoss,
    DeadlineExceeded,
    InvalidState,
    NotFound,
    PeerGone,
    Unavailable,
)
from container.storage.paths import Paths

T = TypeVar("T")

REMEMBERED = 1024
"""Removed containers whose exit status can still be asked for by id."""
ADOPTING = 8
"""Helpers that are asked at once at start-up."""
WARM_HELPERS = 4
"""Helpers that may be started before their container's bootstrap is asked for."""

_log = logging.getLogger(__name__)


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


class ContainerTable(Actor):
    """Keep all containers of one root.

    Args:
        paths: Where the containers' documents and the helpers' sockets are.
        images: Calls the images helper.
        launcher: Calls the launcher.
        open_gate: Connects to a runtime helper's public socket by its path.
        plugins: Knows the plugin that runs containers.
        clock: Says the time.
        timeouts: Bounds on helpers and clients that do not answer.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        images: Caller[Images],
        launcher: Caller[Launcher],
        open_gate: OpenGate,
        plugins: Plugins,
        clock: Callable[[], datetime] = utc_now,
        timeouts: Timeouts | None = None,
    ) -> None:
        self._store = ContainerStore(paths.containers)
        self._images = images
        self._launcher = launcher
        self._plugins = plugins
        self._clock = clock
        self._timeouts = timeouts or Timeouts()
        self._sandboxes = Sandboxes(
            launcher,
            open_gate,
            self._runtime_plugin,
            lambda container_id: str(paths.runtime_socket(container_id)),
            self._timeouts,
        )
        self._watch = RunWatch(self._sandboxes, self._timeouts, clock)
        self._records: dict[str, Record] = {}
        self._names: dict[str, str] = {}
        self._broken: dict[str, DataLoss] = {}
        self._warm: set[str] = set()
        self._gone: OrderedDict[str, tuple[str, ExitStatus | None]] = OrderedDict()
        self._adopting = trio.CapacityLimiter(ADOPTING)

    # --- life ---

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        """Load the documents; at the end, end the helpers that were started in advance."""
        loaded = await trio.to_thread.run_sync(self._store.load)
        self._broken = dict(loaded.broken)
        for container in loaded.containers:
            self._insert(Record(container))
        async with self._sandboxes:
            try:
                self._unfinished = loaded.removing
                yield
            finally:
                with trio.move_on_after(self._timeouts.shutdown, shield=True):
                    for container_id in tuple(self._warm):
                        await self._quietly(self._sandboxes.shut_down(container_id, thorough=False))

    async def begin(self) -> None:
        """Begin to adopt what runs; each container's own calls wait until it is adopted."""
        for record in tuple(self._records.values()):
            self._in_background(self._adopt, record)
        for container_id in self._unfinished:
            self._in_background(self._sweep, container_id)
        self._in_background(self._end_strays)

    async def _adopt(self, record: Record) -> None:
        """Find out whether a container of an earlier API server still runs."""
        container_id, container = record.id, record.container
        try:
            async with self._adopting, self.exclusive(container_id):
                ran = container.status is ContainerStatus.RUNNING
                if not ran:
                    if container.auto_remove:
                        self._in_background(self._expire, record, container.created_at)
                    return
                with trio.move_on_after(self._timeouts.connect):
                    # Without a socket the helper is dead; a fresh one looks for what it left
                    # behind.
                    if not await self._sandboxes.rejoin(container_id):
                        await self._sandboxes.open(container_id)
                    state = await self._sandboxes.call(
                        container_id, lambda sandbox: sandbox.state()
                    )
                    if state.phase is SandboxPhase.EMPTY:
                        await self._ended_unseen(record)
                    else:
                        self._begin(record)
                    return
                raise Unavailable(f"the runtime helper of container {container_id} does not answer")
        except ContainerError as error:
            _log.warning("container %s can't be adopted yet: %s", container_id, error)
            record.change(evolve(container, status=ContainerStatus.UNKNOWN))
            self._begin(record)  # its watch goes on trying
        finally:
            record.settled.set()

    async def _ended_unseen(self, record: Record) -> None:
        ended = self._watch.unknown_exit()
        record.change(
            evolve(record.container, status=ContainerStatus.STOPPED, pid=None, exit=ended)
        )
        if record.container.auto_remove:
            await self._remove(record)
        else:
            await self._in_thread(self._store.update, record.container)
            await self._sandboxes.shut_down(record.id, thorough=True)

    async def _sweep(self, container_id: str) -> None:
        """Finish a removal that an earlier API server began."""
        async with self._adopting, self.exclusive(container_id):
            try:
                await self._sandboxes.rejoin(container_id)
                await self._sandboxes.shut_down(container_id, thorough=True)
                await self._images(lambda images: images.release(container_id))
                await self._in_thread(self._store.remove, container_id)
            except ContainerError as error:
                _log.warning(
                    "the removal of container %s can't be finished yet: %s", container_id, error
                )

    async def _end_strays(self) -> None:
        """End helpers of an earlier API server whose containers were never made, or do not run."""
        try:
            status = await self._launcher(lambda launcher: launcher.status())
        except ContainerError as error:
            _log.warning("the launcher can't be asked for left-over helpers: %s", error)
            return
        for service in status.services:
            container_id = service.name.removeprefix("runtime.")
            if (
                container_id == service.name
                or container_id in self._unfinished
                or container_id in self._broken
            ):
                continue
            known = self._records.get(container_id)
            if known is not None:
                await known.settled.wait()
            async with self.exclusive(container_id):
                record = self._records.get(container_id)
                in_the_making = record is None and container_id in self._names.values()
                if container_id in self._warm or in_the_making:
                    continue
                if record is None or record.run is None:
                    await self._quietly(self._end_stray(container_id))

    async def _end_stray(self, container_id: str) -> None:
        await self._sandboxes.rejoin(container_id)
        await self._sandboxes.shut_down(container_id, thorough=False)

    def _insert(self, record: Record) -> None:
        self._records[record.id] = record
        self._names[record.container.name] = record.id

    async def _runtime_plugin(self) -> Plugin:
        for plugin in await self._plugins.list():
            if "runtime" in plugin.service_types:
                return plugin
        raise Unavailable(
            "no plugin runs containers", hint="the package `container` brings one; install it again"
        )

    async def _expire(self, record: Record, since: datetime) -> None:
        """Remove a container that removes itself and that nobody came to start."""
        left = self._timeouts.claim - (self._clock() - since).total_seconds()
        with trio.move_on_after(max(0.0, left)):
            await record.claimed.wait()
            return
        async with self.exclusive(record.id):
            if not record.claimed.is_set() and not record.removed:
                _log.info("container %s was never started and removes itself", record.id)
                await self._quietly(self._remove(record))

    # --- a run, and its end ---

    def _begin(self, record: Record) -> None:
        run = record.run = Run()
        record.claimed.set()
        self._in_background(self._attend, record, run)

    async def _attend(self, record: Record, run: Run) -> None:
        """Wait for the end of a run, record it, and clean up after it."""
        with run.scope:
            ended = await self._watch.exit_of(record.id, partial(self._unreachable, record))
            if ended is not None:
                await self._record_exit(record, run, ended)
                # A client that started it a moment ago may still ask its helper how it ended.
                with trio.move_on_after(self._timeouts.linger):
                    await run.hurry.wait()
            async with self.exclusive(record.id):
                if record.run is not run:
                    return
                await self._quietly(self._after_run(record, started=ended is not None))

    async def _record_exit(self, record: Record, run: Run, ended: ExitStatus) -> None:
        stopped = evolve(record.container, status=ContainerStatus.STOPPED, pid=None, exit=ended)
        if not stopped.auto_remove:
            # On disk first: whoever was told an exit status must find it again after a crash.
            await self._quietly(self._in_thread(self._store.update, stopped))
        run.exit = ended
        record.change(stopped)

    async def _after_run(self, record: Record, *, started: bool) -> None:
        if record.container.auto_remove:
            with self._finishing(record.id):
                await self._remove(record)
            return
        record.run = None  # before the helper is ended: it must not be taken for lost
        with self._finishing(record.id):
            await self._sandboxes.shut_down(record.id, thorough=True)
            if not started:
                _log.info("container %s was bootstrapped and never started", record.id)
                before = evolve(record.container, status=ContainerStatus.CREATED, pid=None)
                await self._in_thread(self._store.update, before)
                record.change(before)

    def _unreachable(self, record: Record) -> None:
        record.change(evolve(record.container, status=ContainerStatus.UNKNOWN))

    async def _end_run(self, record: Record) -> None:
        run, record.run = record.run, None
        if run is not None:
            run.scope.cancel()
        await self._sandboxes.shut_down(record.id, thorough=run is not None)

    async def _remove(self, record: Record) -> None:
        """Remove a container with all that it had; the caller holds its section."""
        container_id, run = record.id, record.run
        await self._in_thread(self._store.mark_removing, container_id)
        warm = container_id in self._warm
        self._warm.discard(container_id)
        if run is not None:
            # This may be the run's own task: then it goes on under the shield of its clean-up.
            run.scope.cancel()
            record.run = None
        if run is not None or warm or self._sandboxes.connected(container_id):
            await self._sandboxes.end(container_id, thorough=run is not None)
        # The layers are given up only now: the helper had them mounted. The unit is removed even if
        # there should be none: an earlier removal may have got so far.
        await together(
            lambda: self._images(lambda images: images.release(container_id)),
            lambda: self._sandboxes.discard(container_id),
        )
        durable = not record.container.auto_remove
        await self._in_thread(partial(self._store.remove, durable=durable), container_id)
        ended = (run.exit if run is not None else None) or record.container.exit
        self._gone[container_id] = (record.container.name, ended)
        while len(self._gone) > REMEMBERED:
            self._gone.popitem(last=False)
        del self._records[container_id]
        if self._names.get(record.container.name) == container_id:
            del self._names[record.container.name]
        record.removed = True
        record.claimed.set()
        record.change()

    # --- what all of them need ---

    def _find(self, container: str) -> Record:
        if container in self._broken:
            raise self._broken[container]
        return self._records[resolve(container, self._names, self._records.keys())]

    async def _settled(self, container: str) -> Record:
        """Return a container once it is known whether it runs."""
        record = self._find(container)
        await trio.lowlevel.checkpoint_if_cancelled()
        await record.settled.wait()
        return record

    def _check_present(self, record: Record) -> None:
        if record.removed:
            raise NotFound(f"no container {record.container.name!r}: it was removed just now")

    def _check_live(self, record: Record) -> None:
        if not record.live:
            raise InvalidState(
                f"container {record.container.name} does not run",
                hint=f"`container start {record.container.name}` starts it",
            )

    async def _call(self, record: Record, operation: Callable[[Sandbox], Awaitable[T]]) -> T:
        try:
            return await self._sandboxes.call(record.id, operation)
        except PeerGone as error:
            raise Unavailable(
                f"the runtime helper of container {record.container.name} went away",
                hint="try again: it comes back",
            ) from error

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        """Do file work in a worker thread; a full or broken disk is an error of ours."""
        try:
            return await trio.to_thread.run_sync(function, *arguments)
        except OSError as error:
            raise Unavailable(
                f"{error.filename or 'the state folder'} can't be written: {error.strerror}",
                hint="is there space on the disk?",
            ) from error

    @contextmanager
    def _finishing(self, container_id: str) -> Generator[None]:
        """Do clean-up that a cancellation does not cut short, but a bound does."""
        with trio.move_on_after(self._timeouts.clean_up, shield=True) as scope:
            yield
        if scope.cancelled_caught:
            _log.error("the clean-up of container %s took too long and was given up", container_id)
            raise DeadlineExceeded(f"the clean-up of container {container_id} took too long")

    def _in_background(self, function: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Run a task of this actor. A bug in it is logged, and costs no other container."""

        async def guarded() -> None:
            try:
                await function(*arguments)
            except Exception:
                _log.exception("%s%s failed", function.__name__, arguments)

        self.nursery.start_soon(guarded, name=function.__name__)

    async def _quietly(self, step: Awaitable[object]) -> None:
        """Do one step of a clean-up: its failure is logged and does not hide what led to it."""
        try:
            await step
        except ContainerError as error:
            _log.warning("clean-up failed: %s", error)
