"""`container image pull`: fetch an image from its registry."""

from __future__ import annotations

import click

from container.cli.groups import Verb
from container.cli.names import parse_platform
from container.cli.session import Session

HELP = """Fetch an image from its registry, and print its full name.

Every digest is checked. What was fetched before an interruption is not fetched again.
"""


@click.command("pull", cls=Verb, help=HELP)
@click.option(
    "--platform", metavar="OS/ARCHITECTURE", help="As in linux/arm64; else this machine's."
)
@click.option(
    "--scheme",
    type=click.Choice(["auto", "http", "https"]),
    default="auto",
    show_default=True,
    help="How to talk to the registry; auto is https, or http to this machine itself.",
)
@click.argument("image", metavar="IMAGE")
@click.pass_obj
def command(session: Session, platform: str | None, scheme: str, image: str) -> None:
    """Fetch an image."""
    session.run(_pull, session, image, platform, scheme)


async def _pull(session: Session, image: str, platform: str | None, scheme: str) -> None:
    from container.contracts.images import Scheme

    wanted = None if platform is None else parse_platform(platform)
    async with session.images() as images:
        summary = await images.pull(image, wanted, Scheme(scheme))
    print(summary.reference)
