"""A contract: one class whose abstract methods are the routes, keys and types of a service.

The server implements it, the client holds a proxy of the very same type, and a type checker sees
both ends; no code is generated. What a contract is *not*: it knows no socket and no message.

```python
class Greeter(Contract, name="greeter"):
    @abstractmethod
    async def greet(self, name: str, log: Fd) -> Greeting: ...                 # a call
    @abstractmethod
    def lease(self, key: str) -> AbstractAsyncContextManager[Lease]: ...       # a scope
    @abstractmethod
    def ticks(self) -> AbstractAsyncContextManager[ReceiveChannel[Tick]]: ...  # a stream
```

`name` is the wire name, explicit and independent of the Python path. A class without `name=` (a
service that implements a contract) adds no routes. Argument and result types are attrs classes,
str, bytes, bool, int, float, datetime, UUID, enums, literals, `Fd`, `Endpoint[Contract]`, ends of
channels (`trio.abc.SendChannel[Item]`, `trio.abc.ReceiveChannel[Item]`), and tuples, lists, sets,
dicts, unions and optionals of these. Anything else is refused when the contract is first used: what
can't be checked can't be trusted. So is a channel in a call's result, since nothing would bound it:
make that method a scope.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import os
import types
import typing
import uuid
from abc import ABC
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar, Union, cast

import attrs
import trio
from attrs import field, frozen

from container.ipc.descriptor import Fd

if TYPE_CHECKING:
    from container.ipc.client import Address


@frozen
class Route:
    """One method of a contract, as it is on the wire."""

    contract: str
    method: str
    signature: inspect.Signature = field(eq=False, repr=False)
    """With the annotations resolved; `self` left out."""
    result: Any
    """The type that the method returns; of a scope, the type of its value."""
    documentation: str = field(eq=False, repr=False)
    kind: Literal["call", "scope"] = "call"
    idempotent: bool = field(default=False, eq=False)
    """Doing it twice does what doing it once does: it may be retried when its fate is unknown."""

    @property
    def path(self) -> str:
        """`contract/method`, as a call names it."""
        return f"{self.contract}/{self.method}"


class ContractError(TypeError):
    """The contract itself is wrong; raised when it is defined or first used."""


class Contract(ABC):  # noqa: B024 (its subclasses declare the routes)
    """Base of all contracts.

    Class arguments:
        name: The wire name: lower-case words joined by `-` or `.`.
        version: Raised when an incompatible change was made.
    """

    contract_name: ClassVar[str] = ""
    contract_version: ClassVar[int] = 0
    _contract_class: ClassVar[type[Contract] | None] = None

    def __init_subclass__(cls, *, name: str | None = None, version: int = 1, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        if name is not None:
            if (
                not name
                or not name.replace("-", "").replace(".", "").isalnum()
                or name != name.lower()
            ):
                raise ContractError(
                    f"contract name {name!r} is not lower-case words joined by - or ."
                )
            if version < 1:
                raise ContractError(f"contract {name}: version {version} is less than 1")
            cls.contract_name = name
            cls.contract_version = version
            cls._contract_class = cls

    @classmethod
    def connect(cls, address: Address) -> AbstractAsyncContextManager[Self]:
        """Connect to a service of this contract; the block holds a proxy of the contract's type.

        Args:
            address: The path of a Unix socket, or an `Endpoint` of this contract.

        Raises:
            PeerGone: nobody listens there (`fate` is refused).
            PermissionDenied: the service does not admit us.
            Incompatible: the service does not speak this contract, or another version of it.
        """
        from container.ipc.client import connect_contract

        return connect_contract(cls, address)

    @classmethod
    def connect_named(cls, path: str | os.PathLike[str]) -> AbstractAsyncContextManager[Self]:
        """Connect to whatever instance serves a path: when it goes, calls go to the next one.

        A call, or the opening of a scope, that was not sent goes to the next instance; a call whose
        fate is unknown is made once more if its method is `idempotent`. What holds descriptors,
        endpoints or channels is not repeated: they may have been given away. A scope that is open
        ends with its instance.

        Raises: as `connect` does, from the first connection and from calls that need another one.
        """
        from container.ipc.named import connect_named

        return connect_named(cls, path)


def contracts_of(cls: type[Contract]) -> tuple[type[Contract], ...]:
    """Return the contracts that a class is or implements, the class's own order of bases kept."""
    return tuple(
        base
        for base in cls.__mro__
        if issubclass(base, Contract)
        and base is not Contract
        and base.__dict__.get("contract_name")
    )


_routes: dict[type[Contract], dict[str, Route]] = {}


def routes_of(contract: type[Contract]) -> dict[str, Route]:
    """Return the routes of one contract by method name, annotations resolved.

    Raises:
        ContractError: it has no name, a method is neither a call nor a scope, or a parameter or
            result has no type, or one that can't travel.
    """
    known = _routes.get(contract)
    if known is not None:
        return known
    if not contract.contract_name:
        raise ContractError(
            f"{contract.__name__} has no wire name: class {contract.__name__}(Contract, name=...)"
        )
    found: dict[str, Route] = {}
    for base in reversed(contract.__mro__):
        if not issubclass(base, Contract) or base is Contract:
            continue
        for name, value in base.__dict__.items():
            if getattr(value, "__isabstractmethod__", False):
                found[name] = _route(contract, name, value)
    _routes[contract] = found
    return found


def _route(contract: type[Contract], name: str, function: Callable[..., Any]) -> Route:
    where = f"{contract.__name__}.{name}"
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError) as error:
        raise ContractError(f"{where}: a type can't be resolved: {error}") from error
    parameters: list[inspect.Parameter] = []
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ContractError(f"{where} takes *{parameter.name}: name each argument")
        if parameter.name not in hints:
            raise ContractError(f"{where} has no type for {parameter.name!r}")
        _check_type(hints[parameter.name], f"{where}, {parameter.name}", frozenset())
        parameters.append(parameter.replace(annotation=hints[parameter.name]))
    if "return" not in hints:
        raise ContractError(f"{where} has no result type")
    result = hints["return"]
    kind: Literal["call", "scope"] = "call"
    if inspect.iscoroutinefunction(function):
        _check_type(result, f"{where}, result", frozenset())
        if _holds(result, frozenset(), CHANNELS):
            raise ContractError(
                f"{where}: a call's result can't hold a channel, since nothing would bound it: "
                "make the method a scope (a plain def that returns an async context manager)"
            )
    elif typing.get_origin(result) in (AbstractAsyncContextManager, typing.AsyncContextManager):
        kind = "scope"
        (result, *_) = typing.get_args(result)
        result = type(None) if result is None else result  # the alias keeps None as it is written
        _check_type(result, f"{where}, value", frozenset())
    else:
        raise ContractError(
            f"{where} is neither a coroutine method nor a plain one that returns an "
            "AbstractAsyncContextManager[...]"
        )
    return Route(
        contract=contract.contract_name,
        method=name,
        signature=inspect.Signature(parameters),
        result=result,
        kind=kind,
        documentation=inspect.getdoc(function) or "",
        idempotent=kind == "call" and getattr(function, "__idempotent__", False),
    )


F = TypeVar("F", bound=Callable[..., Any])


def idempotent(method: F) -> F:
    """Mark a call that may be made twice: `connect_named` repeats it when its fate is unknown.

    Written below `@abstractmethod`. Nothing of it is on the wire.
    """
    method.__idempotent__ = True  # pyright: ignore[reportFunctionMemberAccess]
    return method


CHANNELS = (trio.abc.SendChannel, trio.abc.ReceiveChannel)
"""The types of a channel's two ends."""


def holds_capabilities(annotation: Any) -> bool:
    """Can a value of this type hold a descriptor, an endpoint or a channel?"""
    from container.ipc.endpoint import Endpoint

    return _holds(annotation, frozenset(), (Fd, Endpoint, *CHANNELS))


def _holds(annotation: Any, above: frozenset[Any], wanted: tuple[type, ...]) -> bool:
    """`above` holds the attrs classes that lead here: a class may contain itself."""
    origin = typing.get_origin(annotation)
    if annotation in wanted or origin in wanted:
        return True
    if origin is Literal or annotation in above:
        return False
    inside: Iterable[Any] = typing.get_args(annotation)
    if attrs.has(annotation):
        above |= {annotation}
        inside = typing.get_type_hints(annotation).values()
    return any(_holds(part, above, wanted) for part in inside)


_PLAIN = frozenset({str, bytes, bool, int, float, datetime, uuid.UUID, type(None), Fd})


def _check_type(annotation: Any, where: str, above: frozenset[type]) -> None:
    """Refuse a type that no converter could check.

    `above` holds the attrs classes that lead here: a class may contain itself.
    """
    from container.ipc.endpoint import Endpoint

    if annotation in _PLAIN or isinstance(annotation, enum.EnumMeta) or annotation in above:
        return
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if isinstance(annotation, type) and origin is None and attrs.has(annotation):
        for name, hint in _fields(annotation, where):
            _check_type(hint, f"{where}.{name}", above | {annotation})
    elif origin is Annotated:
        _check_type(arguments[0], where, above)
    elif origin is Endpoint:
        (contract,) = arguments
        if not (isinstance(contract, type) and issubclass(contract, Contract)):
            raise ContractError(f"{where}: Endpoint[{contract}] names no contract")
        if not contract.contract_name:
            raise ContractError(f"{where}: the contract {contract.__name__} has no wire name")
    elif origin in CHANNELS:
        _check_type(arguments[0], f"{where}, item", above)
    elif origin in (Union, types.UnionType, list, set, frozenset, tuple):
        for argument in arguments:
            if argument is not Ellipsis:
                _check_type(argument, where, above)
    elif origin is dict:
        if arguments[0] not in (str, int) and not isinstance(arguments[0], enum.EnumMeta):
            raise ContractError(f"{where}: the keys of a dict are str, int or an enum")
        _check_type(arguments[1], where, above)
    elif origin is not Literal:
        shown = describe_type(annotation) if isinstance(annotation, type) else str(annotation)
        raise ContractError(f"{where}: {shown} can't travel in a message")


def _fields(cls: type, where: str) -> list[tuple[str, Any]]:
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except (NameError, TypeError) as error:
        raise ContractError(f"{where}: a type can't be resolved: {error}") from error
    found: list[tuple[str, Any]] = []
    for attribute in attrs.fields(cls):
        if not attribute.init:
            continue
        if attribute.name not in hints:
            raise ContractError(f"{where}.{attribute.name} has no type")
        found.append((attribute.name, hints[attribute.name]))
    return found


@functools.cache
def fingerprint(contract: type[Contract]) -> str:
    """Return 16 hex digits that change when a route, a parameter, or a field of a type changes."""
    lines = [f"{contract.contract_name} {contract.contract_version}"]
    for name, route in sorted(routes_of(contract).items()):
        parts = [
            f"{p.name}:{describe_type(p.annotation)}{'' if p.default is p.empty else '?'}"
            for p in route.signature.parameters.values()
        ]
        arrow = "->" if route.kind == "call" else "=>"
        lines.append(f"{name}({','.join(parts)}){arrow}{describe_type(route.result)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def describe_type(annotation: Any, above: frozenset[Any] = frozenset()) -> str:
    """Return a type's shape as one line, attrs fields included: what a fingerprint is made of.

    A contract is known by its wire name, a class inside itself by its name alone.
    """
    if isinstance(annotation, type) and typing.get_origin(annotation) is None:
        kind = cast("type[Any]", annotation)
        if kind in above:
            return kind.__name__
        if attrs.has(kind):
            hints = typing.get_type_hints(kind)
            shapes: list[str] = []
            for attribute in attrs.fields(kind):
                shape = describe_type(hints.get(attribute.name, Any), above | {kind})
                optional = "" if attribute.default is attrs.NOTHING else "?"
                shapes.append(f"{attribute.name}:{shape}{optional}")
            return f"{kind.__name__}{{{','.join(shapes)}}}"
        if issubclass(kind, enum.Enum):
            return f"{kind.__name__}({'|'.join(str(member.value) for member in kind)})"
        if issubclass(kind, Contract):
            return kind.contract_name
        return kind.__name__
    arguments = typing.get_args(annotation)
    if not arguments:
        return str(getattr(annotation, "__name__", annotation))
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return describe_type(arguments[0], above)  # on the wire it is a descriptor as any
    if origin is Literal:
        return f"Literal[{','.join(map(repr, arguments))}]"
    name = "Union" if origin is types.UnionType else str(getattr(origin, "__name__", origin))
    return f"{name}[{','.join(describe_type(a, above) for a in arguments)}]"
