"""`container image inspect`: all that is known of images."""

from __future__ import annotations

import click

from container.cli.groups import Verb
from container.cli.names import parse_platform
from container.cli.output import format_option, print_json, print_properties
from container.cli.session import QUICK, Session


@click.command("inspect", cls=Verb, help="Show all that is known of images, as a JSON list.")
@click.option(
    "--platform", metavar="OS/ARCHITECTURE", help="As in linux/arm64; else this machine's."
)
@format_option("json")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.pass_obj
def command(session: Session, platform: str | None, output: str, images: tuple[str, ...]) -> None:
    """Show images."""
    session.run(_inspect, session, images, platform, output)


async def _inspect(
    session: Session, names: tuple[str, ...], platform: str | None, output: str
) -> None:
    import trio

    from container.cli.many import gather, raise_errors
    from container.contracts.images import Image

    wanted = None if platform is None else parse_platform(platform)
    async with session.images() as images:

        async def get(name: str) -> Image:
            with trio.fail_after(QUICK):
                return await images.get(name, wanted)

        results = await gather(names, get)
    found = [result for result in results if not isinstance(result, Exception)]
    if output == "json":
        print_json(found)
    else:
        for number, image in enumerate(found):
            if number:
                print()
            print_properties(image)
    raise_errors(results)
