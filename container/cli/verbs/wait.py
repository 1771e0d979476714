"""`container wait`: wait for containers to end."""

from __future__ import annotations

import click

from container.cli.groups import Verb
from container.cli.session import Session

HELP = """Wait for containers to end, and print the exit status of each.

A container that has ended already is told at once. "unknown" is printed where it can't be known.
"""


@click.command("wait", cls=Verb, help=HELP)
@click.argument("containers", nargs=-1, required=True, metavar="CONTAINER...")
@click.pass_obj
def command(session: Session, containers: tuple[str, ...]) -> None:
    """Wait for containers."""
    session.run(_wait, session, containers)


async def _wait(session: Session, names: tuple[str, ...]) -> None:
    from container.cli.many import each

    async with session.containers() as containers:

        async def wait(name: str) -> str:
            code = (await containers.wait(name)).code
            return "unknown" if code is None else str(code)

        await each(names, wait)
