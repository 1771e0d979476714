"""`container network connect`: put a container into a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from container.cli import networking
from container.cli.failure import UsageRefused
from container.cli.groups import Verb
from container.cli.session import QUICK, Session

if TYPE_CHECKING:
    from container.contracts.apiserver import NetworkUse

HELP = """Put a container into one more network: at once if it runs, and whenever it is started.

NETWORK may have fields as in "container run --network": web,ip=10.9.0.7,alias=db.
"""


@click.command("connect", cls=Verb, help=HELP, short_help="Put a container into a network.")
@click.option("--ip", metavar="ADDRESS", help="IPv4 address in it.")
@click.option("--ip6", metavar="ADDRESS", help="IPv6 address in it.")
@click.option("--mac-address", metavar="MAC", help="MAC address in it.")
@click.option(
    "--alias", "network_alias", multiple=True, metavar="NAME", help="A further name in it."
)
@click.argument("network", metavar="NETWORK")
@click.argument("container", metavar="CONTAINER")
@click.pass_obj
def command(session: Session, network: str, container: str, **values: Any) -> None:
    """Connect a container."""
    if networking.is_mode(network):
        raise UsageRefused(f'"{network}" is no network: name one that "network list" shows')
    _, (use,) = networking.network_choice({**values, "network": (network,)})
    session.run(_connect, session, container, use)


async def _connect(session: Session, container: str, use: NetworkUse) -> None:
    import trio

    async with session.networks() as networks:
        with trio.fail_after(QUICK):
            attachment = await networks.connect_container(container, use)
    if attachment is not None:
        print(" ".join(attachment.addresses))
