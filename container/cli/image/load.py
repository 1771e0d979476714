"""`container image load`: load an OCI layout or a docker archive."""

from __future__ import annotations

import os

import click

from container.cli.failure import UsageRefused
from container.cli.groups import Verb
from container.cli.session import Session

HELP = """Load an image from an OCI layout (a folder or a tar) or a docker archive.

Without -i, or with -i -, it is read from stdin. NAME is given to an image that carries no name, or
instead of its own. The full names are printed.
"""


@click.command("load", cls=Verb, help=HELP)
@click.option("-i", "--input", "source", default="-", metavar="FILE|FOLDER|-", help="What to load.")
@click.option("-n", "--name", metavar="NAME", help="The same as NAME.")
@click.argument("reference", required=False, metavar="[NAME]")
@click.pass_obj
def command(session: Session, source: str, name: str | None, reference: str | None) -> None:
    """Load an image."""
    if name and reference and name != reference:
        raise UsageRefused(f'the image can\'t be named both "{reference}" and "{name}"')
    name = name or reference
    if source == "-":
        if os.isatty(0):
            raise UsageRefused(
                "there is nothing to load: stdin is a terminal",
                hint="name a file or folder with -i, or pipe one in",
            )
        session.run(_load, session, 0, name, "stdin")
        return
    try:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageRefused(f'"{source}" can\'t be read: {reason}') from None
    try:
        session.run(_load, session, fd, name, source)
    finally:
        os.close(fd)


async def _load(session: Session, fd: int, name: str | None, source: str) -> None:
    from container.ipc import Fd

    async with session.images() as images:
        loaded = await images.load(Fd.borrow(fd), name=name, source=source)
    for summary in loaded:
        print(summary.reference)
