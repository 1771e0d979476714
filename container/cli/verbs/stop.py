"""`container stop`: stop running containers."""

from __future__ import annotations

import click

from container.cli.groups import Verb
from container.cli.session import QUICK, Session
from container.cli.stopping import stop_each, stopping

HELP = """Stop running containers.

Each gets its stop signal, and is killed if it still runs after the timeout. A container that does
not run is no error. What is stopped so, no restart policy starts again, until the system starts
(see "always" and "unless-stopped").

\b
    container stop web
    container stop --time 30 --signal INT web db
"""


@click.command("stop", cls=Verb, help=HELP)
@stopping
@click.pass_obj
def command(
    session: Session, timeout: str | None, signal: str | None, containers: tuple[str, ...]
) -> None:
    """Stop containers."""
    stop_each(session, containers, timeout, signal, lambda it, name, how: it.stop(name, how), QUICK)
