"""`/etc/hosts`, `/etc/resolv.conf`, `/etc/hostname` of a container: files of ours, bound into it.

They are in the bundle's folder and bound one by one, so a file keeps its inode for the whole run
and is changed in place when a network is joined or left. A container may write to them too: what it
adds to `hosts` stays, and a `resolv.conf` without its first line is not ours any more.

Where names are asked, by the network mode:

| mode | nameservers |
|---|---|
| `networks` | the first network's that answers names; if none does, the user's or the host's |
| `none` | the user's; nobody else can be reached |
| `shared` | the user's or the host's: whoever shares says what the other container asks |
| `host` | the user's or the host's, as they are |

Of the host's nameservers those on loopback are left out where loopback is another one. What is
*not* here: the mounts. A file is not bound where the user mounts something (see `mounts.py`).

Source: hosts(5), resolv.conf(5), hostname(5).
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable
from pathlib import Path

from attrs import frozen

from container.contracts.network import Attachment
from container.contracts.runtime import NameOptions, SandboxSpec
from container.ipc import InvalidArgument

HOST_NAME = "host.container.internal"
"""By which every container that can reach its host finds it."""
HOST_GATEWAY = "host-gateway"
"""What stands for the host's address in `NameOptions.hosts`."""
HEADER = "# Kept by container as long as this line is here.\n"
_LOCAL = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
_SIZE_MAX = 1 << 20
"""Characters that are read of a file; a container may write to its own."""
_WORD = re.compile(r"[!-~]+")


@frozen
class NamesFiles:
    """The files of one container. All methods block.

    Args:
        folder: Where they are.
        etc: The host's own files.
        upstream: Where systemd-resolved says whom it asks itself.
    """

    folder: Path
    etc: Path = Path("/etc")
    upstream: Path = Path("/run/systemd/resolve/resolv.conf")

    def write(self, spec: SandboxSpec) -> dict[str, Path]:
        """Write them for a container that has not been attached yet.

        Returns:
            Where each is to be bound, to the file.
        """
        texts = {
            "hostname": f"{spec.hostname}\n",
            "hosts": self.hosts(spec, ()),
            "resolv.conf": self.resolver(spec, ()),
        }
        if spec.names.keep_hosts:
            del texts["hosts"]
        files: dict[str, Path] = {}
        for name, text in texts.items():
            file = self.folder / name
            file.write_text(text)
            file.chmod(0o644)  # whatever our umask: any user of the container may read it
            files[f"/etc/{name}"] = file
        return files

    def update(self, spec: SandboxSpec, attachments: tuple[Attachment, ...]) -> None:
        """Say in them, in place, what a container is attached to now."""
        if not spec.names.keep_hosts:
            hosts = self.folder / "hosts"
            _replace(hosts, _merged(_text(hosts), self.hosts(spec, attachments), _managed(spec)))
        resolver = self.folder / "resolv.conf"
        if _text(resolver).startswith(HEADER):
            _replace(resolver, self.resolver(spec, attachments))

    def hosts(self, spec: SandboxSpec, attachments: tuple[Attachment, ...]) -> str:
        """Return what `/etc/hosts` says. Names that the user gives come first."""
        host_too = spec.network == "host"
        lines = [_text(self.etc / "hosts") or _LOCAL] if host_too else [_LOCAL]
        gateways = ("127.0.0.1",) if host_too else host_addresses(attachments)
        for name, address in map(parse_host, spec.names.hosts):
            addresses = gateways if address == HOST_GATEWAY else (address,)
            lines += [f"{each}\t{name}\n" for each in addresses]
        own = [a.partition("/")[0] for each in attachments for a in each.addresses]
        lines += [f"{each}\t{_own_names(spec)}\n" for each in own or ("127.0.0.1",)]
        if HOST_NAME in _managed(spec):
            lines += [f"{each}\t{HOST_NAME}\n" for each in gateways]
        return "".join(line if line.endswith("\n") else line + "\n" for line in lines)

    def resolver(self, spec: SandboxSpec, attachments: tuple[Attachment, ...]) -> str:
        """Return what `/etc/resolv.conf` says."""
        wanted = spec.names
        host = _Resolver.parse(_text(self.etc / "resolv.conf"))
        answering = next((each.nameservers for each in attachments if each.nameservers), ())
        if not answering and not wanted.servers and spec.network == "none" and not attachments:
            # Without a network there is nobody to ask; without a server look-ups fail at once.
            host = _Resolver()
        elif spec.network != "host":
            host = host.reachable(self.upstream)
        search = wanted.search or host.search
        if wanted.search == (".",):
            search = ()
        lines = [f"nameserver {each}\n" for each in answering or wanted.servers or host.servers]
        if search:
            lines.append(f"search {' '.join(search)}\n")
        if options := wanted.options or host.options:
            lines.append(f"options {' '.join(options)}\n")
        return HEADER + "".join(lines)


@frozen
class _Resolver:
    """What a resolv.conf says."""

    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> _Resolver:
        servers: list[str] = []
        options: list[str] = []
        search: tuple[str, ...] = ()
        for line in text.splitlines():
            match line.split():
                case ["nameserver", address, *_]:
                    servers.append(address)
                case ["search" | "domain", *domains]:
                    search = tuple(domains)
                case ["options", *words]:
                    options += words
                case _:
                    pass
        return cls(tuple(servers), search, tuple(options))

    def reachable(self, upstream: Path) -> _Resolver:
        """Return it as another network namespace can use it."""
        servers = _beyond_loopback(self.servers)
        if not servers and self.servers:
            # A stub that answers on the host's loopback alone, and says whom it asks itself.
            servers = _beyond_loopback(_Resolver.parse(_text(upstream)).servers)
        return _Resolver(servers, self.search, self.options)


def _beyond_loopback(servers: Iterable[str]) -> tuple[str, ...]:
    found: list[str] = []
    for server in servers:
        try:
            address = ipaddress.ip_address(server)
        except ValueError:
            continue
        scoped = isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None
        if not (address.is_loopback or address.is_unspecified or scoped):
            found.append(server)
    return tuple(found)


def host_addresses(attachments: tuple[Attachment, ...]) -> tuple[str, ...]:
    """Return the host's addresses in the first network that has any."""
    return next((each.gateways for each in attachments if each.gateways), ())


def check_names(names: NameOptions, *, reaches_host: bool) -> None:
    """Refuse what can't be written into the files.

    Args:
        names: What the user wants.
        reaches_host: Whether the host will have an address in the container's network.

    Raises:
        InvalidArgument: the message names the option.
    """
    for server in names.servers:
        try:
            ipaddress.ip_address(server)
        except ValueError:
            raise InvalidArgument(f"nameserver {server!r} is no address") from None
    for word in (*names.search, *names.options):
        if not _WORD.fullmatch(word):
            raise InvalidArgument(f"{word!r} is no search domain or resolver option: it is no word")
    for name, address in map(parse_host, names.hosts):
        if address == HOST_GATEWAY and not reaches_host:
            raise InvalidArgument(
                f"{name}:{HOST_GATEWAY} needs a network in which the host has an address",
                hint="give the address itself, or attach the container to a network",
            )


def parse_host(text: str) -> tuple[str, str]:
    """Return name and address of `NAME:ADDRESS`; an IPv6 address may be in brackets.

    Raises:
        InvalidArgument: it is something else.
    """
    name, colon, address = text.partition(":")
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    if not colon or not _WORD.fullmatch(name) or "#" in name:
        raise InvalidArgument(f"{text!r} is not NAME:ADDRESS")
    if address != HOST_GATEWAY:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise InvalidArgument(
                f"{address!r} in {text!r} is no address",
                hint=f"give an IPv4 or IPv6 address, or {HOST_GATEWAY}",
            ) from None
    return name, address


def _own_names(spec: SandboxSpec) -> str:
    return " ".join(dict.fromkeys(filter(None, (spec.hostname, spec.name))))


def _managed(spec: SandboxSpec) -> frozenset[str]:
    """Return the names of the lines whose addresses change with the attachments."""
    wanted = [parse_host(text) for text in spec.names.hosts]
    names = {_own_names(spec), *(name for name, address in wanted if address == HOST_GATEWAY)}
    if HOST_NAME not in (name for name, _ in wanted):
        names.add(HOST_NAME)
    return frozenset(names)


def _merged(present: str, wanted: str, managed: frozenset[str]) -> str:
    """Return what is there, with the managed lines as they are wanted."""
    kept = [
        line
        for line in present.splitlines(keepends=True)
        if line.partition("\t")[2].rstrip("\n") not in managed
    ]
    if kept and not kept[-1].endswith("\n"):
        kept[-1] += "\n"
    new = [
        line
        for line in wanted.splitlines(keepends=True)
        if line.partition("\t")[2].rstrip("\n") in managed
    ]
    return "".join(kept + new)


def _text(file: Path) -> str:
    try:
        with file.open(errors="replace") as opened:
            return opened.read(_SIZE_MAX)
    except OSError:
        return ""


def _replace(file: Path, text: str) -> None:
    """Write a file anew, in place: it is bound by its inode, and never seen empty."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        data = text.encode(errors="replace")
        os.pwrite(descriptor, data, 0)
        os.ftruncate(descriptor, len(data))
    finally:
        os.close(descriptor)
