"""Unit files: the services that every launcher starts with, in TOML and systemd's words.

```toml
[Unit]
Description = "Images: store, registry transport, snapshots"
After = ["images"]

[Service]
ExecStart = ["container-images"]
Entry = "container.images.process:main"
Restart = "on-failure"
RestartSec = 0.1
StartLimitBurst = 5
TimeoutStopSec = 10.0
Environment = { NAME = "value" }
StartAtBoot = false

[Socket]
ListenStream = "images.sock"
```

Parsing is strict: an unknown section or key is an error that names the file and the key, since
an option that is silently dropped is worse than none. `Entry` and `StartAtBoot` are ours; durations
are seconds. The name of the unit is the file's name without `.toml`.

Source: systemd.unit(5), systemd.service(5), systemd.socket(5).
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from container.contracts.launcher import Restart, ServiceUnit
from container.ipc import InvalidArgument

UNITS = Path(__file__).parent / "units"
"""The shipped unit files."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")
_ENTRY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = frozenset({"launcher.sock", "cli.sock", "launcher.lock", "starting.lock"})


def load_units(folder: Path = UNITS) -> tuple[ServiceUnit, ...]:
    """Return the units of a folder, each after those that it names in `After`.

    Raises:
        InvalidArgument: a file is wrong; the message names the file and the key.
    """
    units = [parse_unit(path.read_text(), path) for path in sorted(folder.glob("*.toml"))]
    known = {unit.name for unit in units}
    for unit in units:
        for other in unit.after:
            if other not in known:
                raise InvalidArgument(
                    f'{folder / unit.name}.toml: After names "{other}", and there is no such unit'
                )
    return in_order(units)


def parse_unit(text: str, path: Path) -> ServiceUnit:
    """Return the unit that a file's text describes; its name is the file's.

    Raises:
        InvalidArgument: it is no TOML, or a section, key or value is wrong.
    """
    try:
        sections = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(f"{path}: {error}") from error
    values: dict[str, Any] = {}
    for section, body in sections.items():
        keys = _KEYS.get(section)
        if keys is None:
            raise InvalidArgument(
                f"{path}: there is no section [{section}]", hint=f"known: {', '.join(_KEYS)}"
            )
        if not isinstance(body, dict):
            raise InvalidArgument(f"{path}: {section} must be a section, [{section}]")
        for key, value in cast("dict[str, object]", body).items():
            if key not in keys:
                raise InvalidArgument(
                    f"{path}: [{section}] has no key {key}", hint=f"known: {', '.join(keys)}"
                )
            target, convert = keys[key]
            try:
                values[target] = convert(value)
            except (TypeError, ValueError) as error:
                raise InvalidArgument(f"{path}: {key} in [{section}] {error}") from error
    if "command" not in values:
        raise InvalidArgument(f"{path}: ExecStart in [Service] is missing")
    unit = ServiceUnit(name=path.stem, **values)
    try:
        check_unit(unit)
    except InvalidArgument as error:
        raise InvalidArgument(f"{path}: {error.message}", hint=error.hint) from error
    return unit


def check_unit(unit: ServiceUnit) -> None:
    """Check what a type can't say: names, paths and numbers of a unit from anywhere.

    Raises:
        InvalidArgument: the message says the rule.
    """
    if not _NAME.fullmatch(unit.name):
        raise InvalidArgument(
            f'a service can\'t be named "{unit.name}"',
            hint="lower-case letters, digits, '-', '_' and '.', at most 100, not first a '.'",
        )
    if not unit.command or not unit.command[0] or any("\0" in part for part in unit.command):
        raise InvalidArgument(f'service "{unit.name}" has no command')
    if unit.entry is not None and not _ENTRY.fullmatch(unit.entry):
        raise InvalidArgument(
            f'the entry "{unit.entry}" of service "{unit.name}" is not package.module:function'
        )
    if unit.listen is not None:
        parts = unit.listen.split("/")
        if not all(parts) or ".." in parts or "." in parts or "\0" in unit.listen:
            raise InvalidArgument(
                f'the socket "{unit.listen}" of service "{unit.name}" is not a path below the '
                "run directory"
            )
        if unit.listen in _RESERVED:
            raise InvalidArgument(f'the socket "{unit.listen}" is the launcher\'s own')
    elif unit.outlives_launcher:
        raise InvalidArgument(
            f'service "{unit.name}" outlives the launcher, so it needs a socket to be found by'
        )
    for variable, value in unit.environment.items():
        if not _VARIABLE.fullmatch(variable) or "\0" in value:
            raise InvalidArgument(
                f'"{variable}" of service "{unit.name}" can\'t be an environment variable'
            )
    if not (0 <= unit.restart_delay <= 3600 and 0 <= unit.stop_timeout <= 3600):
        raise InvalidArgument(f'the times of service "{unit.name}" must be between 0 and 3600 s')
    if not 1 <= unit.restart_limit <= 1000:
        raise InvalidArgument(
            f'the restart limit of service "{unit.name}" must be between 1 and 1000'
        )


def in_order(units: list[ServiceUnit]) -> tuple[ServiceUnit, ...]:
    """Return units so that each comes after those that its `after` names, else in the given order.

    Names that are not among them do not count.

    Raises:
        InvalidArgument: they wait for each other; the message names the circle.
    """
    by_name = {unit.name: unit for unit in units}
    done: dict[str, ServiceUnit] = {}

    def place(unit: ServiceUnit, path: tuple[str, ...]) -> None:
        if unit.name in path:
            circle = " → ".join((*path[path.index(unit.name) :], unit.name))
            raise InvalidArgument(f"units start after each other: {circle}")
        if unit.name in done:
            return
        for name in unit.after:
            if name in by_name:
                place(by_name[name], (*path, unit.name))
        done[unit.name] = unit

    for unit in units:
        place(unit, ())
    return tuple(done.values())


# --- values ---


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("must be a string")
    return value


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("must be true or false")
    return value


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("must be a number of seconds")
    return float(value)


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("must be a whole number")
    return value


def _words(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(shlex.split(value))
    if not isinstance(value, list):
        raise TypeError("must be a string or a list of strings")
    words = cast("list[object]", value)
    return tuple(_text(word) for word in words)


def _variables(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError('must be a table: { NAME = "value" }')
    return {name: _text(text) for name, text in cast("dict[str, object]", value).items()}


def _restart(value: object) -> Restart:
    try:
        return Restart(_text(value))
    except ValueError:
        raise ValueError(f"must be one of {', '.join(r.value for r in Restart)}") from None


_KEYS: dict[str, dict[str, tuple[str, Callable[[object], Any]]]] = {
    "Unit": {"Description": ("description", _text), "After": ("after", _words)},
    "Service": {
        "ExecStart": ("command", _words),
        "Entry": ("entry", _text),
        "Restart": ("restart", _restart),
        "RestartSec": ("restart_delay", _seconds),
        "StartLimitBurst": ("restart_limit", _count),
        "TimeoutStopSec": ("stop_timeout", _seconds),
        "Environment": ("environment", _variables),
        "StartAtBoot": ("start_at_boot", _truth),
    },
    "Socket": {"ListenStream": ("listen", _text)},
}
