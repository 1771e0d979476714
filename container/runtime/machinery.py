"""What a sandbox works with: the seam between the service and the machine.

The service knows these interfaces alone; `Machinery.real` is this machine, tests give doubles.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from attrs import field, frozen

from container.contracts.network import Network
from container.ipc import Fd
from container.runtime.cgroup import CgroupFolders, ControlGroup, cgroup_path
from container.runtime.command_line import CommandLineRuntime, find_runtime
from container.runtime.dial import connect_inside
from container.runtime.kernel import Machine
from container.runtime.namespace import KernelNamespaces, NetworkNamespaces
from container.runtime.oci import OciRuntime
from container.runtime.rootfs import OverlayRoot, RootFilesystem
from container.runtime.sessions import ConnectNetwork


@frozen
class Machinery:
    """What a sandbox works with. Tests give it doubles; `real` is the machine."""

    runtime: Callable[[str | None], OciRuntime]
    """From the wanted OCI runtime's name to its driver."""
    root: RootFilesystem
    cgroup: ControlGroup
    machine: Machine
    namespaces: NetworkNamespaces = field(factory=KernelNamespaces)
    connect: Callable[[int, int], Awaitable[Fd]] = connect_inside
    """From a process and a port to a socket connected there."""
    connect_network: ConnectNetwork = Network.connect
    """From the path of a network helper's socket to its network."""

    @classmethod
    def real(cls, folder: Path, container_id: str) -> Machinery:
        """Return this machine's own, for one container.

        Args:
            folder: The container's.
            container_id: Its id.
        """
        state = folder / "bundle" / "run" / "state"
        return cls(
            runtime=lambda name: CommandLineRuntime(find_runtime(name), state),
            root=OverlayRoot(folder / "bundle"),
            cgroup=CgroupFolders(cgroup_path(container_id)),
            machine=Machine.here(),
        )
