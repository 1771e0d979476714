"""Let the kernel pass packets on between interfaces, as a network that leads out needs it.

Switched on and never off again: others on the machine may have come to need it too.

Source: linux Documentation/networking/ip-sysctl.rst (ip_forward, forwarding, accept_ra).
"""

from __future__ import annotations

from pathlib import Path

import trio

from container.ipc import PermissionDenied

SYSCTL = Path("/proc/sys")
IPV4 = "net.ipv4.ip_forward"
IPV6 = "net.ipv6.conf.all.forwarding"


async def allow_forwarding(*, ipv4: bool, ipv6: bool) -> None:
    """Switch forwarding on where it is off.

    IPv6 forwarding makes a host deaf to router advertisements, and would take its default route
    away: interfaces that listen to them are told to go on (`accept_ra` 2) first.

    Raises:
        PermissionDenied: it is off and can't be switched on; the message names the sysctl.
    """
    await trio.lowlevel.checkpoint()
    if ipv4 and not _is_on(IPV4):
        _write(IPV4, "1")
    if ipv6 and not _is_on(IPV6):
        for name in _listeners():
            _write(name, "2")
        _write(IPV6, "1")


def _listeners() -> list[str]:
    # `default` is for interfaces that come later; `all` has no effect on those that are there.
    return [
        f"net.ipv6.conf.{switch.parent.name.replace('.', '/')}.accept_ra"
        for switch in sorted((SYSCTL / "net/ipv6/conf").glob("*/accept_ra"))
        if switch.parent.name != "all" and switch.read_text().strip() == "1"
    ]


def _is_on(name: str) -> bool:
    try:
        return _file(name).read_text().strip() != "0"
    except OSError:
        return False


def _write(name: str, value: str) -> None:
    try:
        _file(name).write_text(value)
    except OSError as error:
        raise PermissionDenied(
            f"packets can't be forwarded: sysctl {name} can't be set: {error.strerror}",
            hint=f"run as root on the host: sysctl -w {name}={value}",
            details={"sysctl": name},
        ) from error


def _file(name: str) -> Path:
    # As sysctl(8): dots part, and a slash is the dot of an interface's name.
    return SYSCTL / name.translate(str.maketrans("./", "/."))
