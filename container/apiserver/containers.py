"""All containers of one root: the actor behind the `Containers` contract.

State is `_records` (what exists) and `_names` (which names are taken, those of containers in the
making included). Both change only here, without an await between check and change. What must not
overlap for one container - bootstrap, clean-up, removal - holds `exclusive(id)`; nothing else does,
so that a wedged container delays nobody, and a `wait` never blocks a `kill`.

What an operation did is undone when it fails or is cancelled; a removal that was begun is finished.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Self, TypeVar

import trio
from attrs import evolve

from container.apiserver.configuration import (
    check_options,
    further_process,
    make_container,
    sandbox_spec,
)
from container.apiserver.links import Caller, together
from container.apiserver.names import new_id, new_name, resolve
from container.apiserver.records import Record, Run
from container.apiserver.runs import RunWatch
from container.apiserver.sandboxes import OpenGate, Sandboxes, Timeouts
from container.apiserver.signals import signal_name
from container.apiserver.store import ContainerStore
from container.contracts.apiserver import (
    Container,
    ContainerOptions,
    Containers,
    ContainerStatus,
    Plugin,
    Plugins,
    PullPolicy,
    WaitCondition,
)
from container.contracts.images import Image, Images
from container.contracts.launcher import Launcher
from container.contracts.logs import open_log
from container.contracts.runtime import (
    INIT,
    ExitStatus,
    LogFiles,
    MountKind,
    ProcessSpec,
    Sandbox,
    SandboxPhase,
    SandboxStatistics,
    Stdio,
    StopOptions,
)
from container.ipc import (
    Actor,
    AlreadyExists,
    ContainerError,
    DataLoss,
    DeadlineExceeded,
    Endpoint,
    InvalidState,
    NotFound,
    PeerGone,
    PermissionDenied,
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


class ContainersService(Actor, Containers):
    """Create, start, stop, look at and remove containers.

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

    async def __aenter__(self) -> Self:
        """Open, and begin to adopt what runs; each container's own calls wait until it is
        adopted."""
        await super().__aenter__()
        for record in tuple(self._records.values()):
            self._in_background(self._adopt, record)
        for container_id in self._unfinished:
            self._in_background(self._sweep, container_id)
        self._in_background(self._end_strays)
        return self

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

    # --- create ---

    async def create(self, options: ContainerOptions) -> Container:
        """Create a container; see the contract. Cancelled or failed, it leaves nothing."""
        check_options(options)
        container_id = new_id(self._records.keys() | self._broken.keys())
        name = options.name or new_name(self._names)
        if name in self._names:
            raise AlreadyExists(
                f"the name {name!r} is taken by container {self._names[name]}",
                hint="choose another name, or remove that container",
            )
        self._names[name] = container_id
        try:
            image = await self._image(options)
            container = make_container(
                options, image, container_id=container_id, name=name, created_at=self._clock()
            )
            await self._check_sources(container)
            self._warm_up(container_id)
            await self._in_thread(self._store.create, container)
            layers = await self._prepare(container)
        except BaseException:
            with self._finishing(container_id):
                await self._cool_down(container_id)
                await self._quietly(self._images(lambda images: images.release(container_id)))
                await self._in_thread(partial(self._store.remove, durable=False), container_id)
            del self._names[name]
            raise
        record = Record(container, layers)
        record.settled.set()
        self._insert(record)
        if container.auto_remove:
            self._in_background(self._expire, record, container.created_at)
        return container

    async def _image(self, options: ContainerOptions) -> Image:
        reference, platform = options.image, options.platform
        if options.pull is PullPolicy.ALWAYS:
            await self._images(lambda images: images.pull(reference, platform))
        try:
            return await self._images(lambda images: images.get(reference, platform))
        except NotFound as missing:
            if options.pull is not PullPolicy.MISSING:
                raise
            try:
                await self._images(lambda images: images.pull(reference, platform))
            except (NotFound, Unavailable, PermissionDenied) as error:
                raise NotFound(
                    f"{missing.message}, and it can't be pulled: {error.message}",
                    hint=missing.hint or error.hint,
                    details={**error.details, "pull": error.code.value},
                ) from error
            return await self._images(lambda images: images.get(reference, platform))

    async def _prepare(self, container: Container) -> tuple[str, ...]:
        """Have the image unpacked and held, by its own digest: its tag may be moved meanwhile."""
        key, platform = container.id, container.platform
        snapshot = await self._images(lambda it: it.prepare(_exact(container), key, platform))
        await self._in_thread(self._store.save_layers, key, snapshot.layers)
        return snapshot.layers

    async def _layers(self, record: Record) -> tuple[str, ...]:
        if record.layers is None:
            record.layers = await self._in_thread(self._store.load_layers, record.id)
        if record.layers is None:
            record.layers = await self._prepare(record.container)
        return record.layers

    async def _check_sources(self, container: Container) -> None:
        sources = [mount.source for mount in container.mounts if mount.kind is MountKind.BIND]
        if sources:
            present = await self._in_thread(lambda: [os.path.exists(path) for path in sources])
            for source, there in zip(sources, present, strict=True):
                if not there:
                    raise NotFound(
                        f"the mount source {source!r} does not exist", hint="make it first"
                    )

    def _warm_up(self, container_id: str) -> None:
        """Start the helper while the caller's next step is on its way: `run` bootstraps at once."""
        if len(self._warm) < WARM_HELPERS:
            self._warm.add(container_id)
            self._in_background(self._keep_warm, container_id)

    async def _keep_warm(self, container_id: str) -> None:
        if container_id not in self._warm:
            return  # it is not wanted any more; from here to the helper's own lock nothing awaits
        try:
            await self._sandboxes.open(container_id)
        except ContainerError as error:
            _log.info("a helper could not be started in advance: %s", error)
        await trio.sleep(self._timeouts.warm)
        async with self.exclusive(container_id):
            if container_id in self._warm:
                await self._cool_down(container_id)

    async def _cool_down(self, container_id: str) -> None:
        if container_id in self._warm:
            self._warm.discard(container_id)
            await self._quietly(self._sandboxes.shut_down(container_id, thorough=False))

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

    # --- bootstrap, start ---

    async def bootstrap(self, container: str, stdio: Stdio) -> Endpoint[Sandbox]:
        """Start the helper and create the first process; see the contract.

        Cancelled or failed, the helper and all that it made are gone again, and a container that
        removes itself with them.
        """
        record = await self._settled(container)
        async with self.exclusive(record.id):
            await self._bootstrap(record, stdio)
            try:
                return await self._sandboxes.hand_out(record.id)
            except BaseException:
                with self._finishing(record.id):
                    await self._undo_bootstrap(record, record.container)
                raise

    async def _bootstrap(self, record: Record, stdio: Stdio) -> None:
        self._check_present(record)
        if record.live:
            raise InvalidState(
                f"container {record.container.name} already runs",
                hint="`container exec` runs a further command in it",
            )
        record.claimed.set()
        if record.run is not None:
            await self._end_run(record)
        before, container_id = record.container, record.id
        running = evolve(before, status=ContainerStatus.RUNNING, pid=None, exit=None)
        self._warm.discard(container_id)
        try:
            layers, _, _ = await together(
                lambda: self._layers(record),
                lambda: self._sandboxes.open(container_id),
                lambda: self._in_thread(self._store.begin_run, running),
            )
            spec = sandbox_spec(before, layers)
            await self._sandboxes.call(container_id, lambda sandbox: sandbox.bootstrap(spec, stdio))
        except BaseException:
            with self._finishing(container_id):
                await self._undo_bootstrap(record, before)
            raise
        record.change(evolve(running, status=ContainerStatus.CREATED))
        self._begin(record)

    async def _undo_bootstrap(self, record: Record, before: Container) -> None:
        if record.run is not None:
            record.run.scope.cancel()
            record.run = None
        if before.auto_remove:
            await self._quietly(self._remove(record))
            return
        await self._quietly(self._sandboxes.shut_down(record.id, thorough=False))
        await self._quietly(self._in_thread(self._store.update, before))
        record.change(before)

    async def create_process(
        self, container: str, process: str, spec: ProcessSpec, stdio: Stdio
    ) -> Endpoint[Sandbox]:
        """Prepare a further process; see the contract."""
        record = await self._settled(container)
        complete = further_process(record.container, process, spec)
        self._check_live(record)
        await self._call(record, lambda it: it.create_process(process, complete, stdio))
        return await self._sandboxes.hand_out(record.id)

    async def start(self, container: str) -> Container:
        """Start a container whose output goes to its log; see the contract."""
        record = await self._settled(container)
        async with self.exclusive(record.id):
            self._check_present(record)
            if not record.live:
                await self._bootstrap(record, Stdio())
            seen = await self._watch.look(record.container)
            if seen.status is not ContainerStatus.CREATED:
                return seen
            try:
                started = await self._call(record, lambda sandbox: sandbox.start(INIT))
            except BaseException as error:
                if isinstance(error, InvalidState):
                    raise  # somebody else started it meanwhile: the run is not ours to undo
                with self._finishing(record.id):
                    await self._undo_bootstrap(record, seen)
                raise
            for descriptor in (started.terminal, started.terminal_input):
                if descriptor is not None:
                    descriptor.close()
            running = evolve(
                record.container,
                status=ContainerStatus.RUNNING,
                pid=started.pid,
                started_at=started.started_at,
                exit=None,
            )
            if record.live:
                record.change(running)
            return running

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

    # --- stop, kill, delete ---

    async def stop(self, container: str, options: StopOptions) -> Container:
        """Stop a container; see the contract."""
        if options.signal is not None:
            options = evolve(options, signal=signal_name(options.signal))
        record = await self._settled(container)
        run = record.run
        if not record.live or run is None:
            return record.container
        seen = await self._watch.look(record.container)
        if seen.status is ContainerStatus.CREATED:
            async with self.exclusive(record.id):
                if record.run is run and not record.removed:
                    with self._finishing(record.id):
                        await self._undo_bootstrap(
                            record,
                            evolve(record.container, status=ContainerStatus.CREATED, pid=None),
                        )
            return record.container
        try:
            ended = await self._call(record, lambda sandbox: sandbox.stop(options))
        except InvalidState:
            if record.live:
                raise
            return record.container
        with trio.move_on_after(self._timeouts.question):
            while record.run is run and run.exit is None and not record.removed:
                await record.changed.wait()
        return evolve(record.container, status=ContainerStatus.STOPPED, pid=None, exit=ended)

    async def kill(self, container: str, signal: str) -> None:
        """Send a signal to the first process; see the contract."""
        name = signal_name(signal)
        record = await self._settled(container)
        self._check_live(record)
        await self._call(record, lambda sandbox: sandbox.kill(INIT, name))

    async def delete(self, container: str, force: bool = False) -> None:
        """Delete a container; see the contract. Once begun, it is finished even if cancelled."""
        if container in self._broken:
            raise self._broken[container]
        record = await self._settled(container)
        if record.run is not None:
            record.run.hurry.set()
        async with self.exclusive(record.id):
            self._check_present(record)
            if record.live and not force:
                seen = await self._watch.look(record.container)
                if seen.status in (ContainerStatus.RUNNING, ContainerStatus.UNKNOWN):
                    runs = seen.status is ContainerStatus.RUNNING
                    raise InvalidState(
                        f"container {record.container.name} "
                        + ("runs" if runs else "may run: its helper does not answer"),
                        hint="stop it first, or delete it with --force",
                    )
            with self._finishing(record.id):
                await self._remove(record)

    # --- looking ---

    async def list(self) -> tuple[Container, ...]:
        """Return all containers, newest first; see the contract."""
        records = sorted(
            self._records.values(), key=lambda record: record.container.created_at, reverse=True
        )
        views = await together(*[partial(self._view, record) for record in records])
        return tuple(view for view in views if view is not None)

    async def get(self, container: str) -> Container:
        """Return one container; see the contract."""
        record = self._find(container)
        view = await self._view(record)
        if view is None:
            raise NotFound(f"no container {container!r}: it was removed just now")
        return view

    async def _view(self, record: Record) -> Container | None:
        with trio.move_on_after(self._timeouts.question):
            await record.settled.wait()
        if not record.settled.is_set():
            return evolve(record.container, status=ContainerStatus.UNKNOWN)
        if record.live:
            view = await self._watch.look(record.container)
            if record.removed:
                return None
            if view.status is ContainerStatus.RUNNING and record.live:
                record.container = view  # its pid and the time of its start: nobody told us before
            elif not record.live:
                return record.container
            return view
        await trio.lowlevel.checkpoint()
        return None if record.removed else record.container

    async def wait(
        self, container: str, condition: WaitCondition = WaitCondition.EXITED
    ) -> ExitStatus:
        """Return how the last run ended; see the contract.

        A container that is gone can be asked for by its id for a while. Cancelled, changed nothing.
        """
        if container not in self._records and container in self._gone:
            await trio.lowlevel.checkpoint()
            return self._last_exit(container)
        record = self._find(container)
        removal = condition is WaitCondition.REMOVED and record.container.auto_remove
        await trio.lowlevel.checkpoint()
        while True:
            if record.removed:
                return self._last_exit(record.id)
            if removal:
                if record.run is not None:
                    record.run.hurry.set()
            elif not record.live and record.container.exit is not None:
                return record.container.exit
            await record.changed.wait()

    def _last_exit(self, container_id: str) -> ExitStatus:
        name, ended = self._gone.get(container_id, (container_id, None))
        if ended is None:
            raise NotFound(f"container {name} was removed before it ended")
        return ended

    async def logs(self, container: str) -> LogFiles:
        """Return the log's files; see the contract."""
        record = await self._settled(container)
        if not record.container.keep_log:
            raise InvalidState(
                f"container {record.container.name} keeps no log: its output goes to the terminal "
                "or pipe that it was run from",
                hint="run it with -d, or without --rm, to keep one",
            )
        if record.run is not None:
            try:
                return await self._call(record, lambda sandbox: sandbox.logs())
            except Unavailable:
                pass  # what its helper wrote until now is on disk
        return await self._in_thread(self._open_log, record)

    def _open_log(self, record: Record) -> LogFiles:
        folder = self._store.folder(record.id) / "log"
        try:
            return open_log(folder)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise InvalidState(
                    f"container {record.container.name} has no log: it never ran", hint=None
                ) from error
            raise Unavailable(f"the log {folder} can't be read: {error.strerror}") from error

    # The contract's word means the container's usage; the actor's own look has the same name.
    async def statistics(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, container: str
    ) -> SandboxStatistics:
        """Return usage of a running container; see the contract."""
        record = await self._settled(container)
        self._check_live(record)
        return await self._call(record, lambda sandbox: sandbox.statistics())

    def census(self) -> tuple[int, int]:
        """Return how many containers there are, and how many of them run or may run."""
        records = self._records.values()
        return len(records), sum(record.live for record in records)

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


def _exact(container: Container) -> str:
    """Return the reference of the very image that a container was made from."""
    name = container.image.partition("@")[0]
    head, slash, tail = name.rpartition("/")
    return f"{head}{slash}{tail.partition(':')[0]}@{container.image_digest}"
