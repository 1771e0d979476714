"""`container network list`: the networks, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from container.cli.groups import Verb
from container.cli.output import format_option, print_json, print_table, show_age
from container.cli.session import QUICK, Session

if TYPE_CHECKING:
    from container.contracts.networks import NetworkInfo


@click.command("list", cls=Verb, help="List networks.")
@click.option("-q", "--quiet", is_flag=True, help="Print ids alone.")
@format_option()
@click.pass_obj
def command(session: Session, quiet: bool, output: str) -> None:
    """List networks."""
    found = session.run(_list, session)
    if quiet:
        for network in found:
            print(network.configuration.id)
    elif output == "json":
        print_json(found)
    else:
        headers = ("ID", "NAME", "DRIVER", "RANGES", "CONTAINERS", "CREATED")
        print_table(headers, [_row(network) for network in found])


async def _list(session: Session) -> tuple[NetworkInfo, ...]:
    import trio

    async with session.networks() as networks:
        with trio.fail_after(QUICK):
            return await networks.list()


def _row(network: NetworkInfo) -> tuple[str, ...]:
    configuration = network.configuration
    return (
        configuration.id,
        configuration.name,
        configuration.driver.removeprefix("container-network") or "bridge",
        " ".join(configuration.subnets) + (" (internal)" if configuration.internal else ""),
        str(len(network.containers)),
        show_age(configuration.created_at),
    )
