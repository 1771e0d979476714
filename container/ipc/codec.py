"""Values of a contract to MessagePack and back, through one strict cattrs converter.

Strict means: `3` is not `"3"`, `True` is not `1`, a string is no sequence. Requests refuse unknown
fields by name (an option that is silently dropped is a security bug), replies ignore them (a newer
server may say more). Missing fields take their defaults. Widening is the one liberty: an int is
accepted where a float is meant.

Descriptors and endpoints are ordinary values: encoding collects them beside the bytes, in order;
decoding makes an `Fd` of each before anything else can fail, so that the caller of this module closes
all of them by closing `Incoming.descriptors`.
"""

from __future__ import annotations

import enum
import functools
import inspect
import types
import typing
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, Union, cast

import cattrs
import cattrs.gen
import msgspec
from attrs import define, field
from cattrs.errors import BaseValidationError, ForbiddenExtraKeysError

from container.ipc.contract import Contract, Route, routes_of
from container.ipc.descriptor import Fd
from container.ipc.endpoint import Endpoint
from container.ipc.errors import Incompatible, InvalidArgument
from container.ipc.wire.frames import (
    EXTENSION_DESCRIPTOR,
    EXTENSION_ENDPOINT,
    EXTENSION_UUID,
)
from container.ipc.wire.machine import UNDECODABLE

_SCALARS: dict[type, str] = {
    str: "str",
    bytes: "bytes",
    bool: "bool",
    int: "int",
    float: "float",
    datetime: "datetime",
    uuid.UUID: "uuid",
    dict: "dict",
    list: "list",
    Fd: "descriptor",
    type(None): "nothing",
}


def type_name(value: object) -> str:
    """Return the word for a wire value's type, for messages."""
    return _SCALARS.get(type(value), type(value).__name__)


class WrongType(ValueError):
    """A value is not of the type that was asked for."""

    def __init__(self, wanted: str, found: object) -> None:
        super().__init__(f"expected {wanted}, found {type_name(found)}")


@define(slots=True)
class _WireEndpoint:
    fd: Fd
    contract: str


@define(slots=True)
class Incoming:
    """The descriptors of one received message, each an owned `Fd`."""

    descriptors: list[Fd] = field(factory=list[Fd])
    _seen: set[int] = field(factory=set[int])

    @classmethod
    def of(cls, descriptors: Sequence[int]) -> Incoming:
        """Own received descriptors."""
        return cls([Fd(fd) for fd in descriptors])

    def close(self) -> None:
        """Close those that nobody took."""
        for fd in self.descriptors:
            fd.close()

    def close_unclaimed(self) -> None:
        """Close those that no value of the message refers to."""
        for index, fd in enumerate(self.descriptors):
            if index not in self._seen:
                fd.close()

    def _claim(self, index: object) -> Fd:
        if type(index) is not int or not 0 <= index < len(self.descriptors):
            raise ValueError(f"descriptor {index} did not come with this message")
        if index in self._seen:
            raise ValueError(f"descriptor {index} is named twice")
        self._seen.add(index)
        return self.descriptors[index]

    def extension(self, code: int, data: memoryview) -> object:
        """Decode our extension types; a hook for msgspec."""
        if code == EXTENSION_DESCRIPTOR:
            return self._claim(msgspec.msgpack.decode(data))
        if code == EXTENSION_UUID:
            return uuid.UUID(bytes=bytes(data))
        if code == EXTENSION_ENDPOINT:
            index, contract = msgspec.msgpack.decode(data, type=tuple[int, str])
            return _WireEndpoint(self._claim(index), contract)
        raise ValueError(f"unknown extension type {code}")


@define(slots=True)
class Outgoing:
    """The descriptors of one message to be sent."""

    descriptors: list[Fd] = field(factory=list[Fd])
    endpoints: list[Any] = field(factory=list[Any])

    def filenos(self) -> list[int]:
        """Return the raw descriptors, in the order of the frame."""
        return [fd.fileno() for fd in self.descriptors]

    def hook(self, value: object) -> object:
        """Encode our extension types; a hook for msgspec."""
        if isinstance(value, Fd):
            value.fileno()
            self.descriptors.append(value)
            index = msgspec.msgpack.encode(len(self.descriptors) - 1)
            return msgspec.msgpack.Ext(EXTENSION_DESCRIPTOR, index)
        if isinstance(value, uuid.UUID):
            return msgspec.msgpack.Ext(EXTENSION_UUID, value.bytes)
        if isinstance(value, Endpoint):
            endpoint = cast("Endpoint[Contract]", value)
            endpoint.fd.fileno()
            self.descriptors.append(endpoint.fd)
            self.endpoints.append(endpoint)
            body = (len(self.descriptors) - 1, endpoint.contract.contract_name)
            return msgspec.msgpack.Ext(EXTENSION_ENDPOINT, msgspec.msgpack.encode(body))
        raise TypeError(f"a {type(value).__name__} can't travel in a message")

    def sent(self, *, result: bool) -> None:
        """Close what was given away: `Fd.give`, endpoints, and for a result all owned ones."""
        from container.ipc.descriptor import Ownership

        for fd in self.descriptors:
            if fd.ownership is Ownership.GIVEN or (result and fd.ownership is Ownership.OWNED):
                fd.close()
        for endpoint in self.endpoints:
            endpoint.close()


def _make(kind: type, wanted: str) -> Callable[[Any, Any], Any]:
    def structure(value: Any, _: Any) -> Any:
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


def _datetime_out(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError(f"{value} has no time zone")
    return value.astimezone(UTC)


def _identity(value: Any) -> Any:
    return value


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (Union, types.UnionType)


def _is_literal(annotation: Any) -> bool:
    return typing.get_origin(annotation) is Literal


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
            return factory(made)

        return structure

    return make


class _At(ValueError):
    """Where inside a value something was wrong."""

    def __init__(self, place: str, cause: BaseException) -> None:
        super().__init__(f"{place}{_reason(cause)}")


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

    for kind in (str, bytes, bool, int, datetime, uuid.UUID, Fd):
        converter.register_structure_hook(kind, _make(kind, _SCALARS[kind]))
        converter.register_unstructure_hook(
            kind, _datetime_out if kind is datetime else _identity
        )
    converter.register_structure_hook(float, _float)
    converter.register_unstructure_hook(float, lambda value: float(value))

    def fixed_tuple(annotation: Any) -> Any:
        inner = [(converter.get_structure_hook(t), t) for t in typing.get_args(annotation)]

        def structure(value: Any, _: Any) -> Any:
            if type(value) is not list or len(cast("list[Any]", value)) != len(inner):
                raise WrongType(f"list of {len(inner)}", value)
            return tuple(
                hook(item, t) for item, (hook, t) in zip(cast("list[Any]", value), inner, strict=True)
            )

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
                    raise _At(f"[{key!r}]", error) from error
            return made

        return structure

    def enumeration(annotation: Any) -> Any:
        by_value = {(type(member.value), member.value): member for member in annotation}

        def structure(value: Any, _: Any) -> Any:
            try:
                return by_value[(type(value), value)]
            except (KeyError, TypeError):
                known = ", ".join(repr(member.value) for member in annotation)
                raise ValueError(f"{value!r} is none of {known}") from None

        return structure

    def literal(annotation: Any) -> Any:
        allowed = typing.get_args(annotation)

        def structure(value: Any, _: Any) -> Any:
            if any(type(value) is type(known) and value == known for known in allowed):
                return value
            raise ValueError(f"{value!r} is none of {', '.join(map(repr, allowed))}")

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
                except Exception as error:
                    failures.append(_reason(error))
            raise ValueError("; ".join(failures))

        return structure

    def endpoint(annotation: Any) -> Any:
        (contract,) = typing.get_args(annotation) or (Contract,)

        def structure(value: Any, _: Any) -> Any:
            if not isinstance(value, _WireEndpoint):
                raise WrongType("endpoint", value)
            if value.contract != contract.contract_name:
                raise ValueError(
                    f"expected an endpoint of {contract.contract_name}, found {value.contract}"
                )
            return Endpoint(contract, value.fd)

        return structure

    converter.register_structure_hook_factory(_is_fixed_tuple, fixed_tuple)
    converter.register_structure_hook_factory(_is_variable_tuple, _sequence_hook(converter, tuple))
    for origin, factory in ((list, list), (set, set), (frozenset, frozenset)):
        converter.register_structure_hook_factory(
            functools.partial(lambda o, t: (typing.get_origin(t) or t) is o, origin),
            _sequence_hook(converter, factory),
        )
    converter.register_structure_hook_factory(
        lambda t: (typing.get_origin(t) or t) is dict, mapping
    )
    converter.register_structure_hook_factory(
        lambda t: isinstance(t, type) and issubclass(t, enum.Enum), enumeration
    )
    converter.register_structure_hook_factory(_is_literal, literal)
    converter.register_structure_hook_factory(_is_union, union)
    converter.register_structure_hook_factory(_is_endpoint, endpoint)
    converter.register_structure_hook(type(None), _make(type(None), "nothing"))
    converter.register_unstructure_hook_func(_is_endpoint, lambda value: value)
    converter.register_unstructure_hook(Endpoint, lambda value: value)
    for sequence in (tuple, set, frozenset):
        converter.register_unstructure_hook_factory(
            functools.partial(lambda o, t: (typing.get_origin(t) or t) is o, sequence),
            lambda t: _sequence_out(converter, t),
        )
    return converter


def _sequence_out(converter: cattrs.Converter, annotation: Any) -> Any:
    arguments = typing.get_args(annotation)
    if _is_fixed_tuple(annotation) and arguments:
        hooks = [converter.get_unstructure_hook(t) for t in arguments]
        return lambda value: [hook(v) for hook, v in zip(hooks, value, strict=True)]
    inner = converter.get_unstructure_hook(arguments[0]) if arguments else converter.unstructure
    return lambda value: [inner(v) for v in value]


requests = _converter(forbid_extra_keys=True)
"""Structures arguments: an unknown field is refused by name."""
replies = _converter(forbid_extra_keys=False)
"""The same rules, for results: an unknown field is ignored."""


def _reason(error: BaseException, path: str = "") -> str:
    """Return one sentence of what cattrs found wrong: path, wanted and found type."""
    if isinstance(error, ForbiddenExtraKeysError):
        names = ", ".join(sorted(repr(name) for name in error.extra_fields))
        return f"{path}: unknown field {names}" if path else f"unknown field {names}"
    if isinstance(error, BaseValidationError):
        for child in error.exceptions:
            notes = [str(note) for note in getattr(child, "__notes__", [])]
            name = ""
            for note in getattr(child, "__notes__", []):
                name = str(getattr(note, "name", "") or name)
            where = f"{path}.{name}" if path and name else name or path
            del notes
            return _reason(child, where)
    if isinstance(error, KeyError) and path:
        return f"{path}: missing"
    text = str(error)
    if isinstance(error, TypeError) and "missing" in text:
        text = "a field is missing"
    return f"{path}{'' if text.startswith('[') else ': '}{text}" if path else text


@define(slots=True, eq=False)
class RouteCodec:
    """How one route's arguments and result are encoded; built once per route."""

    route: Route
    names: tuple[str, ...]
    _lower: tuple[Callable[[Any], Any], ...]
    _lift: dict[str, tuple[Callable[[Any, Any], Any], Any]]
    _required: tuple[str, ...]
    _result_out: Callable[[Any], Any]
    _result_in: Callable[[Any, Any], Any]

    @classmethod
    def of(cls, route: Route) -> RouteCodec:
        """Build the codec of a route."""
        parameters = route.signature.parameters
        return cls(
            route=route,
            names=tuple(parameters),
            lower=tuple(requests.get_unstructure_hook(p.annotation) for p in parameters.values()),
            lift={
                name: (requests.get_structure_hook(p.annotation), p.annotation)
                for name, p in parameters.items()
            },
            required=tuple(n for n, p in parameters.items() if p.default is inspect.Parameter.empty),
            result_out=replies.get_unstructure_hook(route.result),
            result_in=replies.get_structure_hook(route.result),
        )

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any]:
        """Return the arguments in the order of the parameters, defaults filled in."""
        if not kwargs and len(args) == len(self.names):
            return args
        bound = self.route.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return list(bound.arguments.values())

    def lower(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return arguments as a typed dictionary of wire values."""
        return {
            name: hook(value)
            for name, hook, value in zip(self.names, self._lower, values, strict=True)
        }

    def arguments(self, raw: msgspec.Raw, incoming: Incoming) -> dict[str, Any]:
        """Decode and check the arguments of a call.

        Raises:
            InvalidArgument: names the argument, the wanted and the found type.
        """
        where = self.route.path
        try:
            body: Any = msgspec.msgpack.decode(raw, ext_hook=incoming.extension)
        except UNDECODABLE as error:
            raise InvalidArgument(f"{where}: the arguments are no message: {error}") from None
        if type(body) is not dict:
            raise InvalidArgument(f"{where}: expected a dict of arguments, found {type_name(body)}")
        made: dict[str, Any] = {}
        for name, value in cast("dict[Any, Any]", body).items():
            known = self._lift.get(name)
            if known is None:
                raise InvalidArgument(f"{where} has no argument {name!r}")
            try:
                made[name] = known[0](value, known[1])
            except Exception as error:
                raise InvalidArgument(f"{where}: {_reason(error, name)}") from error
        for name in self._required:
            if name not in made:
                raise InvalidArgument(f"{where}: argument {name!r} is missing")
        return made

    def result(self, value: Any, outgoing: Outgoing) -> bytes:
        """Encode a handler's result as a reply's payload."""
        return msgspec.msgpack.encode((self._result_out(value),), enc_hook=outgoing.hook)

    def result_of(self, raw: msgspec.Raw | None, incoming: Incoming) -> Any:
        """Decode a reply.

        Raises:
            Incompatible: the reply is not what the contract says.
        """
        where = self.route.path
        if raw is None:
            raise Incompatible(f"the reply of {where} is no message")
        try:
            body: Any = msgspec.msgpack.decode(raw, ext_hook=incoming.extension)
            return self._result_in(body, self.route.result)
        except UNDECODABLE as error:
            raise Incompatible(f"the reply of {where} can't be read: {_reason(error)}") from error
        except (BaseValidationError, Exception) as error:
            raise Incompatible(f"the reply of {where} can't be read: {_reason(error)}") from error


@functools.cache
def codecs_of(contract: type[Contract]) -> dict[str, RouteCodec]:
    """Return the codec of each route of a contract, by method name."""
    return {name: RouteCodec.of(route) for name, route in routes_of(contract).items()}
