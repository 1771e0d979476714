"""The kernel calls that Python's standard library lacks, one thin function each.

Each raises `OSError` as the standard library would, and knows nothing of containers. Descriptors
that they return are close-on-exec.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from attrs import frozen

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)

CLONE_NEWNS = 0x20000
CLONE_NEWNET = 0x40000000

MS_NODEV = 4
MS_REC = 0x4000
MS_SLAVE = 1 << 19
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_IN_ROOT = 0x10

_SYS_OPENAT2 = 437
"""The same number on every architecture."""


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def _check(result: int, *names: str | Path) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), *(str(name) for name in names[:1]))
    return result


def openat2(folder: int, path: str, flags: int, *, mode: int = 0, resolve: int) -> int:
    """Open a path below a folder under the given rules of resolution (Linux 5.6).

    Source: openat2(2).
    """
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    return _check(
        _libc.syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(folder),
            ctypes.c_char_p(os.fsencode(path)),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        ),
        path,
    )


def mount(source: str | None, target: Path, kind: str | None, flags: int, options: str) -> None:
    """Mount a file system. Source: mount(2)."""
    _check(
        _libc.mount(
            source.encode() if source is not None else None,
            os.fsencode(target),
            kind.encode() if kind is not None else None,
            flags,
            os.fsencode(options) or None,
        ),
        target,
    )


def unmount(target: Path, flags: int = 0) -> None:
    """Unmount. Source: umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), flags | UMOUNT_NOFOLLOW), target)


def unshare(flags: int) -> None:
    """Give the calling thread namespaces of its own. Source: unshare(2)."""
    _check(_libc.unshare(flags), "unshare")


def enter_namespace(namespace: int, kind: int) -> None:
    """Move the calling thread into a namespace. Source: setns(2)."""
    _check(_libc.setns(namespace, kind), "setns")


@frozen
class Machine:
    """What the running kernel says of itself."""

    architecture: str
    """As uname(2) says it: `x86_64`, `aarch64`."""
    own_cgroup_namespace: bool
    """Whether control group namespaces exist."""

    @classmethod
    def here(cls) -> Machine:
        """Return the machine that this process runs on."""
        return cls(
            architecture=os.uname().machine,
            own_cgroup_namespace=Path("/proc/self/ns/cgroup").exists(),
        )
