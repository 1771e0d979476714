"""The person's settings: TOML files, the later over the earlier, and the environment over both.

Read in this order: `/etc/container/config.toml`, `$XDG_CONFIG_HOME/container/config.toml` (without
the variable `~/.config/container/config.toml`), then the variables. An unknown section or key is an
error that names the file: an option that is silently dropped is one that somebody relies on.

| key | variable | default |
|---|---|---|
| `[registry] default` | `CONTAINER_DEFAULT_REGISTRY` | `docker.io` |
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from attrs import frozen

from container.ipc import InvalidArgument

DEFAULT_REGISTRY = "docker.io"
_KNOWN: dict[str, dict[str, type]] = {"registry": {"default": str}}


@frozen
class Settings:
    """What the person has set."""

    default_registry: str = DEFAULT_REGISTRY
    """The registry that a name without one is pulled from: `host` or `host:port`."""

    @classmethod
    def read(
        cls,
        *,
        environment: Mapping[str, str] | None = None,
        system_folder: Path = Path("/etc/container"),
    ) -> Settings:
        """Read files and environment. Blocking.

        Raises:
            InvalidArgument: a file can't be read or says something unknown; names file and key.
        """
        variables = os.environ if environment is None else environment
        registry = DEFAULT_REGISTRY
        for path in settings_files(variables, system_folder):
            registry = _read_file(path).get("registry", {}).get("default", registry)
        registry = variables.get("CONTAINER_DEFAULT_REGISTRY") or registry
        if not registry or "/" in registry or registry != registry.strip():
            raise InvalidArgument(
                f'"{registry}" is no registry',
                hint="the default registry is a host, or host:port, for example docker.io",
            )
        return cls(default_registry=registry)


def settings_files(environment: Mapping[str, str], system_folder: Path) -> tuple[Path, ...]:
    """Return where settings are looked for, the strongest last."""
    home = environment.get("XDG_CONFIG_HOME") or os.path.join(
        environment.get("HOME", "/"), ".config"
    )
    return system_folder / "config.toml", Path(home) / "container" / "config.toml"


def _read_file(path: Path) -> dict[str, dict[str, Any]]:
    try:
        body = tomllib.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidArgument(
            f"the settings in {path} can't be read: {error}", hint="mend the file, or move it away"
        ) from error
    for section, content in body.items():
        keys = _KNOWN.get(section)
        if keys is None or not isinstance(content, dict):
            raise InvalidArgument(
                f'{path} has an unknown section "{section}"',
                hint=f"known: {', '.join(f'[{name}]' for name in _KNOWN)}",
            )
        values = cast("dict[str, Any]", content)
        for key, value in values.items():
            if not isinstance(value, keys.get(key, ())):
                raise InvalidArgument(
                    f'{path}: "{key}" in [{section}] is unknown or of the wrong type',
                    hint=f"known: {', '.join(f'{n} ({t.__name__})' for n, t in keys.items())}",
                )
    return body
