"""Name a service so that another process can import it, and type the arguments of its making.

Nothing is pickled: what makes the service travels as `module:qualname`, and its arguments as those
of a call do, by the types that its signature declares, strictly checked at both ends.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import sys
import types
import typing
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, cast

import attrs

from container.ipc.codec import codecs_of
from container.ipc.contract import Contract
from container.ipc.descriptor import Fd
from container.ipc.errors import InvalidArgument

Maker = Callable[..., Contract]
"""A service's class, or a function that returns a service."""


def reference(maker: Maker) -> str:
    """Return `module:qualname` of a class or function, by which `resolve` finds it elsewhere.

    What is defined in a script is found under the script's own name: the child imports it, so a
    script guards what it does with `if __name__ == "__main__":`.

    Raises:
        InvalidArgument: it can't be imported: a local or nested function, a lambda.
    """
    name = getattr(maker, "__qualname__", None)
    module = getattr(maker, "__module__", None)
    if not isinstance(name, str) or not isinstance(module, str) or "<" in name:
        raise InvalidArgument(
            f"{maker!r} can't be imported by another process",
            hint="spawn a class or function that is defined at the top of a module",
        )
    if module == "__main__":
        module = _main_module(name)
    return f"{module}:{name}"


def _main_module(name: str) -> str:
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:
        return str(spec.name)
    path = getattr(main, "__file__", None)
    if path is not None:
        stem = os.path.splitext(os.path.basename(path))[0]
        found = importlib.util.find_spec(stem) if stem.isidentifier() else None
        if found is not None and found.origin and os.path.samefile(found.origin, path):
            return stem
    raise InvalidArgument(
        f"{name} is defined in a program that another process can't import",
        hint="move it to a module of its own",
    )


def resolve(text: str) -> Maker:
    """Import what a reference names.

    Raises:
        ImportError, AttributeError: it is not there.
    """
    module, _, name = text.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return cast("Maker", found)


def services_in(module: str) -> list[Maker]:
    """Return the classes of an imported module that `spawn` can make."""
    return [
        value
        for value in vars(sys.modules[module]).values()
        if isinstance(value, type)
        and issubclass(value, Contract)
        and value.__module__ == module
        and not inspect.isabstract(value)
    ]


@functools.cache
def making(maker: Maker) -> type[Contract]:
    """Return a contract with the one route `make`, whose parameters are those of the maker.

    It makes the service and returns a socket on which it is served.

    Raises:
        InvalidArgument: a parameter has no type.
        ContractError: a type can't travel.
    """
    signature = inspect.signature(maker)
    hints = _hints(maker)
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)]
    annotations: dict[str, Any] = {"return": Fd}
    for parameter in signature.parameters.values():
        if parameter.name not in hints:
            raise InvalidArgument(
                f"{maker.__qualname__} has no type for {parameter.name!r}",
                hint="what crosses to another process is checked by its type",
            )
        annotations[parameter.name] = hints[parameter.name]
        parameters.append(parameter)

    async def make(self: Contract, *args: Any, **kwargs: Any) -> Fd:
        raise NotImplementedError

    make.__qualname__ = f"{maker.__qualname__}.make"
    make.__doc__ = f"Make {maker.__qualname__}."
    make.__annotations__ = annotations
    setattr(make, "__signature__", inspect.Signature(parameters))  # noqa: B010

    def fill(namespace: dict[str, Any]) -> None:
        namespace["make"] = abstractmethod(make)

    contract = types.new_class(maker.__name__, (Contract,), {"name": "container.making"}, fill)
    codecs_of(contract)
    return contract


def _hints(maker: Maker) -> dict[str, Any]:
    if not isinstance(maker, type):
        return typing.get_type_hints(maker, include_extras=True)
    if attrs.has(maker) and "__init__" in maker.__dict__:
        # The class's own hints: attrs makes a constructor whose annotations have lost their module.
        fields = typing.get_type_hints(maker, include_extras=True)
        return {
            field.alias or field.name: fields[field.name]
            for field in attrs.fields(maker)
            if field.init and field.name in fields
        }
    return typing.get_type_hints(maker.__init__, include_extras=True)
