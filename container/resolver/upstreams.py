"""Asking other DNS servers: the host's, or those that a container has been given."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class Upstreams:
    """The servers that are asked for names that are not ours.

    Args:
        own: Addresses that lead to us: never asked.
        resolv_conf: The host's; read anew when it has changed.
        port: Of the servers.
    """

    def __init__(
        self,
        own: Iterable[str] = (),
        *,
        resolv_conf: Path = Path("/etc/resolv.conf"),
        port: int = 53,
    ) -> None: ...
