"""Which volumes a container mounts: the user's, those of other containers, those of its image.

Pure: nothing is looked up or made here. A destination of the user's wins over that of another
container (`--volumes-from`), of the later container over the earlier, and all of these over a
volume that the image asks for.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence

from attrs import evolve

from container.apiserver.configuration import normal_path
from container.contracts.runtime import Mount, MountKind
from container.contracts.stored_volumes import VOLUME_NAME, VOLUME_NAME_RULE
from container.ipc import InvalidArgument

LENDING = ("ro", "rw")


def new_volume_name() -> str:
    """Return a name for an anonymous volume: 64 hex digits."""
    return secrets.token_hex(32)


def check_volume_name(name: str) -> str:
    """Return a name if it may name a volume.

    Raises:
        InvalidArgument: it may not; the message says the rule.
    """
    if not VOLUME_NAME.fullmatch(name):
        raise InvalidArgument(f"{name[:200]!r} can't name a volume: {VOLUME_NAME_RULE}")
    return name


def split_lender(text: str) -> tuple[str, bool | None]:
    """Return the container of `CONTAINER[:ro|rw]`, and whether its volumes become read-only.

    None leaves each as it is in that container.

    Raises:
        InvalidArgument: it is nothing of that form.
    """
    container, colon, mode = text.partition(":")
    if not container or (colon and mode not in LENDING):
        raise InvalidArgument(
            f"{text[:200]!r} names no container's volumes",
            hint="write CONTAINER, CONTAINER:ro or CONTAINER:rw",
        )
    return container, None if not colon else mode == "ro"


def plan_mounts(
    wanted: Sequence[Mount],
    lenders: Iterable[tuple[Sequence[Mount], bool | None]] = (),
    of_image: Iterable[str] = (),
    new_name: Callable[[], str] = new_volume_name,
) -> tuple[Mount, ...]:
    """Return all mounts of a container; each volume has a name.

    Args:
        wanted: The user's.
        lenders: Of each container whose volumes and binds are mounted too: its mounts, and whether
            they become read-only.
        of_image: Destinations for which the image asks for volumes.
        new_name: Makes a name.

    Raises:
        InvalidArgument: a volume's name is none.
    """
    planned: dict[str, Mount] = {}
    for destination in of_image:
        place = normal_path(destination)
        if destination.startswith("/") and place != "/":
            planned[place] = Mount(MountKind.VOLUME, place)
    for mounts, read_only in lenders:
        for mount in mounts:
            if mount.kind is not MountKind.TMPFS:
                # Whoever had it first has filled it.
                lent = evolve(mount, populate=False)
                planned[mount.destination] = (
                    lent if read_only is None else evolve(lent, read_only=read_only)
                )
    for mount in wanted:
        place = normal_path(mount.destination)
        planned.pop(place, None)
        planned[place] = evolve(mount, destination=place)
    return tuple(_named(mount, new_name) for mount in planned.values())


def _named(mount: Mount, new_name: Callable[[], str]) -> Mount:
    if mount.kind is not MountKind.VOLUME:
        return mount
    if not mount.source:
        return evolve(mount, source=new_name(), anonymous=True)
    check_volume_name(mount.source)
    return mount


def volumes_of(mounts: Iterable[Mount]) -> dict[str, bool]:
    """Return the volumes among mounts by name, and whether nobody named them."""
    found: dict[str, bool] = {}
    for mount in mounts:
        if mount.kind is MountKind.VOLUME:
            found[mount.source] = found.get(mount.source, True) and mount.anonymous
    return found
