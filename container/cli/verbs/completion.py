"""`container completion`: print the completion script of a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from container.cli.groups import Verb

HELP = """Print the completion script of a shell.

For bash, add this to ~/.bashrc:  eval "$(container completion bash)"
"""


@click.command("completion", cls=Verb, help=HELP)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print a completion script."""
    completion = get_completion_class(shell)
    assert completion is not None
    root = context.find_root().command
    print(completion(root, {}, "container", "_CONTAINER_COMPLETE").source())
