"""`container system`: the table of its verbs."""

from __future__ import annotations

import click

from container.cli.groups import Entry, LazyGroup

HERE = "container.cli.system"

ENTRIES = (
    Entry("start", f"{HERE}.start:command", "Start the system, if it is not up."),
    Entry("stop", f"{HERE}.stop:command", "Stop the system."),
    Entry("status", f"{HERE}.status:command", "Show the system and its services."),
    Entry("df", f"{HERE}.df:command", "Show what the disk is used for."),
    Entry("prune", f"{HERE}.prune:command", "Delete what nobody uses."),
    Entry("check", f"{HERE}.check:command", "Compare what is on disk with what is there."),
    Entry("install", f"{HERE}.install:command", "Hand the system to systemd."),
    Entry("uninstall", f"{HERE}.install:undo", "Take it back from systemd."),
    Entry("version", f"{HERE}.version:command", "Show the versions here and of what runs."),
)


@click.group("system", cls=LazyGroup, entries=ENTRIES, help="Start, stop and look at the system.")
def command() -> None:
    """Work with the system."""
