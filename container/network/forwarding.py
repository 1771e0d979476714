"""Let the kernel pass packets on between interfaces, as a network that leads out needs it."""

from __future__ import annotations


async def allow_forwarding(*, ipv4: bool, ipv6: bool) -> None:
    """Switch forwarding on where it is off.

    IPv6 forwarding makes a host deaf to router advertisements, and would take its default route
    away: interfaces that listen to them are told to go on (`accept_ra` 2) first.

    Raises:
        PermissionDenied: it is off and can't be switched on; the message names the sysctl.
    """
    raise NotImplementedError
