"""Two versions of a contract, compared: what a change breaks, in sentences.

A change is incompatible if an old caller of the new service, or the old reader of a new reply,
would no longer be understood. The rules follow the direction that a value travels in: a request is
refused if it has a field that the receiver does not know, a reply's unknown fields are ignored. So
an argument or a field with a default may be added, a result may say more, and what is accepted may
be widened; what is said may only be narrowed. Items of a channel travel the way their channel does.

An incompatible change needs a higher `version` of the contract: both sides compare it first.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import sys
from collections.abc import Generator, Iterable
from pathlib import Path
from types import ModuleType

from attrs import define, field, frozen

from container.ipc.contract import Contract
from container.ipc.describe import (
    ClassDescription,
    ContractDescription,
    FieldDescription,
    RouteDescription,
    TypeDescription,
    describe_contract,
)
from container.ipc.strict import replies

ONE_WAY = {"sender", "receiver"}


@frozen
class Change:
    """A difference between two versions of a contract."""

    place: str
    """Route, and what of it: `containers/get, result, labels`."""
    what: str
    compatible: bool

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


def compare(old: ContractDescription, new: ContractDescription) -> tuple[Change, ...]:
    """Return what is different in `new`, incompatible changes first."""
    found = list(_Comparison.of(old, new).contracts(old, new))
    return tuple(sorted(found, key=lambda change: change.compatible))


@define
class _Comparison:
    old: dict[str, ClassDescription]
    new: dict[str, ClassDescription]
    seen: set[tuple[str, str, bool]] = field(factory=set[tuple[str, str, bool]])
    """Pairs of classes that were compared, by direction: a class may contain itself."""

    @classmethod
    def of(cls, old: ContractDescription, new: ContractDescription) -> _Comparison:
        return cls({c.name: c for c in old.classes}, {c.name: c for c in new.classes})

    def contracts(self, old: ContractDescription, new: ContractDescription) -> Generator[Change]:
        before = {route.path: route for route in old.routes}
        after = {route.path: route for route in new.routes}
        for path, route in before.items():
            if path in after:
                yield from self.routes(route, after[path])
            else:
                yield Change(path, "the route was removed", compatible=False)
        for path in after:
            if path not in before:
                yield Change(path, "the route was added", compatible=True)

    def routes(self, old: RouteDescription, new: RouteDescription) -> Generator[Change]:
        if old.kind != new.kind:
            yield Change(old.path, f"it was a {old.kind} and is a {new.kind}", compatible=False)
            return
        yield from self.fields(
            old.path, old.parameters, new.parameters, request=True, of="argument"
        )
        yield from self.types(f"{old.path}, result", old.result, new.result, request=False)

    def fields(
        self,
        place: str,
        old: Iterable[FieldDescription],
        new: Iterable[FieldDescription],
        *,
        request: bool,
        of: str,
    ) -> Generator[Change]:
        """Compare arguments of a route, or fields of a class, that travel in one direction."""
        before = {one.name: one for one in old}
        after = {one.name: one for one in new}
        for name, one in before.items():
            where = f"{place}, {name}"
            other = after.get(name)
            if other is None:
                # In a reply, an old reader misses it only if it has no default for it.
                fine = not request and one.default is not None
                yield Change(where, f"the {of} was removed", compatible=fine)
                continue
            if request and one.default is not None and other.default is None:
                yield Change(where, f"the {of} must be given now", compatible=False)
            yield from self.types(where, one.type, other.type, request=request)
        for name, other in after.items():
            if name not in before:
                fine = not request or other.default is not None
                ending = "" if fine else " and must be given"
                yield Change(f"{place}, {name}", f"the {of} was added{ending}", compatible=fine)

    def types(
        self, place: str, old: TypeDescription, new: TypeDescription, *, request: bool
    ) -> Generator[Change]:
        """Compare types; a request's may only be widened, a reply's only be narrowed."""
        if "union" in (old.kind, new.kind):
            yield from self.choices(place, old, new, request=request)
            return
        wide, narrow = (new, old) if request else (old, new)
        if old.kind in ("class", "enum") and old.kind == new.kind:
            yield from self.named(place, old, new, request=request)
        elif old.kind == new.kind and old.kind in ONE_WAY:
            # What the callee is given to send with is its reply's direction, and the reverse.
            towards_callee = (old.kind == "receiver") is request
            for one, other in zip(old.arguments, new.arguments, strict=True):
                yield from self.types(f"{place}, item", one, other, request=towards_callee)
        elif (
            old.kind == new.kind
            and len(old.arguments) == len(new.arguments)
            and (old.kind in ("list", "set", "dict", "tuple"))
        ):
            for one, other in zip(old.arguments, new.arguments, strict=True):
                yield from self.types(place, one, other, request=request)
        elif not self.holds(wide, narrow, request=request):
            yield Change(place, f"its type was {old.text} and is {new.text}", compatible=False)
        elif old.text != new.text:
            way = "widened" if request else "narrowed"
            yield Change(place, f"{old.text} was {way} to {new.text}", compatible=True)

    def choices(
        self, place: str, old: TypeDescription, new: TypeDescription, *, request: bool
    ) -> Generator[Change]:
        """Compare unions: those choices that both have with each other, the others as a whole."""
        before = list(old.arguments if old.kind == "union" else (old,))
        after = list(new.arguments if new.kind == "union" else (new,))
        alone: list[TypeDescription] = []
        for one in before:
            other = next((it for it in after if _same(one, it)), None)
            if other is None:
                alone.append(one)
            else:
                after.remove(other)
                yield from self.types(place, one, other, request=request)
        gone = [one for one in alone if request and not self._held(one, after)]
        more = [one for one in after if not request and not self._held(one, alone)]
        if gone or more:
            yield Change(place, f"its type was {old.text} and is {new.text}", compatible=False)
        elif alone or after:
            way = "widened" if request else "narrowed"
            yield Change(place, f"{old.text} was {way} to {new.text}", compatible=True)

    def _held(self, narrow: TypeDescription, choices: list[TypeDescription]) -> bool:
        return any(self.holds(wide, narrow, request=True) for wide in choices)

    def named(
        self, place: str, old: TypeDescription, new: TypeDescription, *, request: bool
    ) -> Generator[Change]:
        key = (old.name, new.name, request)
        if key in self.seen:
            return
        self.seen.add(key)
        before, after = self.old[old.name], self.new[new.name]
        if before.kind == "class":
            yield from self.fields(place, before.fields, after.fields, request=request, of="field")
            return
        gone = [value for value in before.values if value not in after.values]
        more = [value for value in after.values if value not in before.values]
        for value in gone:
            yield Change(place, f"{value!r} was removed", compatible=not request)
        for value in more:
            yield Change(place, f"{value!r} was added", compatible=request)

    def holds(self, wide: TypeDescription, narrow: TypeDescription, *, request: bool) -> bool:
        """Is each value of the narrow type one of the wide one?"""
        if narrow.kind == "union":
            return all(self.holds(wide, one, request=request) for one in narrow.arguments)
        if wide.kind == "union":
            return any(self.holds(one, narrow, request=request) for one in wide.arguments)
        if (wide.kind, narrow.kind) == ("float", "int"):
            return True
        if narrow.kind == "literal" and narrow.kind != wide.kind:
            return {type(value).__name__ for value in narrow.values} == {wide.kind}
        if wide.kind != narrow.kind:
            return False
        if wide.kind == "literal":
            return set(narrow.values) <= set(wide.values)
        if wide.kind == "endpoint":
            return wide.name == narrow.name
        old, new = (narrow, wide) if request else (wide, narrow)
        if wide.kind in ("class", "enum"):
            inner = _Comparison(self.old, self.new, set(self.seen))
            return all(c.compatible for c in inner.named("", old, new, request=request))
        return len(wide.arguments) == len(narrow.arguments) and all(
            self.holds(one, other, request=request)
            for one, other in zip(wide.arguments, narrow.arguments, strict=True)
        )


def _same(one: TypeDescription, other: TypeDescription) -> bool:
    """Are these the same choice of two unions, whatever changed inside?"""
    if one.kind != other.kind:
        return False
    if one.kind in ("class", "enum", "endpoint"):
        return one.name == other.name
    return one.kind != "literal" or one.values == other.values


# --- recording ------------------------------------------------------------------------------------


def contracts_in(modules: Iterable[ModuleType]) -> list[type[Contract]]:
    """Return the contracts that modules define, by name."""
    found = {
        value.contract_name: value
        for module in modules
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Contract)
        and value.__module__ == module.__name__
        and value.__dict__.get("contract_name")
    }
    return [found[name] for name in sorted(found)]


def record(contract: type[Contract], folder: Path) -> Path:
    """Write a contract's description into a folder; return the file."""
    path = folder / f"{contract.contract_name}.json"
    body = replies.unstructure(describe_contract(contract))
    path.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n")
    return path


def recorded(name: str, folder: Path) -> ContractDescription | None:
    """Return a recorded description, None if there is none."""
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    return replies.structure(json.loads(path.read_text()), ContractDescription)


def check(contracts: Iterable[type[Contract]], folder: Path) -> int:
    """Compare contracts with what is recorded, and print what changed.

    Returns:
        1 if something incompatible has changed in a contract whose version is the recorded one, or
        if a recorded contract is gone; else 0.
    """
    failed = False
    names: set[str] = set()
    for contract in contracts:
        name = contract.contract_name
        names.add(name)
        old = recorded(name, folder)
        if old is None:
            print(f"{name}: new; record it: scripts/contracts record")
            failed = True
            continue
        raised = contract.contract_version > old.version
        for change in compare(old, describe_contract(contract)):
            wrong = not (change.compatible or raised)
            failed |= wrong
            print(f"{'INCOMPATIBLE' if wrong else 'changed'}  {change}")
    for path in sorted(folder.glob("*.json")):
        if path.stem not in names:
            print(f"INCOMPATIBLE  {path.stem}: the contract was removed")
            failed = True
    if failed:
        print(
            "An incompatible change needs a higher version of its contract; "
            "scripts/contracts record then writes down what holds from now on."
        )
    return int(failed)


def main(argv: list[str] | None = None) -> int:
    """Run `scripts/contracts`."""
    parser = argparse.ArgumentParser(
        prog="scripts/contracts", description="Compare contracts with the recorded ones."
    )
    parser.add_argument("verb", choices=["check", "record"])
    parser.add_argument("--folder", type=Path, required=True, help="where descriptions are kept")
    parser.add_argument("modules", nargs="+", help="modules that define contracts")
    options = parser.parse_args(argv)
    contracts = contracts_in(map(importlib.import_module, options.modules))
    if options.verb == "check":
        return check(contracts, options.folder)
    for contract in contracts:
        print(record(contract, options.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
