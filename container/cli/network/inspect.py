"""`container network inspect`: all that is known of networks."""

from __future__ import annotations

import click

from container.cli.groups import Verb
from container.cli.output import format_option, print_json, print_properties
from container.cli.session import QUICK, Session

HELP = """Show all that is known of networks, as a JSON list.

"status" is the word of the network's helper: who is attached, and what stands in the network's way,
with what to do about it.
"""


@click.command("inspect", cls=Verb, help=HELP, short_help="Show all that is known of networks.")
@format_option("json")
@click.argument("networks", nargs=-1, required=True, metavar="NETWORK...")
@click.pass_obj
def command(session: Session, output: str, networks: tuple[str, ...]) -> None:
    """Show networks."""
    session.run(_inspect, session, networks, output)


async def _inspect(session: Session, names: tuple[str, ...], output: str) -> None:
    import trio

    from container.cli.many import gather, raise_errors

    async with session.networks() as networks:
        with trio.fail_after(QUICK):
            results = await gather(names, networks.get)
    found = [result for result in results if not isinstance(result, Exception)]
    if output == "json":
        print_json(found)
    else:
        for number, network in enumerate(found):
            if number:
                print()
            print_properties(network)
    raise_errors(results)
