"""The host's DNS servers, as /etc/resolv.conf names them now."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

_MOST_SERVERS = 3
_MOST_BYTES = 64 * 1024


class ResolvConf:
    """Reads the file anew when it has changed, which is looked for each time: it is one `stat`.

    Args:
        path: The file, or a link to it.

    Source: resolv.conf(5), for `nameserver`, and that at most three count.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int, int] | None = None
        self._nameservers: tuple[str, ...] = ()

    def nameservers(self) -> tuple[str, ...]:
        """Return the servers in their order; none if there is no file that can be read.

        A file without servers has none: the C library would ask 127.0.0.1, where mostly nobody is.
        """
        try:
            found = os.stat(self._path)
            seen = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
            if seen != self._seen:
                with self._path.open("rb") as file:
                    text = file.read(_MOST_BYTES)
                self._nameservers = nameservers_of(text.decode(errors="replace"))
                self._seen = seen
        except OSError:
            # Being replaced, perhaps: the next query looks again.
            self._seen, self._nameservers = None, ()
        return self._nameservers


def nameservers_of(text: str) -> tuple[str, ...]:
    """Return the addresses in a file's text; what is no address is passed over."""
    found: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            ipaddress.ip_address(words[1])
        except ValueError:
            continue
        if words[1] not in found:
            found.append(words[1])
    return tuple(found[:_MOST_SERVERS])
