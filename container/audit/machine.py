"""What the kernel says: processes, mounts, control groups, sockets and locks of one system.

Nothing here is changed, opened for writing, connected to or locked. Processes are told by their
environment, which is the system's they were started for. All of this blocks.

Source: proc(5), proc_pid_mountinfo(5), proc_locks(5), unix(7).
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from attrs import field, frozen

from container.storage.paths import Paths

CGROUPS = Path("/sys/fs/cgroup")
GROUP_PREFIX = "container-"
"""Of a container's control group, before its id."""
_LISTENS = 0x10000
"""`__SO_ACCEPTCON` in /proc/net/unix."""
_SERVICES = ("launcher", "zygote", "apiserver", "images", "runtime", "network")
_OCI = ("runc", "crun")
_BELOW = re.compile(r"/([0-9a-f]{12})(?:/|$)")


@frozen
class Process:
    """A process of ours, not one of a container's."""

    pid: int
    started: int
    """In clock ticks since boot."""
    parent: int
    service: str
    """`launcher`, `zygote`, `apiserver`, `images`, `runtime`, `network`, or `oci`: an OCI runtime
    at work."""
    container: str = ""
    """Of a runtime helper or OCI runtime: the container's id, as far as it is known."""


@frozen
class MountPoint:
    """A mount that has to do with a container of ours."""

    point: str
    container: str
    pid: int
    """A process that sees it; 0: we ourselves."""


@frozen
class Machine:
    """One look at the kernel."""

    processes: tuple[Process, ...]
    listening: frozenset[str]
    """Paths of sockets behind which somebody listens."""
    mounts: tuple[MountPoint, ...]
    groups: Mapping[str, int] = field(factory=dict[str, int])
    """By container id: processes in its control groups; of all systems of this machine."""
    launcher_lock: bool = False
    images_lock: bool = False
    others: bool = False
    """Whether another system runs on this machine."""

    def helper(self, container_id: str) -> Process | None:
        """Return the runtime helper of a container."""
        for process in self.processes:
            if process.service == "runtime" and process.container == container_id:
                return process
        return None


def look(paths: Paths) -> Machine:
    """Look at the kernel once."""
    listening, owners = _sockets(paths)
    locks = _locks()
    ours: list[Process] = []
    others = False
    namespaces: dict[str, int] = {}
    for pid in _pids():
        process, foreign = _process(pid, paths, owners)
        others = others or foreign
        if process is not None:
            ours.append(process)
        with contextlib.suppress(OSError):
            namespaces.setdefault(os.readlink(f"/proc/{pid}/ns/mnt"), pid)
    own = os.readlink("/proc/self/ns/mnt")
    namespaces[own] = 0
    mounts = [mount for pid in namespaces.values() for mount in _mounts(pid, paths)]
    return Machine(
        processes=tuple(ours),
        listening=frozenset(listening),
        mounts=tuple(mounts),
        groups=_groups(),
        launcher_lock=_is_locked(paths.run / "launcher.lock", locks),
        images_lock=_is_locked(paths.images / "lock", locks),
        others=others,
    )


def start_time(pid: int) -> int | None:
    """Return when a process was started, or None if it has ended."""
    found = _stat(pid)
    return None if found is None else found[2]


def _pids() -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdecimal():
            yield int(name)


def _stat(pid: int) -> tuple[str, int, int] | None:
    """Return name, parent and start time; None for one that is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    name = text[text.index("(") + 1 : text.rindex(")")]
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else (name, int(fields[1]), int(fields[19]))


def _process(pid: int, paths: Paths, owners: Mapping[int, str]) -> tuple[Process | None, bool]:
    """Return a process if it is ours, and whether it is another system's."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None, False
    run = next((entry for entry in environment if entry.startswith(b"CONTAINER_RUN=")), None)
    found = _stat(pid)
    if run is None or found is None:
        return None, False
    name, parent, started = found
    service, container = _service(pid, name, words, paths, owners)
    if not service:
        return None, False
    if run != b"CONTAINER_RUN=" + os.fsencode(paths.run):
        return None, True
    return Process(pid, started, parent, service, container), False


def _service(
    pid: int, name: str, words: list[str], paths: Paths, owners: Mapping[int, str]
) -> tuple[str, str]:
    first = name.partition(".")[0]
    if name in _OCI:
        place = str(paths.containers)
        under = next((word for word in words if word.startswith(place)), "")
        inside = _BELOW.match(under.removeprefix(place))
        return "oci", inside[1] if inside else ""
    # Forked from the zygote, a process has the name that it gave itself; started anew, it has its
    # program's.
    programs = {os.path.basename(word) for word in words[:3]}
    for service in _SERVICES:
        if first == service or f"container-{service}" in programs:
            if service != "runtime":
                return service, ""
            return service, _helped(pid, words, owners)
    return "", ""


def _helped(pid: int, words: list[str], owners: Mapping[int, str]) -> str:
    """Return whose helper a process is: the socket that it listens on says so."""
    with contextlib.suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                link = os.readlink(f"/proc/{pid}/fd/{number}")
                if link.startswith("socket:[") and int(link[8:-1]) in owners:
                    return owners[int(link[8:-1])]
    return next((word for word in words[1:] if re.fullmatch(r"[0-9a-f]{12}", word)), "")


def _sockets(paths: Paths) -> tuple[set[str], dict[int, str]]:
    """Return the paths that somebody listens at, and by inode the container of a helper's."""
    listening: set[str] = set()
    owners: dict[int, str] = {}
    run, runtime = f"{paths.run}/", f"{paths.run}/runtime/"
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            fields = line.split(None, 7)
            if len(fields) < 8 or not fields[7].startswith(run):
                continue
            path = fields[7].rstrip("\n")
            if int(fields[3], 16) & _LISTENS or int(fields[4], 16) == socket.SOCK_DGRAM:
                listening.add(path)
                if path.startswith(runtime):
                    owners[int(fields[6])] = Path(path).stem
    return listening, owners


def _locks() -> set[tuple[int, int, int]]:
    held: set[tuple[int, int, int]] = set()
    with open("/proc/locks", encoding="ascii") as lines:
        for line in lines:
            fields = line.split()
            if "FLOCK" in fields and "->" not in fields:
                major, minor, inode = fields[fields.index("FLOCK") + 4].split(":")
                held.add((int(major, 16), int(minor, 16), int(inode)))
    return held


def _is_locked(path: Path, locks: set[tuple[int, int, int]]) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    return (os.major(found.st_dev), os.minor(found.st_dev), found.st_ino) in locks


def _mounts(pid: int, paths: Paths) -> Iterator[MountPoint]:
    try:
        lines = Path(f"/proc/{pid or 'self'}/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return
    containers, run = f"{paths.containers}/", f"{paths.run}/"
    upper = f"upperdir={containers}"
    for line in lines:
        fields = line.split(" ")
        point = fields[4]
        container = ""
        if point.startswith(containers):
            container = point.removeprefix(containers).partition("/")[0]
        elif upper in line:
            container = line.partition(upper)[2].partition("/")[0]
        if container or point.startswith(run):
            yield MountPoint(point, container, pid)


def group_folders(container_id: str) -> list[Path]:
    """Return a container's folder in every hierarchy where it exists: v1, hybrid and v2."""
    return [
        top / f"{GROUP_PREFIX}{container_id}"
        for top in _hierarchies()
        if (top / f"{GROUP_PREFIX}{container_id}").is_dir()
    ]


def _hierarchies() -> list[Path]:
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    if not CGROUPS.is_dir():
        return []
    # `cpu` may be a link to `cpu,cpuacct`.
    return sorted({Path(os.path.realpath(entry)) for entry in CGROUPS.iterdir() if entry.is_dir()})


def _groups() -> dict[str, int]:
    found: dict[str, set[str]] = {}
    for top in _hierarchies():
        for folder in top.glob(f"{GROUP_PREFIX}*"):
            members = found.setdefault(folder.name.removeprefix(GROUP_PREFIX), set())
            with contextlib.suppress(OSError):  # a container's end removes it while we look
                for procs in (folder / "cgroup.procs", *folder.glob("*/cgroup.procs")):
                    members.update(procs.read_text().split())
    return {container_id: len(members) for container_id, members in found.items()}
