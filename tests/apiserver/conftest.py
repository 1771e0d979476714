"""A world for the API server: its neighbours are played, faults are chosen by the test."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, evolve, field

from container.apiserver.containers import ContainersService
from container.apiserver.links import direct
from container.apiserver.network_table import NetworkTable
from container.apiserver.networks import NetworksService
from container.apiserver.sandboxes import Timeouts
from container.apiserver.subnets import Taken
from container.contracts.apiserver import (
    Container,
    ContainerOptions,
    Plugin,
    Plugins,
    PullPolicy,
)
from container.contracts.images import (
    Image,
    ImageConfig,
    Images,
    ImageSummary,
    ImagesUsage,
    Platform,
    PrunedImages,
    Snapshot,
)
from container.contracts.launcher import ServiceUnit
from container.contracts.network import Attachment, Network, NetworkStatus
from container.contracts.runtime import (
    INIT,
    ExitStatus,
    LogFiles,
    ProcessState,
    Sandbox,
    SandboxGate,
    SandboxNetwork,
    SandboxPhase,
    SandboxProcess,
    SandboxState,
    SandboxStatistics,
    Started,
    StopOptions,
)
from container.ipc import (
    Actor,
    ContainerError,
    Endpoint,
    Fate,
    Fd,
    InvalidState,
    NotFound,
    PeerGone,
)
from container.storage.paths import Paths
from container.testing.clock import hold_autojump_clock
from container.testing.launcher import InProcessLauncher

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
PLATFORM = Platform("linux", "amd64")


def moment() -> datetime:
    """Return the time by the test's clock."""
    return EPOCH + timedelta(seconds=trio.current_time())


def make_image(reference: str = "localhost/demo:latest", **config: Any) -> Image:
    """Return an image; `config` is its configuration."""
    summary = ImageSummary(
        reference=reference,
        name="demo",
        tag="latest",
        digest="sha256:" + "1" * 64,
        size=1,
        created=None,
        platforms=(PLATFORM,),
    )
    return Image(
        summary=summary,
        platform=PLATFORM,
        manifest_digest="sha256:" + "2" * 64,
        config_digest="sha256:" + "3" * 64,
        config=ImageConfig(**({"command": ("/bin/sh",)} | config)),
        layers=(),
    )


class Faults:
    """Errors to raise and places to wait at, by the name of an operation."""

    def __init__(self) -> None:
        self.errors: dict[str, Exception] = {}
        self.waits: dict[str, trio.Event] = {}
        self.calls: list[str] = []

    async def at(self, operation: str) -> None:
        """Be at an operation: note it, wait, fail, as the test wants."""
        self.calls.append(operation)
        await trio.lowlevel.checkpoint()
        if operation in self.waits:
            await self.waits[operation].wait()
        if operation in self.errors:
            raise self.errors[operation]


class PlayedImages(Actor, Images):
    """One image, and who holds it."""

    def __init__(self, faults: Faults, folder: Path) -> None:
        self.faults = faults
        self.layers = (str(folder / "1"), str(folder / "0"))
        for layer in self.layers:
            Path(layer).mkdir(parents=True)
        self.images = {"demo": make_image()}
        self.remote: dict[str, Image] = {}
        self.holders: set[str] = set()

    def _get(self, reference: str) -> Image:
        name = reference.removeprefix("localhost/").partition("@")[0].partition(":")[0]
        if name not in self.images:
            raise NotFound(f"no image {reference!r}", hint="did you mean 'demo'?")
        return self.images[name]

    async def list(self) -> tuple[ImageSummary, ...]:
        return tuple(image.summary for image in self.images.values())

    async def get(self, reference: str, platform: Platform | None = None) -> Image:
        await self.faults.at("images.get")
        return self._get(reference)

    async def pull(
        self, reference: str, platform: Platform | None = None, scheme: Any = None
    ) -> Any:
        await self.faults.at("images.pull")
        if reference not in self.remote:
            raise NotFound(f"the registry has no image {reference!r}")
        self.images[reference] = self.remote[reference]
        return self.images[reference].summary

    async def load(self, archive: Any, name: Any = None, source: Any = None) -> Any:
        raise NotImplementedError

    async def tag(self, source: str, target: str) -> Any:
        raise NotImplementedError

    async def delete(self, reference: str, force: bool = False) -> Any:
        raise NotImplementedError

    async def prepare(
        self, reference: str, holder: str, platform: Platform | None = None
    ) -> Snapshot:
        await self.faults.at("images.prepare")
        image = self._get(reference)
        self.holders.add(holder)
        return Snapshot(image, self.layers)

    async def sweep(self) -> int:
        return 0

    async def usage(self, ignoring: tuple[str, ...] = ()) -> ImagesUsage:
        return ImagesUsage((), 0, 0, 0)

    async def prune(self, everything: bool = False) -> PrunedImages:
        return PrunedImages((), 0)

    async def release(self, holder: str) -> None:
        await self.faults.at("images.release")
        self.holders.discard(holder)


class LocalEndpoint(Endpoint[Sandbox]):
    """An endpoint in this process: no socket."""

    def __init__(self, sandbox: PlayedSandbox, routes: tuple[str, ...] | None) -> None:
        self.contract = Sandbox
        self.sandbox = sandbox
        self.routes = routes

    @asynccontextmanager
    async def _connect(self) -> AsyncGenerator[Sandbox]:
        await self.sandbox.faults.at("sandbox.connect")
        self.sandbox.check()
        yield self.sandbox

    def connect(self) -> Any:
        return self._connect()

    def close(self) -> None:
        pass


@define
class Kernel:
    """What outlives a helper: the state of each container's processes, by container."""

    states: dict[str, SandboxState] = field(factory=dict)
    changed: dict[str, trio.Event] = field(factory=dict)
    forgets: bool = False
    """A fresh helper finds nothing of what ran."""

    def set(self, state: SandboxState) -> None:
        self.states[state.id] = state
        self.changed.pop(state.id, trio.Event()).set()


class PlayedSandbox(Sandbox):
    """A sandbox whose container does what the test says."""

    def __init__(self, key: str, kernel: Kernel, faults: Faults, end: Callable[[], None]) -> None:
        self.key = key
        self.kernel = kernel
        self.faults = faults
        self.end = end
        self.dead = False
        if kernel.forgets or key not in kernel.states:
            kernel.states[key] = SandboxState(key, SandboxPhase.EMPTY)

    def check(self) -> None:
        if self.dead:
            raise PeerGone("the helper is gone", fate=Fate.NOT_SENT)

    @property
    def now(self) -> SandboxState:
        return self.kernel.states[self.key]

    def init(self, **changes: Any) -> None:
        """Change the first process, and the phase with it."""
        (process,) = [process for process in self.now.processes if process.id == INIT]
        process = evolve(process, **changes)
        phase = {
            ProcessState.CREATED: SandboxPhase.CREATED,
            ProcessState.RUNNING: SandboxPhase.RUNNING,
            ProcessState.EXITED: SandboxPhase.STOPPED,
        }[process.state]
        self.kernel.set(evolve(self.now, phase=phase, processes=(process,)))

    async def bootstrap(self, spec: Any, stdio: Any, namespace: Any = None) -> None:
        self.check()
        await self.faults.at("sandbox.bootstrap")
        if self.now.phase is not SandboxPhase.EMPTY:
            raise InvalidState("already bootstrapped")
        process = SandboxProcess(INIT, 4711, ProcessState.CREATED, spec.process.arguments)
        self.spec, self.stdio = spec, stdio
        self.namespace = None if namespace is None else os.fstat(namespace.fileno())
        networks = tuple(attachment_of(network) for network in spec.networks)
        self.kernel.set(SandboxState(self.key, SandboxPhase.CREATED, (process,), networks))

    async def create_process(self, process: str, spec: Any, stdio: Any) -> None:
        self.check()
        await self.faults.at("sandbox.create_process")
        self.further = (process, spec)

    async def start(self, process: str) -> Started:
        self.check()
        await self.faults.at("sandbox.start")
        if self.now.phase is not SandboxPhase.CREATED:
            raise InvalidState("it was started")
        self.init(state=ProcessState.RUNNING, started_at=moment())
        return Started(4711, moment())

    def exit(self, code: int) -> None:
        """Let the first process end."""
        self.init(state=ProcessState.EXITED, pid=None, exit=ExitStatus(code, exited_at=moment()))

    async def stop(self, options: StopOptions) -> ExitStatus:
        self.check()
        await self.faults.at("sandbox.stop")
        self.stopped = options
        if self.now.phase in (SandboxPhase.RUNNING, SandboxPhase.PAUSED):
            self.exit(143)
        return await self.wait(INIT)

    async def kill(self, process: str, signal: str) -> None:
        self.check()
        await self.faults.at("sandbox.kill")
        self.killed = signal
        if signal == "SIGKILL":
            self.exit(137)

    async def pause(self) -> None:
        self.check()
        await self.faults.at("sandbox.pause")
        self.kernel.set(evolve(self.now, phase=SandboxPhase.PAUSED))

    async def resume(self) -> None:
        self.check()
        await self.faults.at("sandbox.resume")
        self.kernel.set(evolve(self.now, phase=SandboxPhase.RUNNING))

    async def resize(self, process: str, size: Any) -> None:
        self.check()

    async def wait(self, process: str) -> ExitStatus:
        self.check()
        await self.faults.at("sandbox.wait")
        while True:
            if self.dead:
                raise PeerGone("the helper died", fate=Fate.UNKNOWN, why="died")
            for known in self.now.processes:
                if known.exit is not None:
                    return known.exit
            await self.kernel.changed.setdefault(self.key, trio.Event()).wait()

    async def state(self) -> SandboxState:
        self.check()
        await self.faults.at("sandbox.state")
        return self.now

    async def statistics(self) -> SandboxStatistics:
        self.check()
        return SandboxStatistics(1, None, 2, 3, 4, 5)

    async def network_namespace(self) -> Any:
        self.check()
        await self.faults.at("sandbox.network_namespace")
        return Fd(os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    async def join_network(self, network: Any) -> Attachment:
        self.check()
        await self.faults.at("sandbox.join_network")
        self.joined = network
        made = attachment_of(network)
        self.kernel.set(evolve(self.now, networks=(*self.now.networks, made)))
        return made

    async def leave_network(self, network: str) -> None:
        self.check()
        await self.faults.at("sandbox.leave_network")
        left = tuple(it for it in self.now.networks if it.network != network)
        self.kernel.set(evolve(self.now, networks=left))

    async def dial(self, port: int) -> Any:
        self.check()
        await self.faults.at("sandbox.dial")
        self.dialled = port
        return Fd(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))

    async def logs(self) -> LogFiles:
        raise NotImplementedError

    async def shutdown(self) -> None:
        self.check()
        await self.faults.at("sandbox.shutdown")
        self.kernel.set(SandboxState(self.key, SandboxPhase.EMPTY))
        self.end()

    def die(self) -> None:
        """Be gone, as a killed process is."""
        self.dead = True
        self.kernel.changed.pop(self.key, trio.Event()).set()


def attachment_of(network: SandboxNetwork) -> Attachment:
    """Return what a network makes of a request, in a world without addresses."""
    request = network.request
    return Attachment(
        network=network.id,
        network_name=network.name,
        key=request.key,
        interface=request.interface,
        addresses=request.addresses,
        gateways=(),
        mac=request.mac,
        mtu=1500,
        ports=request.ports,
    )


class PlayedGate(SandboxGate):
    def __init__(self, sandbox: PlayedSandbox) -> None:
        self.sandbox = sandbox

    async def open(self, routes: tuple[str, ...] | None = None) -> Endpoint[Sandbox]:
        await self.sandbox.faults.at("gate.open" if routes is None else "gate.hand_out")
        self.sandbox.check()
        return LocalEndpoint(self.sandbox, routes)


class PlayedNetwork(Network):
    """A network helper to which nobody is attached."""

    def __init__(self, unit: ServiceUnit, faults: Faults) -> None:
        self.unit = unit
        self.faults = faults

    async def status(self) -> NetworkStatus:
        await self.faults.at("network.status")
        return NetworkStatus(self.unit.name.removeprefix("network."), "played")

    async def _never(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    attach = publish = lookup = _never


class PlayedPlugins(Plugins):
    async def list(self) -> tuple[Plugin, ...]:
        await trio.lowlevel.checkpoint()
        return (
            Plugin("container-network", "/n", "", "", "", ("network",), ("bridge",), None, False),
            Plugin("container-runtime", "/p", "", "", "", ("runtime",), ("helper",), None, False),
        )

    async def get(self, name: str) -> Plugin:
        raise NotImplementedError


class World:
    """The API server's neighbours, and API servers one after the other."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(root=root / "root", run=root / "run")
        self.faults = Faults()
        self.images = PlayedImages(self.faults, root / "layers")
        self.kernel = Kernel()
        self.sandboxes: dict[str, PlayedSandbox] = {}
        self.launcher = InProcessLauncher(self.paths, self._helper)
        self.timeouts = Timeouts()
        self.routes: tuple[Taken, ...] = ()
        self.networks: NetworksService
        """Of the server that runs."""

    @asynccontextmanager
    async def _helper(
        self, unit: ServiceUnit, end: Callable[[], None]
    ) -> AsyncGenerator[SandboxGate | Network]:
        if unit.name.startswith("network."):
            await self.faults.at("network.start")
            yield PlayedNetwork(unit, self.faults)
            return
        key = unit.name.removeprefix("runtime.")
        await self.faults.at("helper.start")
        sandbox = self.sandboxes[key] = PlayedSandbox(key, self.kernel, self.faults, end)
        try:
            yield PlayedGate(sandbox)
        finally:
            sandbox.die()

    @asynccontextmanager
    async def server(self) -> AsyncGenerator[ContainersService]:
        """Run one API server."""
        table = NetworkTable(
            self.paths,
            launcher=direct(self.launcher),
            plugins=PlayedPlugins(),
            open_network=self.launcher.connect_network,
            clock=moment,
            host_routes=lambda: self.routes,
            has_ipv6=lambda: True,
        )
        service = ContainersService(
            self.paths,
            images=direct(self.images),
            launcher=direct(self.launcher),
            open_gate=self.launcher.connect_gate,
            plugins=PlayedPlugins(),
            networks=table,
            clock=moment,
            timeouts=self.timeouts,
        )
        async with table, service:
            self.networks = NetworksService(table, service)
            yield service

    def folders(self) -> list[str]:
        """Return what is in the containers' folder."""
        if not self.paths.containers.is_dir():
            return []
        return sorted(path.name for path in self.paths.containers.iterdir())

    def left(self) -> list[str]:
        """Return all that containers left behind anywhere."""
        held = [f"hold {holder}" for holder in self.images.holders]
        return [*self.folders(), *self.launcher.names(), *held]

    async def started(self, containers: ContainersService, **options: Any) -> Container:
        """Create and start a container."""
        made = await containers.create(options_of(**options))
        return await containers.start(made.id)


def options_of(**options: Any) -> ContainerOptions:
    """Return options for the image `demo`; without a network unless one is named."""
    base: dict[str, Any] = {"image": "demo", "pull": PullPolicy.NEVER}
    if "networks" not in options:
        base["network"] = "none"
    return ContainerOptions(**(base | options))


@pytest.fixture
async def world(tmp_path: Path, autojump_clock: Any) -> AsyncGenerator[World]:
    """Neighbours under the autojump clock."""
    place = World(tmp_path)
    with hold_autojump_clock():
        async with place.launcher:
            yield place


@pytest.fixture
async def containers(world: World) -> AsyncGenerator[ContainersService]:
    """An API server in that world."""
    async with world.server() as service:
        yield service


@pytest.fixture
def options() -> Callable[..., ContainerOptions]:
    """Options for the image `demo`."""
    return options_of


@pytest.fixture
def image() -> Callable[..., Image]:
    """Make an image."""
    return make_image


__all__ = ["ContainerError", "World"]
