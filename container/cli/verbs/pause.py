"""`container pause`: freeze running containers."""

from __future__ import annotations

import click

from container.cli.groups import Verb
from container.cli.session import QUICK, Session

HELP = """Freeze all processes of running containers, until "container unpause".

A frozen container keeps its memory and its sockets, and gets no time of the processor. One that is
paused already is no error. "stop" and "rm -f" work on it as they are.

\b
    container pause web
"""


@click.command("pause", cls=Verb, help=HELP)
@click.argument("containers", nargs=-1, required=True, metavar="CONTAINER...")
@click.pass_obj
def command(session: Session, containers: tuple[str, ...]) -> None:
    """Pause containers."""
    session.run(_pause, session, containers)


async def _pause(session: Session, names: tuple[str, ...]) -> None:
    import trio

    from container.cli.many import each

    async with session.containers() as containers:

        async def pause(name: str) -> str:
            with trio.fail_after(QUICK):
                await containers.pause(name)
            return name

        await each(names, pause)
