"""Networks, as the API server keeps them; what one is at work is `network`'s subject."""

from __future__ import annotations

from abc import abstractmethod

from attrs import field, frozen

from container.contracts.apiserver import NetworkUse
from container.contracts.network import Attachment, NetworkConfiguration, NetworkStatus
from container.ipc import Contract


@frozen
class NetworkOptions:
    """A network as a user asks for it."""

    name: str
    driver: str = ""
    """A plugin of type `network`; empty is the bridge."""
    subnets: tuple[str, ...] = ()
    """CIDR; empty: a free one is chosen."""
    gateways: tuple[str, ...] = ()
    ipv6: bool = False
    """Choose an IPv6 subnet too (unique local, translated at the host)."""
    internal: bool = False
    mtu: int | None = None
    options: dict[str, str] = field(factory=dict[str, str])
    labels: dict[str, str] = field(factory=dict[str, str])
    names: bool = True


@frozen
class NetworkInfo:
    """A network: what `list` and `inspect` show."""

    configuration: NetworkConfiguration
    containers: tuple[str, ...] = ()
    """Ids of all containers that are to be in it, whether they run or not."""
    status: NetworkStatus | None = None
    """Of its helper; told by `get` alone, None where that did not answer."""


class Networks(Contract, name="networks", version=1):
    """All networks of one root. `network` arguments take a name, an id, or a unique id prefix."""

    @abstractmethod
    async def create(self, options: NetworkOptions) -> NetworkInfo:
        """Create a network: its ranges are chosen or checked, and on disk before the reply.

        Raises:
            AlreadyExists: the name is taken, or its range is another network's, or routed by the
                host; the message says whose.
            InvalidArgument: a bad name, range, gateway or option.
            NotFound: no such driver.
            Overloaded: no range is left.
        """
        ...

    @abstractmethod
    async def delete(self, network: str, force: bool = False) -> None:
        """Delete a network.

        Args:
            network: Which.
            force: Disconnect running containers, and take it out of all others.

        Raises:
            InvalidState: containers use it; the message names them.
            PermissionDenied: it is the default network.
        """
        ...

    @abstractmethod
    async def list(self) -> tuple[NetworkInfo, ...]:
        """Return all networks, by name."""
        ...

    @abstractmethod
    async def get(self, network: str) -> NetworkInfo:
        """Return one network.

        Raises:
            NotFound: no such network; the hint names a close match.
        """
        ...

    @abstractmethod
    async def prune(self) -> tuple[str, ...]:
        """Delete all networks that no container is in; return their names."""
        ...

    @abstractmethod
    async def connect_container(self, container: str, use: NetworkUse) -> Attachment | None:
        """Put a container into one more network; None for one that does not run.

        Raises:
            AlreadyExists: it is in it.
            InvalidState: it shares another's network namespace.
        """
        ...

    @abstractmethod
    async def disconnect_container(self, container: str, network: str) -> None:
        """Take a container out of a network; one that it is not in is no error."""
        ...
