"""`container list`: the containers, newest first."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from container.cli.groups import Verb
from container.cli.output import (
    clipped,
    format_option,
    print_json,
    print_table,
    show_age,
    show_duration,
)
from container.cli.ports import show_ports
from container.cli.session import QUICK, Session

if TYPE_CHECKING:
    from container.contracts.apiserver import Container


@click.command("list", cls=Verb, help="List running containers, newest first; with -a all of them.")
@click.option("-a", "--all", "everything", is_flag=True, help="Those that do not run, too.")
@click.option("-q", "--quiet", is_flag=True, help="Print ids alone.")
@format_option()
@click.pass_obj
def command(session: Session, everything: bool, quiet: bool, output: str) -> None:
    """List containers."""
    found = session.run(_list, session, everything)
    if quiet:
        for container in found:
            print(container.id)
    elif output == "json":
        print_json(found)
    else:
        print_table(
            ("ID", "NAME", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS"),
            [
                (
                    container.id,
                    container.name,
                    container.image,
                    clipped(shlex.join(container.process.arguments), 30),
                    show_age(container.created_at),
                    show_status(container),
                    show_ports(container.attachments),
                )
                for container in found
            ],
        )


async def _list(session: Session, everything: bool) -> list[Container]:
    import trio

    from container.contracts.apiserver import ContainerStatus

    async with session.containers() as containers:
        with trio.fail_after(QUICK):
            found = await containers.list()
    # One whose helper does not answer may well run: it is never hidden.
    hidden = (ContainerStatus.CREATED, ContainerStatus.STOPPED)
    return [container for container in found if everything or container.status not in hidden]


def show_status(container: Container) -> str:
    """Return the status as a person wants it: how long it runs, or how it ended."""
    status = container.status.value
    if status == "running" and container.started_at is not None:
        seconds = (datetime.now(UTC) - container.started_at).total_seconds()
        health = container.health_status
        well = "" if health is None else f" ({health.value})"
        return f"running for {show_duration(seconds)}{well}"
    if status in ("stopped", "restarting") and container.exit is not None:
        code = "unknown" if container.exit.code is None else container.exit.code
        memory = ", out of memory" if container.exit.out_of_memory else ""
        return f"{status} ({code}{memory})"
    return status
