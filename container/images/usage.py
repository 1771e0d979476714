"""What images take on disk, and what of it nothing needs.

A blob or layer is needed by each image whose reference is there, and a layer by each hold on a
stack that it is in, too. Figures are allocated blocks. What is being pulled or unpacked counts for
nothing yet; what a pull has pinned is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import trio
from attrs import define

from container.contracts.images import ImagesUsage, ImageUsage
from container.images.store import Store, Target
from container.ipc import ContainerError
from container.storage.disk_usage import disk_bytes


@define
class Parts:
    """Blobs by digest and snapshots by chain id: what there is, or what something needs."""

    blobs: set[str]
    chains: set[str]

    @classmethod
    def of(cls, digest: str, target: Target) -> Parts:
        """Return what a reference needs."""
        parts = cls({digest, *target.documents}, set())
        for image in target.images:
            parts.blobs.update(image.blobs())
            parts.chains.update(image.chain_ids)
        return parts

    def add(self, other: Parts) -> None:
        """Need what another one needs, too."""
        self.blobs |= other.blobs
        self.chains |= other.chains

    def names(self) -> Iterable[tuple[str, str]]:
        """Return all parts under names that don't clash."""
        yield from (("blob", digest) for digest in self.blobs)
        yield from (("chain", chain) for chain in self.chains)


async def targets_of(store: Store) -> dict[str, Target | None]:
    """Return what each digest that a reference names leads to; None for one that can't be read."""
    targets: dict[str, Target | None] = {}
    for digest in set(store.references.values()):
        try:
            targets[digest] = await store.target(digest)
        except ContainerError:
            targets[digest] = None
    return targets


def unused(
    store: Store, targets: Mapping[str, Target | None], ignoring: Collection[str] = ()
) -> tuple[str, ...]:
    """Return the references of images that no holder uses; one that can't be read is used."""
    held = _held(store, ignoring)
    return tuple(
        sorted(
            reference
            for reference, digest in store.references.items()
            if (target := targets.get(digest)) is not None
            and not any(image.digest in held for image in target.images)
        )
    )


async def measure(store: Store, ignoring: Collection[str]) -> ImagesUsage:
    """Return what the images of a store take; see the contract."""
    targets = await targets_of(store)
    certain = await trio.to_thread.run_sync(store.certain) and None not in targets.values()
    # From here to the thread nothing awaits: all of it is of one moment.
    blobs = {digest: store.blobs.path(digest) for digest in store.blobs.digests()}
    chains = {chain: store.snapshots.folder_of(chain) for chain in store.snapshots.records}
    needs = {digest: Parts.of(digest, it) for digest, it in targets.items() if it is not None}
    gone = unused(store, targets, ignoring)
    now = _needed(store, needs, store.references, ignoring)
    then = _needed(
        store, needs, {key: it for key, it in store.references.items() if key not in gone}, ignoring
    )
    holds = {
        store.snapshots.record_of(hold): holder
        for holder, held in store.snapshots.holds.items()
        for hold in held
    }
    rows = {digest: _row(store, digest, targets.get(digest)) for digest in needs}
    sizes = await trio.to_thread.run_sync(_sizes, blobs, chains)
    records = await trio.to_thread.run_sync(lambda: {it: disk_bytes(it) for it in holds})
    going = sum(records[path] for path, holder in holds.items() if holder in ignoring)
    users = Counter(key for parts in needs.values() for key in parts.names())

    def size(parts: Parts) -> int:
        return sum(sizes.get(key, 0) for key in parts.names())

    everything = Parts(set(blobs), set(chains))
    images = tuple(
        ImageUsage(
            *rows[digest][:2],
            size(parts),
            sum(sizes.get(key, 0) for key in parts.names() if users[key] > 1),
            rows[digest][2],
        )
        for digest, parts in sorted(needs.items(), key=lambda item: rows[item[0]][0])
    )
    whole = size(everything)
    return ImagesUsage(
        images,
        whole + sum(records.values()),
        going + (whole - size(_both(everything, now)) if certain else 0),
        going + (whole - size(_both(everything, then)) if certain else 0),
    )


def _row(
    store: Store, digest: str, target: Target | None
) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    own = {image.digest for image in target.images} if target else set[str]()
    references = sorted(key for key, named in store.references.items() if named == digest)
    holders = sorted(
        holder
        for holder, holds in store.snapshots.holds.items()
        if any(hold.manifest in own for hold in holds)
    )
    return tuple(references), digest, tuple(holders)


def _held(store: Store, ignoring: Collection[str]) -> set[str]:
    return {
        hold.manifest
        for holder, holds in store.snapshots.holds.items()
        if holder not in ignoring
        for hold in holds
    }


def _needed(
    store: Store,
    needs: Mapping[str, Parts],
    references: Mapping[str, str],
    ignoring: Collection[str],
) -> Parts:
    needed = Parts(set(store.pins), set(store.pins))
    for digest in references.values():
        needed.add(needs.get(digest, Parts(set(), set())))
    for holder, holds in store.snapshots.holds.items():
        for hold in holds if holder not in ignoring else ():
            needed.chains |= {it.chain_id for it in store.snapshots.stack(hold.chain_id)}
    return needed


def _both(one: Parts, other: Parts) -> Parts:
    return Parts(one.blobs & other.blobs, one.chains & other.chains)


def _sizes(blobs: Mapping[str, Path], chains: Mapping[str, Path]) -> dict[tuple[str, str], int]:
    """Measure all parts. Blocking."""
    seen: set[tuple[int, int]] = set()
    sizes = {("blob", digest): disk_bytes(path, seen=seen) for digest, path in blobs.items()}
    for chain, path in chains.items():
        sizes["chain", chain] = disk_bytes(path, seen=seen)
    return sizes
