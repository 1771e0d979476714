"""The DNS server: answers the names that it knows and forwards the rest."""

from __future__ import annotations

from collections.abc import Sequence

import trio
from attrs import frozen

from container.resolver.answers import Answers
from container.resolver.limits import Limits
from container.resolver.listening import Listener
from container.resolver.upstreams import Upstreams


@frozen
class Statistics:
    """What a server has done and does."""


class DnsServer:
    """A DNS server over UDP and TCP.

    Args:
        answers: Who knows the names.
        upstreams: Who is asked for others.
        limits: How much is taken on at once.
    """

    def __init__(
        self, answers: Answers, upstreams: Upstreams, *, limits: Limits | None = None
    ) -> None: ...

    async def serve(
        self,
        listeners: Sequence[Listener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; the sockets stay the caller's to close. No packet ends it."""
        raise NotImplementedError

    def statistics(self) -> Statistics:
        """Return what it has done and does."""
        raise NotImplementedError
