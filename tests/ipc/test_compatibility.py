"""What a change of a contract breaks is named, and two versions of a service get along as told."""

from __future__ import annotations

import enum
import json
import subprocess
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from attrs import frozen
from trio.abc import ReceiveChannel, SendChannel

from container.ipc import Contract, Incompatible, InvalidArgument, UnknownRoute
from container.ipc.compatibility import check, compare, contracts_in, record, recorded
from container.ipc.describe import describe_contract

ROOT = Path(__file__).parents[2]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class MoreColour(enum.Enum):
    RED = "red"
    BLUE = "blue"
    GREEN = "green"


@frozen
class Item:
    name: str
    size: int = 0


@frozen
class LongerItem:
    name: str
    size: int = 0
    tag: str = ""


@frozen
class StricterItem:
    name: str
    size: int
    tag: str


@frozen
class Nested:
    items: tuple[Item, ...]
    below: Nested | None = None


@frozen
class LongerNested:
    items: tuple[LongerItem, ...]
    below: LongerNested | None = None


def contract(method: Callable[..., Any], version: int = 1) -> type[Contract]:
    """Return a contract with one method."""

    class It(Contract, name="it", version=version):
        do = abstractmethod(method)

    return It


def changes(old: Callable[..., Any], new: Callable[..., Any]) -> tuple[list[str], list[str]]:
    """Return incompatible and compatible changes, as sentences without the route."""
    found = compare(describe_contract(contract(old)), describe_contract(contract(new)))
    return (
        [str(change).removeprefix("it/do") for change in found if not change.compatible],
        [str(change).removeprefix("it/do") for change in found if change.compatible],
    )


async def takes_int(self: Any, x: int) -> None: ...
async def takes_float(self: Any, x: float) -> None: ...
async def takes_str(self: Any, x: str) -> None: ...
async def takes_int_or_str(self: Any, x: int | str) -> None: ...
async def takes_optional_int(self: Any, x: int | None) -> None: ...
async def takes_int_by_default(self: Any, x: int = 3) -> None: ...
async def takes_two(self: Any, x: int, y: int) -> None: ...
async def takes_one_more(self: Any, x: int, y: int = 3) -> None: ...
async def takes_colour(self: Any, x: Colour) -> None: ...
async def takes_more_colours(self: Any, x: MoreColour) -> None: ...
async def takes_item(self: Any, x: Item) -> None: ...
async def takes_longer_item(self: Any, x: LongerItem) -> None: ...
async def takes_stricter_item(self: Any, x: StricterItem) -> None: ...
async def takes_nested(self: Any, x: Nested) -> None: ...
async def takes_longer_nested(self: Any, x: LongerNested) -> None: ...
async def takes_a_or_b(self: Any, x: Literal["a", "b"]) -> None: ...
async def takes_a(self: Any, x: Literal["a"]) -> None: ...
async def gives_int(self: Any) -> int: ...
async def gives_float(self: Any) -> float: ...
async def gives_optional_int(self: Any) -> int | None: ...
async def gives_colour(self: Any) -> Colour: ...
async def gives_more_colours(self: Any) -> MoreColour: ...
async def gives_item(self: Any) -> Item: ...
async def gives_longer_item(self: Any) -> LongerItem: ...
async def gives_stricter_item(self: Any) -> StricterItem: ...
async def gives_items(self: Any) -> list[Item]: ...
async def gives_longer_items(self: Any) -> list[LongerItem]: ...
async def sends_int(self: Any, x: SendChannel[int]) -> None: ...
async def sends_int_or_str(self: Any, x: SendChannel[int | str]) -> None: ...
async def receives_int(self: Any, x: ReceiveChannel[int]) -> None: ...
async def receives_int_or_str(self: Any, x: ReceiveChannel[int | str]) -> None: ...
def renamed(cls: type, name: str) -> type:
    """Return a class under another's name: the same one, of a later version."""
    later = type(name, (cls,), {"__module__": cls.__module__, "__annotations__": {}})
    later.__doc__ = cls.__doc__
    return frozen(later)


LaterItem: Any = renamed(LongerItem, "Item")
MustItem: Any = renamed(StricterItem, "Item")


async def takes_item_or_none(self: Any, x: Item | None) -> None: ...
async def takes_later_item_or_none(self: Any, x: LaterItem | None) -> None: ...
async def takes_must_item_or_none(self: Any, x: MustItem | None) -> None: ...
async def gives_item_or_none(self: Any) -> Item | None: ...
async def gives_later_item_or_none(self: Any) -> LaterItem | None: ...
async def sends_int_or_none(self: Any, x: SendChannel[int] | None) -> None: ...
async def sends_float_or_none(self: Any, x: SendChannel[float] | None) -> None: ...
def holds_int(self: Any) -> AbstractAsyncContextManager[int]: ...
def streams_int(self: Any) -> AbstractAsyncContextManager[ReceiveChannel[int]]: ...
def streams_float(self: Any) -> AbstractAsyncContextManager[ReceiveChannel[float]]: ...


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (takes_int, takes_str, ", x: its type was int and is str"),
        (takes_float, takes_int, ", x: its type was float and is int"),
        (takes_int_or_str, takes_int, ", x: its type was int | str and is int"),
        (takes_optional_int, takes_int, ", x: its type was int | None and is int"),
        (takes_int_by_default, takes_int, ", x: the argument must be given now"),
        (takes_one_more, takes_int, ", y: the argument was removed"),
        (takes_int, takes_two, ", y: the argument was added and must be given"),
        (takes_more_colours, takes_colour, ", x: 'green' was removed"),
        (takes_longer_item, takes_item, ", x, tag: the field was removed"),
        (takes_item, takes_stricter_item, ", x, tag: the field was added and must be given"),
        (takes_longer_nested, takes_nested, ", x, items, tag: the field was removed"),
        (takes_a_or_b, takes_a, ", x: its type was Literal['a', 'b'] and is Literal['a']"),
        (gives_int, gives_float, ", result: its type was int and is float"),
        (gives_int, gives_optional_int, ", result: its type was int and is int | None"),
        (gives_colour, gives_more_colours, ", result: 'green' was added"),
        (gives_stricter_item, gives_item, ", result, tag: the field was removed"),
        (sends_int, sends_int_or_str, ", x, item: its type was int and is int | str"),
        (receives_int_or_str, receives_int, ", x, item: its type was int | str and is int"),
        (streams_int, streams_float, ", result, item: its type was int and is float"),
        (
            takes_item_or_none,
            takes_must_item_or_none,
            ", x, tag: the field was added and must be given",
        ),
        (takes_later_item_or_none, takes_item_or_none, ", x, tag: the field was removed"),
        (sends_int_or_none, sends_float_or_none, ", x, item: its type was int and is float"),
        (holds_int, gives_int, ": it was a scope and is a call"),
    ],
)
def test_an_incompatible_change_is_named(
    old: Callable[..., Any], new: Callable[..., Any], sentence: str
) -> None:
    assert sentence in changes(old, new)[0]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (takes_int, takes_float, ", x: int was widened to float"),
        (takes_int, takes_optional_int, ", x: int was widened to int | None"),
        (takes_int, takes_one_more, ", y: the argument was added"),
        (takes_a, takes_a_or_b, ", x: Literal['a'] was widened to Literal['a', 'b']"),
        (takes_a, takes_str, ", x: Literal['a'] was widened to str"),
        (takes_colour, takes_more_colours, ", x: 'green' was added"),
        (takes_item, takes_longer_item, ", x, tag: the field was added"),
        (gives_float, gives_int, ", result: float was narrowed to int"),
        (gives_optional_int, gives_int, ", result: int | None was narrowed to int"),
        (gives_more_colours, gives_colour, ", result: 'green' was removed"),
        (gives_item, gives_longer_item, ", result, tag: the field was added"),
        (gives_items, gives_longer_items, ", result, tag: the field was added"),
        (gives_longer_item, gives_item, ", result, tag: the field was removed"),
        (sends_int_or_str, sends_int, ", x, item: int | str was narrowed to int"),
        (receives_int, receives_int_or_str, ", x, item: int was widened to int | str"),
        (takes_nested, takes_longer_nested, ", x, items, tag: the field was added"),
        (takes_item_or_none, takes_later_item_or_none, ", x, tag: the field was added"),
        (gives_item_or_none, gives_later_item_or_none, ", result, tag: the field was added"),
        (sends_float_or_none, sends_int_or_none, ", x, item: float was narrowed to int"),
    ],
)
def test_a_compatible_change_is_told_apart(
    old: Callable[..., Any], new: Callable[..., Any], sentence: str
) -> None:
    incompatible, compatible = changes(old, new)
    assert incompatible == []
    assert sentence in compatible


def test_the_same_contract_has_no_changes() -> None:
    for method in (takes_nested, gives_items, streams_int, sends_int_or_str):
        assert changes(method, method) == ([], [])


# --- recording --------------------------------------------------------------------------------


def test_what_was_recorded_is_compared_and_a_higher_version_may_break_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check([contract(takes_int)], tmp_path) == 1
    assert capsys.readouterr().out.startswith("it: new; record it: scripts/contracts record")
    record(contract(takes_int), tmp_path)
    assert recorded("it", tmp_path) == describe_contract(contract(takes_int))
    assert check([contract(takes_int)], tmp_path) == 0
    assert check([contract(takes_one_more)], tmp_path) == 0
    assert capsys.readouterr().out == "changed  it/do, y: the argument was added\n"
    assert check([contract(takes_str)], tmp_path) == 1
    assert "INCOMPATIBLE  it/do, x: its type was int and is str" in capsys.readouterr().out
    assert check([contract(takes_str, version=2)], tmp_path) == 0
    assert check([], tmp_path) == 1
    assert "INCOMPATIBLE  it: the contract was removed" in capsys.readouterr().out


def test_the_contracts_of_this_project_are_as_recorded() -> None:
    from container.contracts import (
        apiserver,
        images,
        launcher,
        network,
        networks,
        runtime,
        usage,
        volumes,
    )
    from container.ipc import introspection

    contracts = contracts_in(
        [apiserver, images, launcher, network, networks, runtime, usage, volumes, introspection]
    )
    assert check(contracts, ROOT / "docs" / "reference" / "contracts") == 0
    for path in (ROOT / "docs" / "reference" / "contracts").glob("*.json"):
        assert json.loads(path.read_text())["name"] == path.stem


# --- two versions of a service, in processes of their own -------------------------------------

OLD = """
@frozen
class Item:
    name: str

class Store(Contract, name="store"):
    @abstractmethod
    async def put(self, item: Item) -> Item: ...
    @abstractmethod
    async def forget(self) -> None: ...
"""
OLD_SERVICE = """
class StoreService(Actor, Store):
    async def put(self, item: Item) -> Item:
        return item
    async def forget(self) -> None:
        pass
"""
NEW = """
@frozen
class Item:
    name: str
    tag: str = ""

class Store(Contract, name="store"):
    @abstractmethod
    async def put(self, item: Item, loud: bool = False) -> Item: ...
    @abstractmethod
    async def count(self) -> int: ...
"""
NEW_SERVICE = """
class StoreService(Actor, Store):
    async def put(self, item: Item, loud: bool = False) -> Item:
        return Item(item.name.upper() if loud else item.name, item.tag or "new")
    async def count(self) -> int:
        return 1
"""
IMPORTS = """
import sys, trio
from abc import abstractmethod
from attrs import frozen
from container.ipc import Actor, Contract, open_service
"""
SERVE = """
async def main():
    async with open_service(StoreService(), at=sys.argv[1]):
        print("ready", flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


def defined(source: str) -> dict[str, Any]:
    """Return the names of a version's module."""
    names: dict[str, Any] = {"__name__": "version"}
    exec(IMPORTS.replace("import sys, trio", "") + source, names)
    return names


@contextmanager
def served(source: str, path: Path) -> Iterator[None]:
    """Serve a version in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", IMPORTS + source + SERVE, path], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            process.kill()


async def test_an_old_client_speaks_to_a_new_server(tmp_path: Path) -> None:
    old = defined(OLD)
    with served(NEW + NEW_SERVICE, tmp_path / "s"):
        async with old["Store"].connect(tmp_path / "s") as store:
            assert await store.put(old["Item"]("a")) == old["Item"]("a")
            with pytest.raises(UnknownRoute, match="store/forget"):
                await store.forget()
            assert await store.put(old["Item"]("b")) == old["Item"]("b")


async def test_a_new_client_is_told_by_an_old_server_what_it_does_not_know(tmp_path: Path) -> None:
    new = defined(NEW)
    with served(OLD + OLD_SERVICE, tmp_path / "s"):
        async with new["Store"].connect(tmp_path / "s") as store:
            with pytest.raises(InvalidArgument, match="unknown field 'tag'"):
                await store.put(new["Item"]("a"), loud=True)
            with pytest.raises(UnknownRoute, match="store/count"):
                await store.count()


async def test_another_version_is_refused_by_its_number(tmp_path: Path) -> None:
    newer = defined(NEW.replace('name="store"', 'name="store", version=2'))
    with served(OLD + OLD_SERVICE, tmp_path / "s"):
        with pytest.raises(Incompatible, match="speaks store 1, you asked for 2"):
            async with newer["Store"].connect(tmp_path / "s"):
                pass
