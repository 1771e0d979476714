"""`container volume list`: the volumes, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from container.cli.groups import Verb
from container.cli.output import format_option, print_json, print_table, show_age
from container.cli.session import QUICK, Session

if TYPE_CHECKING:
    from container.contracts.volumes import Volume


@click.command("list", cls=Verb, help="List volumes.")
@click.option("-q", "--quiet", is_flag=True, help="Print names alone.")
@format_option()
@click.pass_obj
def command(session: Session, quiet: bool, output: str) -> None:
    """List volumes."""
    found = session.run(_list, session)
    if quiet:
        for volume in found:
            print(volume.name)
    elif output == "json":
        print_json(found)
    else:
        headers = ("NAME", "DRIVER", "CONTAINERS", "CREATED")
        print_table(headers, [_row(volume) for volume in found])


async def _list(session: Session) -> tuple[Volume, ...]:
    import trio

    async with session.volumes() as volumes:
        with trio.fail_after(QUICK):
            return await volumes.list()


def _row(volume: Volume) -> tuple[str, ...]:
    options = ",".join(f"{key}={value}" for key, value in sorted(volume.options.items()))
    return (
        volume.name,
        f"{volume.driver} ({options})" if options else volume.driver,
        str(len(volume.used_by)),
        show_age(volume.created_at),
    )
