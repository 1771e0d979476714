"""`container volume prune`: delete the volumes that no container uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from container.cli.amounts import show_bytes
from container.cli.confirming import confirm
from container.cli.groups import Verb
from container.cli.session import Session

if TYPE_CHECKING:
    from container.contracts.volumes import Volume

HELP = """Delete the anonymous volumes that no container uses, with all their data.

With --all the named ones, too.
"""
PRUNING = 600.0


@click.command("prune", cls=Verb, help=HELP)
@click.option("-a", "--all", "everything", is_flag=True, help="The named ones, too.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.pass_obj
def command(session: Session, everything: bool, force: bool) -> None:
    """Delete volumes that are not used."""
    which = "all volumes" if everything else "all anonymous volumes"
    confirm(f"This deletes {which} that no container uses, with their data.", force=force)
    gone = session.run(_prune, session, everything)
    for volume in gone:
        print(volume.name)
    print(f"freed {show_bytes(sum(volume.size_bytes or 0 for volume in gone))}")


async def _prune(session: Session, everything: bool) -> tuple[Volume, ...]:
    import trio

    async with session.volumes() as volumes:
        with trio.fail_after(PRUNING):
            return await volumes.prune(everything)
