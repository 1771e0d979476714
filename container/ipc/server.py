"""The server's side: listen, accept, serve each connection; bind sockets.

A service is an object that implements one or more contracts (an `Actor`, usually); its harness is
derived from them. Not a message, not admitted, no such route, bad arguments: four different errors,
and the connection lives on unless the bytes themselves are broken.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from collections import Counter
from collections.abc import AsyncGenerator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import trio
from attrs import define, field, frozen

from container.ipc.actor import Actor
from container.ipc.built_in import built_in
from container.ipc.client import asked, connect_contract, socket_path
from container.ipc.codec import codecs_of
from container.ipc.connection import Connection
from container.ipc.contract import Contract, ContractError, contracts_of
from container.ipc.errors import AlreadyExists, ContainerError, Overloaded, PermissionDenied
from container.ipc.handling import Handler, Load
from container.ipc.idle import IdleTimer
from container.ipc.peer import Policy, same_user
from container.ipc.transport import SocketTransport, Transport, memory_pair
from container.ipc.wire.frames import EndedBy
from container.ipc.wire.limits import Limits
from container.ipc.wire.machine import Budget, Machine
from container.ipc.wire_errors import process_name, to_wire

logger = logging.getLogger("container.ipc")

C = TypeVar("C", bound=Contract)

BACKLOG = 512
LAST_CALL_SECONDS = 60.0
"""How long a call may take that came while an idle server was about to end."""


@frozen
class ServerStatistics:
    """A look at a server."""

    connections: int
    accepted: int
    """Since the beginning."""
    refused: int
    """Connections beyond the limit of their user."""
    running: int
    """Calls and scopes that run on all of them."""


@define(eq=False)
class Server:
    """The routes of some services, and the connections on which they are served.

    Args:
        services: Objects that implement contracts, open already.
        policy: Judges hello (route None) and each message.
        limits: Bounds of each connection.
        only: Method names that are offered; None offers all.
        idle: Counts the calls and scopes that are in flight.
    """

    services: tuple[Contract, ...]
    policy: Policy = same_user
    limits: Limits = field(factory=Limits)
    only: frozenset[str] | None = None
    idle: IdleTimer | None = None
    _routes: dict[str, Handler] = field(factory=dict[str, Handler], init=False)
    _denied: set[str] = field(factory=set[str], init=False)
    _offered: dict[str, tuple[int, str]] = field(factory=dict[str, Any], init=False)
    _live: set[Connection] = field(factory=set[Connection], init=False)
    _connections: Counter[int] = field(factory=Counter[int], init=False)
    _accepting: set[trio.CancelScope] = field(factory=set[trio.CancelScope], init=False)
    _draining: bool = field(default=False, init=False)
    _accepted: int = field(default=0, init=False)
    _refused: int = field(default=0, init=False)
    _load: Load = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._load = Load(idle=self.idle)
        for service in self.services:
            contracts = contracts_of(type(service))
            if not contracts:
                raise ContractError(f"{type(service).__name__} implements no contract")
            for contract in contracts:
                self._offered |= asked(contract)
                for name, codec in codecs_of(contract).items():
                    path = codec.route.path
                    if self.only is not None and name not in self.only:
                        self._denied.add(path)
                    else:
                        self._routes[path] = Handler(codec, getattr(service, name))
        self._routes |= built_in(self, self._routes, self._live)

    def offer(self, path: str, handler: Handler) -> None:
        """Serve one route more, beside the contracts, to connections that are still to come."""
        self._routes[path] = handler

    def limited(self, only: frozenset[str] | None) -> Server:
        """Return a server of the same services that offers some routes; both count what runs."""
        server = Server(self.services, self.policy, self.limits, only, self.idle)
        server._load = self._load
        return server

    def statistics(self) -> ServerStatistics:
        """Return a frozen look."""
        return ServerStatistics(
            self._connections.total(), self._accepted, self._refused, self._load.running
        )

    def peer_pids(self) -> frozenset[int]:
        """Return the processes that have spoken on the connections that are open now."""
        return frozenset(pid for connection in self._live for pid in connection.peer_pids)

    async def serve(self, transport: Transport) -> None:
        """Serve one connection until it ends; its failures are logged, never raised.

        Cancelling it cancels its handlers; their terminal frames still leave.
        """
        connection = Connection(
            transport,
            accepts=True,
            policy=self.policy,
            limits=self.limits,
            routes=self._routes,
            offered=self._offered,
            denied=self._denied,
            load=self._load,
        )
        try:
            await connection.serve(partial(self._meet, connection))
        except ContainerError as error:
            logger.info("a connection did not come about: %s", error)
        except Exception:
            logger.exception("a connection failed")
        finally:
            self._live.discard(connection)

    def _meet(self, connection: Connection) -> bool:
        self._live.add(connection)
        return not self._draining

    async def listen(self, listener: socket.socket) -> None:
        """Accept and serve until cancelled. Does not close the listener.

        Running out of descriptors makes it wait, not fail; other connections go on.
        """
        listener.setblocking(False)
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as accepting:
                if self._draining:
                    accepting.cancel()
                self._accepting.add(accepting)
                try:
                    await self._accept(listener, nursery)
                finally:
                    self._accepting.discard(accepting)

    async def drain(self, within: float) -> None:
        """Accept no more, tell every peer that its call was the last, and let what runs end.

        A listener that stays open keeps what connects from now on for the next instance. Leave the
        server's block after this: what still runs then is cancelled.

        Args:
            within: Seconds that what runs may take.
        """
        self._draining = True
        for accepting in self._accepting:
            accepting.cancel()
        async with trio.open_nursery() as nursery:
            for connection in tuple(self._live):
                nursery.start_soon(connection.drain, within)

    async def _accept(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        full = False
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                accepted, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                    raise
                # The kernel keeps the connection queued and readable; nothing tells when a
                # descriptor becomes free.
                if not full:
                    logger.warning("can't accept: %s", error.strerror)
                full = True
                await trio.sleep(0.05)
                continue
            full = False
            nursery.start_soon(self._serve_accepted, accepted, name="connection")

    async def _serve_accepted(self, accepted: socket.socket) -> None:
        transport = SocketTransport(accepted, accepted=True)
        uid = transport.connected_uid or 0
        if self._connections[uid] >= self.limits.connections_per_user:
            self._refused += 1
            self._refuse(transport)
            return
        self._accepted += 1
        self._connections[uid] += 1
        try:
            await self.serve(transport)
        finally:
            self._connections[uid] -= 1
            if not self._connections[uid]:
                del self._connections[uid]

    def _refuse(self, transport: Transport) -> None:
        """Say why there is no conversation, if it can be said at once, and close."""
        most = self.limits.connections_per_user
        error = Overloaded(f"{process_name()} has {most} connections of this user already")
        machine = Machine(self.limits, Budget(0))
        try:
            transport.send(machine.error(0, EndedBy.ITSELF, to_wire(error, "hello")), ())
        except OSError:
            pass  # it is gone, or reads nothing
        transport.close()


def bind(path: str | os.PathLike[str], *, mode: int = 0o600) -> socket.socket:
    """Return a listening Unix socket at a path; a socket file that nobody listens on is replaced.

    Credentials are asked for on the listener, so that bytes sent before `accept` carry them.

    Raises:
        AlreadyExists: somebody listens there.
        PermissionDenied: the folder is not ours to write to.
        InvalidArgument: the path is too long.
    """
    where = socket_path(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        _remove_stale(str(where))
        # fchmod on the unbound socket sets the mode of the file that bind makes, less the umask:
        # no moment passes at which others than those of `mode` could connect.
        os.fchmod(listener.fileno(), mode)
        listener.bind(str(where))
        os.chmod(where, mode)
        listener.listen(BACKLOG)
    except PermissionError as error:
        listener.close()
        raise PermissionDenied(f"{where}: {error.strerror}") from error
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise AlreadyExists(f"somebody listens at {where}") from error
        raise
    return listener


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a listener whose backlog is full is alive
        try:
            probe.connect(path)
        except BlockingIOError:
            return
        except ConnectionRefusedError:
            os.unlink(path)


@asynccontextmanager
async def open_service(
    *services: Contract,
    at: str | os.PathLike[str] | socket.socket,
    policy: Policy = same_user,
    limits: Limits | None = None,
    idle: float | IdleTimer | None = None,
) -> AsyncGenerator[Server]:
    """Serve while the block runs: actors that are not open yet are opened for it.

    Args:
        services: Objects that implement contracts.
        at: A path (the socket is bound for the block and unlinked after it), or a listening socket,
            which stays its owner's.
        policy: Judges hello and each message; the same effective user by default.
        limits: Bounds of each connection.
        idle: Seconds without a call or a scope after which the block is cancelled, and left without
            an error; or a timer, for what else counts as work. Peers that are connected are told
            first: what they call from then on is *not sent*.
    """
    timer = IdleTimer(idle) if isinstance(idle, (int, float)) else idle
    raised: BaseException | None = None
    async with AsyncExitStack() as stack:
        for service in services:
            if isinstance(service, Actor) and not service.is_open:
                await stack.enter_async_context(service)
        if isinstance(at, socket.socket):
            listener = at
        else:
            listener = stack.enter_context(bind(at))
            inode = os.stat(at).st_ino
            stack.callback(_unlink_own, at, inode)
        server = Server(services, policy, limits or Limits(), idle=timer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.listen, listener)
            block = trio.CancelScope()
            if timer is not None:
                nursery.start_soon(_end_when_idle, timer, server, block)
            try:
                with block:
                    yield server
            except BaseException as error:
                raised = error
            nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised


async def _end_when_idle(timer: IdleTimer, server: Server, block: trio.CancelScope) -> None:
    await timer.wait()
    # A call may have come while the others are told that it was the last.
    await server.drain(LAST_CALL_SECONDS)
    block.cancel()


def _unlink_own(path: str | os.PathLike[str], inode: int) -> None:
    try:
        if os.lstat(path).st_ino == inode:
            os.unlink(path)
    except FileNotFoundError:
        pass


@asynccontextmanager
async def in_memory(
    service: Contract,
    contract: type[C] | None = None,
    *,
    policy: Policy = same_user,
    limits: Limits | None = None,
    routes: Collection[str] | None = None,
) -> AsyncGenerator[Any]:
    """Hold a proxy of a service over a memory pair: no socket, mock clock, same semantics.

    Args:
        service: Opened for the block if it is an actor that is not open.
        contract: Which of its contracts; may be left out if it has one.
        policy: As of a server.
        limits: Of both ends.
        routes: Method names that are offered; None offers all.
    """
    wanted = contract or contracts_of(type(service))[0]
    raised: BaseException | None = None
    async with AsyncExitStack() as stack:
        if isinstance(service, Actor) and not service.is_open:
            await stack.enter_async_context(service)
        theirs, ours = memory_pair()
        only = None if routes is None else frozenset(routes)
        server = Server((service,), policy, limits or Limits(), only)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve, theirs)
            try:
                async with connect_contract(wanted, ours, limits=limits) as proxy:
                    yield proxy
            except BaseException as error:
                raised = error
            nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised
