"""Unit files: the services that every launcher starts with, in TOML and systemd's words.

```toml
[Unit]
Description = "Images: store, registry transport, snapshots"
After = ["other"]
Requires = ["another"]
ConditionDirectoryNotEmpty = "below-the-root"

[Service]
ExecStart = ["container-images"]
Entry = "container.images.process:main"
Type = "notify"
Restart = "on-failure"
RestartSec = 0.1
StartLimitBurst = 5
TimeoutStartSec = 30.0
TimeoutStopSec = 10.0
WatchdogSec = 30.0
IdleTimeoutSec = 300.0
LimitNOFILE = 4096
LimitCORE = 0
OOMScoreAdjust = 100
Nice = 5
LogSizeMax = 8388608
Environment = { NAME = "value" }
StartAtBoot = false

[Socket]
ListenStream = "images.sock"
```

Parsing is strict: an unknown section or key is an error that names the file and the key, since
an option that is silently dropped is worse than none. `Entry`, `StartAtBoot`, `IdleTimeoutSec` and
`LogSizeMax` are ours; `Type` is `exec` or `notify`; durations are seconds.
The name of the unit is the file's name without `.toml`.

Source: systemd.unit(5), systemd.service(5), systemd.socket(5).
"""

from __future__ import annotations

import math
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from container.contracts.launcher import Ready, Restart, ServiceUnit
from container.ipc import InvalidArgument
from container.launcher.dependencies import before, in_order

UNITS = Path(__file__).parent / "units"
"""The shipped unit files."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")
_ENTRY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = frozenset(
    {"launcher.sock", "cli.sock", "launcher.lock", "starting.lock", "notify.sock"}
)


def load_units(folder: Path = UNITS) -> tuple[ServiceUnit, ...]:
    """Return the units of a folder, each after those that it names in `After`.

    Raises:
        InvalidArgument: a file is wrong; the message names the file and the key.
    """
    units = [parse_unit(path.read_text(), path) for path in sorted(folder.glob("*.toml"))]
    known = {unit.name for unit in units}
    for unit in units:
        for other in before(unit):
            if other not in known:
                key = "Requires" if other in unit.requires else "After"
                raise InvalidArgument(
                    f'{folder / unit.name}.toml: {key} names "{other}", and there is no such unit'
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
    for value, low, high, what in (
        (unit.restart_delay, 0, 3600, "delay of a restart"),
        (unit.stop_timeout, 0, 3600, "time for a stop"),
        (unit.start_timeout, 0.01, 3600, "time for a start"),
        (unit.watchdog, 0.1, 3600, "watchdog's time"),
        (unit.idle_timeout, 1, math.inf, "idle time"),
        (unit.restart_limit, 1, 1000, "restart limit"),
        (unit.open_files, 16, 2**30, "limit of open files"),
        (unit.core_size, 0, math.inf, "size of a core"),
        (unit.oom_score_adjust, -1000, 1000, "OOM score"),
        (unit.nice, -20, 19, "niceness"),
        (unit.log_size, 4096, math.inf, "size of the log"),
    ):
        if value is not None and not low <= value <= high:
            bounds = f"at least {low}" if high == math.inf else f"between {low} and {high}"
            raise InvalidArgument(f'the {what} of service "{unit.name}" must be {bounds}')
    if unit.watchdog is not None and unit.ready is not Ready.NOTIFY:
        raise InvalidArgument(
            f'service "{unit.name}" has a watchdog, so it must say when it is ready too'
        )


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


def _ready(value: object) -> Ready:
    kinds = {"exec": Ready.STARTED, "notify": Ready.NOTIFY}
    if _text(value) not in kinds:
        raise ValueError(f"must be one of {', '.join(kinds)}")
    return kinds[_text(value)]


def _restart(value: object) -> Restart:
    try:
        return Restart(_text(value))
    except ValueError:
        raise ValueError(f"must be one of {', '.join(r.value for r in Restart)}") from None


_KEYS: dict[str, dict[str, tuple[str, Callable[[object], Any]]]] = {
    "Unit": {
        "Description": ("description", _text),
        "After": ("after", _words),
        "Requires": ("requires", _words),
        "ConditionDirectoryNotEmpty": ("boot_folder", _text),
    },
    "Service": {
        "ExecStart": ("command", _words),
        "Entry": ("entry", _text),
        "Restart": ("restart", _restart),
        "RestartSec": ("restart_delay", _seconds),
        "StartLimitBurst": ("restart_limit", _count),
        "TimeoutStopSec": ("stop_timeout", _seconds),
        "Environment": ("environment", _variables),
        "StartAtBoot": ("start_at_boot", _truth),
        "Type": ("ready", _ready),
        "TimeoutStartSec": ("start_timeout", _seconds),
        "WatchdogSec": ("watchdog", _seconds),
        "IdleTimeoutSec": ("idle_timeout", _seconds),
        "LimitNOFILE": ("open_files", _count),
        "LimitCORE": ("core_size", _count),
        "OOMScoreAdjust": ("oom_score_adjust", _count),
        "Nice": ("nice", _count),
        "LogSizeMax": ("log_size", _count),
    },
    "Socket": {"ListenStream": ("listen", _text)},
}
