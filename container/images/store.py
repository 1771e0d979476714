"""The store: references, the documents they lead to, and what is garbage.

What is where is told in `container.storage.stored_images`. The folder has mode 0700, and one
process owns it by a lock.

Documents are parsed once and kept by digest: a digest's bytes never change. Deciding what is
garbage and taking it out of the store is one step without a checkpoint (renames into the ingest
folder), so that no other task sees half of it; what a task needs and no reference names yet, it
pins.

What can't be read stops nothing else and is never overwritten: a broken `references.json` is set
aside when a reference is written next. But it may have named anything: as long as there is one,
aside or in its place, nothing is garbage.

Blobs that nothing needs may be half of a pull that was cut off. They are kept for a day, so that
its next try goes on where it was.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

import trio
from attrs import define, frozen

from container.contracts.images import Image, ImageSummary, LayerDescriptor, Platform
from container.images.limits import Limits
from container.images.malformed import Malformed
from container.images.manifest import (
    Configuration,
    Manifest,
    chain_ids,
    parse_configuration,
    parse_manifest,
)
from container.images.reference import Reference, parse
from container.images.snapshots import Snapshots, remove_tree
from container.ipc import ContainerError, DataLoss, Unavailable
from container.ipc.sections import Sections
from container.storage.blobs import Blobs, space_errors
from container.storage.documents import is_aside
from container.storage.durable import make_folder, sweep_temporary, sync_folder
from container.storage.locks import FileLock, try_lock
from container.storage.settings import Settings
from container.storage.stored_images import (
    REFERENCES,
    StoredReference,
    read_references,
    reference_documents,
)

_log = logging.getLogger(__name__)


@frozen
class StoredImage:
    """One manifest whose configuration is here, parsed."""

    digest: str
    manifest: Manifest
    configuration: Configuration
    chain_ids: tuple[str, ...]

    @property
    def platform(self) -> Platform:
        """What it runs on."""
        return self.configuration.platform

    def layers(self) -> tuple[LayerDescriptor, ...]:
        """Return its layers, lowest first."""
        pairs = zip(self.manifest.layers, self.configuration.diff_ids, strict=True)
        return tuple(
            LayerDescriptor(layer.digest, diff_id, layer.media_type, layer.size)
            for layer, diff_id in pairs
        )

    def blobs(self) -> tuple[str, ...]:
        """Return the digests of all that it is made of."""
        return (
            self.digest,
            self.manifest.config.digest,
            *(layer.digest for layer in self.manifest.layers),
        )


@frozen
class Target:
    """What a reference names: a manifest, or an index with the manifests of it that are here."""

    documents: tuple[str, ...]
    """Digests of the index and of the indexes in it; empty for a manifest alone."""
    images: tuple[StoredImage, ...]


@define
class _Garbage:
    paths: list[Path]
    freed: int


class Store:
    """The content of one images folder.

    Args:
        folder: Where it is.
        settings: The person's settings: the default registry.
        limits: Every bound.
    """

    def __init__(self, folder: Path, settings: Settings, limits: Limits) -> None:
        self.folder = folder
        self.settings = settings
        self.limits = limits
        self.ingest = folder / "ingest"
        self.blobs = Blobs(folder / "blobs", self.ingest)
        self.snapshots = Snapshots(folder / "snapshots", folder / "holders", self.ingest, limits)
        self.references: dict[str, str] = {}
        """Digest by reference, both complete."""
        self.broken: DataLoss | None = None
        """Why the references that were there can't be read; None from the next change on."""
        self._targets: dict[str, Target] = {}
        self._summaries: dict[str, ImageSummary] = {}
        self._pins: dict[str, int] = {}
        self._sections = Sections()
        self._lock: FileLock | None = None

    # Start and end.

    def open(self) -> None:
        """Lock the folder, sweep the ingest folder, read what is there. Blocking.

        Raises:
            Unavailable: another process has it.
        """
        make_folder(self.folder)
        self.folder.chmod(0o700)  # Set-user-id programs of images are nobody's to run here.
        self._lock = try_lock(self.folder / "lock")
        if self._lock is None:
            raise Unavailable(
                f"{self.folder} is in use by another process",
                hint="a second system with the same root can't run: set CONTAINER_ROOT",
            )
        try:
            self.blobs.make_folders()
            sweep_temporary(self.folder)
            for entry in os.scandir(self.ingest):
                remove_tree(Path(entry.path))
            self.snapshots.load()
            try:
                self.references = read_references(self.folder)
            except DataLoss as error:
                _log.error("the references are set aside: %s", error.message)
                self.broken = error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unlock the folder."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    # References.

    async def set(self, changes: dict[str, str | None]) -> None:
        """Change references, all or none, durable when this returns; None removes one.

        Once begun it is finished, whoever is cancelled.
        """
        async with self._sections.hold("references"):
            wanted = dict(self.references)
            for reference, digest in changes.items():
                if digest is None:
                    wanted.pop(reference, None)
                else:
                    wanted[reference] = digest
            if wanted != self.references:
                rows = tuple(StoredReference(*pair) for pair in sorted(wanted.items()))
                with trio.CancelScope(shield=True), space_errors(self.folder):
                    await trio.to_thread.run_sync(self._write, rows)
                self.references, self.broken = wanted, None
                self._summaries.clear()

    def _write(self, rows: tuple[StoredReference, ...]) -> None:
        self.blobs.sync()
        reference_documents.write(self.folder / REFERENCES, rows)

    # Documents.

    async def target(self, digest: str) -> Target:
        """Return what a digest leads to, read from disk the first time.

        Raises:
            DataLoss: a document is missing, or not what its name says.
        """
        found = self._targets.get(digest)
        if found is None:
            with space_errors(self.folder):
                found = await trio.to_thread.run_sync(self.read_target, digest)
            self._targets[digest] = found
        return found

    def read_target(self, digest: str, depth: int = 0) -> Target:
        """Read what a digest leads to. Blocking."""
        document = parse_manifest(self.blobs.read(digest, self.limits.document))
        if isinstance(document, Manifest):
            raw = self.blobs.read(document.config.digest, self.limits.document)
            return Target((), (stored_image(digest, document, parse_configuration(raw)),))
        documents = [digest]
        images: list[StoredImage] = []
        for entry in document.manifests[: self.limits.images]:
            if depth >= self.limits.nesting or entry.is_attestation():
                continue
            if not self.blobs.has(entry.digest):
                continue  # Only the platforms that were asked for are here.
            try:
                inner = self.read_target(entry.digest, depth + 1)
            except ContainerError:
                continue  # Half of one: another platform's pull was cancelled, say.
            documents.extend(inner.documents)
            images.extend(inner.images)
        return Target(tuple(documents), tuple(images))

    def forget(self, digest: str) -> None:
        """Read a target again when it is asked for: more of it may be here."""
        self._targets.pop(digest, None)
        self._summaries.clear()

    def names(self, digest: str) -> tuple[str, ...]:
        """Return every digest that a target goes by, as far as it was read."""
        target = self._targets.get(digest)
        images = target.images if target else ()
        return (digest, *(name for image in images for name in image.blobs()[:2]))

    async def image(self, reference: str, digest: str, found: StoredImage) -> Image:
        """Return the contract's view of one image."""
        return Image(
            summary=await self.summary(reference, digest),
            platform=found.platform,
            manifest_digest=found.digest,
            config_digest=found.manifest.config.digest,
            config=found.configuration.config,
            layers=found.layers(),
            history=found.configuration.history,
        )

    async def summary(self, reference: str, digest: str) -> ImageSummary:
        """Return the row of a reference that names, or has just named, a digest."""
        known = self._summaries.get(reference)
        if known is not None and known.digest == digest:
            return known
        target = await self.target(digest)
        blobs = {*target.documents, *(blob for image in target.images for blob in image.blobs())}
        size = await trio.to_thread.run_sync(lambda: sum(map(self.blobs.size, blobs)))
        parsed = parse(reference, self.settings.default_registry)
        summary = ImageSummary(
            reference=reference,
            name=self._shown(parsed),
            tag=parsed.tag or "<none>",
            digest=digest,
            size=size,
            created=target.images[0].configuration.created if target.images else None,
            platforms=tuple(image.platform for image in target.images),
        )
        if self.references.get(reference) == digest:
            self._summaries[reference] = summary
        return summary

    def _shown(self, reference: Reference) -> str:
        """Return the shortest name that finds this very reference."""
        name = reference.short_name(self.settings.default_registry)
        local = f"localhost/{name}:{reference.tag}"
        if str(reference) != local and local in self.references:
            return f"{reference.registry}/{reference.repository}"
        return name

    # Garbage.

    @contextmanager
    def pinned(self, *digests: str) -> Generator[Callable[[str], None]]:
        """Keep blobs and snapshots, here or to come, from being taken for garbage.

        The block gets a function that pins one more.
        """
        pins: list[str] = []

        def pin(digest: str) -> None:
            pins.append(digest)
            self._pins[digest] = self._pins.get(digest, 0) + 1

        for digest in digests:
            pin(digest)
        try:
            yield pin
        finally:
            for digest in pins:
                self._pins[digest] -= 1
                if not self._pins[digest]:
                    del self._pins[digest]

    @property
    def pins(self) -> frozenset[str]:
        """Digests of blobs and snapshots that are needed by what goes on."""
        return frozenset(self._pins)

    async def collect(
        self, kept: float = 0.0, *, measure: Callable[[Path], int] | None = None
    ) -> int:
        """Remove what no reference, holder or pin needs; return how many bytes that freed.

        Args:
            kept: Blobs are left that are younger, in seconds.
            measure: Tells the bytes of what is removed, instead of the lengths of its files.
                Blocking.
        """
        with space_errors(self.folder):
            if not await trio.to_thread.run_sync(self.certain):
                return 0
        for digest in set(self.references.values()):
            try:
                await self.target(digest)
            except ContainerError:
                # What can't be read may need anything: nothing is garbage until it is mended.
                return 0
        with space_errors(self.folder):
            garbage = self._set_aside(time.time() - kept)
        if garbage is None:
            return 0
        if measure is not None:
            garbage.freed = await trio.to_thread.run_sync(lambda: sum(map(measure, garbage.paths)))
        with (
            trio.move_on_after(self.limits.cleanup_timeout, shield=True),
            space_errors(self.folder),
        ):
            await trio.to_thread.run_sync(self._remove, garbage.paths)
        return garbage.freed

    def is_live(self, manifest: str) -> bool:
        """Say whether a reference leads to a manifest; False if that is not known at once."""
        return any(
            image.digest == manifest
            for digest in self.references.values()
            if digest in self._targets
            for image in self._targets[digest].images
        )

    def certain(self) -> bool:
        """Say whether all that may need something is known. Blocking."""
        aside = any(
            is_aside(name) and name.startswith(REFERENCES) for name in os.listdir(self.folder)
        )
        return self.broken is None and not aside and self.snapshots.certain

    def _set_aside(self, before: float) -> _Garbage | None:
        """Find the garbage and rename it away. No checkpoint: it is one step for all tasks."""
        blobs = set(self._pins)
        chains = set(self._pins)
        for digest in self.references.values():
            target = self._targets.get(digest)
            if target is None:
                return None  # A reference that came a moment ago: the next deletion will see.
            blobs.update((digest, *target.documents))
            for image in target.images:
                blobs.update(image.blobs())
                chains.update(image.chain_ids)
        for holds in self.snapshots.holds.values():
            for hold in holds:
                chains.update(record.chain_id for record in self.snapshots.stack(hold.chain_id))
        garbage = _Garbage([], 0)
        for digest in [found for found in self.blobs.digests() if found not in blobs]:
            if self.blobs.path(digest).stat().st_mtime > before:
                continue
            aside = self.ingest / f"removed-{secrets.token_hex(8)}"
            garbage.freed += self.blobs.size(digest)
            os.rename(self.blobs.path(digest), aside)
            garbage.paths.append(aside)
        for chain in [found for found in self.snapshots.records if found not in chains]:
            garbage.freed += self.snapshots.records[chain].size
            garbage.paths.append(self.snapshots.set_aside(chain))
        live = set(self.references.values())
        for digest in [found for found in self._targets if found not in live]:
            del self._targets[digest]
        return garbage

    def _remove(self, paths: Iterable[Path]) -> None:
        # Half a snapshot must not come back to its name after a power failure.
        sync_folder(self.snapshots.folder)
        for path in paths:
            remove_tree(path)


def stored_image(digest: str, manifest: Manifest, configuration: Configuration) -> StoredImage:
    """Put a manifest and its configuration together.

    Raises:
        Malformed: they do not fit.
    """
    if len(manifest.layers) != len(configuration.diff_ids):
        raise Malformed(
            f"the image is malformed: {len(manifest.layers)} layers, but "
            f"{len(configuration.diff_ids)} in its configuration"
        )
    return StoredImage(digest, manifest, configuration, chain_ids(configuration.diff_ids))
