"""`container volume delete`: delete volumes and all their data."""

from __future__ import annotations

import click

from container.cli.groups import Verb
from container.cli.session import QUICK, Session

HELP = """Delete volumes and all their data.

One that a container mounts is refused, whether that runs or not.
"""


@click.command("delete", cls=Verb, help=HELP)
@click.option("-f", "--force", is_flag=True, help="Ignore those not there.")
@click.argument("volumes", nargs=-1, required=True, metavar="VOLUME...")
@click.pass_obj
def command(session: Session, force: bool, volumes: tuple[str, ...]) -> None:
    """Delete volumes."""
    session.run(_delete, session, volumes, force)


async def _delete(session: Session, names: tuple[str, ...], force: bool) -> None:
    import trio

    from container.cli.many import each

    async with session.volumes() as volumes:

        async def delete(name: str) -> str:
            with trio.fail_after(QUICK):
                await volumes.delete(name, force)
            return name

        await each(names, delete)
