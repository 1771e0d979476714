"""The drivers of volumes: `local` in this process, all others as helpers.

A driver is a plugin of type `volume`, named by its plugin's name. Its helper is the launcher's unit
`volume.<driver>`; it is started by who connects to its socket, with the arguments
`start --root <folder> <driver>`, where the folder is its own to keep.
"""

from __future__ import annotations

import difflib
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from container.apiserver.links import Caller
from container.apiserver.volumes_local import LocalDriver
from container.contracts.apiserver import Plugins
from container.contracts.launcher import Launcher, Restart, ServiceUnit
from container.contracts.volumes import VolumeDriver
from container.ipc import AlreadyExists, NotFound, PeerGone, Unavailable
from container.storage.paths import Paths

LOCAL = "local"
CONNECT_SECONDS = 30.0
"""From registering a driver's helper to its answer."""
IDLE_SECONDS = 30.0

Connect = Callable[[str], AbstractAsyncContextManager[VolumeDriver]]
"""Connect to the driver behind a socket path; connecting starts its helper."""


class Drivers:
    """Reach the driver of a volume.

    Args:
        paths: Where sockets and the drivers' folders are.
        launcher: Registers helpers.
        plugins: Knows the drivers.
        local: The driver of this process.
        connect: Connects to a helper.
    """

    def __init__(
        self,
        paths: Paths,
        launcher: Caller[Launcher],
        plugins: Plugins,
        local: LocalDriver,
        connect: Connect = VolumeDriver.connect,
    ) -> None:
        self._paths = paths
        self._launcher = launcher
        self._plugins = plugins
        self._local = local
        self._connect = connect

    async def check(self, driver: str) -> None:
        """Look whether there is such a driver.

        Raises:
            NotFound: there is none; the hint names those that there are.
        """
        if driver != LOCAL:
            await self._unit(driver)

    @asynccontextmanager
    async def open(self, driver: str) -> AsyncGenerator[VolumeDriver]:
        """Connect to a driver for the block.

        Raises:
            NotFound: there is no such driver.
            Unavailable: its helper can't be reached.
        """
        if driver == LOCAL:
            await trio.lowlevel.checkpoint()
            yield self._local
            return
        connected = False
        try:
            with trio.CancelScope(deadline=trio.current_time() + CONNECT_SECONDS) as connecting:
                path = await self._register(driver)
                async with self._connect(path) as proxy:
                    connected, connecting.deadline = True, float("inf")
                    yield proxy
        except PeerGone as error:
            if connected:
                raise
            raise _unreachable(driver) from error
        if not connected:
            raise _unreachable(driver)

    async def _register(self, driver: str) -> str:
        unit = await self._unit(driver)
        try:
            return await self._launcher(lambda launcher: launcher.register(unit))
        except AlreadyExists:
            # As an older version has registered it: its helper ends when it is idle.
            return str(self._paths.volume_socket(driver))

    async def _unit(self, driver: str) -> ServiceUnit:
        drivers = {it.name: it for it in await self._plugins.list() if "volume" in it.service_types}
        if driver not in drivers:
            known = [LOCAL, *sorted(drivers)]
            close = difflib.get_close_matches(driver, known, n=1)
            raise NotFound(
                f"no volume driver {driver[:100]!r}",
                hint=f"did you mean {close[0]!r}?" if close else f"there is {', '.join(known)}",
            )
        plugin = drivers[driver]
        return ServiceUnit(
            name=f"volume.{driver}",
            command=(
                *plugin.command,
                *("--root", str(self._paths.root / "volume-drivers" / driver), driver),
            ),
            entry=plugin.entry,
            description=f"volume driver {driver}",
            listen=f"volume/{driver}.sock",
            restart=Restart.ON_FAILURE,
            idle_timeout=IDLE_SECONDS,
        )


def _unreachable(driver: str) -> Unavailable:
    return Unavailable(
        f"the volume driver {driver} can't be reached",
        hint="its log is in the logs folder; `container system status` shows it",
    )
