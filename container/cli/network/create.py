"""`container network create`: create a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from container.cli import networking
from container.cli.environment import parse_driver_options, parse_labels
from container.cli.failure import UsageRefused
from container.cli.groups import Verb
from container.cli.session import QUICK, Session

if TYPE_CHECKING:
    from container.contracts.networks import NetworkOptions

HELP = """Create a network, and print its id.

Containers in it reach each other, by name too, and the world through this machine; they do not
reach containers of other networks. A range that nothing here routes is chosen unless one is given.

\b
    container network create web
    container network create --subnet 10.9.0.0/24 --gateway 10.9.0.254 --ipv6 web
    container network create --internal db
"""


@click.command("create", cls=Verb, help=HELP, short_help="Create a network.")
@click.option("--subnet", multiple=True, metavar="RANGE", help="Its range, as in 10.9.0.0/24.")
@click.option("--gateway", multiple=True, metavar="ADDRESS", help="This machine's address in it.")
@click.option("--ipv6", is_flag=True, help="Give it a range of IPv6, too.")
@click.option("--internal", is_flag=True, help="No way out, and none in but from this machine.")
@click.option("--mtu", metavar="BYTES", help="Largest packet.")
@click.option("-d", "--driver", default="bridge", show_default=True, metavar="PLUGIN")
@click.option("-o", "--opt", multiple=True, metavar="KEY=VALUE", help="An option of its driver.")
@click.option("--disable-dns", is_flag=True, help="Containers are not known by name in it.")
@click.option("-l", "--label", multiple=True, metavar="KEY[=VALUE]", help="Set a label.")
@click.argument("name", metavar="NAME")
@click.pass_obj
def command(session: Session, name: str, **values: Any) -> None:
    """Create a network."""
    session.run(_create, session, network_options(name, values))


def network_options(name: str, values: dict[str, Any]) -> NetworkOptions:
    """Return the request that parsed options make.

    Raises:
        UsageRefused: an option makes no sense.
    """
    from container.contracts.networks import NetworkOptions

    if values["gateway"] and not values["subnet"]:
        raise UsageRefused(
            f"--gateway {values['gateway'][0]} has no range", hint="name that with --subnet"
        )
    return NetworkOptions(
        name=networking.parse_network_name(name),
        driver=networking.parse_network_name(values["driver"]),
        subnets=tuple(parse_subnet(text) for text in values["subnet"]),
        gateways=tuple(networking.parse_address(text, "a gateway") for text in values["gateway"]),
        ipv6=values["ipv6"],
        internal=values["internal"],
        mtu=None if values["mtu"] is None else networking.parse_mtu(values["mtu"]),
        options=parse_driver_options(values["opt"]),
        labels=parse_labels(values["label"]),
        names=not values["disable_dns"],
    )


def parse_subnet(text: str) -> str:
    """Return a range of addresses in CIDR, checked."""
    import ipaddress

    address, slash, _ = text.partition("/")
    try:
        found = ipaddress.ip_network(text, strict=False)
    except ValueError:
        found = None
    if found is None or not slash:
        raise UsageRefused(
            f'"{text}" is no range: use an address and a prefix length, as in 10.9.0.0/24'
        )
    if ipaddress.ip_address(address) != found.network_address:
        raise UsageRefused(f'"{text}" is an address in the range {found}: use that')
    return str(found)


async def _create(session: Session, options: NetworkOptions) -> None:
    import trio

    async with session.networks() as networks:
        with trio.fail_after(QUICK):
            made = await networks.create(options)
    print(made.configuration.id)
