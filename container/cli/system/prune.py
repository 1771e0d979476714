"""`container system prune`: delete what nobody uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from container.cli.amounts import show_bytes
from container.cli.confirming import confirm
from container.cli.groups import Verb
from container.cli.output import format_option, print_json
from container.cli.session import Session

if TYPE_CHECKING:
    from container.contracts.usage import Pruned, PruneOptions

HELP = """Delete what nobody uses: containers that do not run, with what they wrote and their logs;
networks that no container is in; and what is left of images.

With --all images that no container uses, too, and with --volumes anonymous volumes. Named volumes
stay: "container volume prune --all" deletes those. "container system df" says what would be freed.
"""
PRUNING = 1800.0


@click.command("prune", cls=Verb, help=HELP, short_help="Delete what nobody uses.")
@click.option("-a", "--all", "images", is_flag=True, help="Images that no container uses, too.")
@click.option("--volumes", is_flag=True, help="Anonymous volumes that no container uses, too.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@format_option()
@click.pass_obj
def command(session: Session, images: bool, volumes: bool, force: bool, output: str) -> None:
    """Delete what nobody uses."""
    from container.contracts.usage import PruneOptions

    what = ["all containers that do not run", "all networks that no container is in"]
    what += ["all images that no container uses"] if images else ["what is left of images"]
    what += ["all anonymous volumes that no container uses, with their data"] if volumes else []
    confirm("This deletes\n  " + "\n  ".join(what), force=force)
    gone = session.run(_prune, session, PruneOptions(images=images, volumes=volumes))
    if output == "json":
        print_json(gone)
        return
    for kind, names in (
        ("container", gone.containers),
        ("network", gone.networks),
        ("volume", gone.volumes),
        ("image", gone.images),
    ):
        for name in names:
            print(f"{kind} {name}")
    print(f"freed {show_bytes(sum(gone.freed.values()))}")


async def _prune(session: Session, options: PruneOptions) -> Pruned:
    import trio

    async with session.usage() as usage:
        with trio.fail_after(PRUNING):
            return await usage.prune(options)
