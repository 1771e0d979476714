"""Containers: their documents against their processes, mounts, control groups and sockets.

All of this blocks.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import cast

from attrs import frozen

from container.audit.finding import Finding, Kind, Remedy
from container.audit.machine import GROUP_PREFIX, Machine, Process
from container.audit.services import Word
from container.contracts.apiserver import Container, ContainerStatus
from container.contracts.stored import CONTAINER_ID, LAYERS, REMOVING, read_container
from container.ipc import DataLoss
from container.storage.documents import is_aside
from container.storage.durable import is_temporary
from container.storage.paths import Paths

_NEXT_START = "nothing: the next start of the system finishes it"


@frozen
class Containers:
    """What is in the containers' folder."""

    documents: dict[str, Container]
    """By id: those that can be read and are not being removed."""
    ids: frozenset[str]
    """All whose folder is there."""
    findings: tuple[Finding, ...]


def read_containers(paths: Paths, *, running: bool) -> Containers:
    """Read all documents."""
    documents: dict[str, Container] = {}
    ids: set[str] = set()
    findings: list[Finding] = []
    for name in _names(paths.containers):
        folder = paths.containers / name
        if name.startswith("."):
            findings.append(
                Finding(
                    Kind.LEFTOVER,
                    str(folder),
                    "a container's folder that was being made or removed",
                    "remove it, as the next start of the system does",
                    Remedy.REMOVE,
                )
            )
            continue
        if not CONTAINER_ID.fullmatch(name):
            findings.append(
                Finding(
                    Kind.STRANGER,
                    str(folder),
                    "this is no container's folder",
                    "nothing: see what it is, and move it away",
                )
            )
            continue
        ids.add(name)
        if os.path.lexists(folder / REMOVING):
            findings.append(
                Finding(
                    Kind.REMOVAL,
                    name,
                    f"the removal of container {name} was begun and is not finished",
                    "nothing: `container rm -f` tries again" if running else _NEXT_START,
                    Remedy.PERSON if running else Remedy.START,
                )
            )
            continue
        findings += _temporary(folder)
        try:
            documents[name] = read_container(folder)
        except DataLoss as error:
            findings.append(broken(error, folder))
    return Containers(documents, frozenset(ids), tuple(findings))


def broken(error: DataLoss, path: Path) -> Finding:
    """Return the finding of a document that can't be read."""
    subject = str(error.details.get("path", path))
    hint = error.hint or "restore it or move it away"
    return Finding(Kind.BROKEN, subject, error.message, f"nothing, it is never touched: {hint}")


def aside(path: Path) -> Finding:
    """Return the finding of something that was broken and set aside."""
    return Finding(
        Kind.ASIDE,
        str(path),
        "it could not be read, and was set aside when its place was written anew",
        "nothing: look at it, then move it away or delete it",
    )


def _temporary(folder: Path) -> Iterator[Finding]:
    for name in _names(folder):
        if is_temporary(name):
            yield Finding(
                Kind.LEFTOVER,
                str(folder / name),
                "a document that was being written",
                "remove it",
                Remedy.REMOVE,
            )
        elif is_aside(name):
            yield aside(folder / name)


def check_containers(
    paths: Paths, found: Containers, machine: Machine, word: Word, also: Collection[str]
) -> Iterator[Finding]:
    """Compare containers with what the kernel and the API server say.

    Args:
        paths: The system's.
        found: What is on disk.
        machine: What the kernel says.
        word: What the services say.
        also: Ids of further containers that were ours, whose remains are looked for.
    """
    live = {name for name, processes in machine.groups.items() if processes}
    for container_id in sorted(found.ids):
        helper = machine.helper(container_id)
        yield from _check_run(paths, container_id, machine, helper, container_id in live)
    if word.containers is not None:
        yield from _check_status(word.containers, found, live)
    for container_id in sorted(found.documents):
        yield from _check_layers(paths.containers / container_id)
    yield from _check_groups(found, machine, also)
    yield from _check_mounts(found, machine, live)
    yield from _check_sockets(paths, found, machine)


def _check_run(
    paths: Paths, container_id: str, machine: Machine, helper: Process | None, alive: bool
) -> Iterator[Finding]:
    state = paths.containers / container_id / "bundle" / "run" / "state" / container_id
    if alive and helper is None:
        listens = str(paths.runtime_socket(container_id)) in machine.listening
        yield Finding(
            Kind.HELPER,
            container_id,
            f"container {container_id} runs without its runtime helper: nobody reads its exit "
            "status",
            "start its helper, which takes it up"
            if listens
            else "nothing: a running system starts its helper; start the system",
            Remedy.AWAKEN if listens else Remedy.START,
        )
    elif not alive and helper is None and state.is_dir():
        yield Finding(
            Kind.RUN,
            str(state),
            f"container {container_id} does not run, and its OCI runtime's state is still there",
            "nothing: the next start of the system or of the container sweeps it",
            Remedy.START,
        )


def _check_status(
    listed: dict[str, Container], found: Containers, live: set[str]
) -> Iterator[Finding]:
    for container_id, container in listed.items():
        runs = container_id in live
        if container.status is ContainerStatus.UNKNOWN:
            what = f"the runtime helper of container {container.name} does not answer"
        elif container.status is ContainerStatus.RUNNING and not runs:
            what = f"container {container.name} is said to run, and no process of it does"
        elif container.status is ContainerStatus.STOPPED and runs:
            what = f"container {container.name} is said to be stopped, and it runs"
        elif container_id not in found.ids:
            what = f"container {container.name} is said to exist, and has no folder"
        else:
            continue
        yield Finding(
            Kind.STATUS,
            container_id,
            what,
            "nothing: `container inspect` and the logs say more; `container rm -f` removes it",
        )


def _check_layers(folder: Path) -> Iterator[Finding]:
    try:
        layers = cast("object", json.loads((folder / LAYERS).read_bytes()))
    except (OSError, ValueError):
        return  # prepared again when it is started
    for layer in cast("list[object]", layers) if isinstance(layers, list) else ():
        if not os.path.isdir(str(layer)):
            yield Finding(
                Kind.LAYER,
                folder.name,
                f"a layer of container {folder.name} is not there: {layer}",
                "nothing: its next start unpacks it again, if its image is still here",
            )


def _check_groups(found: Containers, machine: Machine, also: Collection[str]) -> Iterator[Finding]:
    for container_id, processes in sorted(machine.groups.items()):
        helper = machine.helper(container_id)
        known = container_id in found.ids
        if helper is not None or (known and processes):
            continue
        ours = known or container_id in also
        if not ours and any(mount.container == container_id for mount in machine.mounts):
            ours = True
        if not ours and (machine.others or not CONTAINER_ID.fullmatch(container_id)):
            continue  # another system's on this machine, for all we know
        group = f"{GROUP_PREFIX}{container_id}"
        if processes:
            yield Finding(
                Kind.PROCESS,
                group,
                f"{processes} processes of container {container_id} run, which is not there",
                "nothing: end them (`cgroup.procs` names them), then check again",
                target=container_id,
            )
        else:
            yield Finding(
                Kind.CGROUP,
                group,
                f"the control group of container {container_id} is empty and nobody's",
                "remove the group",
                Remedy.REMOVE_GROUP,
                container_id,
            )


def _check_mounts(found: Containers, machine: Machine, live: set[str]) -> Iterator[Finding]:
    seen: set[str] = set()
    for mount in machine.mounts:
        wanted = mount.container in live or machine.helper(mount.container) is not None
        if (wanted and mount.container in found.ids) or mount.point in seen:
            continue
        seen.add(mount.point)
        where = f", seen by process {mount.pid}" if mount.pid else ""
        yield Finding(
            Kind.MOUNT,
            f"{mount.point}{where}",
            f"a mount of container {mount.container or '(none)'}, which does not run",
            "nothing: it goes with the process that holds it" if mount.pid else "unmount it",
            Remedy.PERSON if mount.pid else Remedy.UNMOUNT,
            mount.point,
        )


def _check_sockets(paths: Paths, found: Containers, machine: Machine) -> Iterator[Finding]:
    for path in (*_sockets(paths.run), *_sockets(paths.run / "runtime")):
        stray = path.parent.name == "runtime" and path.stem not in found.ids
        if str(path) not in machine.listening:
            yield Finding(
                Kind.SOCKET,
                str(path),
                "nobody listens at this socket",
                "remove it",
                Remedy.REMOVE,
            )
        elif stray:
            yield Finding(
                Kind.SOCKET,
                str(path),
                "the socket of a runtime helper whose container is gone",
                "have the launcher end the helper",
                Remedy.DISMISS,
                path.stem,
            )


def check_processes(found: Containers, machine: Machine, word: Word) -> Iterator[Finding]:
    """Find processes of ours that belong to nothing."""
    launchers = {p.pid for p in machine.processes if p.service == "launcher"}
    for process in machine.processes:
        match process.service:
            case "runtime":
                belongs = process.container in found.ids or not process.container
            case "zygote":
                belongs = process.parent in launchers
            case "oci":
                belongs = machine.helper(process.container) is not None
            case "launcher":
                belongs = machine.launcher_lock
            case _:
                belongs = machine.launcher_lock and (
                    word.status is None or process.pid in word.pids
                )
        if belongs:
            continue
        of = f" of container {process.container}" if process.container else ""
        yield Finding(
            Kind.PROCESS,
            f"process {process.pid}",
            f"a process ({process.service}){of} that belongs to nothing",
            "kill it",
            Remedy.KILL,
            pid=process.pid,
            started=process.started,
        )


def _sockets(folder: Path) -> Iterator[Path]:
    for name in _names(folder):
        path = folder / name
        try:
            if stat.S_ISSOCK(path.lstat().st_mode):
                yield path
        except FileNotFoundError:
            continue


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
