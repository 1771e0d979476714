"""Contracts: what they may say, how a wrong one is told so, and what changes a fingerprint."""

from __future__ import annotations

import enum
import uuid
from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Literal, NewType, TypeVar

import pytest
from attrs import field, frozen
from trio.abc import ReceiveChannel, SendChannel

from container.ipc import Actor, Contract, ContractError, Endpoint, Fd
from container.ipc.contract import contracts_of, describe_type, fingerprint, routes_of

T = TypeVar("T")
Name = NewType("Name", str)


class Colour(enum.Enum):
    """An enum."""

    RED = "red"


@frozen
class Port:
    """A class."""

    host: str
    number: int = 80


@frozen
class Tree:
    """A class that contains itself."""

    children: tuple[Tree, ...] = ()


class Greeter(Contract, name="greeter"):
    """A contract with a method of each shape."""

    @abstractmethod
    async def greet(self, name: str, port: Port | None = None, *, loud: bool = False) -> str:
        """Say hello."""

    @abstractmethod
    async def all(
        self,
        a: bytes,
        b: float,
        c: datetime,
        d: uuid.UUID,
        e: Colour,
        f: Literal["x", 1],
        g: tuple[int, ...],
        h: list[Port],
        i: dict[str, set[int]],
        j: frozenset[str] | None,
        k: Fd,
        l: Endpoint[Greeter],  # noqa: E741
        m: Tree,
        n: dict[Colour, int],
    ) -> None: ...

    def helper(self) -> str:
        """Return something; no route."""
        return "help"


# --- routes -----------------------------------------------------------------------------------


def test_abstract_methods_are_the_routes() -> None:
    routes = routes_of(Greeter)
    assert list(routes) == ["greet", "all"]
    greet = routes["greet"]
    assert greet.path == "greeter/greet"
    assert greet.result is str
    assert greet.documentation == "Say hello."
    assert list(greet.signature.parameters) == ["name", "port", "loud"]
    assert greet.signature.parameters["port"].annotation == Port | None


def test_a_service_knows_the_contracts_that_it_implements() -> None:
    class Other(Contract, name="other"):
        @abstractmethod
        async def nothing(self) -> None: ...

    class Both(Actor, Greeter, Other):
        """Implements two."""

    assert contracts_of(Both) == (Greeter, Other)
    assert contracts_of(Greeter) == (Greeter,)
    assert Both.contract_name == "greeter"


def test_a_contract_that_extends_another_has_its_routes() -> None:
    class More(Greeter, name="more-greeter"):
        @abstractmethod
        async def wave(self) -> None: ...

    assert list(routes_of(More)) == ["greet", "all", "wave"]
    assert routes_of(More)["greet"].path == "more-greeter/greet"


# --- what a contract must not be --------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "Greeter", "a b", "a/b", "ä!", "a_b"])
def test_a_name_that_is_no_wire_name_is_refused_when_defined(name: str) -> None:
    with pytest.raises(ContractError, match="lower-case words joined by - or"):

        class Wrong(Contract, name=name):
            pass


def test_a_version_below_one_is_refused_when_defined() -> None:
    with pytest.raises(ContractError, match="version 0 is less than 1"):

        class Wrong(Contract, name="wrong", version=0):
            pass


def test_a_contract_without_a_name_is_refused_when_used() -> None:
    class Nameless(Contract):
        @abstractmethod
        async def nothing(self) -> None: ...

    with pytest.raises(ContractError, match=r"Nameless has no wire name: class Nameless\(Contract"):
        routes_of(Nameless)


def refused(function: Callable[..., Any]) -> str:
    """Return why a contract with this method is refused."""

    class Wrong(Contract, name="wrong"):
        method = abstractmethod(function)

    with pytest.raises(ContractError) as caught:
        routes_of(Wrong)
    return str(caught.value)


def test_a_method_that_is_neither_a_call_nor_a_scope_is_refused() -> None:
    def method(self: Any) -> None: ...

    assert refused(method) == (
        "Wrong.method is neither a coroutine method nor a plain one that returns an "
        "AbstractAsyncContextManager[...]"
    )


def test_a_method_that_returns_a_context_manager_is_a_scope() -> None:
    class Leases(Contract, name="leases"):
        @abstractmethod
        def lease(self, key: str) -> AbstractAsyncContextManager[Port]: ...
        @abstractmethod
        def ticks(self) -> AbstractAsyncContextManager[ReceiveChannel[Port]]: ...
        @abstractmethod
        async def copy(self, progress: SendChannel[int]) -> int: ...
        @abstractmethod
        def pause(self) -> AbstractAsyncContextManager[None]: ...

    routes = routes_of(Leases)
    assert [route.kind for route in routes.values()] == ["scope", "scope", "call", "scope"]
    assert routes["pause"].result is type(None)
    assert routes["lease"].result is Port
    assert routes["ticks"].result == ReceiveChannel[Port]


def test_a_channel_in_a_result_is_refused() -> None:
    async def bare(self: Any) -> ReceiveChannel[int]: ...
    async def inside(self: Any) -> list[SendChannel[int] | None]: ...

    for method in (bare, inside):
        assert "a call's result can't hold a channel" in refused(method)


def test_a_channel_of_what_can_t_travel_is_refused() -> None:
    async def method(self: Any, items: SendChannel[object]) -> None: ...

    assert refused(method) == "Wrong.method, items, item: object can't travel in a message"


def test_arguments_without_a_name_each_are_refused() -> None:
    async def several(self: Any, *names: str) -> None: ...
    async def keywords(self: Any, **names: str) -> None: ...

    assert "takes *names: name each argument" in refused(several)
    assert "takes *names: name each argument" in refused(keywords)


def test_a_missing_type_is_refused() -> None:
    async def argument(self: Any, name) -> None: ...  # type: ignore[no-untyped-def]
    async def result(self: Any, name: str): ...  # type: ignore[no-untyped-def]

    assert refused(argument) == "Wrong.method has no type for 'name'"
    assert refused(result) == "Wrong.method has no result type"


def test_a_type_that_does_not_exist_is_refused() -> None:
    async def method(self: Any, name: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    assert "Wrong.method: a type can't be resolved" in refused(method)


class Plain:
    """A class of nobody's."""


@frozen
class Holder:
    """A class whose field can't travel."""

    inner: tuple[Plain, ...]


@frozen
class Untyped:
    """A class with a field that has no type."""

    inner = field()


@pytest.mark.parametrize(
    ("annotation", "shown"),
    [
        (Any, "Any"),
        (object, "object"),
        (Plain, "Plain"),
        (complex, "complex"),
        (tuple, "tuple"),
        (list, "list"),
        (dict, "dict"),
        (Endpoint, "Endpoint"),
        (list[Any], "Any"),
        (dict[str, object], "object"),
        (Plain | None, "Plain"),
        (Callable[[], None], "Callable"),
        (type[int], "type"),
        (T, "T"),
        (Name, "Name"),
        (bytearray, "bytearray"),
    ],
)
def test_a_type_that_nothing_could_check_is_refused(annotation: Any, shown: str) -> None:
    async def method(self: Any, name: str) -> None: ...

    method.__annotations__["name"] = annotation
    message = refused(method)
    assert message.startswith("Wrong.method, name: ")
    assert shown in message
    assert message.endswith("can't travel in a message")


def test_a_result_that_nothing_could_check_is_refused() -> None:
    async def method(self: Any) -> object: ...

    assert refused(method) == "Wrong.method, result: object can't travel in a message"


def test_a_field_that_can_t_travel_is_refused_with_its_place() -> None:
    async def method(self: Any, name: dict[str, Holder]) -> None: ...

    assert refused(method) == "Wrong.method, name.inner: Plain can't travel in a message"


def test_a_field_without_a_type_is_refused() -> None:
    async def method(self: Any, name: Untyped) -> None: ...

    assert refused(method) == "Wrong.method, name.inner has no type"


def test_keys_that_are_no_plain_values_are_refused() -> None:
    async def method(self: Any, name: dict[Port, int]) -> None: ...

    assert "the keys of a dict are str, int or an enum" in refused(method)


def test_an_endpoint_of_no_contract_is_refused() -> None:
    async def method(self: Any, name: str) -> None: ...

    method.__annotations__["name"] = Endpoint[Port]  # type: ignore[type-var]
    assert "names no contract" in refused(method)


# --- fingerprints -----------------------------------------------------------------------------


def made(
    function: Callable[..., Any], *, version: int = 1, name: str = "made", method: str = "do"
) -> str:
    """Return the fingerprint of a contract with one method."""
    body = {method: abstractmethod(function)}
    return fingerprint(type("Made", (Contract,), body, name=name, version=version))  # type: ignore[call-overload]


async def plain(self: Any, who: str, times: int = 1) -> str: ...  # type: ignore[empty-body]
async def renamed(self: Any, name: str, times: int = 1) -> str: ...  # type: ignore[empty-body]
async def retyped(self: Any, who: bytes, times: int = 1) -> str: ...  # type: ignore[empty-body]
async def required(self: Any, who: str, times: int) -> str: ...  # type: ignore[empty-body]
async def longer(self: Any, who: str, times: int = 1, x: int = 2) -> str: ...  # type: ignore[empty-body]
async def answered(self: Any, who: str, times: int = 1) -> bytes: ...  # type: ignore[empty-body]
async def other_default(self: Any, who: str, times: int = 9) -> str: ...  # type: ignore[empty-body]


def test_a_fingerprint_is_sixteen_hex_digits_and_stays() -> None:
    assert len(made(plain)) == 16
    int(made(plain), 16)
    assert made(plain) == made(plain)


@pytest.mark.parametrize("other", [renamed, retyped, required, longer, answered])
def test_a_fingerprint_changes_with_a_signature(other: Callable[..., Any]) -> None:
    assert made(other) != made(plain)


def test_a_fingerprint_changes_with_name_version_and_route() -> None:
    prints = {
        made(plain),
        made(plain, version=2),
        made(plain, name="other"),
        made(plain, method="act"),
    }
    assert len(prints) == 4


def test_a_fingerprint_does_not_change_with_a_default_s_value() -> None:
    assert made(other_default) == made(plain)


def test_a_fingerprint_changes_with_a_field_deep_inside() -> None:
    def of(more: dict[str, Any]) -> str:
        inner = frozen(type("Inner", (), {"__annotations__": {"a": int} | more}))
        outer = frozen(type("Outer", (), {"__annotations__": {"inner": tuple[inner, ...]}}))

        async def method(self: Any, who: str) -> None: ...

        method.__annotations__["who"] = outer
        return made(method)

    assert of({}) == of({})
    assert len({of({}), of({"b": str}), of({"b": bytes}), of({"b": Colour})}) == 4


def test_a_shape_says_all_that_matters_and_ends() -> None:
    assert describe_type(Port) == "Port{host:str,number:int?}"
    assert describe_type(Tree) == "Tree{children:tuple[Tree,Ellipsis]?}"
    assert describe_type(Port | None) == "Union[Port{host:str,number:int?},NoneType]"
    assert describe_type(Literal["a", 1]) == "Literal['a',1]"
    assert describe_type(Colour) == "Colour(red)"
    assert describe_type(Endpoint[Greeter]) == "Endpoint[greeter]"
    assert describe_type(None) == "None"
