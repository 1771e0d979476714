"""`container image list`: the images that are here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from container.cli.amounts import show_bytes
from container.cli.groups import Verb
from container.cli.output import format_option, print_json, print_table, show_age
from container.cli.session import QUICK, Session

if TYPE_CHECKING:
    from container.contracts.images import ImageSummary


@click.command("list", cls=Verb, help="List the images that are here.")
@click.option("-q", "--quiet", is_flag=True, help="Print digests alone, shortened.")
@format_option()
@click.pass_obj
def command(session: Session, quiet: bool, output: str) -> None:
    """List images."""
    found = session.run(_list, session)
    if quiet:
        for image in found:
            print(short_digest(image.digest))
    elif output == "json":
        print_json(found)
    else:
        print_table(
            ("NAME", "TAG", "DIGEST", "PLATFORMS", "CREATED", "SIZE"),
            [
                (
                    image.name,
                    image.tag,
                    short_digest(image.digest),
                    " ".join(str(platform) for platform in image.platforms),
                    show_age(image.created),
                    show_bytes(image.size),
                )
                for image in found
            ],
        )


async def _list(session: Session) -> tuple[ImageSummary, ...]:
    import trio

    async with session.images() as images:
        with trio.fail_after(QUICK):
            return await images.list()


def short_digest(digest: str) -> str:
    """Return the first 12 hex digits, which name the image too."""
    return digest.partition(":")[2][:12]
