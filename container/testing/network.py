"""Networks for tests: namespaces of their own, and a network helper without a kernel.

`NetworkNamespace` is a machine as far as networks go: nothing that a test does in one reaches the
interfaces, routes and firewall of the real one. `FakeNetwork` serves `Network` with the real
allocation of addresses and touches no kernel.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TypeVar

import trio
from attrs import evolve

from container.contracts.network import (
    Attachment,
    AttachmentRequest,
    NameEntry,
    Network,
    NetworkConfiguration,
    NetworkStatus,
    PublishedPort,
)
from container.ipc import Actor, AlreadyExists, Fd, NotFound, current_call
from container.network import namespaces
from container.network.checking import check_request
from container.network.leases import Leases, check_mac, mac_of
from container.network.netlink import IFF_UP, RTM_SETLINK, Netlink, link_body
from container.network.ports import check_ports
from container.network.views import names_of

T = TypeVar("T")


class NetworkNamespace:
    """A network namespace that a block makes and that ends with it, loopback up.

    It has no name and no mount: it is a descriptor of this process. What still runs in it keeps it.

    Raises:
        OSError: it is not permitted.
    """

    def __init__(self) -> None:
        self._fd: int | None = None

    def __enter__(self) -> Self:
        self._fd = namespaces.new()
        self.call(_loopback_up)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def fileno(self) -> int:
        """Return its descriptor, still owned here."""
        if self._fd is None:
            raise ValueError("this namespace is not there: use `with`")
        return self._fd

    def duplicate(self) -> Fd:
        """Return a further descriptor, given away by the call that it is sent in."""
        return Fd.give(os.dup(self.fileno()))

    @property
    def path(self) -> str:
        """A path of it for other processes, good while this block lasts."""
        return f"/proc/{os.getpid()}/fd/{self.fileno()}"

    def command(self, *command: str) -> list[str]:
        """Return the command line that runs a command inside."""
        return ["nsenter", f"--net={self.path}", "--", *command]

    def run(
        self, *command: str, check: bool = True, timeout: float = 30, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end; return what it printed, as text."""
        done = subprocess.run(
            self.command(*command),
            check=False,
            timeout=timeout,
            text=True,
            stdin=None if "input" in options else subprocess.DEVNULL,
            capture_output=True,
            **options,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{command} ended with {done.returncode}: {done.stderr}")
        return done

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[Any]:
        """Start a command inside; the caller ends it and waits for it."""
        return subprocess.Popen(self.command(*command), **options)

    def call(self, function: Callable[[], T]) -> T:
        """Call a function inside, in a thread of its own. Blocking."""
        return namespaces.inside(self.fileno(), function)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """Return a socket of this namespace, for any thread."""
        return self.call(lambda: socket.socket(family, kind))

    def connect_to(
        self,
        other: NetworkNamespace,
        here: str,
        there: str,
        addresses_here: tuple[str, ...] = (),
        addresses_there: tuple[str, ...] = (),
    ) -> None:
        """Put a cable between two namespaces: an interface in each, up, with addresses (CIDR)."""
        self.run("ip", "link", "add", here, "type", "veth", "peer", there, "netns", other.path)
        for place, name, addresses in (
            (self, here, addresses_here),
            (other, there, addresses_there),
        ):
            for address in addresses:
                flags = ("nodad",) if ":" in address else ()
                place.run("ip", "address", "add", address, "dev", name, *flags)
            place.run("ip", "link", "set", name, "up")

    @contextlib.contextmanager
    def entered(self) -> Generator[Self]:
        """Make it the namespace of this thread for a block: of its sockets, of the processes that
        it starts, and of the worker threads that Trio starts meanwhile.

        For the main thread of a test whose helper serves in this very process.
        """
        # Trio keeps idle threads for the next work, and they are in the namespace of before.
        from trio._core import _thread_cache  # pyright: ignore[reportPrivateUsage]

        before, cache = namespaces.current(), _thread_cache.THREAD_CACHE
        try:
            namespaces.enter(self.fileno())
            _thread_cache.THREAD_CACHE = _thread_cache.ThreadCache()
            yield self
        finally:
            _thread_cache.THREAD_CACHE = cache
            namespaces.enter(before)
            os.close(before)


def _loopback_up() -> None:
    with Netlink() as kernel:
        loopback = kernel.link("lo")
        assert loopback is not None
        kernel.change(RTM_SETLINK, link_body(loopback.index, flags=IFF_UP))


def can_make_namespaces() -> bool:
    """Say whether this process may make network namespaces."""
    if os.geteuid() != 0:
        return False
    try:
        os.close(namespaces.new())
    except OSError:
        return False
    return True


def network_configuration(
    name: str = "default",
    subnets: tuple[str, ...] = ("10.89.0.0/24", "fd00:c0de::/64"),
    gateways: tuple[str, ...] = ("10.89.0.1", "fd00:c0de::1"),
    **fields: Any,
) -> NetworkConfiguration:
    """Return a configuration for a test."""
    fields.setdefault("id", hashlib.sha256(name.encode()).hexdigest()[:12])
    fields.setdefault("driver", "container-network")
    fields.setdefault("created_at", datetime(2026, 1, 1, tzinfo=UTC))
    return NetworkConfiguration(name=name, subnets=subnets, gateways=gateways, **fields)


class FakeNetwork(Actor, Network):
    """A network helper that allocates addresses and does nothing else.

    A scope that breaks off keeps its attachment, as the real one does, until `namespace_gone`.

    Args:
        configuration: Of the network.
    """

    def __init__(self, configuration: NetworkConfiguration | None = None) -> None:
        self.configuration = configuration or network_configuration()
        self.attachments: dict[str, Attachment] = {}
        """What is attached now, by key."""
        self.requests: list[AttachmentRequest] = []
        """All that were ever granted."""
        self.fail: Exception | None = None
        """Raised by the next attachments, as long as it is set."""
        self._leases = Leases(self.configuration.subnets, self.configuration.gateways)
        self._tokens: dict[str, object] = {}

    async def status(self) -> NetworkStatus:
        await trio.lowlevel.checkpoint()
        return NetworkStatus(
            id=self.configuration.id,
            name=self.configuration.name,
            subnets=self.configuration.subnets,
            gateways=self.configuration.gateways,
            attachments=tuple(self.attachments.values()),
        )

    @asynccontextmanager
    async def attach(self, request: AttachmentRequest, namespace: Fd) -> AsyncGenerator[Attachment]:
        await trio.lowlevel.checkpoint()
        namespace.close()
        check_request(request, self.configuration)
        check_ports(request.ports)
        if self.fail is not None:
            raise self.fail
        attachment = self._attach(request)
        token = self._tokens[request.key] = object()
        kept = False
        try:
            yield attachment
        except trio.Cancelled:
            kept = not _is_left()
            raise
        finally:
            if not kept and self._tokens.get(request.key) is token:
                self.namespace_gone(request.key)

    def _attach(self, request: AttachmentRequest) -> Attachment:
        earlier = self.attachments.get(request.key)
        ports = earlier.ports if earlier else self._chosen(request.key, request.ports)
        addresses = self._leases.grant(request.key, request.addresses)
        self.requests.append(request)
        attachment = Attachment(
            network=self.configuration.id,
            network_name=self.configuration.name,
            key=request.key,
            interface=request.interface,
            addresses=tuple(f"{each}/{self._leases.prefix_length(each)}" for each in addresses),
            gateways=self.configuration.gateways,
            mac=check_mac(request.mac) if request.mac else mac_of(addresses[0]),
            mtu=request.mtu or self.configuration.mtu or 1500,
            nameservers=self.configuration.gateways if self.configuration.names else (),
            ports=ports,
            names=names_of(request),
        )
        self.attachments[request.key] = attachment
        return attachment

    def _chosen(self, key: str, ports: tuple[PublishedPort, ...]) -> tuple[PublishedPort, ...]:
        taken = {
            port.host_port + each: attachment.names[0]
            for attachment in self.attachments.values()
            for port in attachment.ports
            for each in range(port.count)
            if attachment.key != key
        }
        chosen: list[PublishedPort] = []
        for port in ports:
            first = port.host_port or max([49151, *taken]) + 1
            for number in range(first, first + port.count):
                if number in taken:
                    raise AlreadyExists(f"host port {number} is taken by {taken[number]}")
                taken[number] = "itself"
            chosen.append(evolve(port, host_port=first))
        return tuple(chosen)

    def namespace_gone(self, key: str) -> None:
        """Do what the end of an attachment's namespace does."""
        self.attachments.pop(key, None)
        self._tokens.pop(key, None)
        self._leases.release(key)

    async def publish(self, key: str, ports: tuple[PublishedPort, ...]) -> Attachment:
        await trio.lowlevel.checkpoint()
        if key not in self.attachments:
            raise NotFound(f"no attachment of {key} to network {self.configuration.name}")
        check_ports(ports)
        self.attachments[key] = evolve(self.attachments[key], ports=self._chosen(key, ports))
        return self.attachments[key]

    async def lookup(self, name: str) -> tuple[NameEntry, ...]:
        await trio.lowlevel.checkpoint()
        wanted = name.lower()
        return tuple(
            NameEntry(attachment.names[0], tuple(a.partition("/")[0] for a in attachment.addresses))
            for attachment in self.attachments.values()
            if wanted in map(str.lower, attachment.names)
            or any(a.partition("/")[0] == wanted for a in attachment.addresses)
        )


def _is_left() -> bool:
    try:
        return current_call().cancelled
    except LookupError:
        return True  # called in this process: there is no holder who could be lost
