"""Names on the command line: containers, hosts, users, folders, platforms, signals."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

from container.cli.failure import UsageRefused

if TYPE_CHECKING:
    from container.contracts.images import Platform

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}", re.ASCII)
_HOST = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9.-]{0,62}[a-zA-Z0-9])?", re.ASCII)
_USER = re.compile(r"[^\s:,]+(:[^\s:,]+)?")
_WORD = re.compile(r"[a-z0-9_.-]+", re.ASCII)
_ARCHITECTURES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386"}


def parse_name(text: str) -> str:
    """Return a container's name, checked."""
    if not _NAME.fullmatch(text):
        raise UsageRefused(
            f'"{text}" is no name for a container: use at most 63 letters, digits, ".", "_" and '
            '"-", beginning with a letter or digit'
        )
    return text


def parse_hostname(text: str) -> str:
    """Return a host name, checked."""
    if not _HOST.fullmatch(text):
        raise UsageRefused(
            f'"{text}" is no host name: use at most 64 letters, digits, "." and "-", '
            "beginning and ending with a letter or digit"
        )
    return text


def parse_user(text: str) -> str:
    """Return `USER[:GROUP]`, by name or number; the container's own files resolve names."""
    if not _USER.fullmatch(text):
        raise UsageRefused(f'"{text}" is no user: use NAME, NAME:GROUP, UID or UID:GID')
    return text


def parse_folder(text: str) -> str:
    """Return the working directory, an absolute path in the container."""
    if not text.startswith("/") or "\0" in text:
        raise UsageRefused(
            f'"{text}" is no absolute path in the container: begin the working directory with /'
        )
    return text


def parse_platform(text: str) -> Platform:
    """Return the platform of `OS/ARCHITECTURE[/VARIANT]`."""
    from container.contracts.images import Platform

    parts = text.lower().split("/")
    if len(parts) not in (2, 3) or not all(_WORD.fullmatch(part) for part in parts):
        raise UsageRefused(
            f'"{text}" is no platform: use OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, '
            "as in linux/arm64"
        )
    system, architecture, *variant = parts
    return Platform(
        os=system,
        architecture=_ARCHITECTURES.get(architecture, architecture),
        variant=variant[0] if variant else None,
    )


def parse_signal(text: str) -> str:
    """Return the full name of a signal given by name or number: `SIGTERM` of `term` and of `15`.

    A number without a name of its own (a real-time signal) is returned as it is.
    """
    upper = text.upper()
    if upper.isdecimal() and upper.isascii() and 0 < int(upper) < signal.NSIG:
        try:
            return signal.Signals(int(upper)).name
        except ValueError:
            return str(int(upper))
    name = upper if upper.startswith("SIG") else f"SIG{upper}"
    if name in signal.Signals.__members__:
        return signal.Signals[name].name
    raise UsageRefused(f'"{text}" is no signal: use a name or a number, as in TERM, SIGTERM or 15')
