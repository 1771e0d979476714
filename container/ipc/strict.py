"""Two strict cattrs converters, and the sentence that says what they refused.

Strict means: `3` is not `"3"`, `True` is not `1`, a string is no sequence. `requests` refuses
unknown fields by name (an option that is silently dropped is a security bug), `replies` ignores
them (a newer server may say more). Missing fields take their defaults. Widening is the one
liberty: an int is accepted where a float is meant.
"""

from __future__ import annotations

import enum
import functools
import types
import typing
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal, Union, cast

import attrs
import cattrs
from cattrs.errors import BaseValidationError, ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn

from container.ipc import channel_types
from container.ipc.contract import Contract
from container.ipc.descriptor import Fd
from container.ipc.endpoint import Endpoint
from container.ipc.wirevalues import (
    SCALARS,
    WireDescriptor,
    WireEndpoint,
    WrongType,
    brief,
    uuid_out,
    word,
)


@functools.cache
def _enumeration(annotation: Any) -> Callable[[Any, Any], Any]:
    by_value: dict[tuple[type, Any], Any] = {
        (type(member.value), member.value): member for member in annotation
    }

    def structure(value: Any, _: Any) -> Any:
        try:
            return by_value[(type(value), value)]
        except (KeyError, TypeError):
            known = ", ".join(repr(member.value) for member in annotation)
            raise ValueError(f"{brief(value)} is none of {known}") from None

    return structure


def _make(kind: type, wanted: str) -> Callable[[Any, Any], Any]:
    def structure(value: Any, annotation: Any) -> Any:
        # cattrs finds the hook of int for an IntEnum too: its dispatch follows the bases.
        if annotation is not kind and isinstance(annotation, enum.EnumMeta):
            return _enumeration(annotation)(value, annotation)
        if type(value) is not kind:
            raise WrongType(wanted, value)
        return value

    return structure


def _float(value: Any, _: Any) -> float:
    if type(value) is float:
        return value
    if type(value) is int:
        return float(value)
    raise WrongType("float", value)


def _descriptor(value: Any, _: Any) -> Fd:
    if type(value) is not WireDescriptor:
        raise WrongType("descriptor", value)
    return value.claim()


def _uuid_out(value: uuid.UUID) -> object:
    if not isinstance(value, uuid.UUID):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise WrongType("uuid", value)
    return uuid_out(value)


def _datetime_out(value: datetime) -> datetime:
    if not isinstance(value, datetime):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise WrongType("datetime", value)
    if value.tzinfo is None:
        raise ValueError(f"{value} has no time zone")
    return value.astimezone(UTC)


def _identity(value: Any) -> Any:
    return value


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (Union, types.UnionType)


def _is_literal(annotation: Any) -> bool:
    return typing.get_origin(annotation) is Literal


def _is_enumeration(annotation: Any) -> bool:
    return isinstance(annotation, enum.EnumMeta)


def _is(kind: type) -> Callable[[Any], bool]:
    def check(annotation: Any) -> bool:
        return (typing.get_origin(annotation) or annotation) is kind

    return check


def _is_endpoint(annotation: Any) -> bool:
    return annotation is Endpoint or typing.get_origin(annotation) is Endpoint


def _sequence_hook(converter: cattrs.Converter, factory: Callable[[Any], Any]) -> Any:
    def make(annotation: Any) -> Any:
        arguments = typing.get_args(annotation)
        inner_type = arguments[0] if arguments else Any
        inner = converter.get_structure_hook(inner_type)

        def structure(value: Any, _: Any) -> Any:
            if type(value) is not list:
                raise WrongType("list", value)
            made: list[Any] = []
            for index, item in enumerate(cast("list[Any]", value)):
                try:
                    made.append(inner(item, inner_type))
                except Exception as error:
                    raise _At(f"[{index}]", error) from error
            try:
                return factory(made)
            except TypeError:
                raise ValueError("its items can't be in a set") from None

        return structure

    return make


class _At(ValueError):
    """Where inside a value something was wrong."""

    def __init__(self, place: str, cause: BaseException) -> None:
        super().__init__(place)
        self.place = place
        self.cause = cause


def _is_fixed_tuple(annotation: Any) -> bool:
    arguments = typing.get_args(annotation)
    return typing.get_origin(annotation) is tuple and not (
        len(arguments) == 2 and arguments[1] is Ellipsis
    )


def _is_variable_tuple(annotation: Any) -> bool:
    return annotation is tuple or (
        typing.get_origin(annotation) is tuple and not _is_fixed_tuple(annotation)
    )


def _converter(*, forbid_extra_keys: bool) -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=forbid_extra_keys, detailed_validation=True)

    for kind in (str, bytes, bool, int, datetime, uuid.UUID):
        converter.register_structure_hook(kind, _make(kind, SCALARS[kind]))
        converter.register_unstructure_hook(kind, _identity)
    converter.register_unstructure_hook(datetime, _datetime_out)
    converter.register_unstructure_hook(uuid.UUID, _uuid_out)
    converter.register_structure_hook(float, _float)
    converter.register_unstructure_hook(float, _identity)
    converter.register_structure_hook(Fd, _descriptor)
    converter.register_unstructure_hook(Fd, _identity)

    def attrs_class(annotation: Any) -> Any:
        fields: Any = make_dict_structure_fn(
            annotation,
            converter,
            _cattrs_forbid_extra_keys=forbid_extra_keys,
            _cattrs_detailed_validation=True,
        )

        def structure(value: Any, _: Any) -> Any:
            if type(value) is not dict:
                raise WrongType(word(annotation), value)
            return fields(value, annotation)

        return structure

    def fixed_tuple(annotation: Any) -> Any:
        inner = [(converter.get_structure_hook(t), t) for t in typing.get_args(annotation)]

        def structure(value: Any, _: Any) -> Any:
            if type(value) is not list or len(cast("list[Any]", value)) != len(inner):
                raise WrongType(f"list of {len(inner)}", cast("object", value))
            made: list[Any] = []
            for index, (hook, t) in enumerate(inner):
                try:
                    made.append(hook(cast("list[Any]", value)[index], t))
                except Exception as error:
                    raise _At(f"[{index}]", error) from error
            return tuple(made)

        return structure

    def mapping(annotation: Any) -> Any:
        key_type, value_type = typing.get_args(annotation) or (Any, Any)
        key_hook = converter.get_structure_hook(key_type)
        value_hook = converter.get_structure_hook(value_type)

        def structure(value: Any, _: Any) -> Any:
            if type(value) is not dict:
                raise WrongType("dict", value)
            made: dict[Any, Any] = {}
            for key, item in cast("dict[Any, Any]", value).items():
                try:
                    made[key_hook(key, key_type)] = value_hook(item, value_type)
                except Exception as error:
                    raise _At(f"[{brief(key)}]", error) from error
            return made

        return structure

    def literal(annotation: Any) -> Any:
        allowed = typing.get_args(annotation)

        def structure(value: Any, _: Any) -> Any:
            if any(type(value) is type(known) and value == known for known in allowed):
                return value
            raise ValueError(f"{brief(value)} is none of {', '.join(map(repr, allowed))}")

        return structure

    def union(annotation: Any) -> Any:
        members = [m for m in typing.get_args(annotation) if m is not type(None)]
        optional = len(members) < len(typing.get_args(annotation))
        hooks = [(converter.get_structure_hook(m), m) for m in members]

        def structure(value: Any, _: Any) -> Any:
            if value is None and optional:
                return None
            if len(hooks) == 1:
                return hooks[0][0](value, hooks[0][1])
            for hook, member in hooks:
                if type(value) is member:
                    return hook(value, member)
            failures: list[str] = []
            for hook, member in hooks:
                try:
                    return hook(value, member)
                except WrongType as error:
                    failures.append(error.wanted)
                except Exception as error:
                    failures.append(f"{word(member)} ({reason(error)})")
            raise WrongType(" or ".join(failures), value)

        return structure

    def endpoint(annotation: Any) -> Any:
        (contract,) = typing.get_args(annotation) or (Contract,)

        def structure(value: Any, _: Any) -> Any:
            if not isinstance(value, WireEndpoint):
                raise WrongType("endpoint", value)
            if value.contract != contract.contract_name:
                raise ValueError(
                    f"expected an endpoint of {contract.contract_name}, "
                    f"found one of {brief(value.contract)}"
                )
            return Endpoint(contract, value.descriptor.claim())

        return structure

    def enumeration(annotation: Any) -> Any:
        return _enumeration(annotation)

    converter.register_structure_hook_factory(attrs.has, attrs_class)
    converter.register_structure_hook_factory(_is_fixed_tuple, fixed_tuple)
    converter.register_structure_hook_factory(_is_variable_tuple, _sequence_hook(converter, tuple))
    for kind in (list, set, frozenset):
        converter.register_structure_hook_factory(_is(kind), _sequence_hook(converter, kind))
    converter.register_structure_hook_factory(_is(dict), mapping)
    converter.register_structure_hook_factory(_is_enumeration, enumeration)
    converter.register_structure_hook_factory(_is_literal, literal)
    converter.register_structure_hook_factory(_is_union, union)
    converter.register_structure_hook_factory(_is_endpoint, endpoint)
    converter.register_structure_hook(type(None), _make(type(None), "nothing"))
    converter.register_unstructure_hook_func(_is_endpoint, _identity)
    converter.register_unstructure_hook(Endpoint, _identity)

    def sequence_out(annotation: Any) -> Any:
        return _sequence_out(converter, annotation)

    for kind in (tuple, set, frozenset):
        converter.register_unstructure_hook_factory(_is(kind), sequence_out)
    channel_types.register(converter)
    return converter


def _sequence_out(converter: cattrs.Converter, annotation: Any) -> Callable[[Any], Any]:
    arguments = typing.get_args(annotation)
    if _is_fixed_tuple(annotation) and arguments:
        hooks = [converter.get_unstructure_hook(t) for t in arguments]

        def each(value: Any) -> list[Any]:
            return [hook(item) for hook, item in zip(hooks, value, strict=True)]

        return each
    inner: Callable[[Any], Any] = (
        converter.get_unstructure_hook(arguments[0]) if arguments else converter.unstructure
    )

    def all_alike(value: Any) -> list[Any]:
        return [inner(item) for item in value]

    return all_alike


requests = _converter(forbid_extra_keys=True)
"""Structures arguments: an unknown field is refused by name."""
replies = _converter(forbid_extra_keys=False)
"""The same rules, for results: an unknown field is ignored."""


def reason(error: BaseException, path: str = "") -> str:
    """Return one sentence of what was found wrong: path, wanted and found type."""
    while True:
        if isinstance(error, _At):
            path, error = path + error.place, error.cause
        elif isinstance(error, BaseValidationError) and error.exceptions:
            # The first fault stands for all; cattrs notes at which field it was.
            error = error.exceptions[0]
            for note in getattr(error, "__notes__", ()):
                name = str(getattr(note, "name", ""))
                path += f".{name}" if path and name else name
        else:
            break
    if isinstance(error, ForbiddenExtraKeysError):
        # Not `str(error)`: a hostile field name need not be text.
        names = sorted(brief(name) for name in error.extra_fields)
        text = f"unknown field {', '.join(names[:8])}"
    elif isinstance(error, KeyError):
        text = "missing"
    elif isinstance(error, RecursionError):
        text = "nested too deeply"
    else:
        text = str(error)
    return f"{path}: {text}" if path else text
