"""Archives of images: an OCI layout as a folder or a tar, and a docker-archive. Blocking.

What is *not* here: pipes and compressed archives, which are first written to a plain file by
`spool`. Each blob is copied into the store while its digest is checked; references are the
caller's to set, when all blobs of the archive are there.

Source: OCI image-spec, image layout; `docker save` (manifest.json, RepoTags).
"""

from __future__ import annotations

import io
import os
import posixpath
import stat
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, TypeVar, cast

from attrs import evolve, field, frozen

from container.images.compression import BROKEN, MAGIC_BYTES, decompressed, is_compressed
from container.images.limits import Limits
from container.images.malformed import Malformed
from container.images.manifest import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    Descriptor,
    Index,
    parse_archive,
    parse_configuration,
    parse_index,
    parse_manifest,
    write_manifest,
)
from container.images.store import stored_image
from container.images.tarstream import CHUNK, TarStream
from container.ipc import InvalidArgument, Overloaded
from container.storage.blobs import Blobs, BlobWriter, space_errors, split_digest

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_NAME = "org.opencontainers.image.ref.name"
_FULL_NAME = "io.containerd.image.name"
_LINKS = 10
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


T = TypeVar("T")


@frozen
class ArchiveImage:
    """One image that an archive holds, its blobs in the store."""

    digest: str
    names: tuple[str, ...]
    """As the archive has them."""


class Archive(Protocol):
    """Files by name, whatever holds them."""

    def size(self, name: str) -> int | None:
        """Return a file's size, None if it is not there."""
        ...

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        """Read a piece of a file that is there."""
        ...


class FolderArchive:
    """The files of an open folder; symbolic links are not followed.

    Args:
        folder: Descriptor of the folder, which stays the caller's.
    """

    def __init__(self, folder: int) -> None:
        self._folder = folder

    def size(self, name: str) -> int | None:
        """Return a file's size, None if it is not there, or no plain file."""
        try:
            with self._opened(name) as file:
                found = os.fstat(file)
        except OSError:
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        """Read a piece of a file."""
        with self._opened(name) as file:
            return os.pread(file, size, offset)

    @contextmanager
    def _opened(self, name: str) -> Generator[int]:
        opened = [self._folder]
        parts = name.split("/")
        try:
            for part in parts[:-1]:
                opened.append(os.open(part, _FOLDER, dir_fd=opened[-1]))
            opened.append(os.open(parts[-1], _FILE, dir_fd=opened[-1]))
            yield opened[-1]
        finally:
            for descriptor in opened[1:]:
                os.close(descriptor)


class TarArchive:
    """The files of an uncompressed tar in a plain file.

    Args:
        file: Descriptor, which stays the caller's; its position is neither used nor changed.
        limits: What is refused.
        check: Called often; raises to stop.

    Raises:
        Malformed: it is no tar.
    """

    def __init__(self, file: int, limits: Limits, check: Callable[[], None]) -> None:
        self._file = file
        self._places: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        stream = TarStream(
            Positioned(file), evolve(limits, unpacked=limits.archive, entries=100_000), check
        )
        for member in stream:
            name = posixpath.normpath(member.name).lstrip("/")
            if member.isreg() and not member.issparse():
                self._places[name] = (stream.tell(), member.size)
            elif member.issym():
                # docker save names a layer that two images share once, and links to it.
                self._links[name] = posixpath.normpath(
                    posixpath.join(posixpath.dirname(name), member.linkname)
                )
            elif member.islnk():
                self._links[name] = posixpath.normpath(member.linkname).lstrip("/")

    def size(self, name: str) -> int | None:
        """Return a file's size, None if it is not there."""
        place = self._place(name)
        return None if place is None else place[1]

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        """Read a piece of a file."""
        place = self._place(name)
        if place is None:
            return b""
        return os.pread(self._file, max(0, min(size, place[1] - offset)), place[0] + offset)

    def _place(self, name: str) -> tuple[int, int] | None:
        name = posixpath.normpath(name)
        for _ in range(_LINKS):
            if name in self._places or name not in self._links:
                break
            name = self._links[name]
        return self._places.get(name)


@frozen
class Loader:
    """Copy the images of an archive into a store.

    Args:
        archive: Where from.
        blobs: Where to.
        limits: What is refused.
        check: Called often; raises to stop.
        pin: Called with each digest before its blob is in the store.
    """

    archive: Archive
    blobs: Blobs
    limits: Limits
    check: Callable[[], None]
    pin: Callable[[str], None] = field(default=lambda digest: None)

    def load(self) -> tuple[ArchiveImage, ...]:
        """Copy all images; return what they are.

        Raises:
            InvalidArgument: it is no archive of images.
            Malformed: it is broken.
            DataLoss: a digest does not match.
            Overloaded: a bound is reached.
        """
        if self.archive.size("index.json") is not None:
            return self._load_layout()
        if self.archive.size("manifest.json") is not None:
            return self._load_docker()
        raise InvalidArgument(
            "it is neither an OCI layout nor a docker-archive",
            hint="make one with `skopeo copy`, `podman save` or `docker save`",
        )

    def _load_layout(self) -> tuple[ArchiveImage, ...]:
        found: list[ArchiveImage] = []
        for entry in self._bounded(parse_index(self._document("index.json")).manifests):
            if entry.is_attestation():
                continue
            self._take(entry, 0)
            notes = entry.annotations or {}
            name = notes.get(_FULL_NAME) or notes.get(_NAME)
            found.append(ArchiveImage(entry.digest, (name,) if name else ()))
        if not found:
            raise InvalidArgument("it holds no image", hint="make it again")
        return tuple(found)

    def _take(self, entry: Descriptor, depth: int) -> None:
        raw = self._document(_place(entry), entry)
        document = parse_manifest(raw)
        if isinstance(document, Index):
            if depth >= self.limits.nesting:
                raise Malformed("an index inside an index inside an index")
            here = [
                inner
                for inner in self._bounded(document.manifests)
                if not inner.is_attestation() and self.archive.size(_place(inner)) is not None
            ]
            if not here:
                raise Malformed(f"{entry.digest} is an index, and none of its images is here")
            for inner in here:
                self._take(inner, depth + 1)
        else:
            config = self._document(_place(document.config), document.config)
            stored_image(entry.digest, document, parse_configuration(config))
            for layer in document.layers:
                self._copy(_place(layer), layer)

    def _load_docker(self) -> tuple[ArchiveImage, ...]:
        found: list[ArchiveImage] = []
        for item in self._bounded(parse_archive(self._document("manifest.json"))):
            raw = self._document(item.config)
            configuration = parse_configuration(raw)
            if len(item.layers) != len(configuration.diff_ids):
                raise Malformed("manifest.json and the image configuration differ in their layers")
            layers = tuple(
                self._docker_layer(name, diff_id)
                for name, diff_id in zip(item.layers, configuration.diff_ids, strict=True)
            )
            config = Descriptor(self._store(raw), len(raw), DOCKER_CONFIG)
            digest = self._store(write_manifest(config, layers))
            found.append(ArchiveImage(digest, item.references))
        if not found:
            raise InvalidArgument("it holds no image", hint="make it again")
        return tuple(found)

    def _docker_layer(self, name: str, diff_id: str) -> Descriptor:
        head = self.archive.read_at(name, 0, MAGIC_BYTES)
        if not is_compressed(head):
            size = self.archive.size(name)
            if size is None:
                raise Malformed(f'"{name[:200]}" is missing')
            layer = Descriptor(diff_id, size, DOCKER_LAYER)
            self._copy(name, layer)
            return layer
        kind = "gzip" if head.startswith(b"\x1f\x8b") else "zstd"
        with self.blobs.write() as writer:
            self._pump(name, writer)
            self.pin(writer.digest)
            digest = writer.commit()
        return Descriptor(digest, writer.size, f"{DOCKER_LAYER}.{kind}")

    def _document(self, name: str, wanted: Descriptor | None = None) -> bytes:
        """Read a document; one that has a descriptor is checked and stored."""
        size = self.archive.size(name)
        if size is None:
            raise Malformed(f'"{name[:200]}" is missing')
        if size > self.limits.document:
            raise Overloaded(f'"{name[:200]}" has more than {self.limits.document} bytes')
        raw = self.archive.read_at(name, 0, size)
        if len(raw) != size:
            raise Malformed(f'"{name[:200]}" is cut off')
        if wanted is not None:
            with self.blobs.write(split_digest(wanted.digest)[0]) as writer:
                writer.write(raw)
                self.pin(wanted.digest)
                writer.commit(wanted.digest, wanted.size)
        return raw

    def _store(self, raw: bytes) -> str:
        with self.blobs.write() as writer:
            writer.write(raw)
            self.pin(writer.digest)
            return writer.commit()

    def _copy(self, name: str, wanted: Descriptor) -> None:
        self.pin(wanted.digest)
        size = self.archive.size(name)
        if size is None:
            raise Malformed(f'"{name[:200]}" is missing')
        if size > self.limits.blob:
            raise Overloaded(f"a layer has more than {self.limits.blob} bytes")
        if self.blobs.has(wanted.digest, wanted.size):
            return
        with self.blobs.write(split_digest(wanted.digest)[0]) as writer:
            self._pump(name, writer)
            writer.commit(wanted.digest, wanted.size)

    def _pump(self, name: str, writer: BlobWriter) -> None:
        while data := self.archive.read_at(name, writer.size, CHUNK):
            self.check()
            if writer.size + len(data) > self.limits.blob:
                raise Overloaded(f"a layer has more than {self.limits.blob} bytes")
            writer.write(data)

    def _bounded(self, items: tuple[T, ...]) -> tuple[T, ...]:
        if len(items) > self.limits.images:
            raise Overloaded(f"it holds more than {self.limits.images} images")
        return items


@contextmanager
def plain(file: int, ingest: Path, limits: Limits, check: Callable[[], None]) -> Generator[int]:
    """Give a descriptor of the uncompressed archive: `file` itself, or a copy without a name.

    Raises:
        Malformed: the compressed data is broken.
        Overloaded: it is larger than an archive may be.
        Unavailable: no space is left.
        Unsupported: it is compressed in a way that is not read here.
    """
    if not is_compressed(os.pread(file, MAGIC_BYTES, 0)):
        yield file
        return
    with space_errors(ingest), spool_file(ingest) as copy:
        size = 0
        try:
            with decompressed(cast("IO[bytes]", Positioned(file))) as source:
                while data := source.read(CHUNK):
                    check()
                    size += len(data)
                    if size > limits.archive:
                        raise Overloaded(f"it has more than {limits.archive} bytes")
                    copy.write(data)
        except BROKEN as error:
            raise Malformed(f"the compressed data is broken: {error}") from error
        copy.flush()
        yield copy.fileno()


def spool_file(ingest: Path) -> IO[bytes]:
    """Open a file without a name, gone with its descriptor."""
    return os.fdopen(os.open(ingest, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), "w+b")


class Positioned(io.RawIOBase):
    """Read a descriptor at a position of one's own; the descriptor stays the caller's."""

    def __init__(self, file: int) -> None:
        super().__init__()
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        count = os.preadv(self._file, [buffer], self._position)
        self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence == os.SEEK_CUR:
            offset += self._position
        elif whence == os.SEEK_END:
            offset += os.fstat(self._file).st_size
        self._position = offset
        return offset

    def tell(self) -> int:
        return self._position


def _place(entry: Descriptor) -> str:
    algorithm, digits = split_digest(entry.digest)
    return f"blobs/{algorithm}/{digits}"
