"""Two strict cattrs converters, and the sentence that says what they refused.

Strict means: `3` is not `"3"`, `True` is not `1`, a string is no sequence. `requests` refuses
unknown fields by name (an option that is silently dropped is a security bug), `replies` ignores
them (a newer server may say more). Missing fields take their defaults. Widening is the one
liberty: an int is accepted where a float is meant.

A wire value was made by the decoder for this message alone: a list or a dictionary whose items are
taken as they are is checked, and kept.
"""

from __future__ import annotations

import enum
import functools
import types
import typing
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Union, cast

import attrs
import cattrs
from cattrs.fns import identity

from container.ipc import channel_types
from container.ipc.class_reader import EXACT, At, Hook, class_reader, optional_of
from container.ipc.contract import Contract
from container.ipc.descriptor import Fd, FdKind
from container.ipc.endpoint import Endpoint
from container.ipc.wirevalues import (
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


def _exact(kind: type, wanted: str) -> Hook:
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


def _kind_of_descriptor(annotation: Any) -> FdKind | None:
    if typing.get_origin(annotation) is not Annotated or annotation.__origin__ is not Fd:
        return None
    kinds = [extra for extra in annotation.__metadata__ if isinstance(extra, FdKind)]
    return kinds[0] if kinds else None


def _is_descriptor_of_a_kind(annotation: Any) -> bool:
    return _kind_of_descriptor(annotation) is not None


def _descriptor_of_a_kind(annotation: Any) -> Hook:
    kind = _kind_of_descriptor(annotation)
    assert kind is not None

    def structure(value: Any, _: Any) -> Fd:
        if type(value) is not WireDescriptor:
            raise WrongType("descriptor", value)
        if not kind.fits(value.fd.fileno()):
            raise ValueError(f"expected {kind.value}")  # unclaimed, it is closed
        return value.claim()

    return structure


def _uuid_out(value: uuid.UUID) -> object:
    if not isinstance(value, uuid.UUID):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise WrongType("uuid", value)
    return uuid_out(value)


def _datetime_out(value: datetime) -> datetime:
    if not isinstance(value, datetime):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise WrongType("datetime", value)
    if value.tzinfo is None:
        raise ValueError(f"{value} has no time zone")
    return value if value.tzinfo is UTC else value.astimezone(UTC)


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


def _sequence_hook(hook_of: Callable[[Any], Hook], factory: Callable[[Any], Any]) -> Any:
    def make(annotation: Any) -> Hook:
        inner_type = typing.get_args(annotation)[0]

        def exact(value: Any, _: Any) -> Any:
            if type(value) is not list:
                raise WrongType("list", value)
            items = cast("list[Any]", value)
            for item in items:
                if type(item) is not inner_type:
                    index = [type(item) is inner_type for item in items].index(False)
                    raise At(f"[{index}]", WrongType(EXACT[inner_type], items[index]))
            return items if factory is list else factory(items)

        if inner_type in EXACT:
            return exact
        inner = hook_of(inner_type)

        def structure(value: Any, _: Any) -> Any:
            if type(value) is not list:
                raise WrongType("list", value)
            made: list[Any] = []
            add = made.append
            try:
                for item in cast("list[Any]", value):
                    add(inner(item, inner_type))
            except Exception as error:
                raise At(f"[{len(made)}]", error) from error
            if factory is list:
                return made
            try:
                return factory(made)
            except TypeError:
                raise ValueError("its items can't be in a set") from None

        return structure

    return make


def _mapping_hook(hook_of: Callable[[Any], Hook]) -> Any:
    def make(annotation: Any) -> Hook:
        key_type, value_type = typing.get_args(annotation)
        key_hook, value_hook = hook_of(key_type), hook_of(value_type)
        exact_value = value_type in EXACT

        def structure(value: Any, _: Any) -> Any:
            if type(value) is not dict:
                raise WrongType("dict", value)
            made: dict[Any, Any] = {}
            key: object = None
            try:
                for key, item in cast("dict[Any, Any]", value).items():
                    made[key_hook(key, key_type)] = value_hook(item, value_type)
            except Exception as error:
                raise At(f"[{brief(key)}]", error) from error
            return made

        def exact_keys(value: Any, _: Any) -> Any:
            if type(value) is not dict:
                raise WrongType("dict", value)
            items = cast("dict[Any, Any]", value)
            key: object = None
            try:
                for key, item in items.items():
                    if type(key) is not key_type:
                        raise WrongType(EXACT[key_type], key)
                    if not exact_value:
                        items[key] = value_hook(item, value_type)
                    elif type(item) is not value_type:
                        raise WrongType(EXACT[value_type], item)
            except Exception as error:
                raise At(f"[{brief(key)}]", error) from error
            return items

        return exact_keys if key_type in EXACT else structure

    return make


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
    converter = cattrs.Converter(detailed_validation=False)

    for kind, called in EXACT.items():
        converter.register_structure_hook(kind, _exact(kind, called))
    converter.register_structure_hook(float, _float)
    converter.register_structure_hook(Fd, _descriptor)
    for kind in (*EXACT, float, Fd):
        converter.register_unstructure_hook(kind, identity)
    converter.register_unstructure_hook(datetime, _datetime_out)
    converter.register_unstructure_hook(uuid.UUID, _uuid_out)
    readers: dict[Any, Hook | None] = {}

    def hook_of(annotation: Any) -> Hook:
        if isinstance(annotation, enum.EnumMeta):
            return _enumeration(annotation)
        return converter.get_structure_hook(annotation)

    def attrs_class(annotation: Any) -> Hook:
        if annotation in readers:
            # Met inside itself: its reader exists when there is something to read.
            return lambda value, kind: cast("Hook", readers[kind])(value, kind)
        readers[annotation] = None
        reader = class_reader(annotation, hook_of, forbid_extra_keys=forbid_extra_keys)
        readers[annotation] = reader
        return reader

    def fixed_tuple(annotation: Any) -> Any:
        inner = [(hook_of(t), t) for t in typing.get_args(annotation)]

        def structure(value: Any, _: Any) -> Any:
            if type(value) is not list or len(cast("list[Any]", value)) != len(inner):
                raise WrongType(f"list of {len(inner)}", cast("object", value))
            made: list[Any] = []
            try:
                for (hook, t), item in zip(inner, cast("list[Any]", value), strict=True):
                    made.append(hook(item, t))
            except Exception as error:
                raise At(f"[{len(made)}]", error) from error
            return tuple(made)

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
        hooks = [(hook_of(m), m) for m in members]

        def one_or_none(value: Any, _: Any) -> Any:
            return None if value is None else hooks[0][0](value, members[0])

        if len(members) == 1:
            return one_or_none

        def structure(value: Any, _: Any) -> Any:
            if value is None and optional:
                return None
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
    converter.register_structure_hook_factory(_is_variable_tuple, _sequence_hook(hook_of, tuple))
    for kind in (list, set, frozenset):
        converter.register_structure_hook_factory(_is(kind), _sequence_hook(hook_of, kind))
    converter.register_structure_hook_factory(_is(dict), _mapping_hook(hook_of))
    converter.register_structure_hook_factory(_is_enumeration, enumeration)
    converter.register_structure_hook_factory(_is_literal, literal)
    converter.register_structure_hook_factory(_is_union, union)
    converter.register_structure_hook_factory(_is_endpoint, endpoint)
    converter.register_structure_hook_factory(_is_descriptor_of_a_kind, _descriptor_of_a_kind)
    converter.register_structure_hook(type(None), _exact(type(None), "nothing"))
    converter.register_unstructure_hook_func(_is_endpoint, identity)
    converter.register_unstructure_hook(Endpoint, identity)

    def sequence_out(annotation: Any) -> Any:
        return _sequence_out(converter, annotation)

    def plain_class_out(annotation: Any) -> Any:
        return _plain_class_out(converter, annotation)

    for kind in (list, tuple, set, frozenset):
        converter.register_unstructure_hook_factory(_is(kind), sequence_out)
    converter.register_unstructure_hook_func(_is_native_or_none, identity)
    converter.register_unstructure_hook_factory(_is_plain_class, plain_class_out)
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

    return list if inner is identity else all_alike


_NATIVE = frozenset({str, bytes, bool, int, float})
"""What the encoder takes as it is, and could take no other way."""


def _is_native_or_none(annotation: Any) -> bool:
    return optional_of(annotation) in _NATIVE


def _is_plain(annotation: Any) -> bool:
    """Are these simple values, or nothing but containers of such?"""
    if annotation in _NATIVE or _is_native_or_none(annotation):
        return True
    return typing.get_origin(annotation) in (list, tuple, set, frozenset, dict) and all(
        _is_plain(inner) for inner in typing.get_args(annotation) if inner is not Ellipsis
    )


def _is_plain_class(annotation: Any) -> bool:
    """Would the encoder make of an instance the dictionary that we would make?"""
    if not (isinstance(annotation, type) and attrs.has(annotation)):
        return False
    hints = typing.get_type_hints(annotation)
    return all(
        field.init and not field.name.startswith("_") and _is_plain(hints.get(field.name))
        for field in attrs.fields(annotation)
    )


def _plain_class_out(converter: cattrs.Converter, annotation: Any) -> Callable[[Any], Any]:
    field_by_field = converter.gen_unstructure_attrs_fromdict(annotation)

    def unstructure(value: Any) -> Any:
        # A subclass may hold more than the contract says: that stays at home.
        return value if type(value) is annotation else field_by_field(value)

    return unstructure


requests = _converter(forbid_extra_keys=True)
"""Structures arguments: an unknown field is refused by name."""
replies = _converter(forbid_extra_keys=False)
"""The same rules, for results: an unknown field is ignored."""


def reason(error: BaseException, path: str = "") -> str:
    """Return one sentence of what was found wrong: path, wanted and found type."""
    while isinstance(error, At):
        path, error = path + error.place, error.cause
    path = path.removeprefix(".")
    if isinstance(error, KeyError):
        text = "missing"
    elif isinstance(error, RecursionError):
        text = "nested too deeply"
    else:
        text = str(error)
    return f"{path}: {text}" if path else text
