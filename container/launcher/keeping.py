"""Keep descriptors for services, here and, under systemd, in its store too."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import define, field

from container.contracts.launcher import ServiceUnit
from container.ipc import Fd, InvalidArgument, PermissionDenied
from container.launcher.descriptors import DescriptorStore, ancestry, listens
from container.launcher.mirror import Mirror


@define(eq=False)
class Keeping:
    """What is kept for services, and who may have it kept."""

    mirror: Mirror | None = None
    store: DescriptorStore = field(factory=DescriptorStore)

    async def keep(self, unit: ServiceUnit, name: str, given: Fd) -> None:
        """Keep a descriptor for a service, which takes it.

        Raises:
            InvalidArgument: a bad name, or a listening socket for a service without one.
            Overloaded: too many are kept.
        """
        if unit.listen is None and listens(given.fileno()):
            raise InvalidArgument(
                f'"{unit.name}" has no socket of its own, and would take this one for it'
            )
        with given.duplicate() as mirrored:
            self.store.keep(unit.name, name, given)
            if self.mirror is not None:
                await self.mirror.keep(unit.name, name, mirrored.fileno())

    async def drop(self, service: str, name: str = "") -> None:
        """Close what is kept for a service under a name, or all of it."""
        for each in (name,) if name else self.store.names(service):
            self.store.drop(service, each)
            if self.mirror is not None:
                await self.mirror.drop(service, each)


def check_keeper(caller: int, service: str, admitted: Iterable[int]) -> None:
    """Refuse a process that is none of these and below none of them.

    Raises:
        PermissionDenied: the message names process and service.
    """
    if not set(ancestry(caller)).intersection(admitted):
        raise PermissionDenied(
            f'process {caller} may not keep for service "{service}"',
            hint="its own process may, those below that one, and the API server",
        )
