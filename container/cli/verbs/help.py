"""`container help`: the help of the program, or of one command."""

from __future__ import annotations

import click

from container.cli.failure import UsageRefused
from container.cli.groups import Verb


@click.command("help", cls=Verb, help="Show help of a command, as in: container help image load")
@click.argument("words", nargs=-1, metavar="[COMMAND]...")
@click.pass_context
def command(context: click.Context, words: tuple[str, ...]) -> None:
    """Show help."""
    here = context.find_root()
    for word in words:
        group = here.command
        if not isinstance(group, click.Group):
            raise UsageRefused(f'"{here.command_path}" has no command "{word}"')
        # Finds it, or says what was meant.
        _, found, _ = group.resolve_command(here, [word])
        assert found is not None
        here = click.Context(found, info_name=word, parent=here)
    click.echo(here.get_help())
