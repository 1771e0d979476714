"""`container system start`: start the launcher, which starts the rest when it is needed."""

from __future__ import annotations

import click

from container.cli.groups import Verb
from container.cli.session import QUICK, Session


@click.command("start", cls=Verb, help="Start the system, if it is not up.")
@click.pass_obj
def command(session: Session) -> None:
    """Start the system."""
    session.run(_start, session)


async def _start(session: Session) -> None:
    import trio

    await session.ensure_running()
    async with session.launcher() as launcher:
        with trio.fail_after(QUICK):
            status = await launcher.status()
    print(f"the system runs: launcher {status.pid}, state in {status.root}")
