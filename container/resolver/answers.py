"""What the DNS server asks of whoever knows the names.

A name here is lower case, without its last dot. An address is text as `inet_ntop` writes it. What
is asked in vain is None where somebody else may know it, and empty where nobody can.
"""

from __future__ import annotations

from typing import Protocol

from attrs import frozen


@frozen
class Client:
    """What somebody who asks is given."""

    search: tuple[str, ...] = ()
    """Search domains, lower case, without dots at the ends: `web.example.com` is `web` for who
    searches `example.com`. None: the host's."""
    nameservers: tuple[str, ...] = ()
    """Asked instead of the host's for names that are not ours."""
    forwards: bool = True
    """Whether anybody is asked for names that are not ours. False: they do not exist."""
    elsewhere: bool = False
    """Whether it is in other networks, which are asked before others are."""


class Answers(Protocol):
    """Who knows the names. The first three are asked for a packet and return at once."""

    @property
    def generation(self) -> int:
        """Another number whenever one of the first three might say something else."""
        ...

    def client(self, source: str) -> Client | None:
        """Return what an address may ask; None: nothing, and its packets are dropped."""
        ...

    def addresses(self, name: str) -> tuple[str, ...] | None:
        """Return the addresses of a name, of both families; None: not a name of ours."""
        ...

    def names_of(self, address: str) -> tuple[str, ...] | None:
        """Return the names of an address, the first its own; empty: one of ours that nobody has;
        None: not in a range of ours."""
        ...

    async def addresses_elsewhere(self, source: str, name: str) -> tuple[str, ...] | None:
        """Return the addresses of a name of another network that the client is in.

        Raises:
            Unavailable: another network could not be asked, and none that could knows it.
        """
        ...

    async def names_elsewhere(self, source: str, address: str) -> tuple[str, ...] | None:
        """Return the names of an address of another network that the client is in.

        Raises:
            Unavailable: another network could not be asked, and none that could knows it.
        """
        ...
