"""Published ports on the command line: `-p`, and how ports are shown.

`[ADDRESS:][HOST[-LAST]:]CONTAINER[-LAST][/tcp|udp]`; an IPv6 address is written in brackets.
Without a host port, or with 0, any free one is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from container.cli.failure import UsageRefused

if TYPE_CHECKING:
    from container.contracts.network import Attachment, PublishedPort

_FORM = "use [ADDRESS:][HOST:]CONTAINER[/tcp|udp], as in 8080:80 or 127.0.0.1:8080:80/tcp"
PORT_MAX = 65535


def parse_ports(texts: Sequence[str]) -> tuple[PublishedPort, ...]:
    """Return what `-p` asks for, in its order."""
    return tuple(parse_publish(text) for text in texts)


def parse_publish(text: str) -> PublishedPort:
    """Return the published port, or row of ports, of one `-p`."""
    from container.contracts.network import Protocol, PublishedPort

    place, slash, protocol = text.partition("/")
    if slash and protocol.lower() not in ("tcp", "udp"):
        raise UsageRefused(f'"{protocol}" in "{text}" is no protocol here: use tcp or udp')
    address, host, inside = _parts(place, text)
    first, count = _row(inside, text)
    host_first, host_count = _row(host, text, least=0) if host else (0, count)
    if host_count != count:
        raise UsageRefused(
            f'"{text}" leads from {_ports(host_count)} of the host into {_ports(count)} of the '
            "container: give as many of both"
        )
    return PublishedPort(
        container_port=first,
        host_port=host_first,
        count=count,
        protocol=Protocol(protocol.lower() or "tcp"),
        host_address=address,
    )


def parse_port(text: str) -> int:
    """Return a port, 1 to 65535."""
    return _number(text, text, least=1)


def parse_container_port(text: str) -> tuple[int, str]:
    """Return port and protocol of `PORT[/tcp|udp]`."""
    number, slash, protocol = text.partition("/")
    if slash and protocol.lower() not in ("tcp", "udp"):
        raise UsageRefused(f'"{protocol}" in "{text}" is no protocol here: use tcp or udp')
    return _number(number, text, least=1), protocol.lower() or "tcp"


def show_ports(attachments: Iterable[Attachment]) -> str:
    """Return the ports of a running container for a table: `0.0.0.0:8080->80/tcp`."""
    return ", ".join(
        f"{_shown(port.host_address)}:{_span(port.host_port, port.count)}->"
        f"{_span(port.container_port, port.count)}/{port.protocol.value}"
        for attachment in attachments
        for port in attachment.ports
    )


def published(attachments: Iterable[Attachment]) -> Iterator[tuple[int, str, str]]:
    """Return each published port of a container: port inside, protocol, place on the host."""
    for attachment in attachments:
        for port in attachment.ports:
            for each in range(port.count):
                yield (
                    port.container_port + each,
                    port.protocol.value,
                    f"{_shown(port.host_address)}:{port.host_port + each}",
                )


def _parts(place: str, text: str) -> tuple[str, str, str]:
    """Return address, host ports and container ports as they are written."""
    if place.startswith("["):
        address, bracket, rest = place[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise UsageRefused(f'"{text}" is no port to publish: {_FORM}')
        parts = rest[1:].split(":")
        if len(parts) == 1:
            raise UsageRefused(
                f'"{text}" has no port of the container: write [{address}]::{parts[0]} for any '
                "free port of the host"
            )
        parts = [address, *parts]
    else:
        parts = place.split(":")
        if len(parts) > 3:
            raise UsageRefused(
                f'"{text}" is no port to publish: {_FORM}',
                hint="an IPv6 address is written in brackets, as in [::1]:8080:80",
            )
    if len(parts) > 3 or not parts[-1]:
        raise UsageRefused(f'"{text}" is no port to publish: {_FORM}')
    if len(parts) == 2 and "." in parts[0]:
        raise UsageRefused(
            f'"{text}" has no port of the host: write {parts[0]}::{parts[1]} for any free one'
        )
    if len(parts) == 2 and not parts[0]:
        raise UsageRefused(f'"{text}" is no port to publish: {_FORM}')
    if len(parts) == 3:
        _check_address(parts[0], text, ipv6=place.startswith("["))
    address, host, inside = ["", "", *parts][-3:]
    return address, host, inside


def _check_address(address: str, text: str, *, ipv6: bool) -> None:
    import ipaddress

    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        found = None
    if found is None or (found.version == 6) is not ipv6:
        raise UsageRefused(
            f'"{address}" in "{text}" is no address of the host: use an IPv4 address, or an IPv6 '
            "address in brackets"
        )


def _row(written: str, text: str, *, least: int = 1) -> tuple[int, int]:
    """Return the first port and the number of ports of `PORT` or `FIRST-LAST`."""
    first, dash, last = written.partition("-")
    begin = _number(first, text, least=least)
    if not dash:
        return begin, 1
    end = _number(last, text, least=1)
    if end < begin or begin == 0:
        raise UsageRefused(f'"{written}" in "{text}" is no range of ports: write FIRST-LAST')
    return begin, end - begin + 1


def _number(written: str, text: str, *, least: int) -> int:
    if not re.fullmatch(r"\d{1,9}", written, re.ASCII) or not least <= int(written) <= PORT_MAX:
        where = f' in "{text}"' if written != text else ""
        raise UsageRefused(f'"{written}"{where} is no port: use a number from 1 to {PORT_MAX}')
    return int(written)


def _ports(count: int) -> str:
    return "1 port" if count == 1 else f"{count} ports"


def _shown(address: str) -> str:
    return f"[{address}]" if ":" in address else address or "0.0.0.0"


def _span(first: int, count: int) -> str:
    return str(first) if count == 1 else f"{first}-{first + count - 1}"
