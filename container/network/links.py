"""What the kernel tells of interfaces that change and go, as it happens.

The kernel's own word is the only one that tells that a network namespace has ended: its interfaces
end with it, and with each its other end on the host.

Source: rtnetlink(7), RTMGRP_LINK.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import trio
from attrs import frozen

from container.network.netlink import (
    RTM_DELLINK,
    RTM_NEWLINK,
    RTMGRP_LINK,
    Link,
    index_of,
    messages,
    read_link,
)

BUFFER_BYTES = 4 << 20
"""The kernel's, for what we have not read yet: a thousand interfaces that go at once."""
REMEMBERED = 1024
_SO_RCVBUFFORCE = 33
"""Source: socket(7)."""


@frozen
class Changed:
    """An interface has changed, or come."""

    link: Link


@frozen
class Gone:
    """An interface is no more, or is in another namespace."""

    link: Link


@frozen
class Missed:
    """So much happened at once that some of it was not told: look at everything."""


Event = Changed | Gone | Missed


class LinkEvents:
    """Events of the namespace in which it was opened, in order, from its opening on."""

    def __init__(self, source: trio.socket.SocketType) -> None:
        self._source = source
        self.gone: deque[int] = deque(maxlen=REMEMBERED)
        """Indexes of the last interfaces that went, of interest or not: the kernel does not use
        one again, so who has just made one sees here whether it is gone already."""

    async def next(self, of_interest: Callable[[int], bool]) -> tuple[Event, ...]:
        """Wait for events; return those that come together.

        Args:
            of_interest: Says so of an interface's index. Each change of any interface of the
                machine is told of, several times, and to read it takes longer than to see of which
                it is.
        """
        while True:
            try:
                data = await self._source.recv(1 << 17)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                return (Missed(),)
            found: list[Event] = []
            for kind, body in messages(data):
                if kind not in (RTM_NEWLINK, RTM_DELLINK):
                    continue
                index = index_of(body)
                # A port that leaves its bridge is told of like an interface that goes.
                if kind == RTM_DELLINK and body[0] != socket.AF_BRIDGE:
                    self.gone.append(index)
                if not of_interest(index):
                    continue
                link = read_link(body)
                if link.family != socket.AF_BRIDGE:
                    found.append(Changed(link) if kind == RTM_NEWLINK else Gone(link))
            if found:
                return tuple(found)


@asynccontextmanager
async def link_events() -> AsyncGenerator[LinkEvents]:
    """Listen to the interfaces of this thread's namespace while the block runs.

    Raises:
        OSError: the kernel refused.
    """
    with trio.socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    ) as source:
        try:
            # Beyond the machine's bound, where that is permitted.
            source.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_BYTES)
        except OSError:
            source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        await source.bind((0, RTMGRP_LINK))
        yield LinkEvents(source)
