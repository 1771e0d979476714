"""The table of containers: what exists, on disk and in memory, and how it is removed.

The lowest part of the actor behind the `Containers` contract: on it stand `running` (a container's
runs, one after the other), `adoption` (what an earlier API server left) and `containers` (what
callers ask for).

A document is changed field by field, in turn: what is in memory alone (that a helper does not
answer, a pid) never gets on disk, and of two changes at once none is lost.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import trio
from attrs import evolve

from container.apiserver.events import EventLog
from container.apiserver.links import Caller, together
from container.apiserver.names import resolve
from container.apiserver.network_table import NetworkTable
from container.apiserver.records import Record
from container.apiserver.runs import RunWatch
from container.apiserver.sandboxes import OpenGate, Sandboxes, Timeouts
from container.apiserver.store import ContainerStore
from container.apiserver.volumes import VolumesService
from container.contracts.apiserver import (
    Container,
    ContainerStatus,
    EventKind,
    Plugin,
    Plugins,
)
from container.contracts.images import Images
from container.contracts.launcher import Launcher
from container.contracts.runtime import ExitStatus, Sandbox
from container.ipc import (
    Actor,
    Backoff,
    ContainerError,
    DataLoss,
    DeadlineExceeded,
    InvalidState,
    NotFound,
    PeerGone,
    Supervised,
    Unavailable,
)
from container.storage.paths import Paths

T = TypeVar("T")

REMEMBERED = 1024
"""Removed containers whose exit status can still be asked for by id."""
SWEEPING = Backoff(1.0, 60.0)
"""Between attempts to finish a removal."""
RUNS = (ContainerStatus.RUNNING, ContainerStatus.RESTARTING)
"""On disk: a sandbox may exist."""

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
        networks: Knows the networks that containers are in.
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
        networks: NetworkTable,
        clock: Callable[[], datetime] = utc_now,
        timeouts: Timeouts | None = None,
    ) -> None:
        self._paths = paths
        self._store = ContainerStore(paths.containers)
        self._images = images
        self._launcher = launcher
        self._plugins = plugins
        self._networks = networks
        self._clock = clock
        self._timeouts = timeouts or Timeouts()
        self.volumes = VolumesService(paths, launcher=launcher, plugins=plugins, clock=clock)
        """The volumes of the same root: open while this is."""
        self._sandboxes = Sandboxes(
            launcher,
            open_gate,
            self._runtime_plugin,
            lambda container_id: str(paths.runtime_socket(container_id)),
            self._timeouts,
            self.volumes.release,
        )
        self._watch = RunWatch(self._sandboxes, self._timeouts, clock)
        self._records: dict[str, Record] = {}
        self._names: dict[str, str] = {}
        self._broken: dict[str, DataLoss] = {}
        self._warm: set[str] = set()
        self._gone: OrderedDict[str, tuple[str, ExitStatus | None]] = OrderedDict()
        self._events = EventLog(clock)

    # --- life ---

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        """Load the documents; at the end, end the helpers that hold no run any more, or not yet."""
        loaded = await trio.to_thread.run_sync(self._store.load)
        self._broken = dict(loaded.broken)
        self.volumes.set_uncertain(self._broken)
        for container in loaded.containers:
            self._insert(Record(container))
            self._hold_again(container)
            self.volumes.claim(container)
        async with self.volumes, self._sandboxes:
            try:
                self._unfinished = set(loaded.removing)
                yield
            finally:
                ended = [it.id for it in self._records.values() if it.run and it.run.exit]
                with trio.move_on_after(self._timeouts.shutdown, shield=True):
                    await together(
                        *(partial(self._end_idle, container_id) for container_id in self._warm),
                        *(partial(self._end_idle, container_id) for container_id in ended),
                    )

    async def _end_idle(self, container_id: str) -> None:
        await self._quietly(self._sandboxes.shut_down(container_id, thorough=False))

    def _insert(self, record: Record) -> None:
        self._records[record.id] = record
        self._names[record.container.name] = record.id

    def _hold_again(self, container: Container) -> None:
        for use in container.networks:
            try:
                self._networks.hold(container.id, [use.network])
            except ContainerError as error:
                _log.warning("container %s can't start: %s", container.id, error)

    async def _runtime_plugin(self) -> Plugin:
        for plugin in await self._plugins.list():
            if "runtime" in plugin.service_types:
                return plugin
        raise Unavailable(
            "no plugin runs containers", hint="the package `container` brings one; install it again"
        )

    async def _remove(self, record: Record, *, volumes: bool = False) -> None:
        """Remove a container with all that it had; the caller holds its section.

        Args:
            record: Which.
            volumes: Its anonymous volumes, too. Those of one that removes itself always go.
        """
        container_id, run = record.id, record.run
        durable = not record.container.auto_remove
        volumes = volumes or record.container.auto_remove
        await self._in_thread(
            partial(self._store.mark_removing, durable=durable, volumes=volumes and durable),
            container_id,
        )
        self._give_up_restart(record)
        warm = container_id in self._warm
        self._warm.discard(container_id)
        if run is not None:
            # This may be the run's own task: then it goes on under the shield of its clean-up.
            run.scope.cancel()
            record.run = None
        # What was intended to run may have left something, though its run was given up already.
        thorough = run is not None or record.made or record.saved.status in RUNS
        if thorough or warm or self._sandboxes.connected(container_id):
            await self._sandboxes.end(container_id, thorough=thorough)
        # The layers are given up only now: the helper had them mounted. The unit is removed even if
        # there should be none: an earlier removal may have got so far.
        await together(
            lambda: self._images(lambda images: images.release(container_id)),
            lambda: self._sandboxes.discard(container_id),
        )
        if volumes:
            # Before its folder: what says that they are to go goes last.
            await self.volumes.let_go(container_id, record.container.mounts)
        await self._in_thread(partial(self._store.remove, durable=durable), container_id)
        self.volumes.drop(container_id)
        ended = (run.exit if run is not None else None) or record.container.exit
        self._gone[container_id] = (record.container.name, ended)
        while len(self._gone) > REMEMBERED:
            self._gone.popitem(last=False)
        del self._records[container_id]
        if self._names.get(record.container.name) == container_id:
            del self._names[record.container.name]
        self._networks.release(container_id)
        record.removed = True
        record.claimed.set()
        if run is not None and run.exit is None and run.running.is_set():
            # Killed with its helper: nobody saw how.
            self._events.publish(
                EventKind.DIE, record.container, exit_code="unknown", restarts="no"
            )
        self._events.publish(EventKind.DESTROY, record.container)
        record.change()

    async def _remove_itself(self, record: Record) -> None:
        """Remove a container that removes itself; what can't be done now is done later.

        The caller holds its section. Who waits for the removal waits until then.
        """
        try:
            with self._finishing(record.id):
                await self._remove(record)
        except ContainerError as error:
            _log.warning("container %s can't be removed yet: %s", record.id, error)
            self._in_background(self._remove_later, record)

    async def _remove_later(self, record: Record) -> None:
        async def remove() -> None:
            async with self.exclusive(record.id):
                if not record.removed:
                    with self._finishing(record.id):
                        await self._remove(record)

        name = f"the removal of container {record.id}"
        await Supervised[None](remove, name=name, backoff=SWEEPING, intensity=None).run()

    async def _remove_broken(self, container_id: str) -> None:
        """Remove a container whose document can't be read, and whatever runs of it."""
        if container_id not in self._broken:
            raise NotFound(f"no container {container_id!r}: it was removed just now")
        await self._in_thread(self._store.mark_removing, container_id)
        await self._sandboxes.rejoin(container_id)
        await self._sandboxes.shut_down(container_id, thorough=True)
        await self._images(lambda images: images.release(container_id))
        await self._in_thread(self._store.remove, container_id)
        self._broken.pop(container_id, None)
        self.volumes.set_uncertain(self._broken)

    def _give_up_restart(self, record: Record) -> None:
        """Let nobody start the container again who was about to."""
        scope, record.restart = record.restart, None
        if scope is not None:
            scope.cancel()

    # --- documents ---

    async def _save(self, record: Record, **changes: Any) -> None:
        """Change fields of a container, durably before anybody sees it; see `Container`."""
        async with record.writing:
            saved = evolve(record.saved, **changes)
            if saved != record.saved:
                await self._in_thread(self._store.update, saved)
                record.saved = saved
            record.change(evolve(record.container, **changes))

    async def _begin_run(self, record: Record, **changes: Any) -> None:
        """Write down that a container is about to run."""
        async with record.writing:
            saved = evolve(record.saved, status=ContainerStatus.RUNNING, pid=None, **changes)
            await self._in_thread(self._store.begin_run, saved)
            record.saved = saved

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
            name = record.container.name
            if record.container.status is ContainerStatus.RESTARTING:
                raise InvalidState(
                    f"container {name} does not run: it is about to be started again",
                    hint=f"`container stop {name}` ends that",
                )
            raise InvalidState(
                f"container {name} does not run", hint=f"`container start {name}` starts it"
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
        """Run a task of this actor."""
        self.nursery.start_soon(self._guarded, function, *arguments, name=function.__name__)

    async def _guarded(self, function: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Do something whose bug is logged, and costs no other container, nor its own run."""
        try:
            await function(*arguments)
        except Exception:
            _log.exception("%s failed", function.__name__)

    async def _quietly(self, step: Awaitable[object]) -> None:
        """Do one step of a clean-up: its failure is logged and does not hide what led to it."""
        try:
            await step
        except ContainerError as error:
            _log.warning("clean-up failed: %s", error)
