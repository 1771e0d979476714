"""A network in the kernel: its bridge on the host, and a veth pair for each attachment.

| interface | where | named | alias |
|---|---|---|---|
| bridge, with the gateways | host | `ctb<8 of the id>` | `container network <id> at <folder>` |
| a port of it | host | `ctv<8 of a hash>` | `container network <id> attachment <key>` |
| its other end, with the addresses | the container | as asked | |

Every step can be taken twice: what is there already, and ours, is taken for done. So taking up an
attachment after a death is the same as making it. Nothing without an alias of ours is changed or
removed. All of this blocks, for milliseconds, and is of the namespace of the calling thread.

Source: veth(4), bridge(8), linux/if_link.h.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import ipaddress
import os
import re
import socket
import struct
from collections.abc import Generator, Iterable
from pathlib import Path

from attrs import field, frozen

from container.contracts.network import NetworkConfiguration
from container.ipc import (
    AlreadyExists,
    ContainerError,
    InvalidArgument,
    PermissionDenied,
    Unavailable,
    Unsupported,
)
from container.network import namespaces
from container.network import netlink as nl
from container.network.leases import mac_of
from container.network.netlink import Link, Netlink

MTU = 1500
"""Bytes, where neither network nor attachment says."""
_LARGEST_MTU = 65535
_PREFIX = "container network "
_NO_IPV6 = (errno.EACCES, errno.EOPNOTSUPP, errno.EAFNOSUPPORT)
_INTERFACE = re.compile(r"[^\s/:\x00-\x1f\x7f]{1,15}")
_RESERVED = frozenset({".", "..", "lo", "all", "default"})


@frozen
class Plug:
    """What one attachment is in the kernel."""

    key: str
    interface: str
    mac: str
    mtu: int
    addresses: tuple[str, ...]
    """With prefix length."""
    routes: tuple[str, ...] = ()
    """Gateways of default routes."""


@frozen
class Survey:
    """What the kernel has of a network."""

    bridge: Link | None
    ports: dict[str, Link] = field(factory=dict[str, Link])
    """By key of the attachment."""


class Bridge:
    """The bridge of one network.

    Args:
        network: What the network is.
        folder: Of the helper; the alias tells it, so that an audit knows whose the bridge is.
    """

    def __init__(self, network: NetworkConfiguration, folder: Path) -> None:
        self._network = network
        self.name = bridge_name(network.id)
        self.alias = f"{_PREFIX}{network.id} at {folder}"[:255]
        self.mtu = network.mtu or MTU
        self.gateways = tuple(
            f"{gateway}/{ipaddress.ip_network(subnet).prefixlen}"
            for gateway, subnet in zip(network.gateways, network.subnets, strict=True)
        )

    # --- the bridge ---

    def ensure(self) -> Link:
        """Make the bridge, or complete it; put back ports that lost it.

        Raises:
            AlreadyExists: an interface that is not ours has its name.
            Unavailable, Unsupported, PermissionDenied: the kernel refused.
        """
        with _told(f"bridge {self.name}"), Netlink() as kernel:
            found = kernel.link(self.name)
            if found is None:
                mac = mac_of(self._network.gateways[0], salt=0) if self.gateways else ""
                body = nl.link_body() + nl.text(nl.IFLA_IFNAME, self.name)
                if mac:
                    # Said, not derived from the ports, whose coming and going would change it.
                    body += nl.attribute(nl.IFLA_ADDRESS, nl.mac_bytes(mac))
                body += nl.number(nl.IFLA_MTU, self.mtu)
                body += nl.nested(nl.IFLA_LINKINFO, nl.text(nl.IFLA_INFO_KIND, "bridge"))
                kernel.change(nl.RTM_NEWLINK, body, flags=nl.NLM_F_CREATE | nl.NLM_F_EXCL)
                found = kernel.link(self.name)
                assert found is not None
            elif found.kind != "bridge" or not _ours(found, self._network.id):
                raise AlreadyExists(
                    f"interface {self.name} is there already and is not ours",
                    hint=f"remove it (ip link delete {self.name}), or make another network",
                )
            self._say_how()
            body = nl.link_body(found.index, flags=nl.IFF_UP)
            kernel.change(nl.RTM_SETLINK, body + nl.text(nl.IFLA_IFALIAS, self.alias))
            for gateway in self.gateways:
                self._add_gateway(kernel, found.index, gateway)
            for link in kernel.links():
                if link.master != found.index and _attachment(link, self._network.id):
                    body = nl.link_body(link.index, flags=nl.IFF_UP)
                    kernel.change(nl.RTM_SETLINK, body + nl.number(nl.IFLA_MASTER, found.index))
                    _reflect(kernel, link.index)
            return found

    def _add_gateway(self, kernel: Netlink, bridge: int, gateway: str) -> None:
        try:
            kernel.add_address(bridge, gateway)
        except OSError as error:
            if ":" in gateway and error.errno in _NO_IPV6:
                raise Unsupported(
                    f"IPv6 is off on this machine, and network {self._network.name} has {gateway}",
                    hint="make a network without IPv6, or switch IPv6 on",
                ) from error
            raise

    def _say_how(self) -> None:
        # A container could make itself the host's router by one packet. And a link-local address
        # that is still looked for elsewhere asks for no neighbours: for a second no IPv6 packet
        # from outside would reach a container.
        names = ["accept_ra", "accept_redirects", "accept_dad"]
        if any(":" in gateway for gateway in self.gateways):
            names.append("disable_ipv6")  # off for the machine is not off for this network
        for name in names:
            with contextlib.suppress(OSError):
                Path(f"/proc/sys/net/ipv6/conf/{self.name}/{name}").write_text("0\n")

    def remove(self) -> None:
        """Take the bridge away, if it is there and ours; ports are left to their attachments."""
        with _told(f"bridge {self.name}"), Netlink() as kernel:
            found = kernel.link(self.name)
            if found is not None and _ours(found, self._network.id):
                _delete(kernel, found.index)

    def survey(self, keys: Iterable[str]) -> Survey:
        """Return what is there of this network.

        Args:
            keys: Of attachments that were written down: theirs may have no alias yet.
        """
        with _told(f"bridge {self.name}"), Netlink() as kernel:
            links = kernel.links()
        unnamed = {port_name(self._network.id, key): key for key in keys}
        ports: dict[str, Link] = {}
        for link in links:
            key = _attachment(link, self._network.id)
            if key is None and link.kind == "veth" and not link.alias:
                key = unnamed.get(link.name)
            if key is not None:
                ports[key] = link
        return Survey(next((each for each in links if each.name == self.name), None), ports)

    def port(self, key: str) -> Link | None:
        """Return the host's end of an attachment, if it is there."""
        with _told(f"attachment {key}"), Netlink() as kernel:
            return kernel.link(port_name(self._network.id, key))

    def remove_port(self, link: Link) -> None:
        """Take away what the survey has found and nobody is attached by."""
        with _told(f"interface {link.name}"), Netlink() as kernel:
            _delete(kernel, link.index)

    def incomplete(self) -> tuple[str, ...]:
        """Return a sentence for each gateway that somebody has taken off the bridge."""
        with _told(f"bridge {self.name}"), Netlink() as kernel:
            found = kernel.link(self.name)
            there = frozenset[str]() if found is None else kernel.addresses(found.index)
        return tuple(
            f"somebody has taken {gateway} off {self.name}: containers of network "
            f"{self._network.name} can't reach the host by it; run: ip address add {gateway} dev "
            f"{self.name}"
            for gateway in self.gateways
            if str(ipaddress.ip_interface(gateway)) not in there
        )

    def covered(self) -> tuple[str, ...]:
        """Return a sentence for each route of the host that leads into our range."""
        with _told("routes"), Netlink() as kernel:
            routes = kernel.routes()
            names = {link.index: link.name for link in kernel.links()}
        subnets = tuple(map(ipaddress.ip_network, self._network.subnets))
        return tuple(
            f"the host's route to {route.destination} by "
            f"{names.get(route.interface, route.interface)} covers the range {subnet} of network "
            f"{self._network.name}: packets may leave there; remove the route, or make the network "
            "anew with another --subnet"
            for route in routes
            for subnet in subnets
            if names.get(route.interface) != self.name
            and route.destination.version == subnet.version
            and route.destination.overlaps(subnet)  # pyright: ignore[reportArgumentType]
        )

    # --- attachments ---

    def plug(self, plug: Plug, namespace: int) -> Link:
        """Lead a network namespace into the network, and return the host's end.

        On failure nothing is left that was not there before. What is there of an earlier attachment
        of this key into the same namespace is completed; into another one, taken away.

        Raises:
            InvalidArgument: the namespace is none.
            AlreadyExists: it has an interface of that name already.
            Unavailable, Unsupported, PermissionDenied: the kernel refused.
        """
        name = port_name(self._network.id, plug.key)
        inner = _open_inside(namespace)
        with inner, _told(f"interface {plug.interface}"), Netlink() as kernel:
            pair = self._pair(kernel, inner, name, plug)
            if pair is not None:
                return self._configure(kernel, inner, *pair, plug)
            try:
                self._make_pair(kernel, name, plug, namespace)
                host, inside = kernel.link(name), inner.link(plug.interface)
                if host is None or inside is None:
                    raise Unavailable(f"interface {name} was gone as soon as it was made")
                return self._configure(kernel, inner, host, inside, plug)
            except BaseException:
                with contextlib.suppress(ContainerError):
                    self.unplug(plug.key)
                raise

    def _pair(
        self, kernel: Netlink, inner: Netlink, name: str, plug: Plug
    ) -> tuple[Link, Link] | None:
        """Return both ends if they are there and belong together; clear the way if not."""
        host = kernel.link(name)
        inside = inner.link(plug.interface)
        if host is not None:
            self._check_ours(host)
            if inside is not None and inside.peer == host.index and host.peer == inside.index:
                return host, inside
            _delete(kernel, host.index)
            inside = inner.link(plug.interface)
        if inside is not None:
            raise AlreadyExists(f"the container has an interface {plug.interface} already")
        return None

    def _make_pair(self, kernel: Netlink, name: str, plug: Plug, namespace: int) -> None:
        peer = nl.link_body() + nl.text(nl.IFLA_IFNAME, plug.interface)
        peer += nl.number(nl.IFLA_MTU, plug.mtu)
        peer += nl.attribute(nl.IFLA_ADDRESS, nl.mac_bytes(plug.mac))
        peer += nl.number(nl.IFLA_NET_NS_FD, namespace)
        data = nl.nested(nl.IFLA_INFO_DATA, nl.attribute(nl.VETH_INFO_PEER, peer))
        body = nl.link_body() + nl.text(nl.IFLA_IFNAME, name) + nl.number(nl.IFLA_MTU, plug.mtu)
        body += nl.nested(nl.IFLA_LINKINFO, nl.text(nl.IFLA_INFO_KIND, "veth"), data)
        kernel.change(nl.RTM_NEWLINK, body, flags=nl.NLM_F_CREATE | nl.NLM_F_EXCL)

    def _configure(
        self, kernel: Netlink, inner: Netlink, host: Link, inside: Link, plug: Plug
    ) -> Link:
        bridge = kernel.link(self.name)
        if bridge is None:
            raise Unavailable(f"bridge {self.name} is gone")
        body = nl.link_body(host.index) + nl.text(nl.IFLA_IFALIAS, self._alias_of(plug.key))
        body += nl.number(nl.IFLA_MASTER, bridge.index)
        if os.path.exists("/proc/thread-self/net/if_inet6"):
            # A port needs no address of its own, nor the packets that look for its like.
            mode = nl.attribute(
                nl.IFLA_INET6_ADDR_GEN_MODE, struct.pack("=B", nl.ADDR_GEN_MODE_NONE)
            )
            body += nl.nested(nl.IFLA_AF_SPEC, nl.nested(socket.AF_INET6, mode))
        kernel.change(nl.RTM_SETLINK, body)
        _reflect(kernel, host.index)
        kernel.change(nl.RTM_SETLINK, nl.link_body(host.index, flags=nl.IFF_UP))
        inner.change(nl.RTM_SETLINK, nl.link_body(inside.index, flags=nl.IFF_UP))
        for address in plug.addresses:
            try:
                inner.add_address(inside.index, address)
            except OSError as error:
                if ":" in address and error.errno in _NO_IPV6:
                    raise Unsupported(
                        f"IPv6 is off in the container's network namespace: no {address}",
                        hint="set its net.ipv6.conf.all.disable_ipv6 to 0, or use a network "
                        "without IPv6",
                    ) from error
                raise
        for gateway in plug.routes:
            inner.add_default_route(inside.index, gateway)
        return host

    def unplug(self, key: str) -> None:
        """Take an attachment's interfaces away, at both ends; none there is well, too."""
        with _told(f"attachment {key}"), Netlink() as kernel:
            found = kernel.link(port_name(self._network.id, key))
            if found is not None:
                self._check_ours(found)
                _delete(kernel, found.index)

    def _alias_of(self, key: str) -> str:
        return f"{_PREFIX}{self._network.id} attachment {key}"[:255]

    def _check_ours(self, link: Link) -> None:
        if link.kind != "veth" or (link.alias and not _ours(link, self._network.id)):
            raise AlreadyExists(
                f"interface {link.name} is there already and is not ours: {link.alias or link.kind}"
            )


def _reflect(kernel: Netlink, port: int) -> None:
    """Let a port of a bridge send back where a packet came from (hairpin mode).

    A container reaches its own published port so where br_netfilter is at work, which leads the
    packet on inside of the bridge.
    """
    mode = nl.nested(nl.IFLA_INFO_SLAVE_DATA, nl.attribute(nl.IFLA_BRPORT_MODE, b"\1"))
    body = nl.link_body(port)
    body += nl.nested(nl.IFLA_LINKINFO, nl.text(nl.IFLA_INFO_SLAVE_KIND, "bridge"), mode)
    kernel.change(nl.RTM_NEWLINK, body)


def bridge_name(network: str) -> str:
    """Return the name of a network's bridge."""
    return f"ctb{network[:8]}"


def port_name(network: str, key: str) -> str:
    """Return the name of the host's end of an attachment."""
    return f"ctv{hashlib.sha256(f'{network} {key}'.encode()).hexdigest()[:8]}"


def check_interface(name: str) -> str:
    """Return an interface's name.

    Raises:
        InvalidArgument: the kernel would not have it, or it means something else.
    """
    if not _INTERFACE.fullmatch(name) or name in _RESERVED or len(name.encode()) > 15:
        raise InvalidArgument(f"{name!r} is no name for an interface", hint="such as eth0")
    return name


def check_mtu(mtu: int, *, ipv6: bool, most: int = _LARGEST_MTU) -> int:
    """Return an MTU.

    Raises:
        InvalidArgument: out of range. Source: RFC 791 (68), RFC 8200 section 5 (1280).
    """
    least = 1280 if ipv6 else 68
    if not least <= mtu <= most:
        raise InvalidArgument(f"an MTU of {mtu} is not in {least} to {most} here")
    return mtu


def _ours(link: Link, network: str) -> bool:
    # Made, and its maker killed before it was named: the name alone says it.
    return not link.alias or link.alias.startswith(f"{_PREFIX}{network} ")


def _attachment(link: Link, network: str) -> str | None:
    head = f"{_PREFIX}{network} attachment "
    return link.alias[len(head) :] if link.alias.startswith(head) else None


def _delete(kernel: Netlink, index: int) -> None:
    try:
        kernel.change(nl.RTM_DELLINK, nl.link_body(index))
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


def _open_inside(namespace: int) -> Netlink:
    def open_other() -> Netlink:
        if namespaces.identity(namespace) == host:
            raise InvalidArgument("the namespace is the host's own")
        namespaces.enter(namespace)
        return Netlink()

    with open("/proc/thread-self/ns/net", "rb", buffering=0) as own:
        host = namespaces.identity(own.fileno())
    try:
        return namespaces.in_thread(open_other)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise InvalidArgument("what was given is no network namespace") from error
        raise _refused("network namespace", error) from error


def _refused(what: str, error: OSError) -> ContainerError:
    sentence = f"{what}: the kernel refused: {error.strerror or error}"
    if error.errno in (errno.EPERM, errno.EACCES):
        return PermissionDenied(sentence, hint="networks need CAP_NET_ADMIN: run as root")
    if error.errno in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
        return Unsupported(sentence, hint="the kernel lacks a part: modprobe bridge veth")
    return Unavailable(sentence)


@contextlib.contextmanager
def _told(what: str) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise _refused(what, error) from error
