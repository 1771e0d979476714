"""What commands print: tables for people, JSON for programs.

A table goes through rich only when stdout is a terminal; elsewhere it is plain text in aligned
columns, so that `awk` and `cut` get what they expect, and rich is not imported. JSON has sorted
keys, ISO 8601 times and names of enumerations.
"""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

import click

F = TypeVar("F", bound=Callable[..., Any])


def format_option(default: str = "table") -> Callable[[F], F]:
    """Give a command `--format table|json`, passed on as `output`."""
    return click.option(
        "--format",
        "output",
        type=click.Choice(["table", "json"]),
        default=default,
        show_default=True,
        help="How to show it.",
    )


def print_json(value: object) -> None:
    """Print a value of a contract, or a tuple of them, as JSON."""
    print(json.dumps(plain(value), indent=2, sort_keys=True, ensure_ascii=False))


def plain(value: object) -> Any:
    """Return a value in the types of JSON."""
    match value:
        case enum.Enum():
            return value.value
        case datetime():
            return value.isoformat()
        case list() | tuple():
            return [plain(item) for item in cast("Sequence[object]", value)]
        case dict():
            items = cast("Mapping[object, object]", value).items()
            return {str(key): plain(item) for key, item in items}
        case None | str() | bool() | int() | float():
            return value
        case _:
            fields = getattr(type(value), "__attrs_attrs__", None)
            if fields is None:
                return str(value)
            return {field.name: plain(getattr(value, field.name)) for field in fields}


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under their headers."""
    if sys.stdout.isatty():
        _print_rich(headers, rows)
    else:
        print("\n".join(_aligned([headers, *rows])))


def print_properties(value: object) -> None:
    """Print one value as two columns, nested fields by their path."""
    rows = list(_flat("", plain(value)))
    width = max((len(name) for name, _ in rows), default=0)
    print("\n".join(f"{name:<{width}}  {text}".rstrip() for name, text in rows))


def show_age(moment: datetime | None, now: datetime | None = None) -> str:
    """Return how long ago something was: `3 hours ago`."""
    if moment is None:
        return ""
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    return "just now" if seconds < 1 else f"{show_duration(seconds)} ago"


def show_duration(seconds: float) -> str:
    """Return a duration in its largest unit."""
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    count = max(0, int(seconds))
    return f"{count} second{'' if count == 1 else 's'}"


def clipped(text: str, width: int) -> str:
    """Return a text in one line of at most `width` characters."""
    line = "".join(character if character.isprintable() else "?" for character in text)
    return line if len(line) <= width else line[: width - 1] + "…"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _print_rich(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, no_wrap=header in ("ID", "NAME"), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell.split(" ")[0], "")) for cell in row))
    Console().print(table)


_STYLES = {"running": "green", "failed": "red", "unknown": "yellow", "backoff": "yellow"}


def _flat(prefix: str, value: object) -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        found: list[tuple[str, str]] = []
        for key, item in cast("dict[str, object]", value).items():
            found += _flat(f"{prefix}.{key}" if prefix else key, item)
        return found
    if isinstance(value, list) and value and isinstance(value[0], dict):
        found = []
        for number, item in enumerate(cast("list[object]", value)):
            found += _flat(f"{prefix}[{number}]", item)
        return found
    if isinstance(value, list):
        return [(prefix, " ".join(str(item) for item in cast("list[object]", value)))]
    if isinstance(value, dict) or value is None:
        return [(prefix, "")]
    if isinstance(value, bool):
        return [(prefix, "yes" if value else "no")]
    return [(prefix, str(value))]
