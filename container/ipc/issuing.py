"""Endpoints from their issuer's side: hand out, limit, hand out again, revoke.

An endpoint is a capability *and* a policy: who holds it speaks with its issuer, and is admitted by
it. All that was handed out from one issue, further holders and lesser ones included, is served by
the issuer and ends with one scope: whoever passed it on may be gone by then.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Generic, TypeVar, cast

import trio
from attrs import define, field

from container.ipc.actor import Actor
from container.ipc.client import connection_of, connection_proxy
from container.ipc.codec import codecs_of
from container.ipc.contract import Contract, routes_of
from container.ipc.descriptor import Fd
from container.ipc.endpoint import Endpoint
from container.ipc.errors import InvalidArgument, Overloaded, PermissionDenied, Unavailable
from container.ipc.handling import Handler
from container.ipc.nursery import ended_with_block
from container.ipc.peer import Peer, Policy, same_user
from container.ipc.server import Server
from container.ipc.transport import SocketTransport, no_descriptor, socket_pair
from container.ipc.wire.limits import Limits

logger = logging.getLogger("container.ipc")

C = TypeVar("C", bound=Contract)

HOLDERS = 64
"""Of one issue at once, the first included: each costs its issuer a descriptor."""

RouteName = str | Callable[..., Any]
"""A route of a contract by its method's name, or the method itself: `Sandbox.start`."""


class Holding(Contract, name="container.endpoint"):
    """What every endpoint's issuer offers its holder, beside the contract."""

    @abstractmethod
    async def another(self, routes: tuple[str, ...] | None = None) -> Fd:
        """Return a fresh socket on which the same service is spoken to, or some of its routes."""


def route_names(contract: type[Contract], routes: Collection[RouteName]) -> frozenset[str]:
    """Return names of routes, checked against their contract.

    Raises:
        InvalidArgument: one is no route of the contract.
    """
    known = routes_of(contract)
    names: set[str] = set()
    for route in routes:
        name = route if isinstance(route, str) else getattr(route, "__name__", "")
        other = not isinstance(route, str) and getattr(contract, name, None) is not route
        if name not in known or other:
            raise InvalidArgument(f"{contract.contract_name} has no route {route!r}")
        names.add(name)
    return frozenset(names)


def widened(policy: Policy, admit: Collection[int]) -> Policy:
    """Return a policy that admits some users beside those it admits anyway."""
    uids = frozenset(admit)

    def admits(peer: Peer, route: str | None) -> bool:
        return peer.uid in uids or policy(peer, route)

    return admits


@define(eq=False)
class Issued(Generic[C]):
    """What was handed out of one service, seen from its issuer. Made by `issued` and `issue`."""

    contract: type[C]
    server: Server
    scope: trio.CancelScope = field(factory=trio.CancelScope, init=False)
    """Cancelling it revokes all of it."""
    endpoint: Endpoint[C] = field(init=False)
    """For the first holder."""
    _holders: trio.Nursery | None = field(default=None, init=False)
    _waiting: list[tuple[Server, SocketTransport]] = field(
        factory=list[tuple[Server, SocketTransport]], init=False
    )
    _served: set[Server] = field(factory=set[Server], init=False)
    _ended: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.endpoint = self._hand_out(self.server)

    def another(self, *, routes: Collection[RouteName] | None = None) -> Endpoint[C]:
        """Hand out an endpoint for one holder more: two would share the bytes of one.

        Args:
            routes: What it is limited to, of what the first one offers; None offers the same.

        Raises:
            InvalidArgument: one is no route of the contract.
            PermissionDenied: the first one does not offer a route.
            Overloaded: 64 holders are there, or there is no descriptor.
            Unavailable: it was revoked, or the last holder is gone.
        """
        return self._another(self.server, routes)

    def revoke(self) -> None:
        """End all of it: calls that run are cancelled, their holders' connections end."""
        self.scope.cancel()

    def peer_pids(self) -> frozenset[int]:
        """Return the processes that have spoken on what was handed out, and are connected."""
        return frozenset(pid for server in self._served for pid in server.peer_pids())

    def _another(self, parent: Server, routes: Collection[RouteName] | None) -> Endpoint[C]:
        if self._ended or self.scope.cancel_called:
            raise Unavailable(f"the endpoint of {self.contract.contract_name} has ended")
        if len(self._served) >= HOLDERS:
            raise Overloaded(f"{HOLDERS} holders of {self.contract.contract_name} are there")
        only = parent.only
        if routes is not None:
            wanted = route_names(self.contract, routes)
            if only is not None and not wanted <= only:
                denied = ", ".join(sorted(wanted - only))
                raise PermissionDenied(f"this endpoint does not offer {denied}")
            only = wanted
        return self._hand_out(parent.limited(only))

    def _hand_out(self, server: Server) -> Endpoint[C]:
        try:
            theirs, ours = socket_pair()
        except OSError as error:
            raise no_descriptor(error) from error
        path, handler = _holding(partial(self._for_holder, server))
        server.offer(path, handler)
        transport = SocketTransport(ours)
        self._served.add(server)
        if self._holders is None:
            self._waiting.append((server, transport))
        else:
            self._holders.start_soon(self._serve, server, transport)
        return Endpoint(self.contract, Fd(theirs.detach()))

    async def _for_holder(self, server: Server, routes: tuple[str, ...] | None = None) -> Fd:
        endpoint = self._another(server, routes)
        return Fd(endpoint.fd.take())

    async def serve(self, *, keep: bool = False) -> None:
        """Serve every holder until the last has gone (if not to `keep` on), or all is revoked."""
        try:
            with self.scope:
                async with trio.open_nursery() as self._holders:
                    while self._waiting:
                        self._holders.start_soon(self._serve, *self._waiting.pop())
                    if keep:
                        await trio.sleep_forever()
        finally:
            self._ended = True
            self._holders = None
            for _, transport in self._waiting:
                transport.close()

    async def _serve(self, server: Server, transport: SocketTransport) -> None:
        try:
            # The hello deadline of an endpoint starts at its first byte: it may be held long.
            await transport.wait_readable()
            await server.serve(transport)
        finally:
            transport.close()
            self._served.discard(server)


def _holding(another: Callable[..., Any]) -> tuple[str, Handler]:
    codec = codecs_of(Holding)["another"]
    return codec.route.path, Handler(codec, another)


def _server(
    contract: type[C],
    service: C,
    routes: Collection[RouteName] | None,
    policy: Policy,
    admit: Collection[int],
    limits: Limits | None,
) -> Server:
    only = None if routes is None else route_names(contract, routes)
    if admit:
        users = ", ".join(str(uid) for uid in sorted(admit))
        logger.info("an endpoint of %s admits users %s too", contract.contract_name, users)
        policy = widened(policy, admit)
    return Server((service,), policy, limits or Limits(), only)


@asynccontextmanager
async def issued(
    contract: type[C],
    service: C,
    *,
    routes: Collection[RouteName] | None = None,
    policy: Policy = same_user,
    admit: Collection[int] = (),
    limits: Limits | None = None,
) -> AsyncGenerator[Issued[C]]:
    """Hand out endpoints that end with the block.

    ```python
    async with issued(Sandbox, service, routes=[Sandbox.start, Sandbox.wait]) as handle:
        await helper.run(handle.endpoint)
    ```

    Args:
        contract: What is spoken on them.
        service: Who serves them; opened for the block if it is an actor that is not open.
        routes: What they are limited to, by name or as methods of the contract; None offers all.
        policy: A holder must be admitted too, whoever that is by then.
        admit: User ids that are admitted beside those of the policy; logged.
        limits: Bounds of each connection.

    Raises:
        InvalidArgument: a route is not one of the contract.
        Overloaded: there is no descriptor.
    """
    async with AsyncExitStack() as stack:
        if isinstance(service, Actor) and not service.is_open:
            await stack.enter_async_context(service)
        handle = Issued(contract, _server(contract, service, routes, policy, admit, limits))
        try:
            nursery = await stack.enter_async_context(ended_with_block())
            # Holders may go and come while the block runs.
            keep = partial(handle.serve, keep=True)
            nursery.start_soon(keep, name=f"endpoint {contract.contract_name}")
            yield handle
        finally:
            handle.endpoint.close()  # unless it was sent or connected


def issue(
    nursery: trio.Nursery,
    contract: type[C],
    service: C,
    *,
    routes: Collection[RouteName] | None = None,
    policy: Policy = same_user,
    admit: Collection[int] = (),
    limits: Limits | None = None,
) -> tuple[Endpoint[C], trio.CancelScope]:
    """Make a fresh pair, serve one end in a nursery, and return the other as a capability.

    What was handed out ends when its last holder is gone. See `issued` for the arguments.

    Args:
        nursery: Where the serving task lives.

    Returns:
        The endpoint, and the scope whose cancellation revokes it.
    """
    handle = issue_from(
        nursery, contract, _server(contract, service, routes, policy, admit, limits)
    )
    return handle.endpoint, handle.scope


def issue_from(
    nursery: trio.Nursery,
    contract: type[C],
    server: Server,
    ended: Callable[[], None] | None = None,
) -> Issued[C]:
    """Hand out an endpoint of a server made for it; `ended` is called once it has ended."""
    handle = Issued(contract, server)

    async def serve() -> None:
        try:
            await handle.serve()
        finally:
            if ended is not None:
                ended()

    nursery.start_soon(serve, name=f"endpoint {contract.contract_name}")
    return handle


async def attenuate(held: C | Endpoint[C], routes: Collection[RouteName]) -> Endpoint[C]:
    """Ask an endpoint's issuer for one that offers less.

    It is the issuer's own: it lives on when this process is gone, and is revoked with the rest.

    Args:
        held: An endpoint, which is used up, or a proxy that speaks on one, which goes on.
        routes: What the lesser one offers.

    Raises:
        InvalidArgument: one is no route of the contract.
        PermissionDenied: the proxy's endpoint does not offer a route.
        Overloaded: the endpoint has 64 holders.
        UnknownRoute: the proxy speaks on a named socket, which is no endpoint.
    """
    if isinstance(held, Endpoint):
        async with held.connect() as proxy:
            return await attenuate(proxy, routes)
    contract = cast("type[C]", type(held).__mro__[1])
    names = tuple(sorted(route_names(contract, routes)))
    fd = await connection_proxy(connection_of(held), Holding).another(names)
    return Endpoint(contract, fd)
