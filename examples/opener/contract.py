"""What the opener says: the names in its folder, and one of the files as an open descriptor."""

from __future__ import annotations

from abc import abstractmethod

from container.ipc import Contract, Fd


class Opener(Contract, name="opener"):
    """Files of one folder, for reading."""

    @abstractmethod
    async def names(self) -> list[str]:
        """Return the names of the regular files."""

    @abstractmethod
    async def open(self, name: str) -> Fd:
        """Open a file for reading; NotFound, or InvalidArgument if it is no regular file."""
