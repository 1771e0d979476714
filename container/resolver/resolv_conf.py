"""The host's DNS servers and search domains, as /etc/resolv.conf has them now."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

from attrs import frozen

_MOST_SERVERS = 3
_MOST_BYTES = 64 * 1024


@frozen
class Host:
    """What the file says."""

    nameservers: tuple[str, ...] = ()
    """In their order; a file without any has none: the C library would ask 127.0.0.1, where mostly
    nobody is."""
    search: tuple[str, ...] = ()
    """Lower case, without dots at their ends."""

    @classmethod
    def read(cls, text: str) -> Host:
        """Return what a file's text says; what is no address is passed over.

        Source: resolv.conf(5): three servers count, and of search lines the last.
        """
        nameservers: list[str] = []
        search: tuple[str, ...] = ()
        for line in text.splitlines():
            words = line.split()
            if words[:1] == ["nameserver"] and len(words) > 1:
                if _is_address(words[1]) and words[1] not in nameservers:
                    nameservers.append(words[1])
            elif words[:1] in (["search"], ["domain"]):
                search = tuple(filter(None, (word.strip(".").lower() for word in words[1:])))
        return cls(tuple(nameservers[:_MOST_SERVERS]), search)


class ResolvConf:
    """Reads the file anew when it has changed, which is looked for each time: it is one `stat`.

    Args:
        path: The file, or a link to it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int, int] | None = None
        self._host = Host()

    def host(self) -> Host:
        """Return what the file says; nothing if there is none that can be read."""
        try:
            found = os.stat(self._path)
            seen = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
            if seen != self._seen:
                with self._path.open("rb") as file:
                    text = file.read(_MOST_BYTES)
                self._host = Host.read(text.decode(errors="replace"))
                self._seen = seen
        except OSError:
            # Being replaced, perhaps: the next query looks again.
            self._seen, self._host = None, Host()
        return self._host


def _is_address(word: str) -> bool:
    try:
        ipaddress.ip_address(word)
    except ValueError:
        return False
    return True
