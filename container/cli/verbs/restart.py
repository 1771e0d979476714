"""`container restart`: stop containers and start them again."""

from __future__ import annotations

import math

import click

from container.cli.durations import parse_timeout
from container.cli.groups import Verb
from container.cli.names import parse_signal
from container.cli.session import Session

HELP = """Stop containers and start them again; one that does not run is started.

Each is stopped as "container stop" does, and started with its output going to its log, even if this
command is interrupted meanwhile.

\b
    container restart web
    container restart --time 0 web db
"""


@click.command("restart", cls=Verb, help=HELP)
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
    """Restart containers."""
    name = None if signal is None else parse_signal(signal)
    given = () if timeout is None else (parse_timeout(timeout),)
    session.run(_restart, session, containers, given, name)


async def _restart(
    session: Session, names: tuple[str, ...], given: tuple[float | None, ...], signal: str | None
) -> None:
    import trio

    from container.cli.attach import STARTING
    from container.cli.many import each
    from container.contracts.runtime import StopOptions

    async with session.containers() as containers:

        async def restart(name: str) -> str:
            with trio.fail_after(STARTING) as bound:
                timeout = given[0] if given else (await containers.get(name)).stop_timeout
                bound.deadline += math.inf if timeout is None else timeout
                await containers.restart(name, StopOptions(signal=signal, timeout=timeout))
            return name

        await each(names, restart)
