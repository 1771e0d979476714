"""`container network delete`: delete networks."""

from __future__ import annotations

import click

from container.cli.groups import Verb
from container.cli.session import QUICK, Session

HELP = """Delete networks.

One that containers are in, running or not, is refused; with -f these are taken out of it first.
"""


@click.command("delete", cls=Verb, help=HELP, short_help="Delete networks.")
@click.option(
    "-f", "--force", is_flag=True, help="Take containers out of it; ignore those not there."
)
@click.argument("networks", nargs=-1, required=True, metavar="NETWORK...")
@click.pass_obj
def command(session: Session, force: bool, networks: tuple[str, ...]) -> None:
    """Delete networks."""
    session.run(_delete, session, networks, force)


async def _delete(session: Session, names: tuple[str, ...], force: bool) -> None:
    import trio

    from container.cli.many import each
    from container.ipc import NotFound

    async with session.networks() as networks:

        async def delete(name: str) -> str:
            with trio.fail_after(QUICK):
                try:
                    await networks.delete(name, force)
                except NotFound:
                    if not force:
                        raise
            return name

        await each(names, delete)
