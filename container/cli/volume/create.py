"""`container volume create`: create a volume."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from container.cli.environment import parse_driver_options, parse_labels
from container.cli.groups import Verb
from container.cli.session import QUICK, Session

if TYPE_CHECKING:
    from container.contracts.volumes import VolumeOptions

HELP = """Create a volume, and print its name.

Its data outlives the containers that mount it. Without a name it is an anonymous one, which goes
with the last container that is removed with --rm or -v. With a size it is a file system of its own.

\b
    container volume create data
    container volume create --opt size=1g data
"""


@click.command("create", cls=Verb, help=HELP, short_help="Create a volume.")
@click.option("-d", "--driver", default="local", show_default=True, metavar="PLUGIN")
@click.option("-o", "--opt", multiple=True, metavar="KEY=VALUE", help="As in size=1g.")
@click.option("-l", "--label", multiple=True, metavar="KEY[=VALUE]", help="Set a label.")
@click.argument("name", required=False, metavar="[NAME]")
@click.pass_obj
def command(
    session: Session,
    driver: str,
    opt: tuple[str, ...],
    label: tuple[str, ...],
    name: str | None,
) -> None:
    """Create a volume."""
    from container.contracts.volumes import VolumeOptions

    options = VolumeOptions(
        name=name, driver=driver, options=parse_driver_options(opt), labels=parse_labels(label)
    )
    session.run(_create, session, options)


async def _create(session: Session, options: VolumeOptions) -> None:
    import trio

    async with session.volumes() as volumes:
        with trio.fail_after(QUICK):
            made = await volumes.create(options)
    print(made.name)
