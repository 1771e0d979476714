"""`container volume`: the table of its verbs."""

from __future__ import annotations

import click

from container.cli.groups import Entry, LazyGroup

HERE = "container.cli.volume"

ENTRIES = (
    Entry("create", f"{HERE}.create:command", "Create a volume."),
    Entry("list", f"{HERE}.list:command", "List volumes.", ("ls",)),
    Entry("inspect", f"{HERE}.inspect:command", "Show all that is known of volumes."),
    Entry("delete", f"{HERE}.delete:command", "Delete volumes.", ("rm",)),
    Entry("prune", f"{HERE}.prune:command", "Delete the volumes that no container uses."),
)


@click.group("volume", cls=LazyGroup, entries=ENTRIES, help="Create, list and delete volumes.")
def command() -> None:
    """Work with volumes."""
