"""What a type checker sees of a contract, its service and its proxy. Checked, never run.

Each `pyright: ignore` is an expected error: the checker fails if the mistake is *not* found, since
an unnecessary ignore is an error itself here.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import assert_type

import trio
from attrs import frozen

from container.ipc import (
    Actor,
    Connection,
    Contract,
    Endpoint,
    Fd,
    Gate,
    Handling,
    Limits,
    Peer,
    Policy,
    Server,
    connect,
    connection_of,
    connection_proxy,
    current_call,
    groups,
    in_memory,
    issue,
    open_service,
    same_user,
    users,
)


@frozen
class Greeting:
    text: str
    count: int = 1


class Greeter(Contract, name="greeter"):
    @abstractmethod
    async def greet(self, name: str, log: Fd | None = None) -> Greeting: ...

    @abstractmethod
    async def open(self, mode: int) -> Fd: ...


class GreeterGate(Contract, name="greeter-gate", version=2):
    @abstractmethod
    async def open(self, routes: tuple[str, ...] | None = None) -> Endpoint[Greeter]: ...


# --- a service ------------------------------------------------------------------------------------


class GreeterService(Actor, Greeter):
    async def greet(self, name: str, log: Fd | None = None) -> Greeting:
        assert_type(current_call(), Handling)
        assert_type(current_call().peer, Peer)
        assert_type(current_call().deadline, float)
        return Greeting(name)

    async def open(self, mode: int) -> Fd:
        return Fd(mode)


class WiderService(Actor, Greeter):
    """More than the contract asks for is no mistake."""

    async def greet(self, name: str | bytes, log: Fd | None = None, loud: bool = False) -> Greeting:
        return Greeting(str(name))

    async def open(self, mode: float) -> Fd:
        return Fd(int(mode))


class WrongArgument(Actor, Greeter):
    async def greet(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, name: int, log: Fd | None = None
    ) -> Greeting:
        return Greeting(str(name))

    async def open(self, mode: int) -> Fd:
        return Fd(mode)


class WrongResult(Actor, Greeter):
    async def greet(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, name: str, log: Fd | None = None
    ) -> str:
        return name

    def open(self, mode: int) -> Fd:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Fd(mode)


class Incomplete(Actor, Greeter):
    async def greet(self, name: str, log: Fd | None = None) -> Greeting:
        return Greeting(name)


Incomplete()  # pyright: ignore[reportAbstractUsage]
Greeter()  # pyright: ignore[reportAbstractUsage]


class TheGate(Gate[Greeter], GreeterGate): ...


TheGate(Greeter, GreeterService())
TheGate(Greeter, GreeterGate)  # pyright: ignore[reportArgumentType]


class OtherGate(Gate[GreeterGate], GreeterGate): ...  # pyright: ignore[reportIncompatibleMethodOverride]


# --- a proxy --------------------------------------------------------------------------------------


async def use() -> None:
    async with Greeter.connect("/run/greeter.sock") as greeter:
        assert_type(greeter, Greeter)
        greeting = await greeter.greet("world")
        assert_type(greeting, Greeting)
        assert_type(greeting.text, str)
        assert_type(await greeter.open(mode=0), Fd)
        assert_type(connection_of(greeter), Connection)
        with Fd.borrow(0) as log:
            await greeter.greet("world", log)
        await greeter.greet("world", log=None)

        await greeter.greet()  # pyright: ignore[reportCallIssue]
        await greeter.greet(1)  # pyright: ignore[reportArgumentType]
        await greeter.greet("world", 2)  # pyright: ignore[reportArgumentType]
        await greeter.greet("world", loud=True)  # pyright: ignore[reportCallIssue]
        await greeter.shout("world")  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
        print(greeting.colour)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType]
        greeting.text = "x"  # pyright: ignore[reportAttributeAccessIssue]
        greeter.greet("forgotten")  # pyright: ignore[reportUnusedCoroutine]
        print(greeter.greet("x").text)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType]

    Greeter.connect(7)  # pyright: ignore[reportArgumentType]


async def use_connection() -> None:
    async with connect("/run/greeter.sock", Greeter, GreeterGate, limits=Limits()) as connection:
        assert_type(connection, Connection)
        assert_type(connection_proxy(connection, Greeter), Greeter)
        assert_type(connection_proxy(connection, GreeterGate), GreeterGate)
    async with connect("/run/greeter.sock", int):  # pyright: ignore[reportArgumentType]
        pass


async def use_endpoint(nursery: trio.Nursery) -> None:
    async with GreeterGate.connect("/run/gate.sock") as gate:
        endpoint = await gate.open(("greet",))
        assert_type(endpoint, Endpoint[Greeter])
        async with endpoint.connect() as greeter:
            assert_type(greeter, Greeter)
    issued, scope = issue(nursery, Greeter, GreeterService(), routes=["greet"])
    assert_type(issued, Endpoint[Greeter])
    assert_type(scope, trio.CancelScope)


# --- serving it -----------------------------------------------------------------------------------


def only_reads(peer: Peer, route: str | None) -> bool:
    return peer.uid == 0 or route != "greeter/open"


def wrong_policy(uid: int) -> bool:
    return uid == 0


async def serve() -> None:
    async with open_service(GreeterService(), at="/run/greeter.sock", policy=only_reads) as server:
        assert_type(server, Server)
        assert_type(server.statistics().connections, int)
    policies: list[Policy] = [same_user, users([0]), groups({1000}), only_reads]
    policies.append(wrong_policy)  # pyright: ignore[reportArgumentType]
    async with in_memory(GreeterService(), Greeter):
        pass
    async with open_service(Greeting("x"), at="/run/x"):  # pyright: ignore[reportArgumentType]
        pass
    async with GreeterService() as service:
        assert_type(service, GreeterService)
        assert_type(service.nursery, trio.Nursery)
