"""Content-addressed blobs: a file is named by the digest of its bytes, complete or absent.

A blob is written under a temporary name in the ingest folder while its digest is computed, then
compared, synced, and only then renamed to its own name: what has that name is what the digest
says. The ingest folder is swept at start, since nothing in it was ever acknowledged. Blocking
throughout; one writer is used by one thread at a time.

Digests are verified on ingest, always; of documents on each read; of layers when they are unpacked
(by what comes out) and when somebody asks (`verify`). A blob that has changed on disk is set aside
in `broken`, never deleted: a store without it fetches it again.

Source: OCI image-spec, descriptors (digests) and image layout (blobs).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from container.ipc import DataLoss, InvalidArgument, NotFound, Unavailable
from container.storage.durable import make_folder, sync_folder

_DIGEST = re.compile(r"(sha256):([0-9a-f]{64})|(sha512):([0-9a-f]{128})")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_TOO_MANY = (errno.EMFILE, errno.ENFILE)
_PIECE = 1 << 20

ALGORITHMS = ("sha256", "sha512")
"""Of digests that are taken: a folder each."""
BROKEN = "broken"
"""The folder of blobs that were set aside."""


def split_digest(digest: str) -> tuple[str, str]:
    """Return algorithm and hex digits of a digest.

    Raises:
        InvalidArgument: it is none, or of an algorithm that is not taken.
    """
    found = _DIGEST.fullmatch(digest)
    if found is None:
        raise InvalidArgument(
            f'"{digest[:100]}" is no digest', hint="a digest is sha256: and 64 hex digits"
        )
    algorithm, _, digits = digest.partition(":")
    return algorithm, digits


@contextmanager
def space_errors(folder: Path) -> Generator[None]:
    """Turn the kernel's "no space" and "no descriptor" into errors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _TOO_MANY:
            raise Unavailable(
                f"too many files are open to work in {folder}",
                hint="try again when less is going on, or allow more open files",
                details={"folder": str(folder), "errno": error.errno},
            ) from error
        if error.errno not in _FULL:
            raise
        raise Unavailable(
            f"no space is left in {folder}",
            hint="delete images that are not needed, or make the file system larger",
            details={"folder": str(folder), "errno": error.errno},
        ) from error


class BlobWriter:
    """One blob on its way into the store; leaving the block without `commit` leaves nothing."""

    def __init__(self, folder: Path, ingest: Path, algorithm: str) -> None:
        self._folder = folder
        self._path = ingest / f"blob-{secrets.token_hex(8)}"
        self._algorithm = algorithm
        self._hash = hashlib.new(algorithm)
        self._file = self._path.open("xb", buffering=0)
        self.size = 0
        """Bytes written so far."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes.

        Raises:
            Unavailable: no space is left.
        """
        self._hash.update(data)
        self.size += len(data)
        view = memoryview(data)
        with space_errors(self._folder):
            while view:
                view = view[self._file.write(view) :]

    @property
    def digest(self) -> str:
        """Digest of what was written so far."""
        return f"{self._algorithm}:{self._hash.hexdigest()}"

    def commit(self, digest: str | None = None, size: int | None = None) -> str:
        """Make the blob durable under its digest, which is returned.

        Args:
            digest: What it must be.
            size: How many bytes it must have.

        Raises:
            DataLoss: it is something else; nothing is kept.
        """
        if size is not None and size != self.size:
            raise DataLoss(
                f"{digest or 'a blob'} has {self.size} bytes where {size} were announced",
                details={"digest": digest, "size": size, "found": self.size},
            )
        if digest is not None and digest != self.digest:
            raise DataLoss(
                f"the digest does not match: {digest} was announced, {self.digest} came",
                details={"digest": digest, "found": self.digest},
            )
        algorithm, digits = split_digest(self.digest)
        folder = self._folder / algorithm
        with space_errors(self._folder):
            os.fsync(self._file.fileno())
            os.replace(self._path, folder / digits)
            sync_folder(folder)
        self._file.close()
        return self.digest

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._file.closed:
            self._file.close()
            self._path.unlink(missing_ok=True)


class Blobs:
    """A folder of blobs.

    Args:
        folder: Where they are: `<folder>/<algorithm>/<hex digits>`.
        ingest: Where they are made; on the same file system.
    """

    def __init__(self, folder: Path, ingest: Path) -> None:
        self.folder = folder
        self._ingest = ingest

    def make_folders(self) -> None:
        """Make the folders that are not there yet, durably."""
        for algorithm in ALGORITHMS:
            make_folder(self.folder / algorithm)
        make_folder(self._ingest)

    def sync(self) -> None:
        """Make the names of all blobs durable, whoever put them there.

        What a writer that was killed has renamed it may not have synced. Before something that
        needs a blob is written down, this is called.
        """
        for algorithm in ALGORITHMS:
            sync_folder(self.folder / algorithm)

    def path(self, digest: str) -> Path:
        """Return where a blob is, or would be."""
        algorithm, digits = split_digest(digest)
        return self.folder / algorithm / digits

    def has(self, digest: str, size: int | None = None) -> bool:
        """Say whether a blob is here, whole; with `size`, also of so many bytes."""
        try:
            found = self.path(digest).stat()
        except FileNotFoundError:
            return False
        return size is None or found.st_size == size

    def size(self, digest: str) -> int:
        """Return a blob's size in bytes, 0 if it is not here."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return 0

    def read(self, digest: str, limit: int) -> bytes:
        """Return a small blob whole, its digest checked once more.

        Raises:
            NotFound: it is not here.
            DataLoss: it is larger than `limit`, or its bytes have changed on disk.
        """
        path = self.path(digest)
        try:
            with path.open("rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError:
            raise NotFound(f"blob {digest} is not in the store") from None
        if len(data) > limit:
            raise DataLoss(f"{path} has more than {limit} bytes")
        if hashlib.new(split_digest(digest)[0], data).hexdigest() != path.name:
            raise DataLoss(f"{path} has changed on disk", hint="delete the image and pull it again")
        return data

    def verify(self, digest: str, check: Callable[[], None] = lambda: None) -> bool:
        """Say whether a blob's bytes are what its digest says; reads all of it.

        Args:
            digest: Which.
            check: Called often; raises to stop.

        Raises:
            NotFound: it is not here.
            OSError: it can't be read.
        """
        algorithm, digits = split_digest(digest)
        found = hashlib.new(algorithm)
        try:
            with self.path(digest).open("rb", buffering=0) as file:
                while data := file.read(_PIECE):
                    check()
                    found.update(data)
        except FileNotFoundError:
            raise NotFound(f"blob {digest} is not in the store") from None
        return found.hexdigest() == digits

    def set_aside(self, digest: str) -> Path:
        """Take a blob that is not what its digest says out of the store, and keep it.

        Returns:
            Where it is now.
        """
        path = self.path(digest)
        broken = self.folder / BROKEN
        make_folder(broken)
        aside = broken / f"{path.parent.name}-{path.name}-{secrets.token_hex(4)}"
        os.rename(path, aside)
        sync_folder(broken)
        sync_folder(path.parent)
        return aside

    def write(self, algorithm: str = "sha256") -> BlobWriter:
        """Begin a blob: `with blobs.write() as writer: ...; writer.commit(digest)`.

        Raises:
            Unavailable: no space is left.
        """
        with space_errors(self.folder):
            return BlobWriter(self.folder, self._ingest, algorithm)

    def add(self, data: bytes) -> str:
        """Store bytes; return their digest."""
        with self.write() as writer:
            writer.write(data)
            return writer.commit()

    def digests(self) -> Iterator[str]:
        """List the digests of all blobs; what has no digest's name is none."""
        for algorithm in ALGORITHMS:
            for name in os.listdir(self.folder / algorithm):
                if _DIGEST.fullmatch(f"{algorithm}:{name}"):
                    yield f"{algorithm}:{name}"
