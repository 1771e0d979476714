"""Who sent a message, by the kernel's word, and whether the policy of this connection admits it."""

from __future__ import annotations

import os
from collections.abc import Hashable

from container.ipc.errors import PermissionDenied
from container.ipc.peer import Peer, Policy, Sender, admits
from container.ipc.wire_errors import process_name

KNOWN = 64
"""Senders of one connection that are remembered; more than a few is a stranger's doing."""


class Judge:
    """Judge the senders of one connection.

    Args:
        policy: Is this peer admitted to this route, or with None: to speak at all?
        connected_uid: Effective uid of who connected, where this process accepted.
    """

    def __init__(self, policy: Policy, connected_uid: int | None) -> None:
        self._policy = policy
        self._connected_uid = connected_uid
        self._peers: dict[Hashable, Peer] = {}

    @property
    def pids(self) -> tuple[int, ...]:
        """Processes that have sent something."""
        return tuple(peer.pid for peer in self._peers.values())

    @property
    def peers(self) -> tuple[Peer, ...]:
        """Who has sent something, the first first."""
        return tuple(self._peers.values())

    def peer(self, sender: Hashable) -> Peer:
        """Return who a sender is."""
        known = self._peers.get(sender)
        if known is None:
            assert isinstance(sender, Sender)
            known = Peer(
                pid=sender.pid, uid=sender.uid, gid=sender.gid, connected_uid=self._connected_uid
            )
            if len(self._peers) < KNOWN:
                self._peers[sender] = known
        return known

    def admits(self, sender: Hashable, route: str | None) -> bool:
        """Is this sender admitted? Asked of each message: a policy may change its mind."""
        return self.admits_peer(self._peers.get(sender) or self.peer(sender), route)

    def admits_peer(self, peer: Peer, route: str | None) -> bool:
        """Is this sender, that `peer` returned, admitted?"""
        if peer.connected_uid is None or peer.connected_uid == peer.uid:
            return self._policy(peer, route)
        return admits(self._policy, peer, route)

    def stranger(self, sender: Hashable, route: str) -> PermissionDenied:
        """Return the error for a sender that is not admitted."""
        peer = self.peer(sender)
        return PermissionDenied(
            f"{route}: a process of user {peer.uid} is not admitted",
            hint=f"{process_name()} runs as user {os.geteuid()}",
        )
