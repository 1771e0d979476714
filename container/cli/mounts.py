"""Mounts on the command line: `-v`, `--mount` and `--tmpfs`.

A bind's source is a path of the person who types, so it is made absolute and looked for here, not
in some server's folder. It is not resolved: a symbolic link means what it means when the container
starts.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from typing import TYPE_CHECKING

from container.cli.failure import UsageRefused

if TYPE_CHECKING:
    from container.contracts.runtime import Mount

_VOLUME = "use SOURCE:DESTINATION or SOURCE:DESTINATION:ro"
_MOUNT = "use type=bind,source=PATH,target=PATH[,readonly] or type=tmpfs,target=PATH"
_ALIASES = {
    "src": "source",
    "dst": "target",
    "destination": "target",
    "ro": "readonly",
    "tmpfs-size": "size",
    "tmpfs-mode": "mode",
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
    """Return the bind of `SOURCE:DESTINATION[:ro]`."""
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise UsageRefused(
            f'"{text}" is no volume: {_VOLUME}',
            hint="a path with a colon needs --mount" if len(parts) > 3 else None,
        )
    source, destination, *rest = parts
    read_only = False
    for option in rest[0].split(",") if rest else ():
        if option not in ("ro", "rw"):
            raise UsageRefused(f'"{option}" in "{text}" is no option of a volume: use ro or rw')
        read_only = option == "ro"
    if "/" not in source and source not in (".", ".."):
        raise UsageRefused(
            f'"{source}" in "{text}" is a name, and there are no named volumes yet',
            hint=f'to mount a folder of this machine, write its path: "./{source}"',
        )
    return _bind(source, destination, read_only, text)


def parse_mount(text: str) -> Mount:
    """Return the mount of `type=bind,source=PATH,target=PATH[,readonly]` or `type=tmpfs,…`."""
    fields: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        key = _ALIASES.get(key, key)
        if key not in ("type", "source", "target", "readonly", "size", "mode"):
            raise UsageRefused(f'"{part}" in "{text}" is no field of a mount: {_MOUNT}')
        fields[key] = value if equals else "true"
    kind, target = fields.get("type", "bind"), fields.get("target", "")
    flag = fields.get("readonly", "false").lower()
    if flag not in ("true", "false", "1", "0"):
        raise UsageRefused(f'readonly in "{text}" is true or false, not "{fields["readonly"]}"')
    read_only = flag in ("true", "1")
    if not target:
        raise UsageRefused(f'"{text}" has no target: {_MOUNT}')
    if kind == "bind":
        for wrong in ("size", "mode"):
            if wrong in fields:
                raise UsageRefused(f'{wrong} in "{text}" is for type=tmpfs alone')
        if not fields.get("source"):
            raise UsageRefused(f'"{text}" has no source: {_MOUNT}')
        return _bind(fields["source"], target, read_only, text)
    if kind == "tmpfs":
        if "source" in fields:
            raise UsageRefused(f'"{text}" has a source, but a tmpfs has none')
        options = tuple(f"{key}={fields[key]}" for key in ("size", "mode") if key in fields)
        return _tmpfs(target, read_only, options, text)
    raise UsageRefused(f'"{kind}" in "{text}" is no type of mount here: use bind or tmpfs')


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
