"""`container unpause`: let paused containers go on."""

from __future__ import annotations

import click

from container.cli.groups import Verb
from container.cli.session import QUICK, Session

HELP = """Let the processes of paused containers go on.

One that runs already is no error.

\b
    container unpause web
"""


@click.command("unpause", cls=Verb, help=HELP)
@click.argument("containers", nargs=-1, required=True, metavar="CONTAINER...")
@click.pass_obj
def command(session: Session, containers: tuple[str, ...]) -> None:
    """Unpause containers."""
    session.run(_unpause, session, containers)


async def _unpause(session: Session, names: tuple[str, ...]) -> None:
    import trio

    from container.cli.many import each

    async with session.containers() as containers:

        async def unpause(name: str) -> str:
            with trio.fail_after(QUICK):
                await containers.unpause(name)
            return name

        await each(names, unpause)
