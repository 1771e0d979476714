"""What a system takes on disk, what of that could go, and letting it go.

All figures are bytes of disk: blocks that are allocated, as stat(2) tells them (`st_blocks`), each
file counted once. What `measure` calls reclaimable is what `prune` with the same options frees, if
nothing changes between.
"""

from __future__ import annotations

from abc import abstractmethod

from attrs import field, frozen

from container.contracts.apiserver import ContainerStatus
from container.contracts.images import ImageUsage
from container.ipc import Contract


@frozen
class PruneOptions:
    """What may go, beside containers that do not run, networks that nobody is in, and blobs and
    layers that nothing needs."""

    images: bool = False
    """Images that no container uses, then."""
    volumes: bool = False
    """Anonymous volumes that no container uses, then. Named ones never go this way."""


@frozen
class UsageTotal:
    """One sort of things: a row of the table."""

    kind: str
    """`images`, `containers`, `volumes`, `networks`, `build cache`."""
    count: int
    active: int
    """Of these: used by a container, or running."""
    size_bytes: int
    reclaimable_bytes: int


@frozen
class ContainerUsage:
    """What one container takes on disk."""

    id: str
    name: str
    image: str
    status: ContainerStatus
    size_bytes: int
    """All of it, documents included."""
    writable_bytes: int
    """Of these, what it has changed of its image."""
    log_bytes: int
    reclaimable: bool
    """It would go with the options that were asked about."""


@frozen
class VolumeUsage:
    """What one volume takes on disk."""

    name: str
    driver: str
    anonymous: bool
    size_bytes: int
    used_by: tuple[str, ...]
    """Ids of containers."""
    reclaimable: bool
    """It would go with the options that were asked about."""


@frozen
class DiskUsage:
    """All that a system takes on disk."""

    totals: tuple[UsageTotal, ...]
    images: tuple[ImageUsage, ...] = ()
    containers: tuple[ContainerUsage, ...] = ()
    volumes: tuple[VolumeUsage, ...] = ()


@frozen
class Pruned:
    """What is gone."""

    containers: tuple[str, ...] = ()
    """Names."""
    networks: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    """References."""
    freed: dict[str, int] = field(factory=dict[str, int])
    """Bytes by kind, as in `UsageTotal`."""


class Usage(Contract, name="usage", version=1):
    """What the system of one root takes on disk."""

    @abstractmethod
    async def measure(self, options: PruneOptions) -> DiskUsage:
        """Return what everything takes, and what `prune` with these options would free."""
        ...

    @abstractmethod
    async def prune(self, options: PruneOptions) -> Pruned:
        """Remove what nobody uses; what can't go now is left, and said in the log.

        A container that was created less than a minute ago may be about to be started, and is left.
        Cancelled, what is gone is gone.
        """
        ...
