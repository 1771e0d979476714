"""`container stop`: stop running containers."""

from __future__ import annotations

import click

from container.cli.groups import Verb
from container.cli.names import parse_signal
from container.cli.session import QUICK, Session

HELP = """Stop running containers.

Each gets its stop signal, and is killed if it still runs after the timeout. A container that does
not run is no error.
"""


@click.command("stop", cls=Verb, help=HELP)
@click.option(
    "-t",
    "--time",
    "timeout",
    type=click.FloatRange(min=0, max=86400),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Time to end by itself.",
)
@click.option("-s", "--signal", metavar="SIGNAL", help="Send this rather than its stop signal.")
@click.argument("containers", nargs=-1, required=True, metavar="CONTAINER...")
@click.pass_obj
def command(
    session: Session, timeout: float, signal: str | None, containers: tuple[str, ...]
) -> None:
    """Stop containers."""
    name = None if signal is None else parse_signal(signal)
    session.run(_stop, session, containers, timeout, name)


async def _stop(
    session: Session, names: tuple[str, ...], timeout: float, signal: str | None
) -> None:
    import trio

    from container.cli.many import each
    from container.contracts.runtime import StopOptions

    options = StopOptions(signal=signal, timeout=timeout)
    async with session.containers() as containers:

        async def stop(name: str) -> str:
            with trio.fail_after(timeout + QUICK):
                await containers.stop(name, options)
            return name

        await each(names, stop)
