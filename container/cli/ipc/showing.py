"""Wire values of any service, shown: as JSON, or for people in lines and columns."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, cast

from container.cli.output import print_properties, print_table

CELL = 40
"""Characters of a table's cell."""


def print_value(value: Any, output: str) -> None:
    """Print a value; descriptors in it are closed.

    Args:
        value: Plain wire values.
        output: table, json, line (one line for people) or json-line.
    """
    shown = jsonable(value)
    if output == "json":
        print(json.dumps(shown, indent=2, ensure_ascii=False), flush=True)
    elif output == "json-line":
        print(json.dumps(shown, ensure_ascii=False), flush=True)
    elif output == "line":
        print(_line(shown), flush=True)
    else:
        _print_for_people(shown)


def jsonable(value: Any) -> Any:
    """Return a wire value in the types of JSON: bytes as text, or as base64 if they are none."""
    from container.ipc import Fd

    match value:
        case None | bool() | int() | float() | str():
            return value
        case datetime():
            return value.isoformat()
        case uuid.UUID():
            return str(value)
        case bytes() | memoryview():
            data = bytes(cast("bytes", value))
            try:
                return data.decode()
            except UnicodeDecodeError:
                return base64.b64encode(data).decode()
        case Mapping():
            entries = cast("Mapping[Any, Any]", value).items()
            return {str(key): jsonable(item) for key, item in entries}
        case list() | tuple():
            return [jsonable(item) for item in cast("Sequence[Any]", value)]
        case Fd():
            value.close()
            return "(a descriptor)"
        case _:
            return "(an endpoint or a channel)"


def _print_for_people(shown: Any) -> None:
    rows = cast("list[dict[str, Any]]", shown) if _is_rows(shown) else None
    if rows:
        names = list(dict.fromkeys(name for row in rows for name in row))
        print_table(
            [name.upper() for name in names],
            [[_clipped(_line(row.get(name))) for name in names] for row in rows],
        )
    elif isinstance(shown, list):
        for item in cast("list[Any]", shown):
            print(_line(item))
    elif isinstance(shown, dict):
        print_properties(cast("dict[str, Any]", shown))
    elif shown is not None:
        print(_line(shown))


def _is_rows(shown: Any) -> bool:
    return isinstance(shown, list) and all(
        isinstance(item, dict) for item in cast("list[Any]", shown)
    )


def _line(shown: Any) -> str:
    if isinstance(shown, str):
        return shown
    if shown is None:
        return ""
    if isinstance(shown, dict):
        entries = cast("dict[str, Any]", shown).items()
        return "  ".join(f"{name}={_nested(item)}" for name, item in entries)
    return _nested(shown)


def _nested(shown: Any) -> str:
    return shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)


def _clipped(text: str) -> str:
    return text if len(text) <= CELL else f"{text[: CELL - 1]}…"
