"""A contract: one class whose abstract methods are the routes, keys and types of a service.

The server implements it, the client holds a proxy of the very same type, and a type checker sees both
ends; no code is generated. What a contract is *not*: it knows no socket and no message.

```python
class Greeter(Contract, name="greeter"):
    @abstractmethod
    async def greet(self, name: str, log: Fd) -> Greeting: ...
```

`name` is the wire name, explicit and independent of the Python path. A class without `name=` (a
service that implements a contract) adds no routes. Argument and result types are attrs classes, str,
bytes, bool, int, float, datetime, UUID, enums, `Fd`, `Endpoint[Contract]`, and tuples, lists, dicts
and optionals of these.
"""

from __future__ import annotations

import enum
import hashlib
import inspect
import typing
from abc import ABC
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Self

import attrs
from attrs import field, frozen

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
    """The type that the method returns."""
    documentation: str = field(eq=False, repr=False)

    @property
    def path(self) -> str:
        """`contract/method`, as a call names it."""
        return f"{self.contract}/{self.method}"


class ContractError(TypeError):
    """The contract itself is wrong; raised when it is first used."""


class Contract(ABC):
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
            if not name or not name.replace("-", "").replace(".", "").isalnum() or name != name.lower():
                raise ContractError(f"contract name {name!r} is not lower-case words joined by - or .")
            cls.contract_name = name
            cls.contract_version = version
            cls._contract_class = cls

    @classmethod
    def connect(cls, address: Address) -> AbstractAsyncContextManager[Self]:
        """Connect to a service of this contract; the block holds a proxy of the contract's own type.

        Args:
            address: The path of a Unix socket, or an `Endpoint` of this contract.

        Raises:
            PeerGone: nobody listens there (`fate` is refused).
            PermissionDenied: the service does not admit us.
            Incompatible: the service does not speak this contract, or another version of it.
        """
        from container.ipc.client import connect_contract

        return connect_contract(cls, address)


def contracts_of(cls: type[Contract]) -> tuple[type[Contract], ...]:
    """Return the contracts that a class is or implements, the class's own order of bases kept."""
    return tuple(
        base
        for base in cls.__mro__
        if issubclass(base, Contract) and base is not Contract and base.__dict__.get("contract_name")
    )


_routes: dict[type[Contract], dict[str, Route]] = {}


def routes_of(contract: type[Contract]) -> dict[str, Route]:
    """Return the routes of one contract by method name, annotations resolved.

    Raises:
        ContractError: a method is no coroutine function, or a parameter or result has no type.
    """
    known = _routes.get(contract)
    if known is not None:
        return known
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
    if not inspect.iscoroutinefunction(function):
        raise ContractError(f"{where} is not a coroutine method")
    hints = typing.get_type_hints(function, include_extras=True)
    parameters: list[inspect.Parameter] = []
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ContractError(f"{where} takes *{parameter.name}: name each argument")
        if parameter.name not in hints:
            raise ContractError(f"{where} has no type for {parameter.name!r}")
        parameters.append(parameter.replace(annotation=hints[parameter.name]))
    if "return" not in hints:
        raise ContractError(f"{where} has no result type")
    return Route(
        contract=contract.contract_name,
        method=name,
        signature=inspect.Signature(parameters),
        result=hints["return"],
        documentation=inspect.getdoc(function) or "",
    )


def fingerprint(contract: type[Contract]) -> str:
    """Return 16 hex digits that change when a route, a parameter, or a field of a type changes."""
    lines = [f"{contract.contract_name} {contract.contract_version}"]
    for name, route in sorted(routes_of(contract).items()):
        parts = [
            f"{p.name}:{describe_type(p.annotation)}{'' if p.default is p.empty else '?'}"
            for p in route.signature.parameters.values()
        ]
        lines.append(f"{name}({','.join(parts)})->{describe_type(route.result)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def describe_type(annotation: Any) -> str:
    """Return a type's shape as one line, attrs fields included: what a fingerprint is made of."""
    if isinstance(annotation, type) and attrs.has(annotation):
        hints = typing.get_type_hints(annotation)
        fields = ",".join(
            f"{a.name}:{describe_type(hints.get(a.name, Any))}{'' if a.default is attrs.NOTHING else '?'}"
            for a in attrs.fields(annotation)
        )
        return f"{annotation.__name__}{{{fields}}}"
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return f"{annotation.__name__}({'|'.join(str(member.value) for member in annotation)})"
    arguments = typing.get_args(annotation)
    if not arguments:
        return str(getattr(annotation, "__name__", annotation))
    origin = typing.get_origin(annotation)
    name = str(getattr(origin, "__name__", origin))
    return f"{name}[{','.join(describe_type(a) for a in arguments)}]"
