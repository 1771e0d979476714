"""`container image`: the table of its verbs."""

from __future__ import annotations

import click

from container.cli.groups import Entry, LazyGroup

HERE = "container.cli.image"

ENTRIES = (
    Entry("list", f"{HERE}.list:command", "List images.", ("ls",)),
    Entry("pull", f"{HERE}.pull:command", "Fetch an image from its registry."),
    Entry("load", f"{HERE}.load:command", "Load an OCI layout or a docker archive."),
    Entry("inspect", f"{HERE}.inspect:command", "Show all that is known of images."),
    Entry("tag", f"{HERE}.tag:command", "Give an image a further name."),
    Entry("delete", f"{HERE}.delete:command", "Delete images.", ("rm",)),
)


@click.group("image", cls=LazyGroup, entries=ENTRIES, help="Load, pull, list and delete images.")
def command() -> None:
    """Work with images."""
