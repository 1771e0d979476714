"""Mounts on the command line: `-v`, `--mount`, `--tmpfs` and `--volumes-from`.

What has a slash in it is a path, and so a bind; else it is the name of a volume. A path alone is
the destination of an anonymous volume.

A bind's source is a path of the person who types, so it is made absolute and looked for here, not
in some server's folder. It is not resolved: a symbolic link means what it means when the container
starts.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from container.cli.failure import UsageRefused

if TYPE_CHECKING:
    from container.contracts.runtime import Mount

_VOLUME = "use NAME:DESTINATION or PATH:DESTINATION, with :ro behind it if need be, or DESTINATION"
_MOUNT = (
    "use type=bind,source=PATH,target=PATH[,readonly], "
    "type=volume[,source=NAME],target=PATH[,readonly][,volume-nocopy], or type=tmpfs,target=PATH"
)
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}", re.ASCII)
_FIELDS = ("type", "source", "target", "readonly", "size", "mode", "volume-nocopy")
_ONLY = {"size": "tmpfs", "mode": "tmpfs", "volume-nocopy": "volume"}
_ALIASES = {
    "src": "source",
    "dst": "target",
    "destination": "target",
    "ro": "readonly",
    "tmpfs-size": "size",
    "tmpfs-mode": "mode",
    "nocopy": "volume-nocopy",
}


def parse_mounts(
    volumes: Sequence[str], mounts: Sequence[str], tmpfs: Sequence[str]
) -> tuple[Mount, ...]:
    """Return all mounts in the order of their kinds; two of one destination are refused."""
    found = (
        *(parse_volume(text) for text in volumes),
        *(parse_mount(text) for text in mounts),
        *(parse_tmpfs(text) for text in tmpfs),
    )
    seen: set[str] = set()
    for mount in found:
        if mount.destination in seen:
            raise UsageRefused(f'two mounts go to "{mount.destination}": leave one of them out')
        seen.add(mount.destination)
    return found


def parse_volume(text: str) -> Mount:
    """Return the mount of `SOURCE:DESTINATION[:OPTION,…]`, or of `DESTINATION` alone."""
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise UsageRefused(
            f'"{text}" is no volume: {_VOLUME}',
            hint="a path with a colon needs --mount" if len(parts) > 3 else None,
        )
    if len(parts) == 1:
        if not text.startswith("/"):
            raise UsageRefused(f'"{text}" is no volume: {_VOLUME}')
        return _volume("", text, text)
    source, destination, *rest = parts
    is_path = "/" in source or source in (".", "..")
    options = rest[0].split(",") if rest else []
    for option in options:
        if option == "nocopy" and is_path:
            raise UsageRefused(f'"nocopy" in "{text}" is for named volumes, not for a path')
        if option not in ("ro", "rw", "nocopy"):
            raise UsageRefused(
                f'"{option}" in "{text}" is no option of a volume: use ro, rw or nocopy'
            )
    if {"ro", "rw"} <= set(options):
        raise UsageRefused(f'"{text}" can\'t be both ro and rw')
    if is_path:
        return _bind(source, destination, "ro" in options, text)
    return _volume(
        source, destination, text, read_only="ro" in options, copies="nocopy" not in options
    )


def parse_mount(text: str) -> Mount:
    """Return the mount of `type=bind|volume|tmpfs,…`; without a type its source tells."""
    fields: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        key = _ALIASES.get(key, key)
        if key not in _FIELDS:
            raise UsageRefused(f'"{part}" in "{text}" is no field of a mount: {_MOUNT}')
        fields[key] = value if equals else "true"
    named = bool(_NAME.fullmatch(fields.get("source", "")))
    kind, target = fields.get("type", "volume" if named else "bind"), fields.get("target", "")
    read_only, keeps_empty = (_flag(fields, key, text) for key in ("readonly", "volume-nocopy"))
    if not target:
        raise UsageRefused(f'"{text}" has no target: {_MOUNT}')
    if kind not in ("bind", "volume", "tmpfs"):
        raise UsageRefused(
            f'"{kind}" in "{text}" is no type of mount here: use bind, volume or tmpfs'
        )
    for field, only in _ONLY.items():
        if field in fields and kind != only:
            raise UsageRefused(f'{field} in "{text}" is for type={only} alone')
    if kind == "bind":
        if not fields.get("source"):
            raise UsageRefused(f'"{text}" has no source: {_MOUNT}')
        return _bind(fields["source"], target, read_only, text)
    if kind == "volume":
        source = fields.get("source", "")
        return _volume(source, target, text, read_only=read_only, copies=not keeps_empty)
    if "source" in fields:
        raise UsageRefused(f'"{text}" has a source, but a tmpfs has none')
    options = tuple(f"{key}={fields[key]}" for key in ("size", "mode") if key in fields)
    return _tmpfs(target, read_only, options, text)


def _flag(fields: dict[str, str], key: str, text: str) -> bool:
    flag = fields.get(key, "false").lower()
    if flag not in ("true", "false", "1", "0"):
        raise UsageRefused(f'{key} in "{text}" is true or false, not "{fields[key]}"')
    return flag in ("true", "1")


def parse_volumes_from(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the values of `--volumes-from CONTAINER[:ro|rw]`, checked."""
    for text in texts:
        container, colon, mode = text.partition(":")
        if not container or (colon and mode not in ("ro", "rw")):
            raise UsageRefused(
                f'"{text}" names no container\'s volumes: use CONTAINER or CONTAINER:ro'
            )
    return tuple(texts)


def parse_tmpfs(text: str) -> Mount:
    """Return the mount of `DESTINATION[:OPTION,…]`, as in `/tmp:size=64m,noexec`."""
    destination, _, rest = text.partition(":")
    options = [option for option in rest.split(",") if option]
    read_only = "ro" in options
    kept = tuple(option for option in options if option not in ("ro", "rw"))
    return _tmpfs(destination, read_only, kept, text)


def _bind(source: str, destination: str, read_only: bool, text: str) -> Mount:
    from container.contracts.runtime import Mount, MountKind

    path = os.path.abspath(source)
    try:
        os.stat(path)
    except (OSError, ValueError) as error:
        reason = "does not exist"
        if isinstance(error, PermissionError):
            reason = "can't be reached: permission denied"
        raise UsageRefused(
            f'"{source}" in "{text}" {reason}', hint="create it first, or correct the path"
        ) from None
    return Mount(
        kind=MountKind.BIND,
        destination=_destination(destination, text),
        source=path,
        read_only=read_only,
    )


def _volume(
    source: str, destination: str, text: str, *, read_only: bool = False, copies: bool = True
) -> Mount:
    from container.contracts.runtime import Mount, MountKind

    if source and not _NAME.fullmatch(source):
        raise UsageRefused(
            f'"{source}" in "{text}" can\'t name a volume: use at most 128 letters, digits, ".", '
            '"_" and "-", beginning with a letter or digit',
            hint=f'to mount a folder of this machine, write its path: "./{source}"'
            if "/" not in source
            else "to mount a folder of this machine, use type=bind",
        )
    return Mount(
        kind=MountKind.VOLUME,
        destination=_destination(destination, text),
        source=source,
        read_only=read_only,
        populate=copies,
    )


def _tmpfs(destination: str, read_only: bool, options: tuple[str, ...], text: str) -> Mount:
    from container.contracts.runtime import Mount, MountKind

    return Mount(
        kind=MountKind.TMPFS,
        destination=_destination(destination, text),
        read_only=read_only,
        options=options,
    )


def _destination(destination: str, text: str) -> str:
    normal = posixpath.normpath(destination) if destination else ""
    if not normal.startswith("/") or "\0" in normal:
        raise UsageRefused(
            f'"{destination}" in "{text}" is no absolute path in the container: begin it with /'
        )
    normal = "/" + normal.lstrip("/")
    if normal == "/":
        raise UsageRefused(f'"{text}" would cover the whole root of the container')
    return normal
