"""What the system takes on disk, and removing what nobody uses: the `Usage` contract.

What would go is worked out once, and from the top: first the containers, then the volumes and
images that only they used. Measuring and pruning ask the same question, so that what the one says
is what the other frees. Containers count with their whole folder; what is mounted in it, the root
of one that runs, is not there a second time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from functools import partial

import trio
from attrs import frozen

from container.apiserver.links import Caller, together
from container.apiserver.volumes import VolumesService
from container.contracts.apiserver import Container, Containers, ContainerStatus
from container.contracts.images import Images, ImagesUsage
from container.contracts.networks import Networks
from container.contracts.usage import (
    ContainerUsage,
    DiskUsage,
    Pruned,
    PruneOptions,
    Usage,
    UsageTotal,
    VolumeUsage,
)
from container.contracts.volumes import Volume
from container.ipc import Actor, ContainerError
from container.storage.disk_usage import disk_bytes
from container.storage.paths import Paths

YOUNG = timedelta(minutes=1)
"""Since its creation, in which somebody may be about to start a container."""
AT_ONCE = 4
"""Folders that are measured at a time."""

_RUNNING = (ContainerStatus.RUNNING, ContainerStatus.PAUSED, ContainerStatus.UNKNOWN)

_log = logging.getLogger(__name__)


@frozen
class _Sizes:
    whole: int
    writable: int
    log: int


class UsageService(Actor, Usage):
    """Measure and prune one root.

    Args:
        paths: Where everything is.
        containers: Who removes them.
        volumes: Likewise.
        networks: Likewise.
        images: Calls the images helper.
        clock: Says the time.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        containers: Containers,
        volumes: VolumesService,
        networks: Networks,
        images: Caller[Images],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._paths = paths
        self._containers = containers
        self._volumes = volumes
        self._networks = networks
        self._images = images
        self._clock = clock
        self._threads = trio.CapacityLimiter(AT_ONCE)

    async def measure(self, options: PruneOptions) -> DiskUsage:
        """Return what everything takes; see the contract."""
        containers = await self._containers.list()
        going = frozenset(it.id for it in containers if self._goes(it))
        unused = self._volumes.unused(ignoring=going) if options.volumes else ()
        rows, volumes, images, networks = await together(
            partial(self._measure_containers, containers, going),
            partial(self._measure_volumes, frozenset(it.name for it in unused)),
            lambda: self._images(lambda it: it.usage(tuple(sorted(going)))),
            self._count_networks,
        )
        return DiskUsage(
            totals=(
                _total_of_images(images, options.images),
                _total("containers", rows, [it for it in rows if it.status in _RUNNING]),
                _total("volumes", volumes, [it for it in volumes if it.used_by]),
                networks,
                UsageTotal("build cache", 0, 0, 0, 0),
            ),
            images=images.images,
            containers=rows,
            volumes=volumes,
        )

    def _goes(self, container: Container) -> bool:
        """Say whether pruning removes a container."""
        if container.status is ContainerStatus.STOPPED:
            return True
        return (
            container.status is ContainerStatus.CREATED
            and self._clock() - container.created_at >= YOUNG
        )

    async def _measure_containers(
        self, containers: tuple[Container, ...], going: Collection[str]
    ) -> tuple[ContainerUsage, ...]:
        sizes = await together(*(partial(self._container_sizes, it.id) for it in containers))
        return tuple(
            ContainerUsage(
                id=it.id,
                name=it.name,
                image=it.image,
                status=it.status,
                size_bytes=size.whole,
                writable_bytes=size.writable,
                log_bytes=size.log,
                reclaimable=it.id in going,
            )
            for it, size in zip(containers, sizes, strict=True)
        )

    async def _container_sizes(self, container_id: str) -> _Sizes:
        folder = self._paths.containers / container_id

        def measure() -> _Sizes:
            return _Sizes(
                disk_bytes(folder),
                disk_bytes(folder / "bundle/upper"),
                disk_bytes(folder / "log"),
            )

        return await trio.to_thread.run_sync(measure, limiter=self._threads)

    async def _measure_volumes(self, unused: Collection[str]) -> tuple[VolumeUsage, ...]:
        volumes: tuple[Volume, ...] = await self._volumes.list()
        sizes = await together(*(partial(self._volumes.usage, it) for it in volumes))
        return tuple(
            VolumeUsage(
                name=it.name,
                driver=it.driver,
                anonymous=it.anonymous,
                size_bytes=size or 0,
                used_by=it.used_by,
                reclaimable=it.name in unused,
            )
            for it, size in zip(volumes, sizes, strict=True)
        )

    async def _count_networks(self) -> UsageTotal:
        """Count networks; what they take on disk is not worth a figure."""
        networks = await self._networks.list()
        return UsageTotal(
            "networks", len(networks), sum(bool(it.containers) for it in networks), 0, 0
        )

    # --- prune ---

    async def prune(self, options: PruneOptions) -> Pruned:
        """Remove what nobody uses; see the contract."""
        # With a container go layers whose image has lost its name: so it is asked before and after.
        before = await self._images(lambda it: it.usage())
        containers: list[str] = []
        freed: dict[str, int] = {"containers": 0}
        for container in await self._containers.list():
            if self._goes(container):
                size = (await self._container_sizes(container.id)).whole
                if await self._remove(container):
                    containers.append(container.name)
                    freed["containers"] += size
        networks = await self._networks.prune()
        volumes = await self._volumes.prune() if options.volumes else ()
        freed["volumes"] = sum(volume.size_bytes or 0 for volume in volumes)
        images = await self._images(lambda it: it.prune(options.images))
        after = await self._images(lambda it: it.usage())
        freed["images"] = max(0, before.size_bytes - after.size_bytes)
        return Pruned(
            containers=tuple(containers),
            networks=networks,
            volumes=tuple(volume.name for volume in volumes),
            images=images.references,
            freed=freed,
        )

    async def _remove(self, container: Container) -> bool:
        try:
            # Not by force: it may have been started since.
            await self._containers.delete(container.id)
        except ContainerError as error:
            _log.info("container %s is not pruned: %s", container.name, error)
            return False
        return True


def _total(
    kind: str,
    rows: tuple[ContainerUsage, ...] | tuple[VolumeUsage, ...],
    active: Collection[object],
) -> UsageTotal:
    return UsageTotal(
        kind,
        len(rows),
        len(active),
        sum(it.size_bytes for it in rows),
        sum(it.size_bytes for it in rows if it.reclaimable),
    )


def _total_of_images(images: ImagesUsage, everything: bool) -> UsageTotal:
    return UsageTotal(
        "images",
        len(images.images),
        sum(bool(it.holders) for it in images.images),
        images.size_bytes,
        images.unused_bytes if everything else images.unneeded_bytes,
    )
