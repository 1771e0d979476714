"""How a route's arguments and result become MessagePack, and back.

The arguments of a call are one typed dictionary by parameter name, the result is one value. What a
value may be, and how strictly it is checked, is `strict`; what travels beside the bytes is
`wirevalues`. A caller's own mistake is told to the caller before anything is sent.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, cast

import msgspec
from attrs import define

from container.ipc.contract import Contract, Route, holds_capabilities, routes_of
from container.ipc.errors import Incompatible, InvalidArgument
from container.ipc.strict import reason, replies, requests
from container.ipc.wire.machine import UNDECODABLE
from container.ipc.wirevalues import NOTHING_IN as NOTHING_IN
from container.ipc.wirevalues import Incoming as Incoming
from container.ipc.wirevalues import Outgoing as Outgoing
from container.ipc.wirevalues import brief, decode_value, encode_plain, type_name

NOTHING_OUT = Outgoing()
"""The same for messages whose types hold no descriptor and no endpoint."""


def encode(value: object, outgoing: Outgoing, where: str) -> bytes:
    """Encode what a caller wants to send.

    Raises:
        InvalidArgument: it holds something that can't travel.
    """
    try:
        if outgoing is NOTHING_OUT:
            return encode_plain(value)
        return msgspec.msgpack.encode(value, enc_hook=outgoing.hook)
    except RecursionError as error:
        raise InvalidArgument(f"{where}: nested too deeply") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidArgument(f"{where}: {error}") from error


_identity = requests.get_unstructure_hook(str)


@define(slots=True, eq=False)
class RouteCodec:
    """How one route's arguments and result are encoded; built once per route."""

    route: Route
    path: str
    """The route's."""
    task: str
    """The name of tasks that serve it."""
    names: tuple[str, ...]
    """Of the arguments, in order."""
    argument_out: tuple[Callable[[Any], Any], ...]
    argument_in: dict[str, tuple[Callable[[Any, Any], Any], Any]]
    required: tuple[str, ...]
    result_out: Callable[[Any], Any]
    result_in: Callable[[Any, Any], Any]
    arguments_hold: bool
    """Can they hold descriptors or endpoints, by their types?"""
    result_holds: bool
    lowers: bool
    """False if arguments travel as they are."""
    is_scope: bool

    @classmethod
    def of(cls, route: Route) -> RouteCodec:
        """Build the codec of a route."""
        parameters = route.signature.parameters
        argument_out = tuple(
            requests.get_unstructure_hook(p.annotation) for p in parameters.values()
        )
        return cls(
            route=route,
            path=route.path,
            task=f"call {route.path}",
            names=tuple(parameters),
            argument_out=argument_out,
            argument_in={
                name: (requests.get_structure_hook(p.annotation), p.annotation)
                for name, p in parameters.items()
            },
            required=tuple(
                n for n, p in parameters.items() if p.default is inspect.Parameter.empty
            ),
            result_out=replies.get_unstructure_hook(route.result),
            result_in=replies.get_structure_hook(route.result),
            arguments_hold=any(holds_capabilities(p.annotation) for p in parameters.values()),
            result_holds=holds_capabilities(route.result),
            is_scope=route.kind == "scope",
            lowers=any(hook is not _identity for hook in argument_out),
        )

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any]:
        """Return the arguments in the order of the parameters, defaults filled in."""
        if not kwargs and len(args) == len(self.names):
            return args
        if len(args) + len(kwargs) == len(self.names):
            # `Signature.bind` costs more than the rest of a small call: it is left the other cases.
            with suppress(KeyError):
                return [*args, *(kwargs[name] for name in self.names[len(args) :])]
        bound = self.route.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return list(bound.arguments.values())

    def lower(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return arguments as a typed dictionary of wire values.

        Raises:
            InvalidArgument: one is not of its type, or can't travel.
        """
        if not self.lowers:
            return dict(zip(self.names, values, strict=False))
        made: dict[str, Any] = {}
        for name, hook, value in zip(self.names, self.argument_out, values, strict=True):
            try:
                made[name] = hook(value)
            except Exception as error:
                raise InvalidArgument(f"{self.path}: {reason(error, name)}") from error
        return made

    def arguments(self, raw: msgspec.Raw, incoming: Incoming) -> dict[str, Any]:
        """Decode and check the arguments of a call.

        Raises:
            InvalidArgument: names the argument, the wanted and the found type.
        """
        where = self.path
        try:
            body = decode_value(raw, incoming)
        except UNDECODABLE as error:
            raise InvalidArgument(
                f"{where}: the arguments are no message: {reason(error)}"
            ) from None
        if type(body) is not dict:
            raise InvalidArgument(f"{where}: expected a dict of arguments, found {type_name(body)}")
        made: dict[str, Any] = {}
        for name, value in cast("dict[Any, Any]", body).items():
            known = self.argument_in.get(name)
            if known is None:
                raise InvalidArgument(f"{where} has no argument {brief(name)}")
            try:
                made[name] = known[0](value, known[1])
            except Exception as error:
                raise InvalidArgument(f"{where}: {reason(error, name)}") from error
        if len(made) == len(self.names):
            return made
        for name in self.required:
            if name not in made:
                raise InvalidArgument(f"{where}: argument {name!r} is missing")
        return made

    def result(self, value: Any, outgoing: Outgoing) -> bytes:
        """Encode a handler's result as a reply's payload."""
        body = (self.result_out(value),)
        if outgoing is NOTHING_OUT:
            return encode_plain(body)
        return msgspec.msgpack.encode(body, enc_hook=outgoing.hook)

    def result_of(self, raw: msgspec.Raw | None, incoming: Incoming) -> Any:
        """Decode a reply.

        Raises:
            Incompatible: the reply is not what the contract says.
        """
        where = self.path
        if raw is None:
            raise Incompatible(f"the reply of {where} is no message")
        try:
            body = decode_value(raw, incoming)
            return self.result_in(body, self.route.result)
        except Exception as error:
            raise Incompatible(f"the reply of {where} can't be read: {reason(error)}") from error


@functools.cache
def codecs_of(contract: type[Contract]) -> dict[str, RouteCodec]:
    """Return the codec of each route of a contract, by method name."""
    return {name: RouteCodec.of(route) for name, route in routes_of(contract).items()}
