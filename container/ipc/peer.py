"""`Peer`: the kernel's word on who sent a message, and policies that judge it.

Each message carries credentials that the kernel checked (SCM_CREDENTIALS). What they are *not*: a
pid is decoration, for logs; authority comes from uid and gid. A sender whose effective uid differs
from its real one attaches its effective one explicitly, since the kernel by itself fills in the
real one.

Source: unix(7), SCM_CREDENTIALS and SO_PEERCRED.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

from attrs import frozen


class Sender(NamedTuple):
    """Credentials of one message, as the kernel delivered them."""

    pid: int
    uid: int
    gid: int


@frozen
class Peer:
    """Who sent a message."""

    pid: int
    uid: int
    """Effective uid of the message's sender."""
    gid: int
    connected_uid: int | None = None
    """Effective uid of who opened the connection, on sockets that this process accepted."""


Policy = Callable[[Peer, str | None], bool]
"""Is this peer admitted to this route (`contract/method`), or with None: to speak at all?"""


def same_user(peer: Peer, route: str | None) -> bool:
    """Admit processes of this process's effective user: the default."""
    return peer.uid == os.geteuid()


def same_user_or_root(peer: Peer, route: str | None) -> bool:
    """Admit this process's effective user and root: what a client expects of a server."""
    return peer.uid in (0, os.geteuid())


def users(admitted: Iterable[int]) -> Policy:
    """Return a policy that admits a set of user ids."""
    uids = frozenset(admitted)

    def policy(peer: Peer, route: str | None) -> bool:
        return peer.uid in uids

    return policy


def groups(admitted: Iterable[int]) -> Policy:
    """Return a policy that admits processes whose effective group is in a set."""
    gids = frozenset(admitted)

    def policy(peer: Peer, route: str | None) -> bool:
        return peer.gid in gids

    return policy


def admits(policy: Policy, peer: Peer, route: str | None) -> bool:
    """Judge a message by its sender and by who opened the connection: both must be admitted."""
    if not policy(peer, route):
        return False
    if peer.connected_uid is None or peer.connected_uid == peer.uid:
        return True
    return policy(
        Peer(pid=peer.pid, uid=peer.connected_uid, gid=peer.gid, connected_uid=None), route
    )
