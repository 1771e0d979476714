"""`container volume inspect`: all that is known of volumes."""

from __future__ import annotations

import click

from container.cli.groups import Verb
from container.cli.output import format_option, print_json, print_properties
from container.cli.session import QUICK, Session


@click.command("inspect", cls=Verb, help="Show all that is known of volumes, as a JSON list.")
@format_option("json")
@click.argument("volumes", nargs=-1, required=True, metavar="VOLUME...")
@click.pass_obj
def command(session: Session, output: str, volumes: tuple[str, ...]) -> None:
    """Show volumes."""
    session.run(_inspect, session, volumes, output)


async def _inspect(session: Session, names: tuple[str, ...], output: str) -> None:
    import trio

    from container.cli.many import gather, raise_errors
    from container.contracts.volumes import Volume

    async with session.volumes() as volumes:

        async def get(name: str) -> Volume:
            with trio.fail_after(QUICK):
                return await volumes.get(name)

        results = await gather(names, get)
    found = [result for result in results if not isinstance(result, Exception)]
    if output == "json":
        print_json(found)
    else:
        for number, volume in enumerate(found):
            if number:
                print()
            print_properties(volume)
    raise_errors(results)
