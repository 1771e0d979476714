"""Members of a tar, read from front to back with bounds. Blocking.

`tarfile` is the reader and nothing more. It reads an extended header into memory whole, as long
as it claims to be, and keeps every member that it has seen: both are bounded here. What its
members *do* is not its business: nothing here, and nothing that uses this, calls an `extract`
method.

Source: POSIX pax(1), GNU tar's extensions.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, cast

from container.images.compression import BROKEN, Reader
from container.images.limits import Limits
from container.images.malformed import Malformed
from container.ipc import Overloaded

CHUNK = 1 << 18
_BROKEN = (*BROKEN, tarfile.TarError, RecursionError, OverflowError, ValueError, IndexError)


class TarStream:
    """The members of one tar, in order.

    Args:
        source: The tar, uncompressed, from its first byte.
        limits: What is refused.
        check: Called now and then; raises to stop (`trio.from_thread.check_cancelled`).
    """

    def __init__(self, source: Reader, limits: Limits, check: Callable[[], None]) -> None:
        self._source = source
        self._limits = limits
        self._check = check
        self._hash = hashlib.sha256()
        self._position = 0
        self._in_header = False
        self._header_bytes = 0
        self._last_block = b""

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        """Go through the members; the content of each is read before the next is asked
        for, or skipped.

        Raises:
            Malformed: the tar is broken.
            Overloaded: a bound is reached.
        """
        count = 0
        tar: tarfile.TarFile | None = None
        try:
            while True:
                self._check()
                self._in_header, self._header_bytes = True, 0
                try:
                    if tar is None:
                        tar = self._tar()
                    member = tar.next()
                except _BROKEN as error:
                    raise Malformed(f"the tar is broken: {error}") from error
                finally:
                    self._in_header = False
                if member is None:
                    break
                # It would keep them all.
                vars(tar)["members"].clear()
                count += 1
                if count > self._limits.entries:
                    raise Overloaded(f"the tar has more than {self._limits.entries} members")
                if member.size < 0:
                    raise Malformed("the tar is broken: a member has a negative size")
                yield member
        finally:
            if tar is not None:
                tar.close()
        if self._last_block.strip(b"\0"):
            # tarfile takes a header that it can't read for the end.
            raise Malformed("the tar is broken: a header is damaged")

    def _tar(self) -> tarfile.TarFile:
        # The mode of plain files, though this one only goes forward: next() seeks only over what
        # was not read.
        return tarfile.open(fileobj=cast("IO[bytes]", self), mode="r:")

    def content(self, member: tarfile.TarInfo) -> Iterator[tuple[int, bytes]]:
        """Read the content of the member that was given last: pieces and their places in the file.

        What lies between the pieces is a hole.

        Raises:
            Malformed: the tar ends before it.
        """
        # The map of holes is GNU's and has three forms: tarfile knows them all.
        pieces: list[tuple[int, int]] | None = getattr(member, "sparse", None)
        end = 0
        for offset, size in [(0, member.size)] if pieces is None else pieces:
            if size == 0:
                continue  # It marks the end, or pads the map.
            if offset < end or size < 0 or offset + size > member.size:
                raise Malformed("the tar is broken: the map of a sparse file is")
            end = offset + size
            while offset < end:
                self._check()
                data = self._read(min(end - offset, CHUNK))
                if not data:
                    raise Malformed("the tar is broken: it ends inside a file")
                yield offset, data
                offset += len(data)

    def digest(self) -> str:
        """Read what is left, and return the digest of all bytes."""
        while self._read(CHUNK):
            self._check()
        return "sha256:" + self._hash.hexdigest()

    def _read(self, size: int) -> bytes:
        try:
            data = self._source.read(size)
        except BROKEN as error:
            raise Malformed(f"the compressed data is broken: {error}") from error
        self._hash.update(data)
        self._position += len(data)
        if self._position > self._limits.unpacked:
            raise Overloaded(f"the tar has more than {self._limits.unpacked} bytes")
        return data

    # What tarfile asks of its file object.

    def read(self, size: int) -> bytes:
        """Read exactly `size` bytes, less only at the end."""
        if self._in_header:
            self._header_bytes += size
            if self._header_bytes > self._limits.header:
                raise Overloaded(f"a header of the tar has more than {self._limits.header} bytes")
        parts: list[bytes] = []
        while size:
            data = self._read(size)
            if not data:
                break
            size -= len(data)
            parts.append(data)
        self._last_block = parts[0] if len(parts) == 1 else b"".join(parts)
        return self._last_block

    def tell(self) -> int:
        """Return how many bytes were read."""
        return self._position

    def seek(self, position: int) -> int:
        """Skip forward.

        Raises:
            ValueError: backward.
        """
        if position < self._position:
            raise ValueError("it goes backward")
        while self._position < position:
            self._check()
            if not self._read(min(position - self._position, CHUNK)):
                break
        return self._position
