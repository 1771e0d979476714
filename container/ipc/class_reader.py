"""Make an attrs class from a dictionary of wire values: one generated function for each class.

The function has the checks of simple fields in its own body, since a call costs more than a check,
and remembers which field it is at, so that a fault is found with its place in a single pass: what a
value claims (a descriptor, a channel) is claimed once. What the values of other fields may be is
not known here; `strict` says it.
"""

from __future__ import annotations

import linecache
import types
import typing
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Union

import attrs

from container.ipc.wirevalues import SCALARS, WrongType, brief, word

Hook = Callable[[Any, Any], Any]
"""Makes a value of a type from a wire value, or raises."""

EXACT: Mapping[Any, str] = {
    kind: SCALARS[kind] for kind in (str, bytes, bool, int, datetime, uuid.UUID)
}
"""Types whose values are taken as they are, if they are of exactly this type; with their words."""

_MISSING = object()


class At(ValueError):
    """Where inside a value something was wrong."""

    def __init__(self, place: str, cause: BaseException) -> None:
        super().__init__(place)
        self.place = place
        """`.field`, or `[index]`."""
        self.cause = cause


def optional_of(annotation: Any) -> Any:
    """Return X of `X | None`, and None for any other type."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) in (Union, types.UnionType) and len(arguments) == 2:
        first, second = arguments
        if second is type(None):
            return first
        if first is type(None):
            return second
    return None


def class_reader(cls: Any, hook_of: Callable[[Any], Hook], *, forbid_extra_keys: bool) -> Hook:
    """Generate the function that makes a `cls`.

    A field that is missing takes its default, and without one is a KeyError. Names are the
    attributes' own; those with `init=False` are no fields.

    Args:
        cls: An attrs class.
        hook_of: Returns how a field's value is made.
        forbid_extra_keys: Refuse names that are no field's; else they are ignored.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    fields: list[Any] = [a for a in attrs.fields(cls) if a.init]
    scope: dict[str, Any] = {
        "cls": cls,
        "called": word(cls),
        "at_place": At,
        "missing": _MISSING,
        "names": frozenset(a.name for a in fields),
        "unknown": _unknown,
        "wrong": WrongType,
    }
    lines = [
        "def read(given, _):",
        "    if type(given) is not dict:",
        "        raise wrong(called, given)",
        f"    known = {len(fields)}",
        "    place = ''",
        "    try:",
    ]
    passed: list[str] = []
    for number, attribute in enumerate(fields):
        name, value = attribute.name, f"value_{number}"
        lines.append(f"        place = '.{name}'")
        check = _check(hints[name], number, hook_of, scope)
        if attribute.default is attrs.NOTHING:
            lines.append(f"        {value} = given['{name}']")
            lines += [f"        {line}" for line in check]
        else:
            # NOTHING is what attrs itself takes for "make the default".
            made = isinstance(attribute.default, attrs.Factory)  # type: ignore[arg-type]
            scope[f"default_{number}"] = attrs.NOTHING if made else attribute.default
            lines += [
                f"        {value} = given.get('{name}', missing)",
                f"        if {value} is missing:",
                f"            {value} = default_{number}",
                "            known -= 1",
                "        else:",
                *(f"            {line}" for line in check),
            ]
        passed.append(f"{attribute.alias}={value}" if attribute.kw_only else value)
    lines += [
        "        pass",
        "    except Exception as error:",
        "        raise at_place(place, error) from error",
    ]
    if forbid_extra_keys:
        lines += ["    if len(given) != known:", "        raise unknown(given, names)"]
    # Keyword-only ones may stand between the others where they are defined.
    passed.sort(key=lambda text: "=" in text)
    lines.append(f"    return cls({', '.join(passed)})")
    return _compiled("\n".join(lines) + "\n", scope, cls)


def _check(
    annotation: Any, number: int, hook_of: Callable[[Any], Hook], scope: dict[str, Any]
) -> list[str]:
    """Return the lines that check one field's value, and make it if it needs that."""
    value = f"value_{number}"
    inner = optional_of(annotation)
    exact = annotation if inner is None else inner
    if exact in EXACT:
        scope[f"type_{number}"] = exact
        but = "" if inner is None else f"{value} is not None and "
        return [
            f"if {but}type({value}) is not type_{number}:",
            f"    raise wrong({EXACT[exact]!r}, {value})",
        ]
    scope[f"hook_{number}"], scope[f"type_{number}"] = hook_of(annotation), annotation
    return [f"{value} = hook_{number}({value}, type_{number})"]


def _unknown(given: dict[Any, Any], names: frozenset[str]) -> ValueError:
    # By `brief`: a hostile name need not be text.
    found = sorted(brief(name) for name in given if name not in names)
    return ValueError(f"unknown field {', '.join(found[:8])}")


def _compiled(source: str, scope: dict[str, Any], cls: Any) -> Hook:
    file = f"<reader of {cls.__module__}.{cls.__qualname__}>"
    exec(compile(source, file, "exec"), scope)
    # As attrs does for its own: a traceback shows the lines.
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    return scope["read"]
