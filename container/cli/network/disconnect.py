"""`container network disconnect`: take a container out of a network."""

from __future__ import annotations

import click

from container.cli.groups import Verb
from container.cli.session import QUICK, Session

HELP = "Take a container out of a network, also when it runs. One that is not in it is no error."


@click.command("disconnect", cls=Verb, help=HELP)
@click.argument("network", metavar="NETWORK")
@click.argument("container", metavar="CONTAINER")
@click.pass_obj
def command(session: Session, network: str, container: str) -> None:
    """Disconnect a container."""
    session.run(_disconnect, session, network, container)


async def _disconnect(session: Session, network: str, container: str) -> None:
    import trio

    async with session.networks() as networks:
        with trio.fail_after(QUICK):
            await networks.disconnect_container(container, network)
