"""Is the API server up, and which is it? Answers from memory alone, asking nobody."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime

import trio

from container import __version__
from container.contracts.apiserver import Health, SystemHealth
from container.ipc import Actor
from container.storage.paths import Paths


class HealthService(Actor, Health):
    """Answer pings.

    Args:
        paths: The system's place.
        census: Returns how many containers there are and how many of them run.
        started: When this process was started.
    """

    def __init__(
        self, paths: Paths, *, census: Callable[[], tuple[int, int]], started: datetime
    ) -> None:
        self._paths = paths
        self._census = census
        self._started = started

    async def ping(self) -> SystemHealth:
        """Return version, place and a count; see the contract."""
        await trio.lowlevel.checkpoint()
        containers, running = self._census()
        return SystemHealth(
            version=__version__,
            pid=os.getpid(),
            root=str(self._paths.root),
            run=str(self._paths.run),
            started=self._started,
            containers=containers,
            running=running,
        )
