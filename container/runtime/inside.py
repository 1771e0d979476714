"""Files of a container seen from the host, without ever being led outside.

Every path is resolved by the kernel with the container's root as `/` (openat2, RESOLVE_IN_ROOT): an
absolute symbolic link or a `..` in an image stays inside, and there is no moment between check and
use.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from attrs import define

from container.ipc import Unsupported
from container.runtime import kernel


@define
class InsideRoot:
    """The root of a container, held open. A context manager.

    Args:
        folder: Descriptor of the root folder; owned.
    """

    folder: int

    @classmethod
    def open(cls, root: Path) -> InsideRoot:
        """Open a root."""
        return cls(os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self.folder)

    @contextmanager
    def opened(self, path: str, flags: int = os.O_PATH) -> Generator[int]:
        """Open a path of the container; the block holds the descriptor.

        Raises:
            OSError: as open(2).
            Unsupported: the kernel is older than 5.6.
        """
        try:
            descriptor = kernel.openat2(
                self.folder,
                path,
                flags,
                resolve=kernel.RESOLVE_IN_ROOT | kernel.RESOLVE_NO_MAGICLINKS,
            )
        except OSError as error:
            if error.errno == errno.ENOSYS:
                too_old = Unsupported("this kernel is too old", hint="use Linux 5.6 or newer")
                raise too_old from error
            raise
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def read_text(self, path: str, limit: int = 1 << 20) -> str:
        """Return a regular file's text, undecodable bytes kept as surrogates; empty if there is
        none.

        A file above `limit` bytes, or one that is no regular file (a FIFO would block us), is
        empty too.
        """
        try:
            with self.opened(path) as found:
                if not stat.S_ISREG(os.fstat(found).st_mode):
                    return ""
            with self.opened(path, os.O_RDONLY | os.O_NONBLOCK) as file:
                data = os.read(file, limit + 1)
        except OSError:
            return ""
        return "" if len(data) > limit else data.decode("utf-8", "surrogateescape")

    def stat(self, path: str) -> os.stat_result | None:
        """Return what a path is, links followed inside; None if there is nothing."""
        try:
            with self.opened(path) as found:
                return os.fstat(found)
        except OSError:
            return None

    def starts_with(self, path: str, size: int) -> bytes:
        """Return the first bytes of a regular file; empty if it can't be read."""
        try:
            with self.opened(path, os.O_RDONLY | os.O_NONBLOCK) as file:
                return os.read(file, size)
        except OSError:
            return b""

    def make_folder(self, path: str, user: int, group: int) -> None:
        """Make a folder and its parents as `mkdir -p` does inside; what is there stays."""
        done = "/"
        for part in PurePosixPath(path).parts[1:]:
            with self.opened(done, os.O_PATH | os.O_DIRECTORY) as parent:
                try:
                    os.mkdir(part, 0o755, dir_fd=parent)
                except FileExistsError:
                    pass
                else:
                    os.chown(part, user, group, dir_fd=parent, follow_symlinks=False)
            done = f"{done.rstrip('/')}/{part}"
