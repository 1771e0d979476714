"""Contracts as values: routes, types, defaults and documentation, for tools that lack the classes.

A type is a text, as a person would write it, and a tree of `TypeDescription`s. Classes and
enumerations are described once, in a table beside the routes, since a class may contain itself.
What this is *not*: a way to make contracts; a contract is a class.
"""

from __future__ import annotations

import ast
import enum
import functools
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union, cast

import attrs
from attrs import field, frozen

from container.ipc.contract import CHANNELS, Contract, Route, fingerprint, routes_of
from container.ipc.endpoint import Endpoint
from container.ipc.wirevalues import SCALARS


@frozen
class TypeDescription:
    """One type of a contract."""

    text: str
    """As a person would write it: `tuple[Lease, ...]`."""
    kind: str
    """str, bytes, bool, int, float, datetime, uuid, descriptor, nothing; list, tuple, set, dict,
    union; class, enum, literal; endpoint, sender, receiver."""
    name: str = ""
    """Of a class or an enum: its entry in the table; of an endpoint: the contract's wire name."""
    arguments: tuple[TypeDescription, ...] = ()
    """Of items, of keys and values, of the choices of a union."""
    values: tuple[str | int, ...] = ()
    """Of a literal: what it may be."""


@frozen
class FieldDescription:
    """A parameter of a route, or a field of a class."""

    name: str
    type: TypeDescription
    default: str | None = None
    """As Python writes it, of an enumeration its value; None if a value must be given."""
    documentation: str = ""


@frozen
class ClassDescription:
    """A class or an enumeration that values of a contract are of."""

    name: str
    kind: Literal["class", "enum"]
    documentation: str = ""
    fields: tuple[FieldDescription, ...] = ()
    values: tuple[str | int, ...] = ()
    """Of an enumeration."""


@frozen
class RouteDescription:
    """One method of a contract."""

    path: str
    """`contract/method`, as a call names it."""
    kind: Literal["call", "scope"]
    parameters: tuple[FieldDescription, ...]
    result: TypeDescription
    """Of a scope: the type of its value."""
    documentation: str
    text: str
    """Its signature, as a person would write it."""


@frozen
class ContractDescription:
    """A contract, or as much of it as is offered."""

    name: str
    version: int
    fingerprint: str
    documentation: str
    routes: tuple[RouteDescription, ...]
    classes: tuple[ClassDescription, ...]


def describe_contract(
    contract: type[Contract], offered: Iterable[str] | None = None
) -> ContractDescription:
    """Describe a contract.

    Args:
        contract: A contract, not a service.
        offered: Names of the methods to describe, and with them the classes that they need; None
            describes all.
    """
    names = routes_of(contract) if offered is None else offered
    return _described(contract, tuple(names))


@functools.lru_cache(maxsize=256)
def _described(contract: type[Contract], offered: tuple[str, ...]) -> ContractDescription:
    known = routes_of(contract)
    classes = _Classes()
    routes = tuple(_route(known[name], classes) for name in offered)
    return ContractDescription(
        name=contract.contract_name,
        version=contract.contract_version,
        fingerprint=fingerprint(contract),
        documentation=_documentation(contract),
        routes=routes,
        classes=classes.described(),
    )


def _route(route: Route, classes: _Classes) -> RouteDescription:
    parameters = tuple(
        FieldDescription(
            name=name,
            type=classes.type(parameter.annotation),
            default=_default_text(parameter.default),
        )
        for name, parameter in route.signature.parameters.items()
    )
    result = classes.type(route.result)
    shown = ", ".join(
        f"{p.name}: {p.type.text}" + ("" if p.default is None else f" = {p.default}")
        for p in parameters
    )
    arrow = "->" if route.kind == "call" else "=>"
    return RouteDescription(
        path=route.path,
        kind=route.kind,
        parameters=parameters,
        result=result,
        documentation=route.documentation,
        text=f"{route.method}({shown}) {arrow} {result.text}",
    )


@attrs.define
class _Classes:
    """The classes that some routes need, each under a name of its own."""

    _names: dict[type, str] = field(factory=dict[type, str])
    _found: dict[str, ClassDescription | None] = field(factory=dict[str, "ClassDescription | None"])

    def described(self) -> tuple[ClassDescription, ...]:
        """Return the table, in the order in which the classes were met."""
        return tuple(entry for entry in self._found.values() if entry is not None)

    def type(self, annotation: Any) -> TypeDescription:
        """Describe a type; its classes join the table."""
        if annotation in SCALARS:
            return TypeDescription(_scalar_text(annotation), SCALARS[annotation])
        origin = typing.get_origin(annotation)
        arguments = typing.get_args(annotation)
        if origin is None:
            return self._class(annotation)
        if origin is Annotated:
            return self.type(arguments[0])
        if origin is Literal:
            shown = ", ".join(map(repr, arguments))
            values = tuple(map(_choice, arguments))
            return TypeDescription(f"Literal[{shown}]", "literal", values=values)
        if origin is Endpoint:
            name = cast("type[Contract]", arguments[0]).contract_name
            return TypeDescription(f"Endpoint[{name}]", "endpoint", name)
        parts = tuple(self.type(part) for part in arguments if part is not Ellipsis)
        texts = [part.text for part in parts]
        if origin in (Union, types.UnionType):
            return TypeDescription(" | ".join(texts), "union", arguments=parts)
        if origin in CHANNELS:
            kind = "sender" if origin is CHANNELS[0] else "receiver"
            return TypeDescription(f"{origin.__name__}[{texts[0]}]", kind, arguments=parts)
        if Ellipsis in arguments:
            texts.append("...")
            return TypeDescription(f"tuple[{', '.join(texts)}]", "list", arguments=parts)
        kind = {list: "list", set: "set", frozenset: "set", dict: "dict"}.get(origin, "tuple")
        return TypeDescription(f"{origin.__name__}[{', '.join(texts)}]", kind, arguments=parts)

    def _class(self, cls: type[Any]) -> TypeDescription:
        name = self._names.get(cls)
        kind: Literal["class", "enum"] = "class" if attrs.has(cls) else "enum"
        if name is None:
            name = (
                cls.__name__
                if cls.__name__ not in self._found
                else f"{cls.__module__}.{cls.__name__}"
            )
            self._names[cls] = name
            self._found[name] = None  # it may contain itself
            fields, values = (), ()
            if kind == "class":
                fields = self._fields(cls)
            else:
                values = tuple(_choice(member.value) for member in cast("type[enum.Enum]", cls))
            self._found[name] = ClassDescription(name, kind, _documentation(cls), fields, values)
        return TypeDescription(name, kind, name)

    def _fields(self, cls: type[Any]) -> tuple[FieldDescription, ...]:
        hints = typing.get_type_hints(cls)
        documented = _field_documentation(cls)
        return tuple(
            FieldDescription(
                name=attribute.name,
                type=self.type(hints[attribute.name]),
                default=_default_text(attribute.default),
                documentation=documented.get(attribute.name, ""),
            )
            for attribute in attrs.fields(cls)
            if attribute.init
        )


def _scalar_text(annotation: Any) -> str:
    return "None" if annotation is type(None) else str(annotation.__name__)


def _default_text(default: Any) -> str | None:
    if default is attrs.NOTHING or default is inspect.Parameter.empty:
        return None
    factory = getattr(default, "factory", None)
    if factory is not None:
        return f"{getattr(factory, '__name__', 'factory')}()"
    return str(default.value) if isinstance(default, enum.Enum) else repr(default)


def _choice(value: Any) -> str | int:
    return value if type(value) in (str, int) else str(value)


def _documentation(cls: type) -> str:
    # `getdoc` would give a class without a docstring that of its base; attrs makes one up.
    text = cls.__dict__.get("__doc__")
    return inspect.cleandoc(text) if text else ""


def _field_documentation(cls: type) -> dict[str, str]:
    """Return the strings that stand beneath the fields of a class, if its source is there."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return {}
    body = tree.body[0].body if tree.body and isinstance(tree.body[0], ast.ClassDef) else []
    found: dict[str, str] = {}
    for statement, following in itertools.pairwise(body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            found[statement.target.id] = inspect.cleandoc(following.value.value)
    return found
