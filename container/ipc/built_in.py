"""What each server offers beside its services: introspection, built when somebody first asks.

Its classes and codecs take some 30 ms to load, which a process that was just forked, and that
nobody will look at, must not pay.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from container.ipc.codec import RouteCodec
    from container.ipc.connection import Connection
    from container.ipc.handling import Handler
    from container.ipc.introspection import Looked

# As `introspection.Introspection` has them, which is not loaded to learn that.
CONTRACT = "container.introspection"
METHODS = ("describe", "statistics", "watch", "tasks")


class _Built:
    """A `Handler` that is made when its first call comes."""

    def __init__(self, make: Callable[[], Mapping[str, Handler]], path: str) -> None:
        self._make = make
        self._path = path

    @cached_property
    def codec(self) -> RouteCodec:
        return self._make()[self._path].codec

    @cached_property
    def method(self) -> Callable[..., Any]:
        return self._make()[self._path].method


def built_in(
    server: Looked, routes: Mapping[str, Handler], live: Collection[Connection]
) -> dict[str, Handler]:
    """Return the routes that a server has by itself.

    Args:
        server: What they tell of.
        routes: All that its connections are made with, these included once they are added.
        live: Its connections, as they come and go.
    """
    made: dict[str, Handler] = {}

    def make() -> Mapping[str, Handler]:
        if not made:
            from container.ipc.introspection import introspection_routes

            made.update(introspection_routes(server, routes, live))
        return made

    paths = [f"{CONTRACT}/{method}" for method in METHODS]
    return {path: cast("Handler", _Built(make, path)) for path in paths}
