"""Arguments of a call, from a command line: texts and JSON, read by the types of the route.

`name=value` is read as its type says: a str is taken as it is, a number, a bool, a time and a UUID
in the usual writing, anything larger as JSON. For a descriptor, `@path` opens a file for reading
and `fd:0` passes one that the command itself has; for bytes, `@path` reads the file.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from container.cli.failure import Refused

if TYPE_CHECKING:
    from container.ipc import Fd
    from container.ipc.describe import (
        ClassDescription,
        ContractDescription,
        FieldDescription,
        RouteDescription,
        TypeDescription,
    )

_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_AS_JSON = frozenset({"list", "tuple", "set", "dict", "class"})


class Wrong(ValueError):
    """A text is not of its type; says what would be."""


def split_pair(text: str) -> tuple[str, str]:
    """Return the name and the value of `name=value`."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise Refused(
            f'"{text}" is no argument', hint="write name=value, or --json '{...}'", status=2
        )
    return name, value


class Arguments:
    """Read the arguments of one route.

    Args:
        contract: What the route belongs to.
        route: What it takes.
    """

    def __init__(self, contract: ContractDescription, route: RouteDescription) -> None:
        self._classes: dict[str, ClassDescription] = {c.name: c for c in contract.classes}
        self._parameters: dict[str, FieldDescription] = {p.name: p for p in route.parameters}
        self._route = route
        self._opened: list[Fd] = []

    def close(self) -> None:
        """Close what was opened for the call."""
        for fd in self._opened:
            fd.close()

    def of_text(self, name: str, text: str) -> Any:
        """Return the wire value of `name=text`."""
        parameter = self._parameter(name)
        try:
            return self._from_text(parameter.type, text)
        except Wrong as wrong:
            raise self._refused(parameter, str(wrong)) from None

    def of_json(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the wire values of a JSON object."""
        made: dict[str, Any] = {}
        for name, value in values.items():
            parameter = self._parameter(name)
            try:
                made[name] = self._from_json(parameter.type, value)
            except Wrong as wrong:
                raise self._refused(parameter, str(wrong)) from None
        return made

    def check_complete(self, given: Mapping[str, Any]) -> None:
        """Refuse a call that lacks an argument."""
        for parameter in self._parameters.values():
            if parameter.default is None and parameter.name not in given:
                raise Refused(
                    f"{self._route.path} needs {parameter.name} ({parameter.type.text})",
                    hint=f"it is {self._route.text}",
                    status=2,
                )

    def _parameter(self, name: str) -> FieldDescription:
        parameter = self._parameters.get(name)
        if parameter is None:
            takes = ", ".join(self._parameters) or "nothing"
            raise Refused(
                f'{self._route.path} has no argument "{name}"', hint=f"it takes {takes}", status=2
            )
        return parameter

    def _refused(self, parameter: FieldDescription, why: str) -> Refused:
        return Refused(
            f"{parameter.name}: {why}", hint=f"it is of type {parameter.type.text}", status=2
        )

    def _from_text(self, wanted: TypeDescription, text: str) -> Any:
        kind = wanted.kind
        if kind == "union":
            return self._first(wanted.arguments, self._from_text, text)
        if kind == "nothing":
            if text not in ("", "null", "none"):
                raise Wrong(f'"{text}" is not nothing')
            return None
        if kind == "descriptor":
            fd = _descriptor(text)
            self._opened.append(fd)
            return fd
        if kind == "bytes":
            return _bytes(text)
        if kind == "bool":
            if text.lower() not in _TRUTH:
                raise Wrong(f'"{text}" is neither true nor false')
            return _TRUTH[text.lower()]
        if kind in ("int", "float"):
            return _number(kind, text)
        if kind in _AS_JSON:
            return self._from_json(wanted, parse_json(text))
        return self._from_json(wanted, text)

    def _from_json(self, wanted: TypeDescription, value: Any) -> Any:
        kind = wanted.kind
        if kind == "union":
            return self._first(wanted.arguments, self._from_json, value)
        if kind in ("list", "set", "tuple"):
            return self._items(wanted, _of(value, list, "a list"))
        if kind == "dict":
            entries = cast("dict[str, Any]", _of(value, dict, "an object"))
            return {key: self._from_json(wanted.arguments[1], v) for key, v in entries.items()}
        if kind == "class":
            return self._fields(self._classes[wanted.name], _of(value, dict, "an object"))
        if kind in ("enum", "literal"):
            return self._choice(wanted, value)
        if kind == "nothing":
            return None if value is None else _refuse(value, "null")
        if kind == "bool":
            return _of(value, bool, "true or false")
        if kind in ("int", "float"):
            return _json_number(kind, value)
        if kind not in ("str", "bytes", "datetime", "uuid", "descriptor"):
            raise Wrong(f"a value of type {wanted.text} can't be written on a command line")
        text = _of(value, str, "a text")
        if kind == "datetime":
            return _moment(text)
        if kind == "uuid":
            return _uuid(text)
        if kind in ("bytes", "descriptor"):
            return self._from_text(wanted, text)
        return text

    def _items(self, wanted: TypeDescription, values: list[Any]) -> list[Any]:
        types: Sequence[TypeDescription] = wanted.arguments
        if wanted.kind != "tuple":
            types = types[:1] * len(values)
        if len(types) != len(values):
            raise Wrong(f"it has {len(values)} items, {len(types)} are wanted")
        return [self._from_json(item, value) for item, value in zip(types, values, strict=True)]

    def _fields(self, cls: ClassDescription, values: dict[str, Any]) -> dict[str, Any]:
        fields = {field.name: field for field in cls.fields}
        for name in values:
            if name not in fields:
                raise Wrong(f'{cls.name} has no field "{name}"')
        for field in cls.fields:
            if field.default is None and field.name not in values:
                raise Wrong(f"{cls.name} needs {field.name}")
        return {name: self._from_json(fields[name].type, value) for name, value in values.items()}

    def _choice(self, wanted: TypeDescription, value: Any) -> Any:
        choices = wanted.values or self._classes[wanted.name].values
        for choice in choices:
            if str(choice) == str(value):
                return choice
        raise Wrong(f'"{value}" is none of {", ".join(map(str, choices))}')

    def _first(
        self,
        parts: Sequence[TypeDescription],
        read: Callable[[TypeDescription, Any], Any],
        value: Any,
    ) -> Any:
        # A str takes any text, so what is stricter is asked first.
        ordered = sorted(parts, key=lambda part: (part.kind == "str", part.kind == "bytes"))
        for part in ordered[:-1]:
            try:
                return read(part, value)
            except Wrong:
                continue
        return read(ordered[-1], value)


def parse_json(text: str) -> Any:
    """Return what a JSON text says."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise Wrong(f"it is no JSON ({error})") from None


def _of(value: Any, kind: type, word: str) -> Any:
    return value if type(value) is kind else _refuse(value, word)


def _refuse(value: Any, word: str) -> Any:
    raise Wrong(f"{json.dumps(value, default=str)[:60]} is not {word}")


def _json_number(kind: str, value: Any) -> int | float:
    if type(value) is int or (kind == "float" and type(value) is float):
        return value
    return _refuse(value, "a number" if kind == "float" else "a whole number")


def _number(kind: str, text: str) -> int | float:
    try:
        return int(text, 0) if kind == "int" else float(text)
    except ValueError:
        raise Wrong(f'"{text}" is no {"whole " if kind == "int" else ""}number') from None


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise Wrong(f'"{text}" is no time, such as 2026-01-31T12:00:00Z') from None
    return moment if moment.tzinfo is not None else moment.astimezone()


def _uuid(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise Wrong(f'"{text}" is no UUID') from None


def _bytes(text: str) -> bytes:
    if not text.startswith("@"):
        return text.encode("utf-8", "surrogateescape")
    try:
        with open(text[1:], "rb") as file:
            return file.read()
    except OSError as error:
        raise Wrong(f"{text[1:]}: {(error.strerror or '').lower()}") from None


def _descriptor(text: str) -> Fd:
    from container.ipc import Fd

    if text.startswith("fd:") and text[3:].isdigit():
        number = int(text[3:])
        try:
            os.fstat(number)
        except (OSError, OverflowError):
            raise Wrong(f"this command has no descriptor {number}") from None
        return Fd.borrow(number)
    if not text.startswith("@"):
        raise Wrong(f'"{text}" is no descriptor: write @path to open a file, or fd:0')
    try:
        return Fd(os.open(text[1:], os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise Wrong(f"{text[1:]}: {(error.strerror or '').lower()}") from None
