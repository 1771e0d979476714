"""All containers of one root: the actor behind the `Containers` contract.

State is `_records` (what exists) and `_names` (which names are taken, those of containers in the
making included). Both change without an await between check and change. What must not overlap for
one container - bootstrap, clean-up, removal - holds `exclusive(id)`; nothing else does, so that a
wedged container delays nobody, and a `wait` never blocks a `kill`. Who waits for a wedged one in
vain is told before its deadline what holds it.

Below this: `adoption`, `running`, `table`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio
from attrs import evolve

from container.apiserver.adoption import ContainerAdoption
from container.apiserver.configuration import (
    SECONDS_MAX,
    check_options,
    further_process,
    make_container,
)
from container.apiserver.links import together
from container.apiserver.names import new_id, new_name
from container.apiserver.network_options import PORT_MAX
from container.apiserver.records import Record, Run
from container.apiserver.running import FRESH
from container.apiserver.signals import signal_name
from container.apiserver.volumes_mounts import plan_mounts, split_lender
from container.contracts.apiserver import (
    EVERYTHING,
    Container,
    ContainerOptions,
    Containers,
    ContainerStatus,
    Event,
    EventFilter,
    EventKind,
    PullPolicy,
    WaitCondition,
)
from container.contracts.images import Image
from container.contracts.logs import open_log
from container.contracts.runtime import (
    INIT,
    ExitStatus,
    LogFiles,
    Mount,
    MountKind,
    ProcessSpec,
    Sandbox,
    SandboxStatistics,
    Stdio,
    StopOptions,
)
from container.ipc import (
    AlreadyExists,
    ContainerError,
    Endpoint,
    Fd,
    InvalidArgument,
    InvalidState,
    NotFound,
    PermissionDenied,
    Unavailable,
)

WARM_HELPERS = 4
"""Helpers that may be started before their container's bootstrap is asked for."""

_log = logging.getLogger(__name__)


class ContainersService(ContainerAdoption, Containers):
    """Create, start, stop, look at and remove containers; its arguments are the table's."""

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
        made: tuple[str, ...] = ()
        try:
            image = await self._image(options)
            options = await self._choose_networks(container_id, options)
            container = make_container(
                options, image, container_id=container_id, name=name, created_at=self._clock()
            )
            for problem in image.config.health.problems if image.config.health else ():
                _log.warning("container %s, image %s: %s", container_id, options.image, problem)
            container = evolve(container, mounts=self._all_mounts(container, options, image))
            await self._check_sources(container)
            self.volumes.claim(container)
            if not self.volumes.mounts_for(container):
                self._warm_up(container_id)
            await self._in_thread(self._store.create, container)
            made = await self.volumes.provide(container)
            layers = await self._prepare(container)
        except BaseException:
            try:
                with self._finishing(container_id):
                    await self._quietly(self._undo_create(container_id, made))
            finally:
                # Whatever went wrong with that too: the name is free, and not taken for ever.
                del self._names[name]
                self._networks.release(container_id)
                self.volumes.drop(container_id)
            raise
        record = Record(container, layers)
        record.settled.set()
        self._insert(record)
        self._events.publish(EventKind.CREATE, container)
        if container.auto_remove:
            self._in_background(self._expire, record, container.created_at)
        return container

    def _all_mounts(
        self, container: Container, options: ContainerOptions, image: Image
    ) -> tuple[Mount, ...]:
        """Return a container's mounts with those of others and the volumes of its image."""
        lenders = [split_lender(text) for text in options.volumes_from]
        return plan_mounts(
            container.mounts,
            [(self._find(name).container.mounts, read_only) for name, read_only in lenders],
            image.config.volumes,
        )

    async def _undo_create(self, container_id: str, made: Sequence[str]) -> None:
        await self._cool_down(container_id)
        # The mark first: where the images helper can't be reached, the next start releases.
        await self._in_thread(
            partial(self._store.mark_removing, durable=False, volumes=bool(made)), container_id
        )
        await self.volumes.take_back(container_id, made)
        await self._images(lambda images: images.release(container_id))
        await self._in_thread(partial(self._store.remove, durable=False), container_id)

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

    async def create_process(
        self, container: str, process: str, spec: ProcessSpec, stdio: Stdio
    ) -> Endpoint[Sandbox]:
        """Prepare a further process; see the contract."""
        record = await self._settled(container)
        complete = further_process(record.container, process, spec)
        self._check_live(record)
        name = record.container.name
        if record.container.status is ContainerStatus.PAUSED:
            raise InvalidState(
                f"container {name} is paused", hint=f"`container unpause {name}` lets it go on"
            )
        await self._call(record, lambda it: it.create_process(process, complete, stdio))
        return await self._sandboxes.hand_out(record.id)

    async def start(self, container: str) -> Container:
        """Start a container whose output goes to its log; see the contract."""
        record = await self._settled(container)
        async with self.exclusive(record.id):
            return await self._start(record)

    # --- stop, restart, pause, kill, delete ---

    async def stop(self, container: str, options: StopOptions) -> Container:
        """Stop a container; see the contract."""
        options = _checked_stop(options)
        record = await self._settled(container)
        if record.live or record.container.status is ContainerStatus.RESTARTING:
            await self._mark_stopped(record)
        if not record.live and record.container.status is ContainerStatus.RESTARTING:
            async with self.exclusive(record.id):
                # It may have been started meanwhile, or removed.
                if not record.live and record.container.status is ContainerStatus.RESTARTING:
                    await self._stay_stopped(record)
                    self._events.publish(EventKind.STOP, record.container)
        run = record.run
        if not record.live or run is None:
            return record.container
        return await self._stop_run(record, run, options)

    async def _stop_run(self, record: Record, run: Run, options: StopOptions) -> Container:
        seen = await self._look(record)
        if seen.status is ContainerStatus.UNKNOWN:
            await self._sandboxes.replace_if_wedged(record.id)
        if seen.status is ContainerStatus.CREATED:
            async with self.exclusive(record.id):
                if record.run is not run or record.removed:
                    return record.container
                if (await self._look(record)).status is ContainerStatus.CREATED:
                    before = evolve(
                        record.container, status=ContainerStatus.CREATED, pid=None, attachments=()
                    )
                    with self._finishing(record.id):
                        await self._undo_bootstrap(record, before)
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
        if not run.to_restart:
            self._events.publish(EventKind.STOP, record.container)
        return evolve(
            record.container, status=ContainerStatus.STOPPED, pid=None, exit=ended, attachments=()
        )

    async def restart(self, container: str, options: StopOptions | None = None) -> Container:
        """Stop and start a container; see the contract.

        Once it is stopped, it is started even if the caller is gone.
        """
        record = await self._settled(container)
        options = _checked_stop(options or StopOptions(timeout=record.container.stop_timeout))
        run = record.run
        if run is not None and record.live:
            await self._stop_to_restart(record, run, options)
        with self._finishing(record.id):
            if run is not None:
                while record.run is run and run.exit is None and not record.removed:
                    await record.changed.wait()
            async with self.exclusive(record.id):
                started = await self._start_stopped(record)
            self._events.publish(EventKind.RESTART, record.container)
        return started

    async def _start_stopped(self, record: Record) -> Container:
        intended = record.saved.status is ContainerStatus.RESTARTING
        try:
            return await self._start(record, intended=intended)
        except ContainerError:
            if intended and not record.live and not record.removed:
                await self._quietly(self._save(record, status=ContainerStatus.STOPPED))
            raise

    async def _stop_to_restart(self, record: Record, run: Run, options: StopOptions) -> None:
        run.to_restart = True  # its end asks no policy
        try:
            if not record.container.auto_remove:
                # From here on a successor starts it, too.
                await self._save(record, status=ContainerStatus.RESTARTING, **FRESH)
            await self._stop_run(record, run, options)
        except BaseException:
            run.to_restart = False
            if record.live and not record.container.auto_remove:
                with self._finishing(record.id):
                    await self._quietly(self._save(record, status=ContainerStatus.RUNNING))
            raise

    async def pause(self, container: str) -> None:
        """Freeze a container; see the contract."""
        record = await self._settled(container)
        self._check_live(record)
        if (await self._look(record)).status is ContainerStatus.PAUSED:
            return
        await self._call(record, lambda sandbox: sandbox.pause())
        await self._look(record)
        self._events.publish(EventKind.PAUSE, record.container)

    async def unpause(self, container: str) -> None:
        """Let a container go on; see the contract."""
        record = await self._settled(container)
        self._check_live(record)
        if (await self._look(record)).status is ContainerStatus.RUNNING:
            return
        await self._call(record, lambda sandbox: sandbox.resume())
        await self._look(record)
        self._events.publish(EventKind.UNPAUSE, record.container)

    async def kill(self, container: str, signal: str) -> None:
        """Send a signal to the first process; see the contract."""
        name = signal_name(signal)
        record = await self._settled(container)
        self._check_live(record)
        if name in ("SIGKILL", record.container.stop_signal):
            await self._mark_stopped(record)
        await self._call(record, lambda sandbox: sandbox.kill(INIT, name))
        self._events.publish(EventKind.KILL, record.container, signal=name)

    async def delete(self, container: str, force: bool = False, volumes: bool = False) -> None:
        """Delete a container; see the contract. Once begun, it is finished even if cancelled."""
        if container in self._broken:
            if not force:
                raise self._broken[container]
            async with self.exclusive(container):
                with self._finishing(container):
                    await self._remove_broken(container)
            return
        record = await self._settled(container)
        if record.run is not None:
            record.run.hurry.set()
        if force and record.bootstrapping is not None:
            record.bootstrapping.cancel()
        async with self.exclusive(record.id):
            self._check_present(record)
            if not force:
                await self._check_ended(record)
            with self._finishing(record.id):
                await self._remove(record, volumes=volumes)

    async def _check_ended(self, record: Record) -> None:
        name, status = record.container.name, record.container.status
        if record.live:
            status = (await self._look(record)).status
        what = {
            ContainerStatus.RUNNING: "runs",
            ContainerStatus.PAUSED: "is paused",
            ContainerStatus.RESTARTING: "is about to be started again",
            ContainerStatus.UNKNOWN: "may run: its helper does not answer",
        }.get(status)
        if what is not None:
            raise InvalidState(
                f"container {name} {what}", hint="stop it first, or delete it with --force"
            )

    # --- looking ---

    async def list(self) -> tuple[Container, ...]:
        """Return all containers, newest first; see the contract."""
        records = sorted(
            self._records.values(), key=lambda record: record.container.created_at, reverse=True
        )
        views = await together(*[partial(self._view, record) for record in records])
        return tuple(evolve(view, health_results=()) for view in views if view is not None)

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
            view = await self._look(record)
            if record.removed:
                return None
            if not record.live:
                return record.container
            if (
                view.status is ContainerStatus.CREATED
                and record.saved.status is ContainerStatus.RESTARTING
            ):
                view = evolve(view, status=ContainerStatus.RESTARTING)
            return record.shown(view)
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

    async def statistics(self, container: str) -> SandboxStatistics:
        """Return usage of a running container; see the contract."""
        record = await self._settled(container)
        self._check_live(record)
        return await self._call(record, lambda sandbox: sandbox.statistics())

    async def dial(self, container: str, port: int) -> Fd:
        """Connect to a port inside a running container; see the contract."""
        if not 1 <= port <= PORT_MAX:
            raise InvalidArgument(f"{port} is no port: 1 to {PORT_MAX}")
        record = await self._settled(container)
        self._check_live(record)
        return await self._call(record, lambda sandbox: sandbox.dial(port))

    @asynccontextmanager
    async def events(
        self, wanted: EventFilter = EVERYTHING
    ) -> AsyncGenerator[trio.abc.ReceiveChannel[Event]]:
        """Stream what happens to containers; see the contract."""
        # Subscribed before this is open: what the caller does next is seen.
        with self._events.subscribed(wanted) as subscriber:
            async with subscriber.events() as events:
                yield events

    def census(self) -> tuple[int, int]:
        """Return how many containers there are, and how many of them run or may run."""
        records = self._records.values()
        return len(records), sum(record.live for record in records)


def _checked_stop(options: StopOptions) -> StopOptions:
    if options.timeout is not None and not 0 <= options.timeout <= SECONDS_MAX:
        raise InvalidArgument(
            f"a timeout of {options.timeout:g} s is out of range", hint="None waits for ever"
        )
    if options.signal is None:
        return options
    return evolve(options, signal=signal_name(options.signal))
