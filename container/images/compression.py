"""Compressed streams, told by their first bytes: gzip, zstd, or plain. Blocking.

Media types are not asked: there are images whose types are wrong, and the bytes are never.
"""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from typing import IO, Protocol

from container.ipc import Unsupported

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BROKEN: tuple[type[Exception], ...] = (gzip.BadGzipFile, zlib.error, zstd.ZstdError, EOFError)
"""What reading raises when the compressed bytes are broken or cut off."""

MAGIC_BYTES = 6
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_OTHERS = {b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x5d\x00\x00": "lzma"}


class Reader(Protocol):
    """What can be read from front to back."""

    def read(self, size: int, /) -> bytes: ...


def is_compressed(head: bytes) -> bool:
    """Say whether a stream that begins with these bytes is compressed.

    Raises:
        Unsupported: with something that is not read here.
    """
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            raise Unsupported(f"{name} compression is not supported", hint="use gzip or zstd")
    return head.startswith((_GZIP, _ZSTD))


@contextmanager
def decompressed(file: IO[bytes]) -> Generator[Reader]:
    """Read a seekable file uncompressed, whatever it is.

    Raises:
        Unsupported: it is compressed in another way.
    """
    head = file.read(MAGIC_BYTES)
    file.seek(-len(head), 1)
    if not is_compressed(head):
        yield file
    elif head.startswith(_GZIP):
        with gzip.GzipFile(fileobj=file, mode="rb") as reader:
            yield reader
    else:
        with zstd.ZstdFile(file, mode="rb") as reader:
            yield reader
