"""`ImagesService`: the actor that owns the content store.

Exclusive sections: a reference while it is pulled, a blob while it is fetched, a stack of layers
while it is unpacked, a holder while its holds change. Everything else runs side by side.
"""

from __future__ import annotations

import difflib
import logging
import os
import stat
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio
from attrs import frozen

from container.contracts.images import (
    DeletedImage,
    Image,
    Images,
    ImageSummary,
    ImagesUsage,
    Platform,
    PrunedImages,
    Scheme,
    Snapshot,
)
from container.images import usage
from container.images.archive import (
    ArchiveImage,
    FolderArchive,
    Loader,
    TarArchive,
    plain,
    spool_file,
)
from container.images.limits import Limits
from container.images.malformed import Malformed
from container.images.platforms import rank, this_platform
from container.images.pull import fetch_image
from container.images.reference import LOCAL, candidates, digest_prefix, parse
from container.images.snapshots import check_holder
from container.images.store import Store, StoredImage
from container.ipc import (
    Actor,
    ContainerError,
    DataLoss,
    Fd,
    InvalidArgument,
    InvalidState,
    NotFound,
    Unavailable,
    Unsupported,
)
from container.storage.blobs import space_errors
from container.storage.disk_usage import disk_bytes
from container.storage.settings import Settings
from container.storage.stored_images import KEPT_SECONDS, Hold

_log = logging.getLogger(__name__)
_PIPE_READ = 1 << 16
_PIPE_BATCH = 1 << 20


@frozen
class _Found:
    reference: str
    digest: str


class ImagesService(Actor, Images):
    """The images of one root.

    Args:
        folder: Where they are; one process at a time owns it.
        settings: The person's settings; None is the defaults.
        limits: Every bound.
        platform: What images are run on; None is this machine's.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings | None = None,
        *,
        limits: Limits | None = None,
        platform: Platform | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._settings = settings or Settings()
        self._platform = platform or this_platform()
        self._store = Store(folder, self._settings, self._limits)

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        """Own the folder: locked, swept, read."""
        self._downloads = trio.CapacityLimiter(self._limits.downloads)
        # Unpacking and copying are work for a processor: more at once would only be slower.
        self._workers = trio.CapacityLimiter(os.cpu_count() or 1)
        await trio.to_thread.run_sync(self._store.open)
        try:
            yield
        finally:
            self._store.close()

    async def begin(self) -> None:
        """Begin to remove what earlier pulls have left for a next try that never came."""
        self.nursery.start_soon(self._collect_old)

    async def _collect_old(self) -> None:
        try:
            await self._store.collect(KEPT_SECONDS)
        except ContainerError as error:
            _log.warning("what nothing needs can't be removed now: %s", error.message)

    async def list(self) -> tuple[ImageSummary, ...]:
        """Return all references, sorted; a broken one has no size and no platforms."""
        self._check_references()
        rows: list[ImageSummary] = []
        for reference, digest in sorted(self._store.references.items()):
            try:
                rows.append(await self._store.summary(reference, digest))
            except ContainerError:
                parsed = parse(reference, self._settings.default_registry)
                name = f"{parsed.registry}/{parsed.repository}"
                tag = parsed.tag or "<none>"
                rows.append(ImageSummary(reference, name, tag, digest, 0, None, ()))
        return tuple(rows)

    async def get(self, reference: str, platform: Platform | None = None) -> Image:
        """Return one image."""
        found, image = await self._choose(reference, platform)
        return await self._store.image(found.reference, found.digest, image)

    async def pull(
        self, reference: str, platform: Platform | None = None, scheme: Scheme = Scheme.AUTO
    ) -> ImageSummary:
        """Fetch an image from its registry."""
        wanted = parse(reference, self._settings.default_registry)
        if wanted.registry == LOCAL:
            raise NotFound(
                f'"{reference}" names an image of this machine alone',
                hint="load or tag it, or name a registry with its port: localhost:5000/NAME",
            )
        name = str(wanted)
        keep = True
        try:
            async with self.exclusive(f"pull {name}"):
                with self._store.pinned() as pin:
                    digest = await fetch_image(
                        self._store,
                        wanted,
                        reference,
                        platform or self._platform,
                        scheme,
                        pin=pin,
                        exclusive=self.exclusive,
                        downloads=self._downloads,
                    )
                    self._store.forget(digest)
                    await self._store.set({name: digest})
                return await self._store.summary(name, digest)
        except ContainerError as error:
            # Verified blobs are kept for the next try where one may help, and room is made
            # where there was none.
            keep = isinstance(error, Unavailable) and "errno" not in error.details
            raise
        finally:
            if not keep:
                await self._collect()

    async def load(
        self, archive: Fd, name: str | None = None, source: str | None = None
    ) -> tuple[ImageSummary, ...]:
        """Load an archive."""
        shown = source or "the archive"
        if name is not None:
            parse(name, LOCAL)
        loaded = False
        try:
            with self._store.pinned() as pin, _naming(shown):
                async with self._plain_file(archive) as file:
                    images = await trio.to_thread.run_sync(
                        self._load, file, pin, limiter=self._workers
                    )
                changes = _names(images, name)
                for digest in changes.values():
                    self._store.forget(digest)
                await self._store.set(dict(changes))
                loaded = True
        finally:
            if not loaded:
                await self._collect()
        return tuple([await self._store.summary(*row) for row in sorted(changes.items())])

    async def tag(self, source: str, target: str) -> ImageSummary:
        """Give an image a further reference."""
        wanted = parse(target, LOCAL)
        if wanted.digest is not None:
            raise InvalidArgument(f'"{target}" has a digest', hint="a tag is a name: NAME[:TAG]")
        found = await self._find(source)
        await self._store.set({str(wanted): found.digest})
        return await self._store.summary(str(wanted), found.digest)

    async def delete(self, reference: str, force: bool = False) -> DeletedImage:
        """Remove a reference."""
        found = await self._find(reference)
        holders = await self._holders_of(found)
        if holders and not force:
            named = ", ".join(holder[:12] for holder in holders[:5])
            more = f" and {len(holders) - 5} more" if len(holders) > 5 else ""
            raise InvalidState(
                f'image "{reference}" is used by container {named}{more}',
                hint="delete its containers first, or force it: they keep what they have",
                details={"holders": list(holders)},
            )
        await self._store.set({found.reference: None})
        return DeletedImage(found.reference, await self._collect())

    async def prepare(
        self, reference: str, holder: str, platform: Platform | None = None
    ) -> Snapshot:
        """Unpack an image and hold its snapshot."""
        check_holder(holder)
        snapshots = self._store.snapshots
        async with self.exclusive(f"holder {holder}"):
            found, stored = await self._choose(reference, platform)
            if not stored.chain_ids:
                raise Unsupported(f'image "{reference}" has no layers: there is nothing to run')
            hold = Hold(holder, stored.digest, stored.chain_ids[-1])
            held = hold in snapshots.holds.get(holder, ())
            # No checkpoint since the reference was looked up: no deletion can have come between,
            # and none will from here on.
            snapshots.holds.setdefault(holder, set()).add(hold)
            try:
                with self._store.pinned(*stored.chain_ids, *stored.blobs()):
                    await self._unpack(reference, stored)
                    image = await self._store.image(found.reference, found.digest, stored)
                    if not held:
                        await trio.to_thread.run_sync(snapshots.hold, hold)
            except BaseException:
                if not held:
                    self._drop(hold)
                raise
        layers = tuple(str(snapshots.layer(chain)) for chain in reversed(stored.chain_ids))
        return Snapshot(image=image, layers=layers)

    async def release(self, holder: str) -> None:
        """Drop all holds of a holder."""
        snapshots = self._store.snapshots
        async with self.exclusive(f"holder {holder}"):
            holds = tuple(snapshots.holds.get(holder, ()))
            if not holds:
                return
            await trio.to_thread.run_sync(snapshots.release, holds)
            snapshots.holds.pop(holder, None)
        if not all(self._store.is_live(hold.manifest) for hold in holds):
            await self._collect()

    async def sweep(self) -> int:
        """Remove what nothing needs; see the contract."""
        return await self._store.collect()

    async def usage(self, ignoring: tuple[str, ...] = ()) -> ImagesUsage:
        """Return what images take on disk; see the contract."""
        return await usage.measure(self._store, frozenset(ignoring))

    async def prune(self, everything: bool = False) -> PrunedImages:
        """Remove what nothing needs; see the contract."""
        gone: tuple[str, ...] = ()
        if everything:
            self._check_references()
            targets = await usage.targets_of(self._store)
            gone = usage.unused(self._store, targets)
            if gone:
                await self._store.set(dict.fromkeys(gone))
        with trio.move_on_after(self._limits.cleanup_timeout, shield=True):
            return PrunedImages(gone, await self._store.collect(measure=disk_bytes))
        return PrunedImages(gone, 0)

    # Finding.

    def _check_references(self) -> None:
        broken = self._store.broken
        if broken is not None:
            raise DataLoss(
                f"the names of the images can't be read: {broken.message}",
                hint="restore the file, or load or pull an image: then it is set aside",
                details=broken.details,
            )

    async def _find(self, text: str) -> _Found:
        """Find what a person wrote: a name, a name by digest, or a digest's beginning.

        There is no checkpoint between the last look at the references and the return.
        """
        references = self._store.references
        for wanted in candidates(text, self._settings.default_registry):
            name = str(wanted)
            if name in references:
                return _Found(name, references[name])
            if wanted.digest is not None:
                prefix = f"{wanted.registry}/{wanted.repository}"
                for reference, digest in references.items():
                    if digest == wanted.digest and reference.startswith(
                        (prefix + ":", prefix + "@")
                    ):
                        return _Found(reference, digest)
        digits = digest_prefix(text)
        if digits is not None:
            found = await self._by_digest(digits, text)
            if found is not None:
                return found
        self._check_references()
        raise self._not_found(text)

    async def _by_digest(self, digits: str, text: str) -> _Found | None:
        for digest in tuple(self._store.references.values()):
            try:
                await self._store.target(digest)
            except ContainerError:
                continue
        matches: dict[str, str] = {}
        for reference, digest in sorted(self._store.references.items()):
            if any(name.partition(":")[2].startswith(digits) for name in self._store.names(digest)):
                matches.setdefault(digest, reference)
        if len(matches) > 1:
            raise InvalidArgument(
                f'"{text}" fits several images', hint=f"they are {', '.join(matches.values())}"
            )
        for digest, reference in matches.items():
            return _Found(reference, digest)
        return None

    def _not_found(self, text: str) -> NotFound:
        known: set[str] = set()
        for reference in self._store.references:
            parsed = parse(reference, self._settings.default_registry)
            name = parsed.short_name(self._settings.default_registry)
            known.update((reference, name, f"{name}:{parsed.tag}"))
        close = difflib.get_close_matches(text, sorted(known), n=1, cutoff=0.7)
        if close:
            return NotFound(
                f'no image "{text}": did you mean "{close[0]}"?',
                hint=f'use "{close[0]}", or pull or load "{text}"',
                details={"suggestion": close[0]},
            )
        return NotFound(
            f'no image "{text}"', hint="`container image list` shows what is here; pull or load it"
        )

    async def _choose(
        self, reference: str, platform: Platform | None
    ) -> tuple[_Found, StoredImage]:
        """Find an image for a platform, this machine's if none is named."""
        while True:
            found = await self._find(reference)
            target = await self._store.target(found.digest)
            if self._store.references.get(found.reference) == found.digest:
                break  # It has not changed while it was read.
        wanted = platform or self._platform
        fits = [
            (fit, number, image)
            for number, image in enumerate(target.images)
            if (fit := rank(image.platform, wanted)) is not None
        ]
        if fits:
            return found, min(fits)[2]
        if not target.images:
            raise DataLoss(f'image "{reference}" is incomplete', hint="pull or load it again")
        offered = ", ".join(str(image.platform) for image in target.images)
        whose = f"not {wanted}" if platform else f"this machine is {wanted}"
        raise Unsupported(
            f'image "{reference}" is for {offered} only; {whose}',
            hint=f"pull or load one for {wanted}",
            details={"platforms": [str(image.platform) for image in target.images]},
        )

    # Holding.

    async def _unpack(self, shown: str, image: StoredImage) -> None:
        """Unpack what is not unpacked yet, lowest first."""
        snapshots = self._store.snapshots
        for number, chain in enumerate(image.chain_ids):
            if chain in snapshots.records:
                continue
            async with self.exclusive(f"snapshot {chain}"):
                if chain in snapshots.records:
                    continue
                try:
                    with _naming(f'image "{shown}"', refused=False):
                        snapshots.records[chain] = await trio.to_thread.run_sync(
                            snapshots.make,
                            self._store.blobs,
                            image.manifest.layers[number].digest,
                            image.configuration.diff_ids[number],
                            image.chain_ids[:number][::-1],
                            chain,
                            trio.from_thread.check_cancelled,
                            limiter=self._workers,
                        )
                except FileNotFoundError as error:
                    raise DataLoss(
                        f'a layer of image "{shown}" is missing', hint="pull or load it again"
                    ) from error
                except DataLoss as error:
                    layer = image.manifest.layers[number].digest
                    if not await trio.to_thread.run_sync(self._changed_on_disk, layer):
                        raise
                    raise DataLoss(
                        f'a layer of image "{shown}" has changed on disk; it was set aside',
                        hint="pull or load it again",
                    ) from error

    def _changed_on_disk(self, digest: str) -> bool:
        """Set a blob aside if it is not what its name says; return whether it was so. Blocking."""
        blobs = self._store.blobs
        if blobs.verify(digest):
            return False
        _log.error("blob %s has changed on disk: set aside as %s", digest, blobs.set_aside(digest))
        return True

    async def _holders_of(self, found: _Found) -> tuple[str, ...]:
        """Return who would lose a reference's images with it."""
        try:
            target = await self._store.target(found.digest)
        except ContainerError:
            return ()
        lost = {image.digest for image in target.images}
        for reference, digest in self._store.references.items():
            if reference == found.reference or not lost:
                continue
            if digest == found.digest:
                return ()
            lost -= {image.digest for image in (await self._store.target(digest)).images}
        return tuple(
            sorted(
                holder
                for holder, holds in self._store.snapshots.holds.items()
                if any(hold.manifest in lost for hold in holds)
            )
        )

    def _drop(self, hold: Hold) -> None:
        holds = self._store.snapshots.holds
        holds.get(hold.holder, set()).discard(hold)
        if not holds.get(hold.holder):
            holds.pop(hold.holder, None)

    async def _collect(self) -> int:
        """Remove garbage, also while being cancelled; bounded."""
        with trio.move_on_after(self._limits.cleanup_timeout, shield=True):
            return await self._store.collect()
        return 0

    # Loading.

    def _load(self, file: int, pin: Callable[[str], None]) -> tuple[ArchiveImage, ...]:
        """Load from an open folder or plain file. Blocking."""
        limits, check = self._limits, trio.from_thread.check_cancelled

        def pin_here(digest: str) -> None:
            trio.from_thread.run_sync(pin, digest)

        if stat.S_ISDIR(os.fstat(file).st_mode):
            archive = FolderArchive(file)
            return Loader(archive, self._store.blobs, limits, check, pin_here).load()
        with plain(file, self._store.ingest, limits, check) as uncompressed:
            tar = TarArchive(uncompressed, limits, check)
            return Loader(tar, self._store.blobs, limits, check, pin_here).load()

    @asynccontextmanager
    async def _plain_file(self, archive: Fd) -> AsyncGenerator[int]:
        """Give a descriptor that can be read at any place: a pipe is copied first."""
        file = archive.fileno()
        kind = os.fstat(file).st_mode
        if stat.S_ISDIR(kind) or stat.S_ISREG(kind):
            yield file
            return
        if not (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)):
            raise InvalidArgument("it is no folder, file or pipe")
        with space_errors(self._store.ingest), spool_file(self._store.ingest) as spool:
            await self._copy_pipe(file, spool.write)
            await trio.to_thread.run_sync(spool.flush)
            yield spool.fileno()

    async def _copy_pipe(self, file: int, write: Callable[[bytes], object]) -> None:
        batch = bytearray()
        size = 0
        while True:
            # Not O_NONBLOCK: the open file may be shared with the caller's terminal or shell. What
            # is readable does not block.
            await trio.lowlevel.wait_readable(file)
            data = os.read(file, _PIPE_READ)
            batch += data
            size += len(data)
            if size > self._limits.archive:
                raise InvalidArgument(f"it has more than {self._limits.archive} bytes")
            if batch and (not data or len(batch) >= _PIPE_BATCH):
                await trio.to_thread.run_sync(write, bytes(batch))
                batch.clear()
            if not data:
                return


def _names(images: Sequence[ArchiveImage], name: str | None) -> dict[str, str]:
    """Return the digest for each reference that an archive gives, or that was asked for."""
    if name is not None:
        if len({image.digest for image in images}) > 1:
            raise InvalidArgument(
                f"it holds {len(images)} images, and one name was given",
                hint="load it without a name, then tag them",
            )
        return {str(parse(name, LOCAL)): images[0].digest}
    found: dict[str, str] = {}
    for image in images:
        for given in image.names:
            try:
                found[str(parse(given, LOCAL))] = image.digest
            except InvalidArgument as error:
                raise InvalidArgument(
                    f'it holds an image with the bad name "{given[:200]}"',
                    hint=f"give another name; {error.hint}",
                ) from error
    if not found:
        raise InvalidArgument("its image carries no name", hint="give a name to load it under")
    return found


@contextmanager
def _naming(shown: str, *, refused: bool = True) -> Generator[None]:
    """Say in errors what the person gave us; with `refused` a malformed one is the person's."""
    try:
        yield
    except Malformed as error:
        kind = InvalidArgument if refused else DataLoss
        raise kind(f"{shown} is corrupt: {error.message}", hint="make or fetch it again") from error
    except (Unavailable, NotFound):
        raise
    except ContainerError as error:
        raise type(error)(
            f"{shown}: {error.message}", hint=error.hint, details=error.details
        ) from error
