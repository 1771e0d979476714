"""Network helpers without a kernel, which can be killed and started again."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from attrs import define, field

from container.contracts.network import Attachment, AttachmentRequest, NetworkConfiguration
from container.contracts.runtime import SandboxNetwork
from container.ipc import Fd, open_service
from container.testing.network import FakeNetwork, network_configuration


class SlowNetwork(FakeNetwork):
    """A network's helper that may be stuck."""

    stuck = False

    def __init__(self, configuration: NetworkConfiguration) -> None:
        super().__init__(configuration)
        self.namespaces: dict[str, Fd] = {}
        """By key, the namespace that was attached last; held, or another one gets its inode."""

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        try:
            async with super().lifespan():
                yield
        finally:
            for namespace in self.namespaces.values():
                namespace.close()

    @asynccontextmanager
    async def attach(self, request: AttachmentRequest, namespace: Fd) -> AsyncGenerator[Attachment]:
        if last := self.namespaces.pop(request.key, None):
            last.close()
        self.namespaces[request.key] = namespace.duplicate()
        if self.stuck:
            await trio.sleep_forever()
        async with super().attach(request, namespace) as attachment:
            yield attachment


@define(eq=False)
class Helper:
    """One network's helper: what it knows outlives its being killed."""

    network: SlowNetwork
    socket: Path
    nursery: trio.Nursery
    _serving: trio.CancelScope = field(factory=trio.CancelScope)
    _gone: trio.Event = field(factory=trio.Event)

    async def start(self) -> None:
        """Serve, at the same socket as before."""
        self._serving, self._gone = trio.CancelScope(), trio.Event()
        await self.nursery.start(self._serve)

    async def _serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self._serving:
            async with open_service(self.network, at=self.socket):
                task_status.started()
                await trio.sleep_forever()
        self._gone.set()

    async def kill(self) -> None:
        """Be gone for everybody who is connected."""
        self._serving.cancel()
        await self._gone.wait()

    def wanted(self, key: str, interface: str = "eth0", **request: Any) -> SandboxNetwork:
        """Return what a container is told of this network."""
        configuration = self.network.configuration
        return SandboxNetwork(
            id=configuration.id,
            name=configuration.name,
            socket=str(self.socket),
            request=AttachmentRequest(
                key=key, interface=interface, **{"name": "tested", "hostname": "host", **request}
            ),
        )

    def kept(self, key: str) -> bool:
        """Return whether something is attached, and there is a process to use it.

        What broke off goes with its namespace, which no kernel tells of here.
        """
        if key not in self.network.attachments:
            return False
        namespace = os.fstat(self.network.namespaces[key].fileno()).st_ino
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{entry}/ns/net").st_ino == namespace:
                    return True
        return False

    @property
    def attached(self) -> set[str]:
        """Keys of what is attached."""
        return set(self.network.attachments)


_numbers = {"web": 1, "db": 2, "third": 3}


@asynccontextmanager
async def network_helper(folder: Path, name: str = "web", **fields: Any) -> AsyncGenerator[Helper]:
    """Run a network's helper while the block lives."""
    number = _numbers[name]
    four = ipaddress.ip_network(f"10.{number}.0.0/24")
    six = ipaddress.ip_network(f"fd00:{number}::/64")
    subnets, gateways = (str(four), str(six)), (str(four[1]), str(six[1]))
    network = SlowNetwork(network_configuration(name, subnets, gateways, **fields))
    async with network, trio.open_nursery() as nursery:
        helper = Helper(network, folder / f"{name}.sock", nursery)
        await helper.start()
        yield helper
        nursery.cancel_scope.cancel()
