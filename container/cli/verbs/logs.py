"""`container logs`: the output of a container, as it was written."""

from __future__ import annotations

import click

from container.cli.amounts import parse_lines
from container.cli.groups import Verb
from container.cli.session import QUICK, Session

HELP = """Show the output of a container: its stdout on ours, its stderr on ours.

With -f go on until the container ends. Bytes are shown as they were written.
"""


@click.command("logs", cls=Verb, help=HELP)
@click.option("-f", "--follow", is_flag=True, help="Go on while the container runs.")
@click.option(
    "-n",
    "--tail",
    default="all",
    show_default=True,
    metavar="LINES",
    help="Begin with the last so many lines.",
)
@click.argument("container", metavar="CONTAINER")
@click.pass_obj
def command(session: Session, follow: bool, tail: str, container: str) -> None:
    """Show the output of a container."""
    session.run(_logs, session, container, follow, parse_lines(tail))


async def _logs(session: Session, name: str, follow: bool, tail: int | None) -> None:
    import trio

    from container.contracts.apiserver import ContainerStatus
    from container.contracts.logs import copy_log

    async with session.containers() as containers:
        with trio.fail_after(QUICK):
            log = await containers.logs(name)
            # Asked after the log was opened: if it does not run now, all that it said is there.
            status = (await containers.get(name)).status if follow else None
    following = status in (ContainerStatus.RUNNING, ContainerStatus.UNKNOWN)
    with log.data, log.index:
        data, index = log.data.fileno(), log.index.fileno()
        await copy_log(data, index, 1, 2, following=following, tail=tail)
