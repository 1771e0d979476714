"""`container stats`: what running containers use, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from container.cli.amounts import show_bytes
from container.cli.groups import Verb
from container.cli.output import format_option, plain, print_json, print_table
from container.cli.session import QUICK, Session

if TYPE_CHECKING:
    from container.contracts.runtime import SandboxStatistics

HELP = """Show what running containers use: all of them, or those named.

CPU is time since the start. RECEIVED and SENT are what its networks have carried, without those
that it has left. The numbers are of one moment.
"""
HEADERS = (
    *("CONTAINER", "CPU", "MEMORY", "LIMIT", "PIDS"),
    *("READ", "WRITTEN", "RECEIVED", "SENT"),
)


@click.command("stats", cls=Verb, help=HELP)
@click.option("--no-stream", is_flag=True, help="Show them once; that is what is always done.")
@format_option()
@click.argument("containers", nargs=-1, metavar="CONTAINER...")
@click.pass_obj
def command(session: Session, no_stream: bool, output: str, containers: tuple[str, ...]) -> None:
    """Show usage."""
    session.run(_stats, session, containers, output)


async def _stats(session: Session, names: tuple[str, ...], output: str) -> None:
    import trio

    from container.cli.many import gather, raise_errors
    from container.contracts.apiserver import ContainerStatus

    async with session.containers() as containers:
        with trio.fail_after(QUICK):
            names = names or tuple(
                container.name
                for container in await containers.list()
                if container.status is ContainerStatus.RUNNING
            )
            results = await gather(names, containers.statistics)
    found = [
        (name, result)
        for name, result in zip(names, results, strict=True)
        if not isinstance(result, Exception)
    ]
    if output == "json":
        print_json([{"container": name, **plain(usage)} for name, usage in found])
    else:
        print_table(HEADERS, [_row(name, usage) for name, usage in found])
    raise_errors(results)


def _row(name: str, usage: SandboxStatistics) -> tuple[str, ...]:
    limit = usage.memory_limit_bytes
    return (
        name,
        f"{usage.cpu_nanoseconds / 1e9:.2f}s",
        show_bytes(usage.memory_bytes),
        "none" if limit is None else show_bytes(limit),
        str(usage.pids),
        show_bytes(usage.read_bytes),
        show_bytes(usage.written_bytes),
        "" if usage.received_bytes is None else show_bytes(usage.received_bytes),
        "" if usage.sent_bytes is None else show_bytes(usage.sent_bytes),
    )
