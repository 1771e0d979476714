"""`container system df`: what the disk is used for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from container.cli.amounts import show_bytes
from container.cli.groups import Verb
from container.cli.image.list import short_digest
from container.cli.output import format_option, print_json, print_table
from container.cli.session import Session

if TYPE_CHECKING:
    from container.contracts.usage import DiskUsage

HELP = """Show what images, containers and volumes take on disk.

What is reclaimable is what "container system prune --all --volumes" would free: containers that do
not run, images that no other container uses, and anonymous volumes likewise. Named volumes are
never counted there.
"""
MEASURING = 600.0


@click.command("df", cls=Verb, help=HELP)
@click.option("-v", "--verbose", is_flag=True, help="Show each image, container and volume.")
@format_option()
@click.pass_obj
def command(session: Session, verbose: bool, output: str) -> None:
    """Show what the disk is used for."""
    found = session.run(_measure, session)
    if output == "json":
        print_json(found)
        return
    if verbose:
        _show_all(found)
    print_table(
        ("TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"),
        [
            (
                total.kind,
                str(total.count),
                str(total.active),
                show_bytes(total.size_bytes),
                _share(total.reclaimable_bytes, total.size_bytes),
            )
            for total in found.totals
        ],
    )


def _share(part: int, whole: int) -> str:
    return f"{show_bytes(part)} ({100 * part // whole}%)" if whole else show_bytes(part)


def _show_all(found: DiskUsage) -> None:
    print_table(
        ("IMAGE", "DIGEST", "SIZE", "SHARED", "CONTAINERS"),
        [
            (
                " ".join(image.references),
                short_digest(image.digest),
                show_bytes(image.size_bytes),
                show_bytes(image.shared_bytes),
                str(len(image.holders)),
            )
            for image in found.images
        ],
    )
    print()
    print_table(
        ("CONTAINER", "NAME", "STATUS", "WRITTEN", "LOG", "SIZE", "RECLAIMABLE"),
        [
            (
                container.id,
                container.name,
                container.status.value,
                show_bytes(container.writable_bytes),
                show_bytes(container.log_bytes),
                show_bytes(container.size_bytes),
                "yes" if container.reclaimable else "no",
            )
            for container in found.containers
        ],
    )
    print()
    print_table(
        ("VOLUME", "DRIVER", "CONTAINERS", "SIZE", "RECLAIMABLE"),
        [
            (
                volume.name,
                volume.driver,
                str(len(volume.used_by)),
                show_bytes(volume.size_bytes),
                "yes" if volume.reclaimable else "no",
            )
            for volume in found.volumes
        ],
    )
    print()


async def _measure(session: Session) -> DiskUsage:
    import trio

    from container.contracts.usage import PruneOptions

    async with session.usage() as usage:
        with trio.fail_after(MEASURING):
            return await usage.measure(PruneOptions(images=True, volumes=True))
