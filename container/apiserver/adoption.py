"""What an earlier API server left: runs to adopt, and operations to complete or undo.

What was killed at any instant left on disk, in the kernel and in the runtime helpers one of these:

| document | helper says | then |
|---|---|---|
| hidden folder | | swept: it was never created, or is removed already |
| `removing` mark | anything | the removal is finished |
| CREATED, STOPPED | anything | its helper, if there is one, is a stray and ended |
| RUNNING | created | watched: a client may start it, or else it is undone after a while |
| RUNNING | running, stopped | watched: its exit is told as if nobody had been away |
| RUNNING, `stopped_by_user` | running | watched, and stopped: the user's word was cut off |
| RUNNING | nothing, or no helper | its end was not seen: exit code unknown, its policy is asked |
| RESTARTING | created | started |
| RESTARTING | running, or a newer end | watched: it had been started already |
| RESTARTING | else | it is started again |

And when the *system* has started (another launcher than the last API server had), containers that
do not run are started if their policy says so.

All this is done for all containers beside each other. One whose helper does not answer is UNKNOWN
after a moment and delays no other.
"""

from __future__ import annotations

import logging
from pathlib import Path

import trio
from attrs import evolve

from container.apiserver import restarts
from container.apiserver.records import Record, Run
from container.apiserver.running import ContainerRuns
from container.apiserver.runs import first_process, seen
from container.apiserver.table import RUNS, SWEEPING
from container.contracts.apiserver import ContainerStatus, EventKind
from container.contracts.launcher import SystemStatus
from container.contracts.runtime import (
    ProcessState,
    SandboxPhase,
    SandboxState,
    StopOptions,
)
from container.ipc import ContainerError, Supervised, Unavailable

STARTING_HELPERS = 8
"""Helpers that are started at once at start-up, to look for what dead ones left behind."""
SEEN = "apiserver.launcher"
"""In the run directory, which a reboot empties: the launcher that the last API server had."""

_log = logging.getLogger(__name__)


class ContainerAdoption(ContainerRuns):
    """Take over from an earlier API server."""

    async def begin(self) -> None:
        """Begin to adopt what runs; each container's own calls wait until it is adopted."""
        self._starting_helpers = trio.CapacityLimiter(STARTING_HELPERS)
        self._start_known = trio.Event()
        self._system_started = False
        self._status: SystemStatus | None = None
        running = [it.container for it in self._records.values() if it.saved.status in RUNS]
        for container in running:
            self.volumes.take_up(container)
        self._in_background(self.volumes.unmount_unused, {it.id for it in running})
        self._in_background(self._adopt_all, tuple(self._records.values()))
        for container_id in self._unfinished:
            self._in_background(self._sweep, container_id)

    async def _adopt_all(self, records: tuple[Record, ...]) -> None:
        async with trio.open_nursery() as nursery:
            for record in records:
                nursery.start_soon(self._adopt, record)
            nursery.start_soon(self._meet_launcher)
        if self._system_started:
            # Only now: who is killed before this finds the same work to do again.
            await self._quietly(self._in_thread(self._remember_launcher))
        await self._end_strays()

    # --- did the system start? ---

    async def _meet_launcher(self) -> None:
        """Find out whether the system has started since the last API server."""
        try:
            self._status = await self._launcher(lambda launcher: launcher.status())
            self._system_started = await self._in_thread(self._is_new_launcher)
        except ContainerError as error:
            _log.warning("the launcher can't be asked what it is: %s", error)
        finally:
            self._start_known.set()

    def _launcher_name(self) -> str:
        status = self._status
        return "" if status is None else f"{status.pid} {status.started.isoformat()}\n"

    def _is_new_launcher(self) -> bool:
        try:
            return self._seen_path.read_text() != self._launcher_name()
        except FileNotFoundError:
            return True

    def _remember_launcher(self) -> None:
        self._seen_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self._seen_path.with_suffix(".new")
        temporary.write_text(self._launcher_name())
        temporary.replace(self._seen_path)

    @property
    def _seen_path(self) -> Path:
        return self._paths.run / SEEN

    # --- one container ---

    async def _adopt(self, record: Record) -> None:
        """Find out whether an earlier API server's container still runs, and go on from there."""
        container = record.container
        try:
            async with self.exclusive(record.id):
                if container.status not in RUNS:
                    await self.volumes.leave_stale(container)
                if container.status is ContainerStatus.RUNNING:
                    await self._adopt_run(record)
                elif container.status is ContainerStatus.RESTARTING:
                    await self._adopt_restart(record)
                elif container.auto_remove:
                    self._in_background(self._expire, record, container.created_at)
                elif restarts.comes_back(container):
                    await self._start_known.wait()
                    if self._system_started and restarts.at_system_start(container):
                        await self._bring_back(record)
        except ContainerError as error:
            _log.warning("container %s can't be adopted yet: %s", record.id, error)
            record.change(evolve(record.container, status=ContainerStatus.UNKNOWN))
            self._begin(record)  # its watch goes on trying
        except Exception:
            _log.exception("the adoption of container %s failed", record.id)
        finally:
            record.settled.set()

    async def _adopt_run(self, record: Record) -> None:
        state = await self._ask(record)
        if state.phase is SandboxPhase.EMPTY:
            await self._ended_unseen(record)
        else:
            self._take_up(record, state)

    async def _adopt_restart(self, record: Record) -> None:
        state = await self._ask(record)
        container, init = record.container, first_process(state)
        ended = None if init is None else init.exit
        if init is not None and init.state is ProcessState.CREATED:
            self._take_up(record, state)
            self._start_again(record, 0.0)
            return
        newer = ended is not None and container.exit is not None and ended != container.exit
        if newer or (init is not None and init.state is ProcessState.RUNNING):
            # It was started already; a user's `restart` that had not stopped it yet is undone.
            await self._save(record, status=ContainerStatus.RUNNING, exit=None)
            self._take_up(record, state)
            return
        if container.exit is None:
            # A user's `restart`, between stop and start.
            ended = ended or self._watch.unknown_exit()
            self._publish_end(container, ended, again=True)
            await self._save(record, exit=ended)
        await self._start_known.wait()
        stays = self._system_started and not restarts.at_system_start(container)
        if stays or state.phase is not SandboxPhase.EMPTY:
            await self._sandboxes.shut_down(record.id, thorough=True)
        if stays:
            await self._save(record, status=ContainerStatus.STOPPED)
        else:
            self._start_again(record, record.row.delay(0.0))

    async def _ask(self, record: Record) -> SandboxState:
        """Ask a container's helper what runs.

        Raises:
            ContainerError: it does not answer in time.
        """
        container_id = record.id
        with trio.move_on_after(self._timeouts.adopt) as bound:
            if await self._sandboxes.rejoin(container_id):
                return await self._sandboxes.call(container_id, lambda sandbox: sandbox.state())
        if bound.cancelled_caught:
            raise Unavailable(f"the runtime helper of container {container_id} does not answer")
        # Without a socket the helper is dead; a fresh one looks for what it left behind.
        async with self._starting_helpers:
            await self._sandboxes.open(container_id)
        return await self._sandboxes.call(container_id, lambda sandbox: sandbox.state())

    def _take_up(self, record: Record, state: SandboxState) -> None:
        """Watch a run that an earlier API server began."""
        now = seen(record.container, state)
        lived = 0.0
        if now.started_at is not None and now.status is not ContainerStatus.CREATED:
            lived = max(0.0, (self._clock() - now.started_at).total_seconds())
        if now.status is not ContainerStatus.STOPPED:  # an end is told by its watch
            record.change(now)
        run = self._begin(record, lived=lived)
        if now.status in (ContainerStatus.RUNNING, ContainerStatus.PAUSED):
            run.running.set()  # it was told by who saw it start
            if record.container.stopped_by_user:
                self._in_background(self._finish_stop, record, run)
        if now.status is not ContainerStatus.STOPPED:
            self._in_background(self._reconcile, record, state)

    async def _finish_stop(self, record: Record, run: Run) -> None:
        """Stop what a user wanted to be stopped when an earlier API server was killed."""
        options = StopOptions(timeout=record.container.stop_timeout)
        try:
            await self._call(record, lambda sandbox: sandbox.stop(options))
        except ContainerError as error:
            if record.run is run and record.live:
                _log.warning("container %s can't be stopped: %s", record.id, error)
            return
        while record.run is run and run.exit is None and not record.removed:
            await record.changed.wait()
        if not record.removed:
            self._events.publish(EventKind.STOP, record.container)

    async def _ended_unseen(self, record: Record) -> None:
        """Go on after a run of whose end nothing is known."""
        ended = self._watch.unknown_exit()
        container = record.container
        await self._start_known.wait()
        again = (
            restarts.at_system_start(container)
            if self._system_started
            else restarts.after_end(container, ended)
        )
        if container.auto_remove:
            record.container = evolve(container, exit=ended)
            with self._finishing(record.id):
                await self._quietly(self._sandboxes.end(record.id, thorough=True))
            await self._remove_itself(record)
            return
        status = ContainerStatus.RESTARTING if again else ContainerStatus.STOPPED
        count = container.restart_count + again
        await self._save(record, status=status, pid=None, exit=ended, restart_count=count)
        self._publish_end(record.container, ended, again=again)
        await self._sandboxes.shut_down(record.id, thorough=True)
        if again:
            self._start_again(record, record.row.delay(0.0), self._starting_helpers)

    async def _bring_back(self, record: Record) -> None:
        """Start a container with the system, as its policy wants."""
        await self._save(record, status=ContainerStatus.RESTARTING, stopped_by_user=False)
        self._start_again(record, 0.0, self._starting_helpers)

    # --- what has no container any more ---

    async def _sweep(self, container_id: str) -> None:
        """Finish a removal that an earlier API server began, however long that takes."""

        async def finish() -> None:
            async with self.exclusive(container_id):
                container, volumes = await self._in_thread(self._store.load_removed, container_id)
                if container is not None:
                    self.volumes.take_up(container)
                await self._sandboxes.rejoin(container_id)
                await self._sandboxes.shut_down(container_id, thorough=True)
                await self._images(lambda images: images.release(container_id))
                if container is not None and volumes:
                    await self.volumes.let_go(container_id, container.mounts)
                await self._in_thread(self._store.remove, container_id)
                self._unfinished.discard(container_id)

        name = f"the removal of container {container_id}"
        await Supervised[None](finish, name=name, backoff=SWEEPING, intensity=None).run()

    async def _end_strays(self) -> None:
        """End helpers of an earlier API server whose containers were never made, or do not run."""
        for service in () if self._status is None else self._status.services:
            container_id = service.name.removeprefix("runtime.")
            if container_id == service.name or container_id in self._broken:
                continue
            if container_id not in self._unfinished:
                self._in_background(self._end_if_stray, container_id)

    async def _end_if_stray(self, container_id: str) -> None:
        async with self.exclusive(container_id):
            record = self._records.get(container_id)
            in_the_making = record is None and container_id in self._names.values()
            if container_id in self._warm or in_the_making:
                return
            if record is None or (record.run is None and record.restart is None):
                await self._quietly(self._end_stray(container_id))

    async def _end_stray(self, container_id: str) -> None:
        await self._sandboxes.rejoin(container_id)
        await self._sandboxes.shut_down(container_id, thorough=False)
