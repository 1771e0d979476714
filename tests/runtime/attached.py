"""One container's folder, and the helper of it that is killed or ends."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from attrs import define

from container.contracts.runtime import (
    ProcessSpec,
    SandboxNetwork,
    SandboxPhase,
    SandboxSpec,
    Stdio,
)
from container.runtime.records import NetworksRecord, Records
from container.runtime.service import SandboxService
from container.testing.oci import RecordedNamespaces, RecordedRuntime, recorded_machinery

from .networks import Helper

ID = "played"


@define(eq=False)
class Place:
    """One container's folder."""

    folder: Path
    runtime: RecordedRuntime
    namespaces: RecordedNamespaces

    @asynccontextmanager
    async def helper(self, *, killed: bool = False) -> AsyncGenerator[SandboxService]:
        machinery = recorded_machinery(self.folder, self.runtime, namespaces=self.namespaces)
        service = SandboxService(self.folder, ID, machinery)
        async with service:
            yield service
            if killed:
                # Nothing of it cleans up, and the network's helpers see it lost.
                service._phase = SandboxPhase.EMPTY  # pyright: ignore[reportPrivateUsage]
                for session in service._networking._sessions.values():  # pyright: ignore[reportPrivateUsage]
                    await session.abandon()
        if killed:
            for process in service._processes.values():  # pyright: ignore[reportPrivateUsage]
                process.plumbing.close()
            assert service._log is not None  # pyright: ignore[reportPrivateUsage]
            service._log.close()  # pyright: ignore[reportPrivateUsage]

    def spec(self, *networks: SandboxNetwork, **fields: Any) -> SandboxSpec:
        fields.setdefault("network", "networks" if networks else "none")
        return SandboxSpec(
            **{"id": ID, "name": "tested", "hostname": "host", "layers": (), **fields},
            networks=networks,
            process=ProcessSpec(arguments=("sleep", "100")),
        )

    @asynccontextmanager
    async def running(
        self, *networks: SandboxNetwork, **fields: Any
    ) -> AsyncGenerator[SandboxService]:
        async with self.helper() as service:
            await service.bootstrap(self.spec(*networks, **fields), Stdio())
            await service.start("init")
            yield service

    def etc(self, name: str) -> str:
        return (self.folder / "bundle" / "run" / name).read_text()

    @property
    def record(self) -> NetworksRecord:
        found = Records(self.folder / "bundle" / "records").read()
        assert found is not None
        assert found.networks is not None
        return found.networks


async def until_attached(helper: Helper, *keys: str) -> None:
    while helper.attached != set(keys):  # noqa: ASYNC110
        await trio.sleep(0.002)  # nothing tells of it
