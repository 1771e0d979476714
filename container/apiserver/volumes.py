"""All volumes of one root: the actor behind the `Volumes` contract.

State is `_volumes` (what exists) and `_claims` (which container uses which volumes, from before its
creation until after its removal). Both change without an await between check and change; the driver
works in the section of the one volume. So a volume that is claimed is not deleted, and one that is
being deleted is made anew for whoever claims it meanwhile.

While a container's document can't be read, it may use any volume: then none is deleted.

| killed while | on disk | the next API server |
|---|---|---|
| a volume is made | `.<name>.new` | has its driver delete it |
| one is removed | `.<name>.gone` | the same |
| a container is created | the container, without its volumes | makes them at its first start |
| a container runs | RUNNING | holds the volumes again, by the same key |

Below this: `volumes_store`, `volumes_drivers`, `volumes_local`, `volumes_holding`, and the pure
`volumes_mounts`.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterable, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import TypeVar

import trio
from attrs import evolve, frozen

from container.apiserver.links import Caller
from container.apiserver.volumes_drivers import LOCAL, Connect, Drivers
from container.apiserver.volumes_holding import VolumeHolds
from container.apiserver.volumes_local import LocalDriver, parse_options
from container.apiserver.volumes_mounts import check_volume_name, new_volume_name, volumes_of
from container.apiserver.volumes_store import VolumeStore
from container.contracts.apiserver import Container, Plugins
from container.contracts.launcher import Launcher
from container.contracts.runtime import Mount, MountKind
from container.contracts.volumes import Volume, VolumeDriver, VolumeOptions, Volumes
from container.ipc import (
    Actor,
    AlreadyExists,
    Backoff,
    ContainerError,
    DataLoss,
    DeadlineExceeded,
    InvalidArgument,
    InvalidState,
    NotFound,
    Supervised,
    Unavailable,
)
from container.storage.paths import Paths

T = TypeVar("T")

SWEEPING = Backoff(1.0, 60.0)
"""Between attempts to finish a removal."""
STALE_SECONDS = 10.0
FINISH_SECONDS = 120.0
"""For making or removing one volume, which no cancellation cuts short."""

_log = logging.getLogger(__name__)


@frozen
class _Claim:
    container: str
    """Its name."""
    volumes: frozenset[str]


class VolumesService(Actor, Volumes):
    """Keep all volumes of one root.

    Args:
        paths: Where they are.
        launcher: Registers drivers' helpers.
        plugins: Knows the drivers.
        clock: Says the time.
        connect: Connects to a driver's helper by its socket's path.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        launcher: Caller[Launcher],
        plugins: Plugins,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        connect: Connect = VolumeDriver.connect,
    ) -> None:
        self._store = VolumeStore(paths.volumes)
        self._local = LocalDriver(self._store.place)
        self._drivers = Drivers(paths, launcher, plugins, self._local, connect)
        self._holds = VolumeHolds(self._drivers)
        self._clock = clock
        self._volumes: dict[str, Volume] = {}
        self._broken: dict[str, DataLoss] = {}
        self._unfinished: dict[str, str] = {}
        self._claims: dict[str, _Claim] = {}
        self._uncertain: frozenset[str] = frozenset()

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        """Read the documents; at the end, let go of what was mounted in this process."""
        loaded = await trio.to_thread.run_sync(self._store.load)
        self._volumes = {volume.name: volume for volume in loaded.volumes}
        self._broken = dict(loaded.broken)
        self._unfinished = dict(loaded.unfinished)
        try:
            async with self._holds:
                yield
        finally:
            with trio.move_on_after(FINISH_SECONDS, shield=True):
                await self._unmount(self._volumes)

    async def begin(self) -> None:
        """Begin to finish what an earlier API server was killed in."""
        for name in self._unfinished:
            self.nursery.start_soon(self._finish_later, name)

    async def _finish_later(self, name: str) -> None:
        async def finish() -> None:
            async with self.exclusive(name):
                await self._finish(name)

        task = Supervised[None](
            finish, name=f"the removal of volume {name}", backoff=SWEEPING, intensity=None
        )
        await task.run()

    async def _finish(self, name: str) -> None:
        """Remove what is left of a volume that never was, or is gone; in its section."""
        driver = self._unfinished.get(name)
        if driver is None:
            return
        with _finishing(name):
            async with self._drivers.open(driver) as it:
                await it.delete(name)
            await self._in_thread(self._store.sweep, name)
        self._unfinished.pop(name, None)

    # --- create ---

    async def create(self, options: VolumeOptions) -> Volume:
        """Create a volume; see the contract. Cancelled, it may be there, whole."""
        name = new_volume_name() if options.name is None else check_volume_name(options.name)
        _check_texts(options)
        if options.driver == LOCAL:
            parse_options(options.options)
        await self._drivers.check(options.driver)
        volume = Volume(
            name=name,
            driver=options.driver,
            created_at=self._clock(),
            options=dict(options.options),
            labels=dict(options.labels),
            anonymous=options.name is None,
        )
        async with self.exclusive(name):
            known = self._volumes.get(name)
            if known is not None and (known.driver, known.options) != (
                volume.driver,
                volume.options,
            ):
                raise AlreadyExists(
                    f"volume {name} is there, with the driver {known.driver} and "
                    f"{_shown(known.options)}",
                    hint="choose another name, or delete that volume",
                )
            await self._make(volume)
        return await self._view(self._volumes[name])

    async def _make(self, volume: Volume) -> bool:
        """Make a volume that is not there; return whether it was so. In its section."""
        name = volume.name
        if name in self._broken:
            raise self._broken[name]
        if name in self._volumes:
            return False
        await self._finish(name)
        try:
            with _finishing(name):
                await self._in_thread(self._store.begin, volume)
                self._unfinished[name] = volume.driver
                async with self._drivers.open(volume.driver) as driver:
                    await driver.create(name, volume.options)
                await self._in_thread(self._store.commit, name)
                del self._unfinished[name]
                self._volumes[name] = volume
        except BaseException:
            try:
                await self._finish(name)
            except ContainerError as error:
                _log.warning("what was begun of volume %s is removed later: %s", name, error)
                self.nursery.start_soon(self._finish_later, name)
            raise
        return True

    # --- delete ---

    async def delete(self, name: str, force: bool = False) -> None:
        """Delete a volume; see the contract. Once begun, it is finished even if cancelled."""
        if name in self._broken and force:
            async with self.exclusive(name):
                self._check_free(name)
                await self._give_up(name, LOCAL)
            return
        async with self.exclusive(name):
            if name not in self._volumes and name not in self._broken and force:
                return
            volume = self._find(name)
            self._check_free(name)
            await self._give_up(name, volume.driver)

    def _check_free(self, name: str, *, but: str | None = None) -> None:
        """Refuse if containers use a volume.

        Raises:
            InvalidState: they do, or may; the message names them.
        """
        if self._uncertain:
            raise InvalidState(
                f"container {min(self._uncertain)} can't be read, and may use volume {name}",
                hint="mend its document, or remove it: `container rm --force`",
            )
        users = {key: claim for key, claim in self._users(name).items() if key != but}
        if users:
            shown = sorted(claim.container for claim in users.values())
            more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
            raise InvalidState(
                f"volume {name} is used by {'containers' if len(shown) > 1 else 'container'} "
                f"{', '.join(shown[:5])}{more}",
                hint="remove them first, `container rm`",
                details={"containers": sorted(users)},
            )

    async def _give_up(self, name: str, driver: str) -> None:
        """Remove a volume that nobody uses; in its section, with no await since that was known."""
        self._unfinished[name] = driver
        try:
            with _finishing(name):
                if driver == LOCAL:
                    # Nobody would look after a mount below a folder that is renamed.
                    await self._local.delete(name)
                await self._in_thread(self._store.give_up, name)
        except BaseException:
            del self._unfinished[name]
            raise
        self._volumes.pop(name, None)
        self._broken.pop(name, None)
        try:
            await self._finish(name)
        except ContainerError as error:
            _log.warning("volume %s is gone, and its data goes later: %s", name, error)
            self.nursery.start_soon(self._finish_later, name)

    async def prune(self, everything: bool = False) -> tuple[Volume, ...]:
        """Delete what no container uses; see the contract."""
        gone: list[Volume] = []
        for volume in self.unused(everything=everything):
            name = volume.name
            async with self.exclusive(name):
                if name in self._volumes:
                    try:
                        self._check_free(name)
                        view = await self._sized(volume)
                        self._check_free(name)
                        await self._give_up(name, volume.driver)
                        gone.append(view)
                    except ContainerError as error:
                        _log.info("volume %s is not pruned: %s", name, error)
        return tuple(gone)

    def unused(
        self, *, everything: bool = False, ignoring: Collection[str] = ()
    ) -> tuple[Volume, ...]:
        """Return the volumes that no container uses, by name.

        Args:
            everything: The named ones too.
            ignoring: Ids of containers that count as gone.
        """
        if self._uncertain - set(ignoring):
            return ()
        return tuple(
            volume
            for name, volume in sorted(self._volumes.items())
            if (everything or volume.anonymous) and not self._users(name).keys() - set(ignoring)
        )

    # --- looking ---

    async def list(self) -> tuple[Volume, ...]:
        """Return all volumes, by name; see the contract."""
        await trio.lowlevel.checkpoint()
        return tuple([await self._view(self._volumes[name]) for name in sorted(self._volumes)])

    async def get(self, name: str) -> Volume:
        """Return one volume; see the contract."""
        return await self._sized(self._find(name))

    def _find(self, name: str) -> Volume:
        if name in self._broken:
            raise self._broken[name]
        if name not in self._volumes:
            close = difflib.get_close_matches(name, self._volumes, n=1)
            raise NotFound(
                f"no volume {name[:200]!r}",
                hint=f"did you mean {close[0]!r}?"
                if close
                else "`container volume list` shows all volumes",
            )
        return self._volumes[name]

    async def _view(self, volume: Volume) -> Volume:
        where = ""
        if volume.driver == LOCAL:
            where = await self._in_thread(self._local.mountpoint, volume.name)
        return evolve(volume, used_by=tuple(sorted(self._users(volume.name))), mountpoint=where)

    async def _sized(self, volume: Volume) -> Volume:
        async with self._drivers.open(volume.driver) as driver:
            size = await driver.usage(volume.name)
        return evolve(await self._view(volume), size_bytes=size)

    async def usage(self, volume: Volume) -> int | None:
        """Return the bytes of disk of one volume; None if its driver can't say."""
        try:
            return (await self._sized(volume)).size_bytes
        except ContainerError as error:
            _log.info("the size of volume %s is not known: %s", volume.name, error)
            return None

    # --- what containers need ---

    def claim(self, container: Container) -> None:
        """Note which volumes a container uses, before it is made and until `drop`."""
        volumes = frozenset(volumes_of(container.mounts))
        self._claims[container.id] = _Claim(container.name, volumes)

    def drop(self, container_id: str) -> None:
        """Forget what a container used."""
        self._claims.pop(container_id, None)

    def set_uncertain(self, containers: Iterable[str]) -> None:
        """Say which containers' documents can't be read."""
        self._uncertain = frozenset(containers)

    def _users(self, name: str) -> dict[str, _Claim]:
        return {key: claim for key, claim in self._claims.items() if name in claim.volumes}

    async def provide(self, container: Container) -> tuple[str, ...]:
        """Make the volumes of a container that are not there; return their names.

        All or nothing. The caller has claimed them.
        """
        made: list[str] = []
        try:
            for name, anonymous in volumes_of(container.mounts).items():
                volume = Volume(name, LOCAL, self._clock(), anonymous=anonymous)
                async with self.exclusive(name):
                    if await self._make(volume):
                        made.append(name)
        except BaseException:
            with _finishing(container.id):
                await self.take_back(container.id, made)
            raise
        return tuple(made)

    async def take_back(self, container_id: str, names: Sequence[str]) -> None:
        """Remove volumes that were made for a container, unless others use them by now."""
        for name in names:
            async with self.exclusive(name):
                if name in self._volumes:
                    try:
                        self._check_free(name, but=container_id)
                        await self._give_up(name, self._volumes[name].driver)
                    except InvalidState as error:
                        _log.info("volume %s is kept: %s", name, error)

    async def let_go(self, container_id: str, mounts: Iterable[Mount]) -> None:
        """Remove the anonymous volumes among the mounts of a container that nobody else uses."""
        anonymous = [name for name, unnamed in volumes_of(mounts).items() if unnamed]
        await self.take_back(container_id, anonymous)

    async def hold(self, container: Container, *, first: bool) -> tuple[Mount, ...]:
        """Have the volumes of a container mounted for a run; return its mounts with their paths.

        Args:
            container: Which has claimed them.
            first: It never ran: volumes that are not there are made.

        Raises:
            NotFound: one is not there any more.
        """
        wanted = volumes_of(container.mounts)
        if not wanted:
            return container.mounts
        if first:
            await self.provide(container)
        for name in wanted:
            if name not in self._volumes and name not in self._broken:
                raise NotFound(
                    f"volume {name} of container {container.name} is not there any more",
                    hint=f"`container volume create {name}` makes an empty one",
                )
        volumes = tuple(self._find(name) for name in wanted)
        paths = await self._holds.hold(container.id, volumes)
        return tuple(
            evolve(mount, source=paths[mount.source]) if mount.kind is MountKind.VOLUME else mount
            for mount in container.mounts
        )

    def mounts_for(self, container: Container) -> bool:
        """Say whether a volume of a container has to be mounted before its helper starts."""
        return any(
            (volume := self._volumes.get(name)) is not None
            and (volume.driver != LOCAL or bool(volume.options))
            for name in volumes_of(container.mounts)
        )

    def take_up(self, container: Container) -> None:
        """Hold the volumes of a run that an earlier API server began."""
        names = volumes_of(container.mounts)
        volumes = tuple(self._volumes[name] for name in names if name in self._volumes)
        if volumes:
            self._holds.take_up(container.id, volumes)

    async def release(self, container_id: str) -> None:
        """Let go of what was held for a run of which nothing is left. Bounded."""
        await self._holds.release(container_id)

    async def leave_stale(self, container: Container) -> None:
        """Let go of what an earlier API server may have held at a driver for a container that does
        not run. Bounded; what can't be let go now is let go after its next run."""
        for name in volumes_of(container.mounts):
            volume = self._volumes.get(name)
            if volume is None or volume.driver == LOCAL:
                continue
            try:
                with trio.move_on_after(STALE_SECONDS):
                    async with (
                        self._drivers.open(volume.driver) as driver,
                        driver.mount(name, container.id),
                    ):
                        pass  # opened, it is ours; left, it is gone
            except ContainerError as error:
                _log.info("volume %s may still be mounted: %s", name, error)

    async def unmount_unused(self, running: Collection[str]) -> None:
        """Unmount what an earlier API server has left of the driver `local` for nobody.

        Args:
            running: Ids of containers that may run.
        """
        await self._unmount(
            [name for name in self._volumes if not set(self._users(name)) & set(running)]
        )

    async def _unmount(self, names: Iterable[str]) -> None:
        for name in tuple(names):
            volume = self._volumes.get(name)
            if volume is not None and volume.driver == LOCAL and volume.options:
                try:
                    await self._local.unmount_unless_used(name)
                except ContainerError as error:
                    _log.warning("volume %s stays mounted: %s", name, error)

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        try:
            return await trio.to_thread.run_sync(function, *arguments)
        except OSError as error:
            raise Unavailable(
                f"{error.filename or 'the volumes folder'} can't be written: {error.strerror}",
                hint="is there space on the disk?",
            ) from error


@contextmanager
def _finishing(name: str) -> Generator[None]:
    """Do what no cancellation cuts short, but a bound does."""
    with trio.move_on_after(FINISH_SECONDS, shield=True) as scope:
        yield
    if scope.cancelled_caught:
        raise DeadlineExceeded(f"work on volume {name} took more than {FINISH_SECONDS:.0f} s")


def _shown(options: dict[str, str]) -> str:
    if not options:
        return "no options"
    return "the options " + ", ".join(f"{key}={value}" for key, value in sorted(options.items()))


def _check_texts(options: VolumeOptions) -> None:
    for what, pairs in (("label", options.labels), ("option", options.options)):
        for key, value in pairs.items():
            if not key:
                raise InvalidArgument(f"a volume's {what} has no name", hint="write name=value")
            if "\0" in key + value or len(key) + len(value) > 4096:
                raise InvalidArgument(f"the {what} {key[:100]!r} is too long, or has a NUL in it")
