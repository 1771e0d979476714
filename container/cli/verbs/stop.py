"""`container stop`: stop running containers."""

from __future__ import annotations

import math

import click

from container.cli.durations import parse_timeout
from container.cli.groups import Verb
from container.cli.names import parse_signal
from container.cli.session import QUICK, Session

HELP = """Stop running containers.

Each gets its stop signal, and is killed if it still runs after the timeout. A container that does
not run is no error. What is stopped so, no restart policy starts again, until the system starts
(see "always" and "unless-stopped").

\b
    container stop web
    container stop --time 30 --signal INT web db
"""


@click.command("stop", cls=Verb, help=HELP)
@click.option(
    "-t",
    "--time",
    "timeout",
    metavar="SECONDS",
    help="Time to end by itself; -1 for ever. Else its own --stop-timeout.",
)
@click.option("-s", "--signal", metavar="SIGNAL", help="Send this rather than its stop signal.")
@click.argument("containers", nargs=-1, required=True, metavar="CONTAINER...")
@click.pass_obj
def command(
    session: Session, timeout: str | None, signal: str | None, containers: tuple[str, ...]
) -> None:
    """Stop containers."""
    name = None if signal is None else parse_signal(signal)
    given = () if timeout is None else (parse_timeout(timeout),)
    session.run(_stop, session, containers, given, name)


async def _stop(
    session: Session, names: tuple[str, ...], given: tuple[float | None, ...], signal: str | None
) -> None:
    import trio

    from container.cli.many import each
    from container.contracts.runtime import StopOptions

    async with session.containers() as containers:

        async def stop(name: str) -> str:
            with trio.fail_after(QUICK) as bound:
                timeout = given[0] if given else (await containers.get(name)).stop_timeout
                bound.deadline += math.inf if timeout is None else timeout
                await containers.stop(name, StopOptions(signal=signal, timeout=timeout))
            return name

        await each(names, stop)
