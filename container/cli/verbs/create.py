"""`container create`: make a container without starting it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from container.cli.creation import container_options, creation_options
from container.cli.groups import ProcessVerb
from container.cli.session import Session

if TYPE_CHECKING:
    from container.contracts.apiserver import ContainerOptions

HELP = """Create a container without starting it, and print its id.

Start it with "container start". It is in the network named "default", unless --network says
otherwise (--network none: in none).
"""


@click.command("create", cls=ProcessVerb, help=HELP)
@creation_options
@click.pass_obj
def command(session: Session, image: str, arguments: tuple[str, ...], **values: Any) -> None:
    """Create a container."""
    options = container_options(values, image=image, arguments=arguments, keep_log=True)
    session.run(_create, session, options, values["cidfile"])


async def _create(session: Session, options: ContainerOptions, cidfile: str | None) -> None:
    from container.cli.cidfile import CidFile

    with CidFile(cidfile) as file:
        async with session.containers() as containers:
            container = await containers.create(options)
            file.write(container.id)
    print(container.id)
