"""The process `container-apiserver`: serves all that clients ask for on one socket."""

from __future__ import annotations

import trio

from container.process import Context, run_process


async def serve(context: Context) -> None:
    """Serve `Containers`, `Volumes`, `Networks`, `Usage`, `Plugins` and `Health` until stopped."""
    from container.apiserver.containers import ContainersService
    from container.apiserver.disk_usage import UsageService
    from container.apiserver.health import HealthService
    from container.apiserver.links import Link
    from container.apiserver.network_table import NetworkTable
    from container.apiserver.networks import NetworksService
    from container.apiserver.plugins import PluginsService
    from container.apiserver.table import utc_now
    from container.contracts.images import Images
    from container.contracts.launcher import Launcher
    from container.contracts.network import Network
    from container.contracts.runtime import SandboxGate
    from container.ipc import open_service

    paths = context.paths
    plugins = PluginsService()
    async with (
        plugins,
        Link(Images, paths.images_socket) as images,
        Link(Launcher, paths.launcher_socket) as launcher,
        NetworkTable(
            paths,
            launcher=launcher,
            plugins=plugins,
            open_network=Network.connect,
            clock=utc_now,
        ) as table,
    ):
        containers = ContainersService(
            paths,
            images=images,
            launcher=launcher,
            open_gate=SandboxGate.connect,
            plugins=plugins,
            networks=table,
        )
        networks = NetworksService(table, containers)
        health = HealthService(paths, census=containers.census, started=utc_now())
        volumes = containers.volumes
        usage = UsageService(
            paths, containers=containers, volumes=volumes, networks=networks, images=images
        )
        at = context.listener or paths.apiserver_socket
        async with open_service(containers, volumes, networks, usage, plugins, health, at=at):
            await context.ready()
            await trio.sleep_forever()


def main() -> int:
    """Run the process."""
    return run_process("container-apiserver", serve)
