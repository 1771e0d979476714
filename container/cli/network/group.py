"""`container network`: the table of its verbs."""

from __future__ import annotations

import click

from container.cli.groups import Entry, LazyGroup

HERE = "container.cli.network"

ENTRIES = (
    Entry("create", f"{HERE}.create:command", "Create a network."),
    Entry("list", f"{HERE}.list:command", "List networks.", ("ls",)),
    Entry("inspect", f"{HERE}.inspect:command", "Show all that is known of networks."),
    Entry("delete", f"{HERE}.delete:command", "Delete networks.", ("rm",)),
    Entry("prune", f"{HERE}.prune:command", "Delete the networks that no container is in."),
    Entry("connect", f"{HERE}.connect:command", "Put a container into a network."),
    Entry("disconnect", f"{HERE}.disconnect:command", "Take a container out of a network."),
)


@click.group("network", cls=LazyGroup, entries=ENTRIES, help="Create, list and delete networks.")
def command() -> None:
    """Work with networks."""
