"""The client's side: connect to a socket or an endpoint, hold a proxy of the contract's own type.

A proxy's methods are the contract's own, made from its signatures; what a call promises is kept by
`Connection.call`.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from container.ipc.codec import RouteCodec, codecs_of
from container.ipc.connection import Connection, open_connection
from container.ipc.contract import Contract, fingerprint
from container.ipc.endpoint import Endpoint
from container.ipc.errors import (
    ContainerError,
    Fate,
    Incompatible,
    InvalidArgument,
    Overloaded,
    PeerGone,
    PermissionDenied,
)
from container.ipc.peer import Policy, same_user_or_root
from container.ipc.scope import RemoteScope
from container.ipc.transport import SocketTransport, Transport, no_descriptor
from container.ipc.wire.limits import Limits

C = TypeVar("C", bound=Contract)

Address = str | os.PathLike[str] | Endpoint[Any]
"""The path of a Unix socket, or an endpoint."""


def asked(contract: type[Contract]) -> dict[str, tuple[int, str]]:
    """Return a contract as hello names it."""
    return {contract.contract_name: (contract.contract_version, fingerprint(contract))}


def dial(path: str | os.PathLike[str]) -> socket.socket:
    """Connect to a Unix socket; does not wait, since a listener's backlog answers at once.

    Raises:
        PeerGone: nobody listens there (`fate` is refused).
        PermissionDenied: the file system does not let us.
        Overloaded: the listener's backlog is full, or this process has no descriptor left.
        InvalidArgument: the path is too long for a socket.
    """
    where = os.fspath(path)
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise no_descriptor(error) from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        sock.setblocking(False)
        sock.connect(where)
    except OSError as error:
        sock.close()
        raise _dial_error(where, error) from error
    return sock


def _dial_error(where: str, error: OSError) -> ContainerError:
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR, errno.ECONNRESET):
        return PeerGone(f"nobody listens at {where}", fate=Fate.REFUSED, why="closed")
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionDenied(
            f"{where} is not open to user {os.geteuid()}",
            hint="it belongs to another user: become that user",
        )
    if isinstance(error, BlockingIOError):
        return Overloaded(f"{where} takes no more connections now")
    if error.errno is None:
        return InvalidArgument(f"the socket path {where} is too long: 107 bytes are allowed")
    return PeerGone(f"{where}: {error.strerror}", fate=Fate.REFUSED, why="closed")


@asynccontextmanager
async def connect(
    address: Address | Transport,
    *contracts: type[Contract],
    policy: Policy = same_user_or_root,
    limits: Limits | None = None,
) -> AsyncGenerator[Connection]:
    """Open a connection for the block; `connection_proxy` gives the typed faces of it.

    Waits for the server's hello, at most 60 s: the service may have to be started.

    Args:
        address: A socket's path, an endpoint (used up by this), or a transport.
        contracts: What will be asked for; each is checked against what the server offers.
        policy: Judges the server by the credentials of what it sends.
        limits: Bounds of this side.

    Raises:
        PeerGone: nobody listens there, or the server ended (`fate` is refused).
        PermissionDenied: one side does not admit the other.
        Incompatible: the server does not speak a contract, or another version of it.
    """
    if isinstance(address, Endpoint):
        transport: Transport = SocketTransport(socket.socket(fileno=address.fd.take()))
    elif isinstance(address, Transport):
        transport = address
    else:
        transport = SocketTransport(dial(address))
    wanted: dict[str, tuple[int, str]] = {}
    for contract in contracts:
        wanted |= asked(contract)
    async with open_connection(
        transport, policy=policy, limits=limits, offered=wanted
    ) as connection:
        for contract in contracts:
            _check_version(connection, contract)
        yield connection


def _check_version(connection: Connection, contract: type[Contract]) -> None:
    name, version = contract.contract_name, contract.contract_version
    server = connection.peer_process or "the server"
    theirs = connection.peer_contracts.get(name)
    if theirs is None:
        offers = ", ".join(sorted(connection.peer_contracts)) or "nothing"
        raise Incompatible(f"{server} does not speak {name}; it speaks {offers}")
    if theirs[0] != version:
        raise Incompatible(
            f"{server} speaks {name} {theirs[0]}, you asked for {version}",
            hint="the two are of different versions of container: restart the system",
        )


@asynccontextmanager
async def connect_contract(
    contract: type[C],
    address: Address | Transport,
    policy: Policy = same_user_or_root,
    limits: Limits | None = None,
) -> AsyncGenerator[C]:
    """Connect and yield a proxy; see `Contract.connect`."""
    async with connect(address, contract, policy=policy, limits=limits) as connection:
        yield connection_proxy(connection, contract)


def prepare(contract: type[Contract]) -> None:
    """Build all that a contract's first use would build: codecs, fingerprint, proxy class.

    It costs milliseconds of computing, once a process: what forks others does it before.
    """
    asked(contract)
    _proxy_class(contract)


def connection_proxy(connection: Connection, contract: type[C]) -> C:
    """Return a proxy of a contract that the other end of a connection serves."""
    proxy = object.__new__(_proxy_class(contract))
    object.__setattr__(proxy, "_connection", connection)
    return cast("C", proxy)


def connection_of(proxy: Contract) -> Connection:
    """Return the connection that a proxy speaks on.

    Raises:
        TypeError: it is no proxy.
    """
    connection = proxy.__dict__.get("_connection")
    if not isinstance(connection, Connection):
        raise TypeError(f"{type(proxy).__name__} is no proxy")
    return connection


@functools.cache
def _proxy_class(contract: type[Contract]) -> type[Contract]:
    methods: dict[str, Any] = {name: _method(codec) for name, codec in codecs_of(contract).items()}

    def describe(self: Contract) -> str:
        return f"<proxy of {contract.contract_name}>"

    methods["__repr__"] = describe
    return cast("type[Contract]", type(f"{contract.__name__}Proxy", (contract,), methods))


def _method(codec: RouteCodec) -> Callable[..., Any]:
    async def call(self: Contract, *args: Any, **kwargs: Any) -> Any:
        return await self.__dict__["_connection"].calls.call(codec, args, kwargs)

    def scope(self: Contract, *args: Any, **kwargs: Any) -> Any:
        return RemoteScope(self.__dict__["_connection"].calls, codec, args, kwargs)

    method: Any = call if codec.route.kind == "call" else scope

    method.__name__ = codec.route.method
    method.__doc__ = codec.route.documentation
    method.__signature__ = codec.route.signature
    return method


def socket_path(path: str | os.PathLike[str]) -> Path:
    """Return a socket's path, checked for the kernel's bound.

    Raises:
        InvalidArgument: it has more than 107 bytes.
    """
    if len(os.fsencode(path)) > 107:
        raise InvalidArgument(
            f"the socket path {os.fspath(path)} is too long: 107 bytes are allowed",
            hint="choose a shorter run directory",
        )
    return Path(path)
