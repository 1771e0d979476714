"""What the API server holds of one container in memory, and of its current run."""

from __future__ import annotations

import trio
from attrs import define, evolve, field

from container.apiserver.healthchecks import Health
from container.apiserver.restarts import RestartRow
from container.contracts.apiserver import Container
from container.contracts.runtime import ExitStatus


@define(eq=False)
class Run:
    """From bootstrap until the helper is gone."""

    scope: trio.CancelScope = field(factory=trio.CancelScope)
    """Of the task that waits for its exit."""
    since: float = field(factory=trio.current_time)
    """On Trio's clock."""
    running: trio.Event = field(factory=trio.Event)
    """Set when it is known that the first process was started."""
    exit: ExitStatus | None = None
    """Set once it ended."""
    hurry: trio.Event = field(factory=trio.Event)
    """Set when nobody will ask its helper for the exit status any more: clean up at once."""
    to_restart: bool = False
    """A user restarts the container: who asked for it starts it again, no policy is asked."""


@define(eq=False)
class Record:
    """One container. `run` is None while no sandbox exists."""

    container: Container
    saved: Container = field(init=False)
    """What is on disk: its status is what was intended last."""
    layers: tuple[str, ...] | None = None
    """Of its image, topmost first; None until they were read or prepared."""
    run: Run | None = None
    bootstrapping: trio.CancelScope | None = None
    """Of the last bootstrap: who removes the container by force does not wait for its end."""
    restart: trio.CancelScope | None = None
    """Of the task that is going to start it again; who takes it away has stopped that."""
    row: RestartRow = field(factory=RestartRow)
    health: Health | None = None
    """Of the current run, if it is checked."""
    made: bool = False
    """Its helper was asked to make a sandbox, and nothing has taken it down since: if that helper
    does not answer any more, something may be left of it."""
    removed: bool = False
    claimed: trio.Event = field(factory=trio.Event)
    """Set at the first bootstrap, or when it is removed."""
    settled: trio.Event = field(factory=trio.Event)
    """Set when it is known whether it runs; at once for one that was just created."""
    changed: trio.Event = field(factory=trio.Event)
    """Set at the next change, and replaced."""
    writing: trio.Lock = field(factory=trio.Lock)
    """Held while its document is written: each change is laid over what is there then."""

    def __attrs_post_init__(self) -> None:
        self.saved = self.container

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

    def shown(self, container: Container) -> Container:
        """Return `container`, a view of this one, with what its health checks say."""
        health = self.health
        if health is None or not self.live:
            return container
        return evolve(
            container,
            health_status=health.status,
            health_failures=health.failures,
            health_results=tuple(health.results),
        )
