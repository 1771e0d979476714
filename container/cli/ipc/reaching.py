"""How the verbs of `container ipc` reach a service: a socket's path, a bound on waiting, errors."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import click

from container.cli.failure import Refused

if TYPE_CHECKING:
    from container.ipc import Connection
    from container.ipc.introspection import Introspection

ANSWER = 60.0
"""Seconds within which a service tells of itself."""

socket_argument = click.argument("socket", type=click.Path(), metavar="SOCKET")


class Reached(NamedTuple):
    """A service that answers."""

    connection: Connection
    look: Introspection


@asynccontextmanager
async def reached(path: str) -> AsyncGenerator[Reached]:
    """Connect to the service at a path, whatever it speaks."""
    from container.ipc import (
        Fate,
        PeerGone,
        UnknownRoute,
        connect,
        connection_proxy,
        set_process_name,
    )
    from container.ipc.introspection import Introspection

    set_process_name("container")

    open_now = False
    try:
        async with connect(path) as connection:
            open_now = True
            yield Reached(connection, connection_proxy(connection, Introspection))
    except PeerGone as gone:
        if gone.fate is Fate.REFUSED and not open_now:
            raise Refused(
                gone.message, hint="give the path of a socket that a service listens on"
            ) from None
        raise
    except UnknownRoute as unknown:
        if "container.introspection/" not in unknown.message:
            raise
        raise Refused(
            f"the service at {path} can't describe itself",
            hint="it is of a version from before that: call its routes with --json",
        ) from None
