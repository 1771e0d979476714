"""Environment variables and labels on the command line, and files of variables.

`NAME=value` sets a variable; `NAME` alone takes the value that it has here, and is left out where
it has none. In a file each line is one of these; empty lines and lines that start with `#` are
skipped, and values are taken as they are: nothing is unquoted or expanded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from container.cli.failure import UsageRefused


def parse_environment(
    variables: Sequence[str], files: Sequence[str], host: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """Return `NAME=value` each: files first, then options; the last of a name wins."""
    host = os.environ if host is None else host
    found: dict[str, str] = {}
    for file in files:
        for number, line in enumerate(_lines(file), 1):
            text = line.lstrip()
            if text and not text.startswith("#"):
                _add(found, text, host, f"{file}, line {number}: ")
    for variable in variables:
        _add(found, variable, host, "")
    return tuple(f"{name}={value}" for name, value in found.items())


def merge_environment(base: Sequence[str], added: Sequence[str]) -> tuple[str, ...]:
    """Return two lists of `NAME=value` as one; `added` wins."""
    found = {entry.partition("=")[0]: entry for entry in (*base, *added)}
    return tuple(found.values())


def parse_labels(labels: Sequence[str]) -> dict[str, str]:
    """Return `KEY=value` each as a dictionary; `KEY` alone has an empty value."""
    found: dict[str, str] = {}
    for label in labels:
        key, _, value = label.partition("=")
        if not key.strip() or "\0" in label:
            raise UsageRefused(f'"{label}" is no label: use KEY=value or KEY')
        found[key] = value
    return found


def _lines(file: str) -> list[str]:
    try:
        text = Path(file).read_bytes().decode()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageRefused(f'the environment file "{file}" can\'t be read: {reason}') from None
    except UnicodeDecodeError:
        raise UsageRefused(f'the environment file "{file}" is not UTF-8 text') from None
    return [line.removesuffix("\r") for line in text.split("\n")]


def _add(found: dict[str, str], text: str, host: Mapping[str, str], where: str) -> None:
    name, equals, value = text.partition("=")
    if not name or any(character.isspace() for character in name) or "\0" in text:
        raise UsageRefused(f'{where}"{text}" is no environment variable: use NAME=value or NAME')
    if equals:
        found[name] = value
    elif name in host:
        found[name] = host[name]


def parse_driver_options(texts: tuple[str, ...]) -> dict[str, str]:
    """Return the options of `--opt KEY=VALUE`."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UsageRefused(f'"{text}" is no option of a driver: use KEY=VALUE')
        if key in found:
            raise UsageRefused(f'--opt "{key}" is given twice')
        found[key] = value
    return found
