"""What `stop` and `restart` have in common: their options, and the time of each container."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click

from container.cli.durations import parse_timeout
from container.cli.names import parse_signal
from container.cli.session import Session

if TYPE_CHECKING:
    from container.contracts.apiserver import Containers
    from container.contracts.runtime import StopOptions

Operation = Callable[["Containers", str, "StopOptions"], Awaitable[Any]]


def stopping(function: Callable[..., None]) -> Callable[..., None]:
    """Give a verb `--time`, `--signal` and its containers."""
    function = click.argument("containers", nargs=-1, required=True, metavar="CONTAINER...")(
        function
    )
    function = click.option(
        "-s", "--signal", metavar="SIGNAL", help="Send this rather than its stop signal."
    )(function)
    return click.option(
        "-t",
        "--time",
        "timeout",
        metavar="SECONDS",
        help="Time to end by itself; -1 for ever. Else its own --stop-timeout.",
    )(function)


def stop_each(
    session: Session,
    names: tuple[str, ...],
    timeout: str | None,
    signal: str | None,
    operation: Operation,
    bound: float,
) -> None:
    """Stop containers beside each other by an operation, and print the name of each.

    Args:
        session: Of the command line.
        names: The containers.
        timeout: As given by `--time`; None takes each container's own.
        signal: As given by `--signal`.
        operation: Stops one.
        bound: Seconds that it may take beyond the container's time to end by itself.
    """
    name = None if signal is None else parse_signal(signal)
    given = () if timeout is None else (parse_timeout(timeout),)
    session.run(_stop_each, session, names, given, name, operation, bound)


async def _stop_each(
    session: Session,
    names: tuple[str, ...],
    given: tuple[float | None, ...],
    signal: str | None,
    operation: Operation,
    bound: float,
) -> None:
    import trio

    from container.cli.many import each
    from container.contracts.runtime import StopOptions

    async with session.containers() as containers:

        async def stop(name: str) -> str:
            with trio.fail_after(bound) as scope:
                timeout = given[0] if given else (await containers.get(name)).stop_timeout
                scope.deadline += math.inf if timeout is None else timeout
                await operation(containers, name, StopOptions(signal=signal, timeout=timeout))
            return name

        await each(names, stop)
