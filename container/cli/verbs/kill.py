"""`container kill`: send a signal to running containers."""

from __future__ import annotations

import click

from container.cli.groups import Verb
from container.cli.names import parse_signal
from container.cli.session import QUICK, Session


@click.command("kill", cls=Verb, help="Send a signal to the first process of running containers.")
@click.option(
    "-s", "--signal", default="KILL", show_default=True, metavar="SIGNAL", help="Name or number."
)
@click.argument("containers", nargs=-1, required=True, metavar="CONTAINER...")
@click.pass_obj
def command(session: Session, signal: str, containers: tuple[str, ...]) -> None:
    """Send a signal."""
    session.run(_kill, session, containers, parse_signal(signal))


async def _kill(session: Session, names: tuple[str, ...], signal: str) -> None:
    import trio

    from container.cli.many import each

    async with session.containers() as containers:

        async def kill(name: str) -> str:
            with trio.fail_after(QUICK):
                await containers.kill(name, signal)
            return name

        await each(names, kill)
