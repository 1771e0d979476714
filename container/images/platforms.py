"""Platforms in OCI's words: which is this machine's, and which of an index's entries fits a wish.

Source: OCI image-spec, image index, `platform` property; containerd's platform matching for `arm`.
"""

from __future__ import annotations

import platform as _platform

from container.contracts.images import Platform
from container.ipc import InvalidArgument

_MACHINES: dict[str, tuple[str, str | None]] = {
    "x86_64": ("amd64", None),
    "amd64": ("amd64", None),
    "i386": ("386", None),
    "i486": ("386", None),
    "i586": ("386", None),
    "i686": ("386", None),
    "aarch64": ("arm64", None),
    "arm64": ("arm64", None),
    "armv8l": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armv5tel": ("arm", "v5"),
    "riscv64": ("riscv64", None),
    "ppc64le": ("ppc64le", None),
    "s390x": ("s390x", None),
    "loongarch64": ("loong64", None),
    "mips64": ("mips64", None),
}


def this_platform() -> Platform:
    """Return the platform of this machine."""
    machine = _platform.machine().lower()
    architecture, variant = _MACHINES.get(machine, (machine, None))
    return Platform("linux", architecture, variant)


def parse_platform(text: str) -> Platform:
    """Read `os/architecture[/variant]`.

    Raises:
        InvalidArgument: it has another shape.
    """
    parts = text.split("/")
    if not 2 <= len(parts) <= 3 or not all(parts):
        raise InvalidArgument(
            f'"{text}" is no platform', hint="write os/architecture, for example linux/arm64"
        )
    return Platform(parts[0], parts[1], parts[2] if len(parts) == 3 else None)


def _variant(platform: Platform) -> str | None:
    # "arm64/v8" and "arm64" are the same machine; images are tagged both ways.
    if platform.architecture == "arm64" and platform.variant in (None, "v8"):
        return None
    return platform.variant


def rank(offered: Platform, wanted: Platform) -> int | None:
    """Say how well an offered platform fits: 0 is exact, higher is worse, None does not run."""
    if (offered.os, offered.architecture) != (wanted.os, wanted.architecture):
        return None
    have, want = _variant(offered), _variant(wanted)
    if have == want:
        return 0
    if offered.architecture == "arm" and want is not None:
        # An older ARM variant runs on a newer one, never the other way round.
        older = int(want.lstrip("v") or 0) - int((have or "v7").lstrip("v") or 0)
        return older if older >= 0 else None
    if want is None or have is None:
        return 1
    return None
