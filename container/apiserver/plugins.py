"""Plugins: service binaries found by a `config.toml`, one folder each.

The search path is, first name wins: the folder in this package, `/usr/lib/container/plugins`, and
`$XDG_DATA_HOME/container/plugins`. A later folder of the same name is shadowed, and said so.

```toml
abstract = "Runs containers with runc or crun"
author = "container"
version = "0.1.0"

[services]
load_at_boot = false
run_at_load = false
default_arguments = []
entry = "package.module:function"   # optional: run in a process forked from a warm one

[[services.services]]
type = "runtime"
description = "One helper per container"
```

The command is `bin/<name>` in the plugin's folder if it is there, otherwise the program of that
name beside this interpreter. A configuration that is wrong is reported with its path and key and
the plugin is left out; the others load.
"""

from __future__ import annotations

import difflib
import logging
import os
import sys
import tomllib
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar, cast

import trio
from attrs import evolve

from container.contracts.apiserver import Plugin, Plugins
from container.ipc import Actor, DataLoss, InvalidArgument, NotFound

CONFIG = "config.toml"
SERVICE_TYPES = ("runtime", "network", "volume", "core")

T = TypeVar("T")

_log = logging.getLogger(__name__)


def search_path(environment: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """Return the folders in which plugins are looked for, first one first.

    `CONTAINER_PLUGIN_PATH`, folders joined by `:`, goes before all of them.
    """
    given = [Path(part) for part in environment.get("CONTAINER_PLUGIN_PATH", "").split(":") if part]
    home = Path(environment.get("HOME") or "/")
    data = Path(environment.get("XDG_DATA_HOME") or home / ".local/share")
    package = Path(__file__).resolve().parent.parent / "plugins"
    return (*given, package, Path("/usr/lib/container/plugins"), data / "container/plugins")


def find_plugins(folders: Sequence[Path]) -> tuple[dict[str, Plugin], dict[str, InvalidArgument]]:
    """Read all plugins below `folders`; blocking.

    Returns:
        The plugins by name, and what is wrong with the others by name.
    """
    found: dict[str, Plugin] = {}
    wrong: dict[str, InvalidArgument] = {}
    for folder in folders:
        try:
            names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        for name in names:
            place = folder / name
            if not (place / CONFIG).is_file():
                continue
            if name in found:
                _log.warning("plugin %s is shadowed by %s", place, found[name].path)
                found[name] = evolve(found[name], shadows=(*found[name].shadows, str(place)))
                continue
            if name in wrong:
                continue
            try:
                found[name] = read_plugin(place)
            except InvalidArgument as error:
                _log.error("plugin %s is left out: %s", name, error)
                wrong[name] = error
    return found, wrong


def read_plugin(folder: Path) -> Plugin:
    """Read the plugin in one folder; blocking.

    Raises:
        InvalidArgument: its configuration is wrong; the message names path and key.
    """
    path = folder / CONFIG
    try:
        with open(path, "rb") as file:
            body = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path}: {error}") from error
    top = _Table(path, "", body)
    abstract = top.take("abstract", str, "")
    author = top.take("author", str, "")
    version = top.take("version", str, "")
    services = _Table(path, "services.", cast("dict[str, object]", top.take("services", dict, {})))
    top.finish()
    load_at_boot = services.take("load_at_boot", bool, False)
    services.take("run_at_load", bool, False)
    arguments = _strings(
        path, "services.default_arguments", services.take("default_arguments", list, [])
    )
    entry = services.take("entry", str, "") or None
    if entry is not None and entry.count(":") != 1:
        raise InvalidArgument(f"{path}: services.entry {entry!r} is not package.module:function")
    types: list[str] = []
    descriptions: list[str] = []
    for index, item in enumerate(cast("list[object]", services.take("services", list, []))):
        where = f"services.services[{index}]"
        if not isinstance(item, dict):
            raise InvalidArgument(f"{path}: {where} is not a table")
        service = _Table(path, f"{where}.", cast("dict[str, object]", item))
        kind = service.take("type", str, "")
        if kind not in SERVICE_TYPES:
            raise InvalidArgument(
                f"{path}: {where}.type is {kind!r}, not one of {', '.join(SERVICE_TYPES)}"
            )
        types.append(kind)
        descriptions.append(service.take("description", str, ""))
        service.finish()
    services.finish()
    return Plugin(
        name=folder.name,
        path=str(folder),
        description=abstract or next(filter(None, descriptions), ""),
        author=author,
        version=version,
        service_types=tuple(types),
        command=(_binary(folder), *arguments),
        entry=entry,
        load_at_boot=load_at_boot,
    )


def _binary(folder: Path) -> str:
    own = folder / "bin" / folder.name
    if own.is_file():
        return str(own)
    return str(Path(sys.executable).parent / folder.name)


class _Table:
    """One table of a configuration: typed access, and no key that nobody knows."""

    def __init__(self, path: Path, prefix: str, body: dict[str, object]) -> None:
        self._path = path
        self._prefix = prefix
        self._left = dict(body)

    def take(self, key: str, kind: type[T], default: T) -> T:
        if key not in self._left:
            return default
        value = self._left.pop(key)
        if not isinstance(value, kind):
            raise InvalidArgument(
                f"{self._path}: {self._prefix}{key} is {type(value).__name__}, not {kind.__name__}"
            )
        return value

    def finish(self) -> None:
        if self._left:
            unknown = min(self._left)
            raise InvalidArgument(f"{self._path}: {self._prefix}{unknown} is an unknown key")


def _strings(path: Path, key: str, values: Sequence[object]) -> tuple[str, ...]:
    strings = tuple(value for value in values if isinstance(value, str))
    if len(strings) != len(values):
        raise InvalidArgument(f"{path}: {key} holds something that is not a string")
    return strings


class PluginsService(Actor, Plugins):
    """Find plugins once, when it is opened.

    Args:
        folders: Where to look; None takes `search_path()`.
    """

    def __init__(self, folders: Sequence[Path] | None = None) -> None:
        self._folders = tuple(search_path() if folders is None else folders)
        self._found: dict[str, Plugin] = {}
        self._wrong: dict[str, InvalidArgument] = {}

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        """Read all plugins."""
        self._found, self._wrong = await trio.to_thread.run_sync(find_plugins, self._folders)
        yield

    async def list(self) -> tuple[Plugin, ...]:
        """Return all plugins, sorted by name; see the contract."""
        await trio.lowlevel.checkpoint()
        return tuple(self._found[name] for name in sorted(self._found))

    async def get(self, name: str) -> Plugin:
        """Return one plugin; see the contract.

        Raises:
            DataLoss: it is there and its configuration is wrong.
        """
        await trio.lowlevel.checkpoint()
        if name in self._found:
            return self._found[name]
        if name in self._wrong:
            raise DataLoss(f"plugin {name!r} is broken: {self._wrong[name]}")
        close = difflib.get_close_matches(name, self._found, n=1)
        looked = ", ".join(str(folder) for folder in self._folders)
        guess = f"did you mean {close[0]!r}? " if close else ""
        raise NotFound(f"no plugin {name!r}", hint=f"{guess}looked in {looked}")
