"""`container delete`: delete containers and all that they had."""

from __future__ import annotations

import click

from container.cli.failure import UsageRefused
from container.cli.groups import Verb
from container.cli.session import QUICK, Session

HELP = """Delete containers, their logs and what they wrote.

A container that runs is refused, or with -f killed first. -a means all containers: those that do
not run, and with -f those that run too.
"""


@click.command("delete", cls=Verb, help=HELP)
@click.option("-f", "--force", is_flag=True, help="Kill those that run; ignore those not there.")
@click.option("-v", "--volumes", is_flag=True, help="Also their anonymous volumes.")
@click.option("-a", "--all", "everything", is_flag=True, help="All containers.")
@click.argument("containers", nargs=-1, metavar="CONTAINER...")
@click.pass_obj
def command(
    session: Session, force: bool, volumes: bool, everything: bool, containers: tuple[str, ...]
) -> None:
    """Delete containers."""
    if everything == bool(containers):
        raise UsageRefused(
            "name the containers, or use --all alone" if everything else "no container is named",
            hint="--all deletes all that do not run" if not everything else None,
        )
    session.run(_delete, session, containers, force, volumes, everything)


async def _delete(
    session: Session, names: tuple[str, ...], force: bool, volumes: bool, everything: bool
) -> None:
    import trio

    from container.cli.many import each
    from container.contracts.apiserver import ContainerStatus
    from container.ipc import NotFound

    async with session.containers() as containers:
        if everything:
            with trio.fail_after(QUICK):
                names = tuple(
                    container.name
                    for container in await containers.list()
                    if force
                    or container.status in (ContainerStatus.CREATED, ContainerStatus.STOPPED)
                )

        async def delete(name: str) -> str:
            with trio.fail_after(QUICK):
                try:
                    await containers.delete(name, force=force, volumes=volumes)
                except NotFound:
                    if not force and not everything:
                        raise
            return name

        await each(names, delete)
