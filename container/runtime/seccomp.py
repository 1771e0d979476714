"""Our own seccomp profile: which system calls a container may make.

The profile is package data in the form of the OCI runtime specification (`linux.seccomp`), so that
it can be read, compared and replaced without a program. Its rule: what is not named does not exist
(`ENOSYS`, which lets a C library fall back), what is known and privileged is forbidden (`EPERM`),
and the rest is allowed. The capabilities of a container are fixed, so nothing in it depends on
them.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
    "armv7l": ("SCMP_ARCH_ARM",),
    "ppc64le": ("SCMP_ARCH_PPC64LE",),
    "riscv64": ("SCMP_ARCH_RISCV64",),
    "s390x": ("SCMP_ARCH_S390X", "SCMP_ARCH_S390"),
}
"""Of each machine, by the name uname(2) gives: its own binaries, and the 32-bit ones it runs.

x32 is left out: next to nothing is built for it, and every filter would know it too."""


# Read once, before any helper is forked.
_DOCUMENT: dict[str, Any] = json.loads(
    resources.files("container.runtime").joinpath("seccomp.json").read_text("utf-8")
)


def seccomp_profile(machine: str) -> dict[str, Any] | None:
    """Return `linux.seccomp` for a machine, or None for one that libseccomp does not know."""
    architectures = ARCHITECTURES.get(machine)
    if architectures is None:
        return None
    return {**_DOCUMENT, "architectures": list(architectures)}
