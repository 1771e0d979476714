"""Volumes and figures of the disk in memory, for the command line's tests."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from attrs import evolve

from container.contracts.usage import DiskUsage, Pruned, PruneOptions, Usage
from container.contracts.volumes import Volume, VolumeOptions, Volumes
from container.ipc import InvalidState, NotFound

WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class FakeVolumes(Volumes):
    """Volumes in memory."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.volumes: dict[str, Volume] = {}

    def add(self, name: str, **rest: Any) -> Volume:
        """Have a volume."""
        self.volumes[name] = Volume(name, rest.pop("driver", "local"), WHEN, **rest)
        return self.volumes[name]

    async def create(self, options: VolumeOptions) -> Volume:
        self.calls.append(("create", options))
        return self.add(
            options.name or "f" * 64,
            driver=options.driver,
            options=options.options,
            labels=options.labels,
            anonymous=options.name is None,
        )

    async def delete(self, name: str, force: bool = False) -> None:
        self.calls.append(("delete", name, force))
        if name in self.volumes and self.volumes[name].used_by:
            raise InvalidState(f"volume {name} is used by container web", hint="remove it first")
        if self.volumes.pop(name, None) is None and not force:
            raise NotFound(f"no volume {name!r}")

    async def list(self) -> tuple[Volume, ...]:
        return tuple(self.volumes[name] for name in sorted(self.volumes))

    async def get(self, name: str) -> Volume:
        if name not in self.volumes:
            raise NotFound(f"no volume {name!r}", hint="did you mean 'data'?")
        return self.volumes[name]

    async def prune(self, everything: bool = False) -> tuple[Volume, ...]:
        self.calls.append(("prune", everything))
        return tuple(evolve(volume, size_bytes=4096) for volume in await self.list())


class FakeUsage(Usage):
    """Figures that a test may set."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.usage = DiskUsage(())
        self.pruned = Pruned()

    async def measure(self, options: PruneOptions) -> DiskUsage:
        self.calls.append(("measure", options))
        return self.usage

    async def prune(self, options: PruneOptions) -> Pruned:
        self.calls.append(("prune", options))
        return self.pruned
