"""`container system status`: the launcher's own view of the system."""

from __future__ import annotations

import shutil
import textwrap
from typing import TYPE_CHECKING

import click

from container.cli.failure import Refused
from container.cli.groups import Verb
from container.cli.output import format_option, plain, print_json, print_table, show_age
from container.cli.session import QUICK, Session
from container.cli.system.version import say_other_version

if TYPE_CHECKING:
    from container.contracts.launcher import ServiceStatus

HELP = """Show the system and its services.

The exit status is 1 when the system does not run.
"""


@click.command("status", cls=Verb, help=HELP)
@format_option()
@click.pass_obj
def command(session: Session, output: str) -> int:
    """Show the system."""
    return session.run(_status, session, output)


async def _status(session: Session, output: str) -> int:
    import trio

    from container.ipc import Fate, PeerGone

    try:
        async with session.launcher() as launcher:
            with trio.fail_after(QUICK):
                status = await launcher.status()
    except PeerGone as gone:
        if gone.fate is not Fate.REFUSED:
            raise
        if output == "json":
            print_json({"running": False})
            return 1
        raise Refused(
            "the system does not run", hint='it starts by itself, or with "container system start"'
        ) from None
    say_other_version(status.version)
    if output == "json":
        print_json({"running": True, **plain(status)})
        return 0
    print(f"version  {status.version}")
    print(f"root     {status.root}")
    print(f"run      {status.run}")
    print(f"logs     {session.paths.logs}")
    print(f"started  {show_age(status.started)}, process {status.pid}")
    print()
    rows = [_row(service) for service in status.services]
    if rows:
        print_table(("SERVICE", "STATE", "PID", "SINCE", "RESTARTS", "LAST EXIT"), rows)
    else:
        print("no service is registered")
    for service in status.services:
        for line in _lines(service):
            print(line)
    if status.supervisor:
        print(
            f"\nThe named services are {status.supervisor}'s: "
            "systemctl status 'container-*' shows them."
        )
    return 0


def _row(service: ServiceStatus) -> tuple[str, ...]:
    running = service.state.value == "running"
    return (
        service.name,
        "starting" if running and not service.ready else service.state.value,
        "" if service.pid is None else str(service.pid),
        show_age(service.since),
        str(service.restarts),
        "" if service.last_exit is None else str(service.last_exit),
    )


def _lines(service: ServiceStatus) -> list[str]:
    """Return what is to be said of a service beside its row, in lines of a terminal's width."""
    found: list[str] = []
    if service.said:
        found.append(f"{service.name}: {service.said}")
    if service.problem:
        found.append(f"{service.name} failed {show_age(service.problem_at)}: {service.problem}")
    width = max(40, shutil.get_terminal_size().columns)
    lines = [textwrap.wrap(text, width, subsequent_indent="    ") for text in found]
    return ["", *(line for wrapped in lines for line in wrapped)] if lines else []
