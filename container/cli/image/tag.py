"""`container image tag`: give an image a further name."""

from __future__ import annotations

import click

from container.cli.groups import Verb
from container.cli.session import QUICK, Session

HELP = """Give an image a further name, taking it from another image if need be.

The full name is printed.
"""


@click.command("tag", cls=Verb, help=HELP)
@click.argument("source", metavar="IMAGE")
@click.argument("target", metavar="NAME")
@click.pass_obj
def command(session: Session, source: str, target: str) -> None:
    """Name an image."""
    session.run(_tag, session, source, target)


async def _tag(session: Session, source: str, target: str) -> None:
    import trio

    async with session.images() as images:
        with trio.fail_after(QUICK):
            summary = await images.tag(source, target)
    print(summary.reference)
