"""`container port`: where the ports of a container are found on this machine."""

from __future__ import annotations

import click

from container.cli.failure import Refused
from container.cli.groups import Verb
from container.cli.ports import parse_container_port, published
from container.cli.session import QUICK, Session

HELP = """Show where the published ports of a running container are found on this machine.

\b
    container port web        80/tcp -> 0.0.0.0:49153
    container port web 80     0.0.0.0:49153
"""


@click.command("port", cls=Verb, help=HELP, short_help="Show the published ports of a container.")
@click.argument("container", metavar="CONTAINER")
@click.argument("port", required=False, metavar="[PORT[/tcp|udp]]")
@click.pass_obj
def command(session: Session, container: str, port: str | None) -> None:
    """Show published ports."""
    wanted = None if port is None else parse_container_port(port)
    session.run(_port, session, container, wanted)


async def _port(session: Session, name: str, wanted: tuple[int, str] | None) -> None:
    import trio

    async with session.containers() as containers:
        with trio.fail_after(QUICK):
            container = await containers.get(name)
    found = list(published(container.attachments))
    if wanted is None:
        for port, protocol, place in found:
            print(f"{port}/{protocol} -> {place}")
        return
    places = [place for port, protocol, place in found if (port, protocol) == wanted]
    if not places:
        shown = f"{wanted[0]}/{wanted[1]}"
        if not container.attachments:
            raise Refused(f'"{name}" has no ports now: it does not run, or has no network')
        raise Refused(
            f'port {shown} of "{name}" is not published',
            hint=f"published are {', '.join(f'{port}/{what}' for port, what, _ in found)}"
            if found
            else "publish it with --publish",
        )
    for place in places:
        print(place)
