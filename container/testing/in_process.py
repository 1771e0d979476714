"""`system()`: every service of the container system in this process, with a played OCI runtime.

```python
async def test_a_job_reports_its_status(autojump_clock):
    async with container.testing.system() as system:
        await system.add_image("job")
        async with system.run("job", ["sh", "-c", "exit 3"]) as c:
            assert (await c.wait()).code == 3
```

The services are the real ones, joined by memory pairs where the processes have sockets: the same
messages, the same codec, the same limits. Played are the launcher, whose helpers are tasks, and the
OCI runtime, whose containers are async functions: `programs` gives them by command; and networks,
whose addresses are the real ones, and nothing else of them is. What is *not* here: processes,
mounts, control groups, interfaces. Worker threads read and write the documents; the autojump
clock is held meanwhile.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trio
from attrs import evolve

from container import embed
from container.apiserver.containers import ContainersService
from container.apiserver.disk_usage import UsageService
from container.apiserver.health import HealthService
from container.apiserver.links import direct
from container.apiserver.network_table import NetworkTable
from container.apiserver.networks import NetworksService
from container.apiserver.plugins import PluginsService
from container.apiserver.sandboxes import Timeouts
from container.contracts.apiserver import Containers, Health, Plugins
from container.contracts.images import Images
from container.contracts.launcher import Launcher, ServiceUnit
from container.contracts.network import Network
from container.contracts.networks import Networks
from container.contracts.runtime import Sandbox, SandboxGate
from container.contracts.stored import read_network
from container.contracts.usage import Usage
from container.contracts.volumes import Volumes
from container.images.service import ImagesService
from container.ipc import connection_of, in_memory
from container.runtime.gate import RuntimeGate
from container.runtime.service import SandboxService
from container.storage.paths import Paths
from container.testing.busybox import Entry, write_layout
from container.testing.clock import hold_autojump_clock
from container.testing.launcher import InProcessLauncher
from container.testing.network import FakeNetwork
from container.testing.oci import PROGRAMS, Program, RecordedRuntime, recorded_machinery

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
"""When a test's clock stands at 0."""


def clock_time() -> datetime:
    """Return the time of the test's clock as a date."""
    return EPOCH + timedelta(seconds=trio.current_time())


class System(embed.System):
    """A system in this process: what `container.embed.System` offers, and what is behind it.

    `containers`, `images`, `networks`, `volumes`, `usage`, `plugins`, `health` and `launcher` are
    proxies, as a client has them.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        containers: Containers,
        images: Images,
        networks: Networks,
        volumes: Volumes,
        usage: Usage,
        plugins: Plugins,
        health: Health,
        launcher: Launcher,
        helpers: InProcessLauncher,
        runtime: RecordedRuntime,
    ) -> None:
        super().__init__(containers, images, networks, paths)
        self.volumes = volumes
        self.usage = usage
        self.plugins = plugins
        self.health = health
        self.launcher = launcher
        self.helpers = helpers
        """The helpers as tasks: `helpers.kill("runtime.<id>")` plays a crash."""
        self.runtime = runtime
        """The played OCI runtime: `runtime.calls` says what was asked of it."""

    async def add_image(
        self,
        name: str = "demo",
        *,
        command: Sequence[str] = ("/bin/sh",),
        programs: Sequence[str] = (),
        config: Mapping[str, object] | None = None,
    ) -> None:
        """Make a small image and load it.

        Args:
            name: Its reference.
            command: Its default command.
            programs: Names of further programs in its `/bin`, beside the played ones.
            config: Fields of its execution parameters, as the OCI image specification names them.
        """
        names = dict.fromkeys((*PROGRAMS, *programs))
        layer = [Entry(f"bin/{program}", mode=0o755) for program in names]
        settings = {"Cmd": list(command), **(config or {})}
        with tempfile.TemporaryDirectory(prefix="container-image-") as folder:

            def write() -> None:
                write_layout(
                    Path(folder),
                    name=name,
                    base=False,
                    layers=[layer],
                    config=settings,
                    compression="none",
                )

            await trio.to_thread.run_sync(write)
            await self.load(folder)


@asynccontextmanager
async def system(
    *,
    programs: Mapping[str | tuple[str, ...], Program] | None = None,
    root: Path | None = None,
    timeouts: Timeouts | None = None,
    clock: Callable[[], datetime] = clock_time,
) -> AsyncGenerator[System]:
    """Open a whole system in this process for the block; at its end all of it is gone.

    Args:
        programs: What containers run: a whole command line or a command's name to an async
            function, added to `true`, `false`, `echo`, `cat`, `sleep`, `env` and `sh -c "exit N"`.
        root: Where its files are; None makes a temporary folder. Give one to open a second system
        on
            what a first one left.
        timeouts: Bounds of the API server.
        clock: Says the time to the API server.
    """
    place = Path(tempfile.mkdtemp(prefix="container-test-")) if root is None else root
    paths = Paths(root=place / "root", run=place / "run")
    try:
        with hold_autojump_clock():
            async with AsyncExitStack() as stack:
                yield await _open(stack, paths, programs or {}, timeouts, clock)
    finally:
        if root is None:
            shutil.rmtree(place, ignore_errors=True)


@asynccontextmanager
async def _until(over: trio.Event, network: Network) -> AsyncGenerator[Network]:
    """Connect to a network; the connection is lost with its helper."""

    async def cut(proxy: Network) -> None:
        await over.wait()
        connection_of(proxy).abort()

    async with in_memory(network, Network) as proxy, trio.open_nursery() as nursery:
        nursery.start_soon(cut, proxy)
        yield proxy
        nursery.cancel_scope.cancel()


async def _open(
    stack: AsyncExitStack,
    paths: Paths,
    programs: Mapping[str | tuple[str, ...], Program],
    timeouts: Timeouts | None,
    clock: Callable[[], datetime],
) -> System:
    runtime = await stack.enter_async_context(RecordedRuntime(programs))
    over: dict[Network, trio.Event] = {}
    """When the helper of a network ends: what was connected to it is cut off then."""

    @asynccontextmanager
    async def helper(
        unit: ServiceUnit, end: Callable[[], None]
    ) -> AsyncGenerator[SandboxGate | Network]:
        kind, _, key = unit.name.partition(".")
        if kind == "network":
            configuration = await trio.to_thread.run_sync(read_network, paths.networks / key)
            async with FakeNetwork(configuration) as network:
                over[network] = trio.Event()
                try:
                    yield network
                finally:
                    over.pop(network).set()
            return
        folder = paths.containers / key
        machinery = evolve(
            recorded_machinery(folder, runtime), connect_network=helpers.connect_network
        )
        service = SandboxService(folder, key, machinery)

        async def watch() -> None:
            await service.ended.wait()
            end()

        async with service, RuntimeGate(Sandbox, service) as gate, trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            yield gate
            nursery.cancel_scope.cancel()

    def connect(served: SandboxGate | Network) -> AbstractAsyncContextManager[Any]:
        if isinstance(served, Network):
            return _until(over[served], served)
        return in_memory(served, SandboxGate)

    helpers = await stack.enter_async_context(InProcessLauncher(paths, helper, connect))
    launcher = await stack.enter_async_context(in_memory(helpers, Launcher))
    images = await stack.enter_async_context(in_memory(ImagesService(paths.images), Images))
    plugins = await stack.enter_async_context(PluginsService())
    table = NetworkTable(
        paths,
        launcher=direct(launcher),
        plugins=plugins,
        open_network=helpers.connect_network,
        clock=clock,
        host_routes=lambda: (),
        has_ipv6=lambda: True,
    )
    await stack.enter_async_context(table)
    service = ContainersService(
        paths,
        images=direct(images),
        launcher=direct(launcher),
        open_gate=helpers.connect_gate,
        plugins=plugins,
        networks=table,
        clock=clock,
        timeouts=timeouts,
    )
    await stack.enter_async_context(service)
    health = HealthService(paths, census=service.census, started=clock())
    networks = NetworksService(table, service)
    usage = UsageService(
        paths,
        containers=service,
        volumes=service.volumes,
        networks=networks,
        images=direct(images),
        clock=clock,
    )
    await stack.enter_async_context(usage)
    return System(
        paths,
        containers=await stack.enter_async_context(in_memory(service, Containers)),
        images=images,
        networks=await stack.enter_async_context(in_memory(networks, Networks)),
        volumes=await stack.enter_async_context(in_memory(service.volumes, Volumes)),
        usage=await stack.enter_async_context(in_memory(usage, Usage)),
        plugins=await stack.enter_async_context(in_memory(plugins, Plugins)),
        health=await stack.enter_async_context(in_memory(health, Health)),
        launcher=launcher,
        helpers=helpers,
        runtime=runtime,
    )
