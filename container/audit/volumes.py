"""Volumes: their folders against their documents, the containers that use them, and the mounts.

All of this blocks.

Source: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from container.audit.containers import Containers, aside, broken
from container.audit.finding import Finding, Kind, Remedy
from container.audit.machine import Machine
from container.contracts.apiserver import ContainerStatus
from container.contracts.runtime import MountKind
from container.contracts.stored_volumes import (
    DATA,
    HIDDEN,
    IMAGE,
    MOUNT,
    VOLUME_NAME,
    read_volume,
)
from container.contracts.volumes import Volume
from container.ipc import DataLoss
from container.storage.documents import is_aside
from container.storage.paths import Paths

_LOCAL = "local"
_NEXT_START = "nothing: the next start of the system has its driver delete it"


@frozen
class VolumeFolders:
    """What is in the volumes' folder."""

    documents: dict[str, Volume]
    """By name: those that can be read."""
    names: frozenset[str]
    """All whose folder is there."""
    findings: tuple[Finding, ...]


def read_volumes(paths: Paths) -> VolumeFolders:
    """Read all documents."""
    documents: dict[str, Volume] = {}
    names: set[str] = set()
    findings: list[Finding] = []
    for name in _names(paths.volumes):
        folder = paths.volumes / name
        if HIDDEN.fullmatch(name):
            findings.append(_half(folder))
        elif not VOLUME_NAME.fullmatch(name):
            findings.append(
                Finding(
                    Kind.STRANGER,
                    str(folder),
                    "this is no volume's folder",
                    "nothing: see what it is, and move it away",
                )
            )
        else:
            names.add(name)
            findings += [aside(folder / it) for it in _names(folder) if is_aside(it)]
            try:
                documents[name] = read_volume(folder)
            except DataLoss as error:
                findings.append(broken(error, folder))
    return VolumeFolders(documents, frozenset(names), tuple(findings))


def _half(folder: Path) -> Finding:
    try:
        driver = read_volume(folder).driver
    except DataLoss:
        driver = _LOCAL  # without a whole document no driver was asked
    local = driver == _LOCAL
    return Finding(
        Kind.LEFTOVER,
        str(folder),
        "a volume that was being made or removed",
        "remove it, as the next start of the system does" if local else _NEXT_START,
        Remedy.REMOVE if local else Remedy.START,
    )


def check_volumes(
    paths: Paths, volumes: VolumeFolders, containers: Containers, machine: Machine
) -> Iterator[Finding]:
    """Compare volumes with their data, with the containers that use them, and with the mounts."""
    users: dict[str, set[str]] = {}
    for container_id, container in containers.documents.items():
        ran = container.started_at is not None or container.status is not ContainerStatus.CREATED
        for mount in container.mounts:
            if mount.kind is not MountKind.VOLUME:
                continue
            users.setdefault(mount.source, set()).add(container_id)
            if ran and mount.source not in volumes.names:
                yield Finding(
                    Kind.VOLUME,
                    f"{container_id} {mount.source}",
                    f"volume {mount.source} of container {container.name} is not there",
                    f"nothing: `container volume create {mount.source}` makes an empty one",
                )
    live = {name for name, processes in machine.groups.items() if processes}
    live |= {it.container for it in machine.processes if it.service == "runtime"}
    certain = containers.ids == containers.documents.keys()
    points = _mounted(paths)
    for name in sorted(volumes.documents):
        folder = paths.volumes / name
        yield from _check_data(volumes.documents[name], folder)
        if not users.get(name, set[str]()) & live and certain:
            yield from _check_mount(name, folder, points)


def _check_data(volume: Volume, folder: Path) -> Iterator[Finding]:
    if volume.driver != _LOCAL:
        return
    wanted = folder / (IMAGE if "size" in volume.options else DATA)
    if not wanted.exists():
        yield Finding(
            Kind.VOLUME,
            volume.name,
            f"the data of volume {volume.name} is not there: {wanted}",
            "nothing: restore it, or delete the volume",
        )


def _check_mount(name: str, folder: Path, points: frozenset[str]) -> Iterator[Finding]:
    point = str(folder / MOUNT)
    if point in points:
        yield Finding(
            Kind.MOUNT,
            point,
            f"volume {name} is mounted, and no container that runs uses it",
            "unmount it",
            Remedy.UNMOUNT,
            point,
        )


def _mounted(paths: Paths) -> frozenset[str]:
    below = f"{paths.volumes}/"
    with open("/proc/self/mountinfo", errors="replace") as lines:
        return frozenset(point for line in lines if (point := line.split(" ")[4]).startswith(below))


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
