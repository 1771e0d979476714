"""`container ipc`: the table of its verbs."""

from __future__ import annotations

import click

from container.cli.groups import Entry, LazyGroup

HERE = "container.cli.ipc"

ENTRIES = (
    Entry("describe", f"{HERE}.describe:command", "Show what a service offers."),
    Entry("call", f"{HERE}.call:command", "Call a route of a service."),
    Entry("monitor", f"{HERE}.monitor:command", "Watch the calls of a service as they happen."),
    Entry("tasks", f"{HERE}.tasks:command", "Show the tasks of a service."),
)


@click.group("ipc", cls=LazyGroup, entries=ENTRIES, help="Look at services and call them.")
def command() -> None:
    """Work with any service that speaks `container.ipc`."""
