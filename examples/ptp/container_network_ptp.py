"""A network driver of few lines: a cable (veth) from the host to each container, IPv4 alone.

Nothing is written down: a cable is there as long as its container's namespace, and its alias on the
host says whose it is. Everything is done by ip(8) and nsenter(1).
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio

from container.contracts.network import (
    Attachment,
    AttachmentRequest,
    NameEntry,
    Network,
    NetworkConfiguration,
    NetworkStatus,
    PublishedPort,
)
from container.ipc import (
    Actor,
    AlreadyExists,
    Fd,
    InvalidArgument,
    Overloaded,
    Unavailable,
    Unsupported,
    current_call,
    open_service,
)


class PointToPoint(Actor, Network):
    """One network of cables."""

    def __init__(self, configuration: NetworkConfiguration) -> None:
        self.network = configuration
        self._making = trio.Lock()
        self._holders: dict[str, object] = {}

    def _check(self) -> None:
        subnets = self.network.subnets
        if len(subnets) != 1 or ":" in subnets[0]:
            raise InvalidArgument("this driver wants one range of IPv4: --subnet 10.77.0.0/24")
        if self.network.options or self.network.internal:
            raise InvalidArgument("this driver knows no --opt and no --internal")

    async def status(self) -> NetworkStatus:
        self._check()
        return NetworkStatus(
            id=self.network.id,
            name=self.network.name,
            subnets=self.network.subnets,
            gateways=self.network.gateways,
            attachments=tuple((await self._cables()).values()),
        )

    @asynccontextmanager
    async def attach(self, request: AttachmentRequest, namespace: Fd) -> AsyncGenerator[Attachment]:
        self._check()
        if request.ports:
            raise Unsupported("this driver publishes no ports")
        async with self._making:
            attachment = await self._make(request, f"/proc/{os.getpid()}/fd/{namespace.fileno()}")
        namespace.close()  # nothing of ours keeps a container's namespace
        holder = self._holders[request.key] = object()
        left = True
        try:
            yield attachment
        except trio.Cancelled:
            left = current_call().cancelled  # else the holder was killed, or we are stopped
            raise
        finally:
            if left and self._holders.get(request.key) is holder:
                del self._holders[request.key]
                with trio.move_on_after(5, shield=True):
                    await run("ip", "link", "delete", cable(self.network.id, request.key))

    async def publish(self, key: str, ports: tuple[PublishedPort, ...]) -> Attachment:
        raise Unsupported("this driver publishes no ports")

    async def lookup(self, name: str) -> tuple[NameEntry, ...]:
        return tuple(
            NameEntry(one.names[0], tuple(each.partition("/")[0] for each in one.addresses))
            for one in (await self._cables()).values()
            if name.lower() in one.names
        )

    async def _make(self, request: AttachmentRequest, namespace: str) -> Attachment:
        cables = await self._cables()
        name = cable(self.network.id, request.key)
        if request.key in cables:
            if await run("nsenter", f"--net={namespace}", "ip", "link", "show", request.interface):
                return cables[request.key]
            await run("ip", "link", "delete", name)  # of the container's last life
            del cables[request.key]
        address = self._free(request, {each.addresses[0] for each in cables.values()})
        names = (request.name.lower(), request.key[:12])
        alias = json.dumps([self.network.id, request.key, request.interface, address, *names])
        mtu = ("mtu", str(request.mtu or self.network.mtu or 1500))
        peer = ("peer", request.interface, *mtu, "netns", namespace)
        gateway = self.network.gateways[0]
        await must("ip", "link", "add", name, *mtu, "type", "veth", *peer)
        try:
            await must("ip", "link", "set", name, "alias", alias, "up")
            await must("ip", "address", "add", f"{gateway}/32", "dev", name)
            inside = ("nsenter", f"--net={namespace}", "ip")
            await must(*inside, "address", "add", address, "dev", request.interface)
            await must(*inside, "link", "set", request.interface, "up")
            await must("ip", "route", "add", address, "dev", name)
            await must(*inside, "route", "add", f"{gateway}/32", "dev", request.interface)
            if request.default_route:
                await must(*inside, "route", "add", "default", "via", gateway)
        except BaseException:
            with trio.move_on_after(5, shield=True):
                await run("ip", "link", "delete", name)
            raise
        return (await self._cables())[request.key]

    def _free(self, request: AttachmentRequest, taken: set[str]) -> str:
        subnet = ipaddress.IPv4Network(self.network.subnets[0])
        for wanted in request.addresses:
            if ipaddress.ip_address(wanted) not in subnet:
                raise InvalidArgument(f"{wanted} is not in {subnet}")
            if f"{wanted}/32" in taken | {f"{self.network.gateways[0]}/32"}:
                raise AlreadyExists(f"{wanted} is taken")
            return f"{wanted}/32"
        for host in subnet.hosts():
            if str(host) not in self.network.gateways and f"{host}/32" not in taken:
                return f"{host}/32"
        raise Overloaded(f"no address is left in {subnet}")

    async def _cables(self) -> dict[str, Attachment]:
        """Return what is attached, by key: the kernel knows."""
        found: dict[str, Attachment] = {}
        for link in json.loads(await must("ip", "-json", "link", "show", "type", "veth")):
            try:
                network, key, interface, address, *names = json.loads(link.get("ifalias", ""))
            except ValueError:
                continue
            if network == self.network.id:
                found[key] = Attachment(
                    network=network,
                    network_name=self.network.name,
                    key=key,
                    interface=interface,
                    addresses=(address,),
                    gateways=self.network.gateways,
                    mac=link["address"],
                    mtu=link["mtu"],
                    names=tuple(names),
                )
        return found


def cable(network: str, key: str) -> str:
    """Return the name of a cable's end on the host."""
    return "ptp" + hashlib.sha256(f"{network} {key}".encode()).hexdigest()[:10]


async def run(*command: str) -> bool:
    """Run a command; say whether it went well."""
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    return done.returncode == 0


async def must(*command: str) -> bytes:
    """Run a command that must go well; return what it printed."""
    try:
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True)
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{' '.join(command[:4])}: {error.stderr.decode().strip()}") from error
    return done.stdout


async def serve(folder: Path) -> None:
    """Serve one network at the socket that the launcher hands over, until killed."""
    raw = (folder / "configuration.json").read_bytes()
    configuration = msgspec.json.decode(raw, type=NetworkConfiguration)
    with socket.socket(fileno=3) as listener:  # the first of LISTEN_FDS. Source: sd_listen_fds(3)
        async with open_service(PointToPoint(configuration), at=listener):
            await trio.sleep_forever()


def main() -> None:
    """Run `container-network-ptp start --root FOLDER ID`."""
    arguments = sys.argv[1:]
    if arguments[:2] != ["start", "--root"] or len(arguments) != 4:
        sys.exit("container-network-ptp start --root FOLDER ID")
    trio.run(serve, Path(arguments[2]))
