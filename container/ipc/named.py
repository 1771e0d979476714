"""A service by its name, whoever serves it: restarting a service under load loses no new call.

A connection belongs to one process. When that one says goodbye, or ends, the proxy of a named
service connects again and goes on; what was asked of the old one is finished there. *Not sent* is
tried again, *fate unknown* once and for idempotent methods only, and nothing past the caller's
deadline.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import trio

from container.ipc.client import connect, connection_proxy
from container.ipc.codec import RouteCodec
from container.ipc.connection import Connection
from container.ipc.contract import Contract
from container.ipc.errors import Fate, PeerGone
from container.ipc.nursery import ended_with_block
from container.ipc.peer import Policy, same_user_or_root
from container.ipc.scope import RemoteScope
from container.ipc.wire.limits import Limits

C = TypeVar("C", bound=Contract)


ATTEMPTS = 10
"""A call that was not sent is tried so often: an instance that is going may still accept."""


def _ours(gone: PeerGone) -> bool:
    # One with a provenance came from further away: the peer of this connection is still there.
    return not gone.provenance


class _Instances:
    """The connections to the instances of one service, one after the other.

    Stands where a proxy expects its connection, and that connection's calls.
    """

    def __init__(
        self,
        contract: type[Contract],
        path: str | os.PathLike[str],
        policy: Policy,
        limits: Limits | None,
        nursery: trio.Nursery,
    ) -> None:
        self._contract = contract
        self._path = path
        self._policy = policy
        self._limits = limits
        self._nursery = nursery
        self._current: Connection | None = None
        self._connecting = trio.Lock()

    @property
    def calls(self) -> _Instances:
        """What a proxy calls on."""
        return self

    async def call(self, codec: RouteCodec, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make a call on the instance that serves now, or on the next one."""
        attempts = ATTEMPTS
        while True:
            connection = await self.connection()
            try:
                return await connection.calls.call(codec, args, kwargs)
            except PeerGone as gone:
                attempts -= 1
                unknown = gone.fate is not Fate.NOT_SENT
                if attempts == 0 or not _ours(gone) or codec.arguments_hold:
                    raise
                if unknown and not (codec.route.idempotent and attempts == ATTEMPTS - 1):
                    raise

    async def open_scope(
        self, scope: RemoteScope, codec: RouteCodec, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Open a scope on the instance that serves now, or on the next one; it ends with that."""
        attempts = ATTEMPTS
        while True:
            connection = await self.connection()
            scope.belongs_to(connection.calls)
            try:
                return await connection.calls.open_scope(scope, codec, args, kwargs)
            except PeerGone as gone:
                attempts -= 1
                sent = gone.fate is not Fate.NOT_SENT
                if attempts == 0 or sent or not _ours(gone) or codec.arguments_hold:
                    raise

    async def connection(self) -> Connection:
        """Return a connection that takes new calls, made now if there is none."""
        current = self._current
        if current is not None and current.takes_calls:
            return current
        async with self._connecting:
            attempts = ATTEMPTS
            while self._current is None or not self._current.takes_calls:
                try:
                    self._current = await self._nursery.start(self._hold)
                except PeerGone as gone:
                    attempts -= 1
                    # Nobody listens, or an instance that is going took us in and said nothing.
                    if attempts == 0 or gone.__cause__ is not None:
                        raise
            return self._current

    async def _hold(self, *, task_status: trio.TaskStatus[Connection]) -> None:
        async with connect(
            self._path, self._contract, policy=self._policy, limits=self._limits
        ) as connection:
            task_status.started(connection)
            await connection.wait_lost()


@asynccontextmanager
async def connect_named(
    contract: type[C],
    path: str | os.PathLike[str],
    *,
    policy: Policy = same_user_or_root,
    limits: Limits | None = None,
) -> AsyncGenerator[C]:
    """Hold a proxy of a named service; see `Contract.connect_named`.

    Args:
        contract: What it serves.
        path: Of its socket.
        policy: Judges each instance by the credentials of what it sends.
        limits: Bounds of this side.
    """
    async with ended_with_block() as nursery:
        instances = _Instances(contract, path, policy, limits, nursery)
        await instances.connection()
        yield connection_proxy(cast("Connection", instances), contract)
