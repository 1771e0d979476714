"""`--cidfile`: a new file that holds the container's id."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

from container.cli.failure import Refused


class CidFile:
    """Reserve a file, write an id into it later; a block that fails removes it.

    Args:
        path: The file, which must not be there yet; None does nothing.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._fd: int | None = None
        self._kept = False

    def __enter__(self) -> Self:
        if self._path is not None:
            try:
                self._fd = os.open(
                    self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644
                )
            except FileExistsError:
                raise Refused(
                    f'the file "{self._path}" is there already',
                    hint="remove it, or give --cidfile another name",
                ) from None
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise Refused(f'the file "{self._path}" can\'t be made: {reason}') from None
        return self

    def write(self, container: str) -> None:
        """Write the id; the file stays from now on, unless `discard` is called."""
        if self._fd is not None:
            os.write(self._fd, container.encode())
        self._kept = True

    def discard(self) -> None:
        """The container is gone again: remove the file at the end."""
        self._kept = False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._fd is None or self._path is None:
            return
        os.close(self._fd)
        if not self._kept:
            try:
                os.unlink(self._path)
            except FileNotFoundError:
                pass
