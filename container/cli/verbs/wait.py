"""`container wait`: wait for containers to end."""

from __future__ import annotations

import click

from container.cli.failure import Refused
from container.cli.groups import Verb
from container.cli.session import Session

HELP = """Wait for containers to end, and print the exit status of each.

A container that has ended already is told at once, one that is about to be started again too.
"unknown" is printed where it can't be known. The wait goes on when the API server is replaced.
"""


@click.command("wait", cls=Verb, help=HELP)
@click.argument("containers", nargs=-1, required=True, metavar="CONTAINER...")
@click.pass_obj
def command(session: Session, containers: tuple[str, ...]) -> None:
    """Wait for containers."""
    session.run(_wait, session, containers)


async def _wait(session: Session, names: tuple[str, ...]) -> None:
    from container.cli.many import each
    from container.cli.reconnecting import comes_back
    from container.ipc import Fate, PeerGone, Unavailable

    async def wait(name: str) -> str:
        start = True
        while True:
            try:
                async with session.containers(start=start) as containers:
                    start = False
                    code = (await containers.wait(name)).code
                    return "unknown" if code is None else str(code)
            except (PeerGone, Unavailable) as gone:  # the last is said by a server that stops
                if start or (isinstance(gone, PeerGone) and gone.fate is Fate.REFUSED):
                    raise
            if not await comes_back(session):
                raise Refused("the system has stopped", hint="its containers may go on running")

    await each(names, wait)
