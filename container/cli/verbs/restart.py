"""`container restart`: stop containers and start them again."""

from __future__ import annotations

import click

from container.cli.groups import Verb
from container.cli.session import Session
from container.cli.stopping import stop_each, stopping

HELP = """Stop containers and start them again; one that does not run is started.

Each is stopped as "container stop" does, and started with its output going to its log, even if this
command is interrupted meanwhile.

\b
    container restart web
    container restart --time 0 web db
"""


@click.command("restart", cls=Verb, help=HELP)
@stopping
@click.pass_obj
def command(
    session: Session, timeout: str | None, signal: str | None, containers: tuple[str, ...]
) -> None:
    """Restart containers."""
    from container.cli.attach import STARTING

    stop_each(
        session, containers, timeout, signal, lambda it, name, how: it.restart(name, how), STARTING
    )
