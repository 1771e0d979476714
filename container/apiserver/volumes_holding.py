"""Holding volumes for runs: one `mount` scope of a driver for each volume of each container.

A scope is opened before a container's bootstrap and left once nothing of its run is left. If a
driver's helper goes away meanwhile, the scope is opened anew, by the same key, for as long as the
run lasts: the mount is the driver's to keep. If this process ends, its scopes break off rather than
being left; the next API server opens them again for the runs that it adopts.
"""

from __future__ import annotations

import logging

import trio
from attrs import define, field

from container.apiserver.links import together
from container.apiserver.volumes_drivers import Drivers
from container.contracts.volumes import Volume
from container.ipc import Actor, Backoff, Supervised, Unavailable
from container.ipc.error_groups import single

AGAIN = Backoff(0.1, 30.0)
OPEN_SECONDS = 60.0
LEAVE_SECONDS = 20.0
"""For a driver to let a volume go; then that is logged, and its next mount finds what is left."""

_log = logging.getLogger(__name__)


@define(eq=False)
class _Hold:
    volume: Volume
    key: str
    path: str = ""
    mounted: trio.Event = field(factory=trio.Event)
    """Set once `path` is known."""
    leave: trio.Event = field(factory=trio.Event)
    """Set when the scope is to be left."""
    ended: trio.Event = field(factory=trio.Event)
    scope: trio.CancelScope = field(factory=trio.CancelScope)


class VolumeHolds(Actor):
    """Keep the scopes of all runs.

    Args:
        drivers: Reaches the drivers.
    """

    def __init__(self, drivers: Drivers) -> None:
        self._drivers = drivers
        self._holds: dict[str, dict[str, _Hold]] = {}

    def held(self, key: str) -> tuple[str, ...]:
        """Return the names of the volumes that are held for a container."""
        return tuple(self._holds.get(key, ()))

    async def hold(self, key: str, volumes: tuple[Volume, ...]) -> dict[str, str]:
        """Hold volumes for a container's run; return the path of each. All or nothing.

        What is held already is not opened again.

        Raises:
            ContainerError: a driver can't mount one.
        """
        mine = self._holds.setdefault(key, {})
        new = [_Hold(volume, key) for volume in volumes if volume.name not in mine]
        try:
            for hold in new:
                mine[hold.volume.name] = hold
                await self._open(hold)
            for hold in mine.values():
                await hold.mounted.wait()  # it may have been taken up a moment ago
        except BaseException:
            await self._leave(new)
            raise
        return {volume.name: mine[volume.name].path for volume in volumes}

    async def _open(self, hold: _Hold) -> None:
        # Shielded: of one that is cancelled while it opens, nobody knows whether it is mounted.
        with trio.move_on_after(OPEN_SECONDS, shield=True) as bound:
            await self.nursery.start(self._keep, hold)
        if bound.cancelled_caught:
            raise Unavailable(
                f"the driver {hold.volume.driver} does not mount volume {hold.volume.name}",
                hint="its log is in the logs folder",
            )
        await trio.lowlevel.checkpoint_if_cancelled()

    def take_up(self, key: str, volumes: tuple[Volume, ...]) -> None:
        """Hold volumes for a run that an earlier API server began; does not wait for that."""
        mine = self._holds.setdefault(key, {})
        for volume in volumes:
            hold = mine[volume.name] = _Hold(volume, key)
            self.nursery.start_soon(self._supervise, hold)

    async def release(self, key: str) -> None:
        """Leave all scopes of a container; bounded, and not cut short."""
        await self._leave(list(self._holds.get(key, {}).values()))

    async def _leave(self, holds: list[_Hold]) -> None:
        for hold in holds:
            hold.leave.set()
        with trio.move_on_after(LEAVE_SECONDS, shield=True):
            await together(*(hold.ended.wait for hold in holds))
        for hold in holds:
            if not hold.ended.is_set():
                _log.error("volume %s is not let go by its driver", hold.volume.name)
                hold.scope.cancel()
            mine = self._holds.get(hold.key, {})
            if mine.get(hold.volume.name) is hold:
                del mine[hold.volume.name]
                if not mine:
                    self._holds.pop(hold.key, None)

    async def _keep(self, hold: _Hold, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            with hold.scope:
                await self._once(hold, task_status)
        except Exception as error:
            failure = single(error)
            if not hold.path:
                raise failure from None
            _log.warning("volume %s is mounted again: %s", hold.volume.name, failure)
            await self._supervise(hold)
        finally:
            hold.ended.set()

    async def _supervise(self, hold: _Hold) -> None:
        name = f"volume {hold.volume.name} of container {hold.key}"
        again = Supervised[None](lambda: self._once(hold), name=name, backoff=AGAIN, intensity=None)
        hold.scope = trio.CancelScope()
        try:
            with hold.scope:
                await again.run()
        finally:
            hold.ended.set()

    async def _once(
        self, hold: _Hold, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with (
            self._drivers.open(hold.volume.driver) as driver,
            driver.mount(hold.volume.name, hold.key) as path,
        ):
            if hold.path and path != hold.path:
                _log.error("volume %s moved to %s under its container", hold.volume.name, path)
            hold.path = path
            hold.mounted.set()
            task_status.started()
            await hold.leave.wait()
