"""`container image delete`: delete images."""

from __future__ import annotations

import click

from container.cli.groups import Verb
from container.cli.session import QUICK, Session

HELP = """Delete images: their names, and what nothing else needs.

An image that containers use is refused, or with -f loses its name and goes with the last of them.
"""


@click.command("delete", cls=Verb, help=HELP)
@click.option("-f", "--force", is_flag=True, help="Also those that containers use.")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.pass_obj
def command(session: Session, force: bool, images: tuple[str, ...]) -> None:
    """Delete images."""
    session.run(_delete, session, images, force)


async def _delete(session: Session, names: tuple[str, ...], force: bool) -> None:
    import trio

    from container.cli.many import each

    async with session.images() as images:

        async def delete(name: str) -> str:
            with trio.fail_after(QUICK):
                return (await images.delete(name, force)).reference

        await each(names, delete)
