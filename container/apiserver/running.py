"""Runs of containers: from bootstrap to clean-up, and on to the next run where a policy wants it.

```mermaid
stateDiagram-v2
    CREATED --> RUNNING: bootstrap, start
    RUNNING --> STOPPED: it ended
    RUNNING --> RESTARTING: it ended, and shall run again
    RESTARTING --> RUNNING: bootstrap, start, after the policy's delay
    RESTARTING --> STOPPED: stop
    STOPPED --> RUNNING: bootstrap, start
```

What is on disk: RUNNING from the moment that there is a sandbox and before anybody can start it,
RESTARTING from an end (or from a user's `restart`) until the next run has been started. So an API
server that is killed between any two steps leaves what its successor needs (see `adoption`).

What an operation did is undone when it fails or is cancelled.
"""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from datetime import datetime
from functools import partial
from typing import Any

import trio
from attrs import evolve

from container.apiserver import restarts
from container.apiserver.attaching import ContainerNetworks
from container.apiserver.configuration import further_process
from container.apiserver.healthchecks import Checked, Health, keep_checking
from container.apiserver.links import together
from container.apiserver.records import Record, Run
from container.contracts.apiserver import (
    Container,
    ContainerStatus,
    EventKind,
    HealthCheck,
    HealthStatus,
)
from container.contracts.images import Snapshot
from container.contracts.runtime import (
    INIT,
    ExitStatus,
    ProcessSpec,
    Sandbox,
    SandboxSpec,
    Stdio,
)
from container.ipc import ContainerError, Fd, InvalidState

NOTICING = 0.02, 1.0
"""Seconds between looks at whether a client has started its container: the first, the longest."""

FRESH: dict[str, Any] = {"exit": None, "restart_count": 0, "stopped_by_user": False}
"""Of a container that a user has started."""

_log = logging.getLogger(__name__)


class ContainerRuns(ContainerNetworks):
    """Start containers, watch their runs, and start them again."""

    # --- bootstrap, start ---

    async def _prepare(self, container: Container) -> tuple[str, ...]:
        """Have the image unpacked and held, by its own digest: its tag may be moved meanwhile."""
        key, platform = container.id, container.platform
        snapshot: Snapshot = await self._images(
            lambda images: images.prepare(_exact(container), key, platform)
        )
        await self._in_thread(self._store.save_layers, key, snapshot.layers)
        return snapshot.layers

    async def _layers(self, record: Record) -> tuple[str, ...]:
        if record.layers is None:
            record.layers = await self._in_thread(self._store.load_layers, record.id)
        if record.layers is None:
            record.layers = await self._prepare(record.container)
        return record.layers

    async def _bootstrap(self, record: Record, stdio: Stdio, *, intended: bool = False) -> None:
        """Create the first process; the caller holds the container's section.

        Args:
            record: The container.
            stdio: Of the first process.
            intended: It is on disk as RESTARTING: whoever comes after us starts it, too.
        """
        self._check_present(record)
        if record.live:
            raise InvalidState(
                f"container {record.container.name} already runs",
                hint="`container exec` runs a further command in it",
            )
        record.claimed.set()
        self._give_up_restart(record)
        if record.run is not None:
            await self._end_run(record)
        before, container_id = record.container, record.id
        if before.status is ContainerStatus.RESTARTING and not intended:
            # The start that was due was given up for this one: if it fails, none follows.
            before = evolve(before, status=ContainerStatus.STOPPED)
        self._warm.discard(container_id)

        try:
            with trio.CancelScope() as record.bootstrapping:
                first = before.started_at is None
                # Before the helper starts: it has mounts of its own, and where the machine's are
                # private, those that are made later don't show up there.
                mounts = await self.volumes.hold(before, first=first)
                layers, *_ = await together(
                    lambda: self._layers(record),
                    lambda: self._sandboxes.open(container_id),
                    lambda: self._register_networks(before),
                )
                record.made = True
                spec = await self._sandbox_spec(evolve(before, mounts=mounts), layers)
                async with self._shared_namespace(before) as namespace:
                    with self._hinting_at_none():
                        await self._bootstrap_sandbox(container_id, spec, stdio, namespace)
                if not intended:
                    # Only now, so that RUNNING without a sandbox is a run that was lost. Until then
                    # a sandbox of a container that does not run is a stray, and swept.
                    await self._begin_run(record, **FRESH)
            if record.bootstrapping.cancelled_caught:
                raise InvalidState(
                    f"container {before.name} was not started: somebody removes it meanwhile"
                )
        except BaseException:
            with self._finishing(container_id):
                await self._undo_bootstrap(record, before)
            raise
        if not intended:
            record.row = restarts.RestartRow()
            record.change(evolve(before, status=ContainerStatus.CREATED, pid=None, **FRESH))
        self._begin(record)

    async def _bootstrap_sandbox(
        self, container_id: str, spec: SandboxSpec, stdio: Stdio, namespace: Fd | None
    ) -> None:
        async def bootstrap(sandbox: Sandbox) -> None:
            await sandbox.bootstrap(spec, stdio, namespace)

        try:
            await self._sandboxes.call(container_id, bootstrap)
        except InvalidState:
            # An earlier API server's helper, which still holds a run that is over.
            await self._sandboxes.shut_down(container_id, thorough=True)
            container = self._records[container_id].container
            spec = evolve(spec, mounts=await self.volumes.hold(container, first=False))
            await self._sandboxes.open(container_id)
            await self._sandboxes.call(container_id, bootstrap)

    async def _undo_bootstrap(self, record: Record, before: Container) -> None:
        if record.run is not None:
            record.run.scope.cancel()
            record.run = None
        if before.auto_remove:
            await self._remove_itself(record)
            return
        await self._quietly(self._take_down(record))
        await self._quietly(self._restore(record, before))
        record.change(before)

    async def _take_down(self, record: Record) -> None:
        await self._sandboxes.shut_down(record.id, thorough=record.made)
        record.made = False

    async def _restore(self, record: Record, before: Container) -> None:
        await self._save(
            record,
            status=before.status,
            exit=before.exit,
            restart_count=before.restart_count,
            stopped_by_user=before.stopped_by_user,
        )

    async def _start(self, record: Record, *, intended: bool = False) -> Container:
        """Bootstrap a container unless that was done, and start it; returns what it is now.

        The caller holds the container's section. Failed or cancelled, it is as it was before.
        `intended` as in `_bootstrap`.
        """
        self._check_present(record)
        if not record.live:
            await self._bootstrap(record, Stdio(), intended=intended)
        else:
            seen = await self._look(record)
            if seen.status is not ContainerStatus.CREATED:
                return seen
        run = record.run
        status = ContainerStatus.RESTARTING if intended else ContainerStatus.CREATED
        before = evolve(record.container, status=status, pid=None)
        try:
            started = await self._call(record, lambda sandbox: sandbox.start(INIT))
        except BaseException as error:
            if isinstance(error, InvalidState):
                raise  # somebody else started it meanwhile: the run is not ours to undo
            with self._finishing(record.id):
                await self._undo_bootstrap(record, before)
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
        if record.live and run is not None:
            record.change(running)
            self._is_running(record, run)
            if record.saved.status is ContainerStatus.RESTARTING:
                await self._quietly(self._save(record, status=ContainerStatus.RUNNING, exit=None))
        return running

    # --- a run, and its end ---

    def _begin(self, record: Record, *, lived: float = 0.0) -> Run:
        """Watch a run from now on; it has been there for `lived` seconds."""
        run = record.run = Run(since=trio.current_time() - lived)
        record.health = Health() if record.container.health is not None else None
        record.claimed.set()
        self._in_background(self._attend, record, run)
        return run

    def _is_running(self, record: Record, run: Run) -> None:
        """Take notice of a start, whoever made it."""
        if not run.running.is_set():
            run.running.set()
            self._events.publish(EventKind.START, record.container, record.container.started_at)

    async def _attend(self, record: Record, run: Run) -> None:
        """Wait for the end of a run, record it, and clean up after it or have it started again."""
        with run.scope:
            ended = await self._until_ended(record, run)
            if ended is not None:
                await self._record_exit(record, run, ended)
                if record.container.status is ContainerStatus.RESTARTING:
                    if not run.to_restart:
                        lived = trio.current_time() - run.since
                        self._start_again(record, record.row.delay(lived))
                    return
                # A client that started it a moment ago may still ask its helper how it ended.
                with trio.move_on_after(self._timeouts.linger):
                    await run.hurry.wait()
            async with self.exclusive(record.id):
                if record.run is not run:
                    return
                await self._quietly(self._after_run(record, started=ended is not None))

    async def _until_ended(self, record: Record, run: Run) -> ExitStatus | None:
        ended: ExitStatus | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._guarded, self._notice_start, record, run)
            check, health = record.container.health, record.health
            if check is not None and health is not None:
                nursery.start_soon(self._guarded, self._check_health, record, run, check, health)
            ended = await self._watch.exit_of(record.id, partial(self._unreachable, record))
            nursery.cancel_scope.cancel()
        return ended

    async def _notice_start(self, record: Record, run: Run) -> None:
        """Find out when a client starts its container past this server, if anybody wants to know.

        The helper tells nobody, so it is asked, ever more rarely; else the start is told with the
        end, or when somebody lists containers.
        """
        pause, longest = NOTICING
        while not run.running.is_set():
            with trio.move_on_after(pause):
                await run.running.wait()
            pause = min(pause * 1.5, longest)
            if self._events.followed or record.health is not None:
                await self._look(record)

    async def _look(self, record: Record) -> Container:
        """Ask a live container's helper how it is, and take notice of its start."""
        run = record.run
        seen = await self._watch.look(record.container)
        if record.run is run and run is not None and record.live:
            started = (ContainerStatus.RUNNING, ContainerStatus.PAUSED)
            if seen.status in started:
                # Its pid and the time of its start: nobody told us before.
                record.container = evolve(
                    record.container,
                    status=seen.status,
                    pid=seen.pid,
                    started_at=seen.started_at,
                    exit=None,
                    attachments=seen.attachments,
                )
                self._is_running(record, run)
        return seen

    async def _check_health(
        self, record: Record, run: Run, check: HealthCheck, health: Health
    ) -> None:
        await run.running.wait()

        async def paused() -> bool:
            return (await self._watch.look(record.container)).status is ContainerStatus.PAUSED

        def changed(status: HealthStatus) -> None:
            self._events.publish(EventKind.HEALTH_STATUS, record.container, status=status.value)
            record.change()

        checked = Checked(
            call=partial(self._call, record),
            spec=lambda command, process: further_process(
                record.container, process, ProcessSpec(command)
            ),
            paused=paused,
            changed=changed,
            clock=self._clock,
        )
        await keep_checking(check, checked, health, trio.current_time() - run.since)

    async def _record_exit(self, record: Record, run: Run, ended: ExitStatus) -> None:
        """Write down how a run ended and what follows: STOPPED, or RESTARTING."""
        if not run.running.is_set():
            await self._note_start_late(record, run, ended)
        again = run.to_restart or restarts.after_end(record.container, ended)
        status = ContainerStatus.RESTARTING if again else ContainerStatus.STOPPED
        count = record.container.restart_count + (again and not run.to_restart)
        changes = {
            "status": status,
            "pid": None,
            "exit": ended,
            "started_at": record.container.started_at,
            "restart_count": count,
        }
        if not record.container.auto_remove:
            # On disk first: whoever was told an exit status must find it again after a crash.
            await self._quietly(self._save(record, **changes))
        record.container = evolve(record.container, attachments=(), **changes)
        run.exit = ended
        self._publish_end(record.container, ended, again=again)
        record.change()

    def _publish_end(self, container: Container, ended: ExitStatus, *, again: bool) -> None:
        if ended.out_of_memory:
            self._events.publish(EventKind.OOM, container, ended.exited_at)
        self._events.publish(
            EventKind.DIE,
            container,
            ended.exited_at,
            exit_code="unknown" if ended.code is None else str(ended.code),
            restarts="yes" if again else "no",
        )

    async def _note_start_late(self, record: Record, run: Run, ended: ExitStatus) -> None:
        started = ended.exited_at
        if not record.container.auto_remove:  # of one that will be gone in a moment nobody asks it
            started = (await self._watch.look(record.container)).started_at or started
        record.container = evolve(record.container, started_at=started)
        self._is_running(record, run)

    async def _after_run(self, record: Record, *, started: bool) -> None:
        if record.container.auto_remove:
            await self._remove_itself(record)
            return
        record.run = None  # before the helper is ended: it must not be taken for lost
        with self._finishing(record.id):
            await self._sandboxes.shut_down(record.id, thorough=True)
            record.made = False
            if not started:
                _log.info("container %s was bootstrapped and never started", record.id)
                await self._save(record, status=ContainerStatus.CREATED, pid=None)

    def _unreachable(self, record: Record) -> None:
        record.change(evolve(record.container, status=ContainerStatus.UNKNOWN))

    async def _end_run(self, record: Record) -> None:
        run, record.run = record.run, None
        if run is not None:
            run.scope.cancel()
        await self._sandboxes.shut_down(record.id, thorough=run is not None or record.made)
        record.made = False

    # --- again ---

    def _start_again(
        self, record: Record, delay: float, turns: trio.CapacityLimiter | None = None
    ) -> None:
        """Start a container after a while, unless somebody gives that up meanwhile.

        It is on disk as RESTARTING already.

        Args:
            record: The container.
            delay: Seconds.
            turns: Where many are started at once: how many at a time.
        """
        scope = record.restart = trio.CancelScope()
        self._in_background(self._restart_after, record, scope, delay, turns)

    async def _restart_after(
        self,
        record: Record,
        scope: trio.CancelScope,
        delay: float,
        turns: trio.CapacityLimiter | None,
    ) -> None:
        async with AsyncExitStack() as stack:
            with scope:
                await trio.sleep(delay)
                if turns is not None:
                    await stack.enter_async_context(turns)
            if record.restart is not scope:
                return
            await stack.enter_async_context(self.exclusive(record.id))
            if record.restart is not scope or record.removed:
                return
            record.restart = None
            try:
                await self._start(record, intended=True)
            except ContainerError as error:
                _log.warning("container %s could not be started again: %s", record.id, error)
                await self._could_not_restart(record)
                return
            self._events.publish(EventKind.RESTART, record.container)

    async def _could_not_restart(self, record: Record) -> None:
        """Take a start that failed for an end of the container, by its policy's rules."""
        if record.removed or record.live:
            return
        container = record.container
        failed = ExitStatus(code=None)
        if restarts.after_end(container, failed):
            await self._quietly(self._save(record, restart_count=container.restart_count + 1))
            self._start_again(record, record.row.delay(0.0))
        else:
            await self._quietly(self._save(record, status=ContainerStatus.STOPPED))

    async def _stay_stopped(self, record: Record) -> None:
        """End a container that was about to be started again; the caller holds its section."""
        self._give_up_restart(record)
        with self._finishing(record.id):
            await self._end_run(record)
            await self._save(record, status=ContainerStatus.STOPPED, stopped_by_user=True)

    async def _mark_stopped(self, record: Record) -> None:
        """Remember that a user wants a container stopped, before that is done.

        It is on disk from here on: a successor finishes what we are killed in, and no policy starts
        the container again.
        """
        if not record.container.stopped_by_user:
            await self._save(record, stopped_by_user=True)

    async def _expire(self, record: Record, since: datetime) -> None:
        """Remove a container that removes itself and that nobody came to start."""
        left = self._timeouts.claim - (self._clock() - since).total_seconds()
        with trio.move_on_after(max(0.0, left)):
            await record.claimed.wait()
            return
        async with self.exclusive(record.id):
            if not record.claimed.is_set() and not record.removed:
                _log.info("container %s was never started and removes itself", record.id)
                await self._remove_itself(record)


def _exact(container: Container) -> str:
    """Return the reference of the very image that a container was made from."""
    name = container.image.partition("@")[0]
    head, slash, tail = name.rpartition("/")
    return f"{head}{slash}{tail.partition(':')[0]}@{container.image_digest}"
