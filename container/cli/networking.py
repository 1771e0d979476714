"""The options of `run` and `create` that say how a container is reached, and what it finds.

`--network` names a network, with what is wanted in it: `web,ip=10.9.0.7,alias=db`. `none`, `host`
and `container:NAME` are no networks but ways to have one, and stand alone.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from container.cli.failure import UsageRefused

if TYPE_CHECKING:
    from container.contracts.apiserver import NetworkUse
    from container.contracts.runtime import Mount, NameOptions

NETWORK_OPTIONS = (
    click.option(
        "--network",
        "--net",
        multiple=True,
        envvar="CONTAINER_NETWORK",
        metavar="NAME[,FIELD=VALUE]...",
        help="A network to be in (default); may be given several times. Fields: ip, ip6, mac, "
        "alias, mtu, interface. Or none, host, or container:NAME to share another's.",
    ),
    click.option(
        "-p",
        "--publish",
        multiple=True,
        metavar="[ADDRESS:][HOST:]PORT[/udp]",
        help="Let a port of this machine lead to one of the container, as in 8080:80; "
        "ranges as in 8000-8009:80-89.",
    ),
    click.option(
        "-P",
        "--publish-all",
        is_flag=True,
        help="Publish each port that the image exposes, on any free port.",
    ),
    click.option(
        "--publish-socket",
        multiple=True,
        metavar="SOCKET:DESTINATION",
        help="Have a Unix socket of this machine inside.",
    ),
    click.option("--ip", metavar="ADDRESS", help="IPv4 address in its network."),
    click.option("--ip6", metavar="ADDRESS", help="IPv6 address in its network."),
    click.option("--mac-address", metavar="MAC", help="MAC address in its network."),
    click.option(
        "--network-alias", multiple=True, metavar="NAME", help="A further name in its network."
    ),
    click.option("--dns", multiple=True, metavar="ADDRESS", help="Ask this DNS server."),
    click.option("--dns-search", multiple=True, metavar="DOMAIN", help="Search this domain."),
    click.option(
        "--dns-option",
        "--dns-opt",
        "dns_option",
        multiple=True,
        metavar="OPTION",
        help="Of resolv.conf, as in ndots:2.",
    ),
    click.option(
        "--add-host",
        multiple=True,
        metavar="NAME:ADDRESS",
        help="A line of /etc/hosts; the address host-gateway is this machine's.",
    ),
    click.option("--no-hosts", is_flag=True, help="Leave the image's /etc/hosts as it is."),
)

_FIELDS = ("ip", "ip6", "mac", "alias", "mtu", "interface")
_SYNONYMS = {"mac-address": "mac", "name": "network", "bridge": "default"}
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}", re.ASCII)
_LABEL = re.compile(r"[a-zA-Z0-9_]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?", re.ASCII)
_MAC = re.compile(r"[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}", re.ASCII)
_INTERFACE = re.compile(r"[a-zA-Z0-9_.-]{1,15}", re.ASCII)


def network_choice(values: dict[str, Any]) -> tuple[str, tuple[NetworkUse, ...]]:
    """Return the mode and the networks that parsed options ask for; the mode is empty with
    networks.

    Raises:
        UsageRefused: they make no sense.
    """
    texts: Sequence[str] = values["network"]
    own = _of_the_only_one(values)
    modes = [text for text in texts if is_mode(text)]
    if modes:
        mode = modes[0]
        if len(texts) > 1:
            other = next((text for text in texts if text != mode), mode)
            raise UsageRefused(f'--network {mode} stands alone: "{other}" was given too')
        if own:
            raise UsageRefused(f"{_option(own)} needs a network, and --network {mode} is none")
        return mode, ()
    uses = tuple(parse_network(text) for text in texts)
    names = [use.network for use in uses]
    for name in names:
        if names.count(name) > 1:
            raise UsageRefused(f'--network "{name}" is given twice')
    if own:
        if len(uses) > 1:
            raise UsageRefused(
                f"of which network is {_option(own)}?",
                hint=f"write it as --network {names[0]},{next(iter(own))}=...",
            )
        uses = (_with(uses[0] if uses else parse_network("default"), own),)
    return "", uses


def is_mode(text: str) -> bool:
    """Whether a `--network` is a way to have a network, rather than the name of one."""
    if text == "container:":
        raise UsageRefused('"container:" names no container: use container:NAME')
    return text in ("none", "host") or text.startswith("container:")


def parse_network(text: str) -> NetworkUse:
    """Return what one `--network` asks for."""
    from container.contracts.apiserver import NetworkUse

    fields: dict[str, str] = {}
    aliases: list[str] = []
    name = ""
    for place, part in enumerate(text.split(",")):
        key, equals, value = part.partition("=")
        key = _SYNONYMS.get(key, key)
        if place == 0 and (not equals or key == "network"):
            name = value if equals else part
            continue
        if key not in _FIELDS or not equals:
            raise UsageRefused(
                f'"{part}" in "{text}" is no field of a network: use {", ".join(_FIELDS)}, '
                f"as in {name or 'NAME'},ip=10.9.0.7"
            )
        if not value:
            raise UsageRefused(f'{key} in "{text}" is empty')
        if key == "alias":
            aliases.append(value)
        elif key in fields:
            raise UsageRefused(f'{key} is given twice in "{text}"')
        else:
            fields[key] = value
    if is_mode(name):
        raise UsageRefused(f'--network {name} has no fields: "{text}"')
    use = NetworkUse(_SYNONYMS.get(parse_network_name(name), name))
    return _with(use, {**fields, **({"alias": aliases} if aliases else {})})


def parse_network_name(text: str) -> str:
    """Return a network's name, checked."""
    if not _NAME.fullmatch(text):
        raise UsageRefused(
            f'"{text}" is no name for a network: use at most 63 letters, digits, ".", "_" and '
            '"-", beginning with a letter or digit'
        )
    return text


def name_options(values: dict[str, Any]) -> NameOptions:
    """Return how the container is to find names.

    Raises:
        UsageRefused: an option makes no sense.
    """
    from container.contracts.runtime import NameOptions

    hosts = tuple(parse_host(text) for text in values["add_host"])
    if hosts and values["no_hosts"]:
        raise UsageRefused(
            "--add-host and --no-hosts contradict each other", hint="leave out one of them"
        )
    for text in values["dns_option"]:
        if not re.fullmatch(r"[^\s\0]{1,255}", text):
            raise UsageRefused(f'"{text}" is no DNS option: use one word, as in ndots:2')
    return NameOptions(
        servers=tuple(parse_address(text, "a DNS server") for text in values["dns"]),
        search=tuple(
            text if text == "." else parse_domain(text, "domain") for text in values["dns_search"]
        ),
        options=tuple(values["dns_option"]),
        hosts=hosts,
        keep_hosts=values["no_hosts"],
    )


def parse_host(text: str) -> str:
    """Return `NAME:ADDRESS` of `NAME:ADDRESS` or `NAME=ADDRESS`, checked."""
    match = re.fullmatch(r"([^:=]*)[:=](.*)", text)
    if match is None or not match[2]:
        raise UsageRefused(f'"{text}" is no host: use NAME:ADDRESS, as in db:10.9.0.7')
    address = match[2].removeprefix("[").removesuffix("]")
    if address != "host-gateway":
        parse_address(address, f'the host "{match[1]}"')
    return f"{parse_domain(match[1], 'host name')}:{address}"


def parse_domain(text: str, what: str) -> str:
    """Return a name of DNS, checked."""
    labels = text.removesuffix(".").split(".")
    if len(text) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise UsageRefused(
            f'"{text}" is no {what}: use letters, digits and "-" between dots, at most 63 in a row'
        )
    return text


def parse_address(text: str, whose: str, version: int | None = None) -> str:
    """Return an IP address, checked."""
    import ipaddress

    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        found = None
    if found is None or version not in (None, found.version):
        kind = "IPv4 or IPv6" if version is None else f"IPv{version}"
        raise UsageRefused(f'"{text}" is no address of {whose}: use an {kind} address')
    return text


def parse_mtu(text: str) -> int:
    """Return a largest packet, in bytes."""
    if not re.fullmatch(r"\d{1,6}", text, re.ASCII) or not 68 <= int(text) <= 65535:
        raise UsageRefused(f'"{text}" is no MTU: use a number from 68 to 65535')
    return int(text)


def parse_mac(text: str) -> str:
    """Return a MAC address, checked."""
    if not _MAC.fullmatch(text) or not text.strip("0:"):
        raise UsageRefused(
            f'"{text}" is no MAC address: use six bytes, the first one even, as in '
            "02:42:ac:11:00:02"
        )
    return text.lower()


def socket_mounts(texts: Sequence[str]) -> tuple[Mount, ...]:
    """Return the mounts of `--publish-socket`, whose sources must be sockets."""
    from container.cli.mounts import parse_volume

    found: list[Mount] = []
    for text in texts:
        source, colon, destination = text.partition(":")
        if not colon or not source or not destination or ":" in destination:
            raise UsageRefused(f'"{text}" is no socket to publish: use SOCKET:DESTINATION')
        path = os.path.abspath(source)
        mount = parse_volume(f"{path}:{destination}")
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise UsageRefused(
                f'"{source}" in "{text}" is no socket', hint="--volume mounts files and folders"
            )
        found.append(mount)
    return tuple(found)


_OPTION_OF = {
    "ip": "--ip",
    "ip6": "--ip6",
    "mac": "--mac-address",
    "alias": "--network-alias",
}


def _option(own: dict[str, Any]) -> str:
    return _OPTION_OF[next(iter(own))]


def _of_the_only_one(values: dict[str, Any]) -> dict[str, Any]:
    """Return the options that are of the only network, by field."""
    given = {
        "ip": values["ip"],
        "ip6": values["ip6"],
        "mac": values["mac_address"],
        "alias": list(values["network_alias"]),
    }
    return {field: value for field, value in given.items() if value not in (None, [])}


def _with(use: NetworkUse, fields: dict[str, Any]) -> NetworkUse:
    """Return a use with what is wanted in it, checked."""
    from attrs import evolve

    addresses = list(use.addresses)
    for field, version in (("ip", 4), ("ip6", 6)):
        if field in fields:
            whose = f'the container in network "{use.network}"'
            if any((":" in each) is (version == 6) for each in addresses):
                raise UsageRefused(f'two IPv{version} addresses in network "{use.network}"')
            addresses.append(parse_address(fields[field], whose, version))
    mac, interface = use.mac, use.interface
    if "mac" in fields:
        mac = parse_mac(fields["mac"])
    if "interface" in fields:
        interface = fields["interface"]
        if not _INTERFACE.fullmatch(interface) or interface in (".", "..", "lo"):
            raise UsageRefused(
                f'"{interface}" is no interface: use at most 15 letters, digits, ".", "_" and '
                '"-", as in eth0'
            )
    aliases = [parse_domain(alias, "alias") for alias in fields.get("alias", ())]
    return evolve(
        use,
        addresses=tuple(addresses),
        mac=mac,
        interface=interface,
        mtu=parse_mtu(fields["mtu"]) if "mtu" in fields else use.mtu,
        aliases=(*use.aliases, *aliases),
    )
