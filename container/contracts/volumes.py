"""Volumes: data that outlives containers, and the drivers that keep it."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractAsyncContextManager
from datetime import datetime

from attrs import field, frozen

from container.ipc import Contract


@frozen
class VolumeOptions:
    """A volume as a user asks for it."""

    name: str | None = None
    """None: an anonymous one, under a name of 64 hex digits."""
    driver: str = "local"
    """`local`, or a plugin of type `volume`."""
    options: dict[str, str] = field(factory=dict[str, str])
    """`--opt`; the driver checks them. Of `local`: `size=1g` makes a file system of its own."""
    labels: dict[str, str] = field(factory=dict[str, str])


@frozen
class Volume:
    """A volume: what `list` and `inspect` show."""

    name: str
    driver: str
    created_at: datetime
    options: dict[str, str] = field(factory=dict[str, str])
    labels: dict[str, str] = field(factory=dict[str, str])
    anonymous: bool = False
    """Removed with the container that it was made for, if that is removed with `--rm` or `-v`."""
    mountpoint: str = ""
    """Where its data is on the host; empty where the driver has to mount it first."""
    used_by: tuple[str, ...] = ()
    """Ids of the containers that mount it, whether they run or not."""
    size_bytes: int | None = None
    """What its data takes on disk; told by `get` alone."""


class Volumes(Contract, name="volumes", version=1):
    """All volumes of one root."""

    @abstractmethod
    async def create(self, options: VolumeOptions) -> Volume:
        """Create a volume; an equal one that is there is returned as it is.

        Raises:
            AlreadyExists: one of this name is there with another driver or other options.
            InvalidArgument: a bad name or option.
            NotFound: no such driver.
        """
        ...

    @abstractmethod
    async def delete(self, name: str, force: bool = False) -> None:
        """Delete a volume and all its data; with `force` one that is not there is no error.

        Raises:
            InvalidState: containers use it; the message names them.
            NotFound: no such volume.
        """
        ...

    @abstractmethod
    async def list(self) -> tuple[Volume, ...]:
        """Return all volumes, by name."""
        ...

    @abstractmethod
    async def get(self, name: str) -> Volume:
        """Return one volume.

        Raises:
            NotFound: no such volume; the hint names a close match.
        """
        ...

    @abstractmethod
    async def prune(self, everything: bool = False) -> tuple[Volume, ...]:
        """Delete the anonymous volumes that no container uses (`everything`: the named ones too);
        return them, with their sizes."""
        ...


class VolumeDriver(Contract, name="volume-driver", version=1):
    """Keeps the data of volumes. `local` is the API server's own; others are helpers, found as
    plugins."""

    @abstractmethod
    async def create(self, name: str, options: dict[str, str]) -> None:
        """Make room for a volume. Idempotent.

        Raises:
            InvalidArgument: an option is unknown or wrong; nothing was made.
        """
        ...

    @abstractmethod
    async def delete(self, name: str) -> None:
        """Delete a volume's data, also where a scope has left it mounted. One that is not there is
        no error."""
        ...

    @abstractmethod
    def mount(self, name: str, key: str) -> AbstractAsyncContextManager[str]:
        """Have a volume's data at a path of the host while the scope is held; it is that path.

        A scope that is left lets the data go, if it was the last one. A scope that is cancelled or
        breaks off keeps it where it is, as containers are on it: the key's next holder opens the
        scope again, and gets the same path. The driver's own end changes nothing.

        Args:
            name: The volume.
            key: Who uses it: a container's id. Several may at once.
        """
        ...

    @abstractmethod
    async def usage(self, name: str) -> int:
        """Return how many bytes of disk its data takes."""
        ...
