"""`container network prune`: delete the networks that no container is in."""

from __future__ import annotations

import click

from container.cli.groups import Verb
from container.cli.session import QUICK, Session

HELP = "Delete the networks that no container is in, running or not; the default network stays."


@click.command("prune", cls=Verb, help=HELP)
@click.pass_obj
def command(session: Session) -> None:
    """Delete networks that are not used."""
    session.run(_prune, session)


async def _prune(session: Session) -> None:
    import trio

    async with session.networks() as networks:
        with trio.fail_after(QUICK):
            for name in await networks.prune():
                print(name)
