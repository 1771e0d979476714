"""What the API server holds of one container in memory, and of its current run."""

from __future__ import annotations

import trio
from attrs import define, field

from container.contracts.apiserver import Container
from container.contracts.runtime import ExitStatus


@define(eq=False)
class Run:
    """From bootstrap until the helper is gone."""

    scope: trio.CancelScope = field(factory=trio.CancelScope)
    """Of the task that waits for its exit."""
    exit: ExitStatus | None = None
    """Set once it ended."""
    hurry: trio.Event = field(factory=trio.Event)
    """Set when nobody will ask its helper for the exit status any more: clean up at once."""


@define(eq=False)
class Record:
    """One container. `run` is None while no sandbox exists."""

    container: Container
    layers: tuple[str, ...] | None = None
    """Of its image, topmost first; None until they were read or prepared."""
    run: Run | None = None
    removed: bool = False
    claimed: trio.Event = field(factory=trio.Event)
    """Set at the first bootstrap, or when it is removed."""
    settled: trio.Event = field(factory=trio.Event)
    """Set when it is known whether it runs; at once for one that was just created."""
    changed: trio.Event = field(factory=trio.Event)
    """Set at the next change, and replaced."""

    @property
    def id(self) -> str:
        """The container's id."""
        return self.container.id

    @property
    def live(self) -> bool:
        """True from bootstrap to exit."""
        return self.run is not None and self.run.exit is None

    def change(self, container: Container | None = None) -> None:
        """Take a new state, and wake whoever waits for one."""
        if container is not None:
            self.container = container
        changed, self.changed = self.changed, trio.Event()
        changed.set()
