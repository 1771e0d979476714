"""A container's mounts, in the words of the OCI runtime specification.

What is mounted by default is here, and what the user's mounts become. Destinations are made
absolute and normal; the OCI runtime resolves them inside the root and creates the mount points
that are missing.
"""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from typing import Any

from container.contracts.runtime import Mount, MountKind
from container.ipc import InvalidArgument, NotFound

OciMount = dict[str, Any]

_FLAGS = frozenset(("ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec"))
_TIMES = frozenset(("noatime", "relatime"))
_PROPAGATION = frozenset(("private", "rprivate", "slave", "rslave", "shared", "rshared"))
_BIND_OPTIONS = _FLAGS | _TIMES | _PROPAGATION | {"bind", "rbind", "rro"}
_TMPFS_FLAGS = _FLAGS | _TIMES
_TMPFS_VALUES = ("size", "mode", "uid", "gid", "nr_inodes", "nr_blocks")

SHM_SIZE = "65536k"
"""64 MiB, as everywhere else."""


def default_mounts(own_cgroup_namespace: bool) -> list[OciMount]:
    """Return the mounts that every container has."""
    mounts = [
        _mount("proc", "/proc", "proc", "nosuid", "noexec", "nodev"),
        _mount(
            "tmpfs", "/dev", "tmpfs", "nosuid", "noexec", "strictatime", "mode=755", "size=65536k"
        ),
        _mount(
            "devpts",
            "/dev/pts",
            "devpts",
            *("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        ),
        _mount("mqueue", "/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _mount(
            "shm",
            "/dev/shm",
            "tmpfs",
            *("nosuid", "noexec", "nodev", "mode=1777", f"size={SHM_SIZE}"),
        ),
        _mount("sysfs", "/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
    ]
    if own_cgroup_namespace:
        # Without a namespace of its own the container would see every group of the machine.
        mounts.append(
            _mount(
                "cgroup", "/sys/fs/cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", "ro"
            )
        )
    return mounts


def all_mounts(
    defaults: list[OciMount], files: dict[str, Path], wanted: tuple[Mount, ...]
) -> list[OciMount]:
    """Return the defaults, our own files, and the user's mounts, in the order to mount them.

    A later mount of the same destination takes an earlier one's place; a file of ours gives way to
    a user's mount of it or of a folder above it.

    Args:
        files: Destination to the file to bind there.
        wanted: The user's mounts.

    Raises:
        NotFound: a bind source is not there.
        InvalidArgument: a destination or an option is refused.
    """
    by_destination = {str(mount["destination"]): mount for mount in defaults}
    users = dict(map(_users_mount, wanted))
    for destination, source in files.items():
        if not any(_covers(user, destination) for user in users):
            by_destination[destination] = _mount(
                str(source), destination, "bind", "bind", "rprivate", "nosuid", "nodev", "noexec"
            )
    for destination, mount in users.items():
        by_destination.pop(destination, None)
        by_destination[destination] = mount
    # Shallow ones first, or a parent would hide its children. Python's sort keeps the order of
    # equals.
    return sorted(by_destination.values(), key=lambda mount: mount["destination"].count("/"))


def _covers(folder: str, path: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _mount(source: str, destination: str, kind: str, *options: str) -> OciMount:
    return {"source": source, "destination": destination, "type": kind, "options": list(options)}


def _users_mount(mount: Mount) -> tuple[str, OciMount]:
    destination = _destination(mount.destination)
    if mount.kind is MountKind.TMPFS:
        return destination, _mount("tmpfs", destination, "tmpfs", *_tmpfs_options(mount))
    what = "the data of the volume" if mount.kind is MountKind.VOLUME else "bind source"
    source = _source(mount.source, what)
    return destination, _mount(source, destination, "bind", *_bind_options(mount))


def _destination(path: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgument(
            f"mount destination {path!r} is not an absolute path", hint="start it with /"
        )
    normal = posixpath.normpath(posixpath.join("/", path.lstrip("/")))
    if normal == "/":
        raise InvalidArgument("nothing can be mounted over the container's root")
    return normal


def _source(path: str, what: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgument(f"{what} {path!r} is not an absolute path")
    try:
        os.stat(path)
    except FileNotFoundError:
        raise NotFound(
            f"{what} {path!r} does not exist", hint="create it first, or correct the path"
        ) from None
    except OSError as error:
        raise InvalidArgument(f"{what} {path!r} can't be used: {error.strerror}") from error
    return path


def _bind_options(mount: Mount) -> list[str]:
    for option in mount.options:
        if option not in _BIND_OPTIONS:
            raise InvalidArgument(
                f"mount option {option!r} of {mount.destination} is not known for a bind",
                hint=f"known are {', '.join(sorted(_BIND_OPTIONS))}",
            )
    options = list(mount.options)
    if not {"bind", "rbind"} & set(options):
        options.insert(0, "rbind")
    if not _PROPAGATION & set(options):
        options.append("rprivate")
    options += [
        flag for flag in ("nosuid", "nodev") if flag[2:] not in options and flag not in options
    ]
    if mount.read_only:
        options = [option for option in options if option != "rw"]
        if "rro" not in options:
            options.append("ro")
    return options


def _tmpfs_options(mount: Mount) -> list[str]:
    options: list[str] = []
    for option in mount.options:
        name, equals, value = option.partition("=")
        known = name in _TMPFS_VALUES and value if equals else option in _TMPFS_FLAGS
        if not known:
            raise InvalidArgument(
                f"mount option {option!r} of {mount.destination} is not known for a tmpfs",
                hint=f"known are {', '.join([*_TMPFS_VALUES, *sorted(_TMPFS_FLAGS)])}",
            )
        options.append(option)
    options += [
        flag
        for flag in ("nosuid", "nodev", "noexec")
        if flag[2:] not in options and flag not in options
    ]
    if not any(option.startswith("mode=") for option in options):
        options.append("mode=1777")
    if mount.read_only and "ro" not in options:
        options.append("ro")
    return options
