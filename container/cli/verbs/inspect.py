"""`container inspect`: all that is known of containers."""

from __future__ import annotations

import click

from container.cli.groups import Verb
from container.cli.output import format_option, print_json, print_properties
from container.cli.session import QUICK, Session


@click.command("inspect", cls=Verb, help="Show all that is known of containers, as a JSON list.")
@format_option("json")
@click.argument("containers", nargs=-1, required=True, metavar="CONTAINER...")
@click.pass_obj
def command(session: Session, output: str, containers: tuple[str, ...]) -> None:
    """Show containers."""
    session.run(_inspect, session, containers, output)


async def _inspect(session: Session, names: tuple[str, ...], output: str) -> None:
    import trio

    from container.cli.many import gather, raise_errors

    async with session.containers() as containers:
        with trio.fail_after(QUICK):
            results = await gather(names, containers.get)
    found = [result for result in results if not isinstance(result, Exception)]
    if output == "json":
        print_json(found)
    else:
        for number, container in enumerate(found):
            if number:
                print()
            print_properties(container)
    raise_errors(results)
