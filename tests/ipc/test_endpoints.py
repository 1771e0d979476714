"""Endpoints and gates: who holds one may call, until it is revoked."""

from __future__ import annotations

import os
import sys
from abc import abstractmethod
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from container.ipc import (
    Actor,
    ContainerError,
    Contract,
    Endpoint,
    Fd,
    Gate,
    Incompatible,
    InvalidArgument,
    Limits,
    Overloaded,
    PeerGone,
    PermissionDenied,
    connection_of,
    current_call,
    in_memory,
    issue,
    open_service,
    users,
)
from container.ipc.client import connect_contract
from container.ipc.issuing import issue_from
from container.ipc.server import Server
from container.ipc.transport import memory_pair


class Box(Contract, name="box"):
    @abstractmethod
    async def look(self) -> int: ...

    @abstractmethod
    async def hold(self) -> None: ...

    @abstractmethod
    async def caller(self) -> int: ...


class BoxService(Actor, Box):
    def __init__(self) -> None:
        self.started = trio.Event()
        self.running = 0

    async def look(self) -> int:
        return 7

    async def caller(self) -> int:
        return current_call().peer.pid

    async def hold(self) -> None:
        self.running += 1
        self.started.set()
        try:
            await trio.sleep_forever()
        finally:
            self.running -= 1


class Broker(Contract, name="broker"):
    @abstractmethod
    async def fetch(self) -> Endpoint[Box]: ...

    @abstractmethod
    async def offer(self, box: Endpoint[Box]) -> int: ...


class BrokerService(Actor, Broker):
    """A third party: takes endpoints and hands them out, and never speaks on what it hands out."""

    def __init__(self) -> None:
        self.box = BoxService()
        self.held: list[Endpoint[Box]] = []

    async def fetch(self) -> Endpoint[Box]:
        if self.held:
            return self.held.pop()
        endpoint, _ = issue(self.nursery, Box, self.box)
        return endpoint

    async def offer(self, box: Endpoint[Box]) -> int:
        async with Endpoint(Box, Fd(box.fd.take())).connect() as proxy:
            return await proxy.look()


def count() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_an_endpoint_is_spoken_on_by_its_holder(link: Any) -> None:
    async with link(BrokerService()) as broker:
        endpoint = await broker.fetch()
        async with endpoint.connect() as box:
            assert await box.look() == 7


async def test_an_endpoint_passed_on_through_third_services_speaks_with_its_issuer(
    link: Any,
) -> None:
    class Relay(BrokerService):
        def __init__(self, inner: Broker) -> None:
            super().__init__()
            self.inner = inner

        async def fetch(self) -> Endpoint[Box]:
            return await self.inner.fetch()

    issuer = BrokerService()
    async with link(issuer) as inner, link(Relay(inner)) as broker:
        async with (await broker.fetch()).connect() as box:
            assert await box.look() == 7
            async with trio.open_nursery() as nursery:
                nursery.start_soon(box.hold)
                await issuer.box.started.wait()
                nursery.cancel_scope.cancel()
            assert issuer.box.running == 0


async def test_an_endpoint_as_an_argument_gives_it_away(link: Any) -> None:
    service = BrokerService()
    async with link(service) as broker:
        async with trio.open_nursery() as nursery:
            endpoint, scope = issue(nursery, Box, BoxService())
            assert await broker.offer(endpoint) == 7
            assert endpoint.fd.closed
            scope.cancel()


async def test_an_endpoint_outlives_the_call_and_the_connection_that_it_came_in(
    link: Any,
) -> None:
    service = BrokerService()
    async with service:
        async with link(service) as broker:
            endpoint = await broker.fetch()
        async with endpoint.connect() as box:
            assert await box.look() == 7


async def test_an_endpoint_that_was_said_hello_on_is_used_up(link: Any) -> None:
    async with link(BrokerService()) as broker:
        endpoint = await broker.fetch()
        async with endpoint.connect():
            with pytest.raises(ValueError, match="closed or taken"):
                async with endpoint.connect():
                    raise AssertionError("there were two holders")


async def test_an_endpoint_may_offer_some_routes_only() -> None:
    async with trio.open_nursery() as nursery:
        endpoint, scope = issue(nursery, Box, BoxService(), routes=["look"])
        async with endpoint.connect() as box:
            assert await box.look() == 7
            with pytest.raises(PermissionDenied, match="does not offer box/caller"):
                await box.caller()
            assert not connection_of(box).lost
        scope.cancel()


async def test_revoking_an_endpoint_ends_its_calls_and_its_connection() -> None:
    service = BoxService()
    async with trio.open_nursery() as nursery:
        endpoint, scope = issue(nursery, Box, service)
        async with endpoint.connect() as box:

            async def revoke() -> None:
                await service.started.wait()
                scope.cancel()

            nursery.start_soon(revoke)
            with pytest.raises(ContainerError):
                await box.hold()
            await connection_of(box).wait_lost()
            assert service.running == 0
            with pytest.raises(PeerGone):
                await box.look()


async def test_an_endpoint_revoked_before_it_is_used_is_gone() -> None:
    async with trio.open_nursery() as nursery:
        endpoint, scope = issue(nursery, Box, BoxService())
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(PeerGone):
            async with endpoint.connect():
                raise AssertionError("it was revoked")


async def test_an_endpoint_dropped_unused_ends_at_its_issuer() -> None:
    before = count()
    async with trio.open_nursery() as nursery:
        endpoint, _ = issue(nursery, Box, BoxService())
        endpoint.close()
    assert count() == before


async def test_an_issuers_nursery_that_ends_closes_what_was_not_claimed() -> None:
    before = count()
    async with trio.open_nursery() as nursery:
        endpoint, _ = issue(nursery, Box, BoxService())
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    endpoint.close()
    assert count() == before


async def test_an_endpoint_may_be_held_for_long_before_it_is_used(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        endpoint, scope = issue(nursery, Box, BoxService(), limits=Limits(hello_seconds=1))
        await trio.sleep(1000)
        async with endpoint.connect() as box:
            assert await box.look() == 7
        scope.cancel()


class Other(Contract, name="other"):
    @abstractmethod
    async def look(self) -> int: ...


class OtherService(Actor, Other):
    async def look(self) -> int:
        return 0


class Liar(Contract, name="broker"):
    @abstractmethod
    async def fetch(self) -> Endpoint[Other]: ...


class LiarService(Actor, Liar):
    async def fetch(self) -> Endpoint[Other]:
        endpoint, _ = issue(self.nursery, Other, OtherService())
        return endpoint


async def test_an_endpoint_of_another_contract_is_not_taken_for_this_one() -> None:
    theirs, ours = memory_pair()
    before = count()
    async with trio.open_nursery() as nursery:
        async with LiarService() as liar:
            nursery.start_soon(Server((liar,)).serve, theirs)
            async with connect_contract(Broker, ours) as broker:
                with pytest.raises(Incompatible):
                    await broker.fetch()
                await trio.testing.wait_all_tasks_blocked()
                assert count() == before
            nursery.cancel_scope.cancel()


async def test_an_endpoint_keeps_its_issuers_policy() -> None:
    async with trio.open_nursery() as nursery:
        endpoint, scope = issue(nursery, Box, BoxService(), policy=users([os.geteuid() + 1]))
        with pytest.raises(PermissionDenied):
            async with endpoint.connect():
                raise AssertionError("a capability is not enough")
        scope.cancel()


# --- gates ----------------------------------------------------------------------------------------


class BoxGate(Contract, name="box-gate"):
    @abstractmethod
    async def open(self, routes: tuple[str, ...] | None = None) -> Endpoint[Box]: ...


class TheGate(Gate[Box], BoxGate):
    pass


async def test_a_gate_hands_out_a_pair_of_its_own_at_each_call(link: Any) -> None:
    service = BoxService()
    async with link(TheGate(Box, service)) as gate:
        one, two = await gate.open(), await gate.open()
        async with one.connect() as first, two.connect() as second:
            assert connection_of(first) is not connection_of(second)
            assert await first.look() == await second.look() == 7


async def test_a_gate_limits_what_it_hands_out_to_the_routes_asked_for(link: Any) -> None:
    async with link(TheGate(Box, BoxService())) as gate:
        async with (await gate.open(("look",))).connect() as box:
            assert await box.look() == 7
            with pytest.raises(PermissionDenied):
                await box.hold()
        with pytest.raises(InvalidArgument, match="no route 'burn'"):
            await gate.open(("burn",))


async def test_a_gate_bounds_how_many_endpoints_are_out(link: Any) -> None:
    async with link(TheGate(Box, BoxService(), unclaimed=2)) as gate:
        one, two = await gate.open(), await gate.open()
        with pytest.raises(Overloaded):
            await gate.open()
        one.close()
        await trio.testing.wait_all_tasks_blocked()
        (await gate.open()).close()
        two.close()


async def test_what_a_gate_handed_out_ends_with_the_connection_that_asked(link: Any) -> None:
    gate = TheGate(Box, BoxService())
    spoken = trio.Event()

    async def use(endpoint: Endpoint[Box]) -> None:
        async with endpoint.connect() as box:
            assert await box.look() == 7
            spoken.set()
            await connection_of(box).wait_lost()

    async with gate, trio.open_nursery() as nursery:
        async with link(gate) as proxy:
            used, unused = await proxy.open(), await proxy.open()
            nursery.start_soon(use, used)
            await spoken.wait()
        with pytest.raises(PeerGone):
            async with unused.connect():
                raise AssertionError("it was revoked")
    assert not gate.is_open


async def test_a_gate_connection_that_lives_keeps_nothing_of_what_has_ended(link: Any) -> None:
    gate = TheGate(Box, BoxService())
    kept: list[set[Any]] = []

    class Watched(TheGate):
        async def open(self, routes: tuple[str, ...] | None = None) -> Endpoint[Box]:
            endpoint = await super().open(routes)
            kept.append(current_call().at_end)
            return endpoint

    gate = Watched(Box, BoxService())
    async with link(gate) as proxy:
        for _ in range(10):
            (await proxy.open()).close()
        await trio.testing.wait_all_tasks_blocked()
        assert kept[0] == set()


CHILD = """
import json, os, sys, trio
from abc import abstractmethod
from container.ipc import Contract, Endpoint, Fd

class Box(Contract, name="box"):
    @abstractmethod
    async def look(self) -> int: ...
    @abstractmethod
    async def hold(self) -> None: ...
    @abstractmethod
    async def caller(self) -> int: ...

async def main():
    async with Endpoint(Box, Fd(int(sys.argv[1]))).connect() as box:
        os.write(1, str(await box.caller()).encode())
        await trio.lowlevel.wait_readable(0)  # until we are told to go on
        os.write(1, str(await box.look()).encode())

trio.run(main)
"""


async def test_what_was_passed_on_to_another_process_outlives_the_asking_connection(
    tmp_path: Path,
) -> None:
    gate = TheGate(Box, BoxService())
    async with open_service(gate, at=tmp_path / "s"):
        async with BoxGate.connect(tmp_path / "s") as proxy:
            endpoint = await proxy.open()
            fd = endpoint.fd.fileno()
            child = await trio.lowlevel.open_process(
                [sys.executable, "-c", CHILD, str(fd)], pass_fds=[fd], stdin=-1, stdout=-1
            )
            endpoint.close()
            assert child.stdout is not None
            assert child.stdin is not None
            with trio.fail_after(30):
                assert int(await child.stdout.receive_some()) == child.pid
        with trio.fail_after(30):
            await child.stdin.aclose()
            assert int(await child.stdout.receive_some()) == 7
            assert await child.wait() == 0
        await child.stdout.aclose()


async def test_the_issuer_sees_which_processes_have_spoken() -> None:
    async with trio.open_nursery() as nursery:
        server = Server((BoxService(),))
        ended = trio.Event()
        issued = issue_from(nursery, Box, server, ended.set)
        assert server.peer_pids() == frozenset()
        async with issued.endpoint.connect() as box:
            await box.look()
            assert server.peer_pids() == {os.getpid()}
        await ended.wait()
        assert server.peer_pids() == frozenset()


async def test_a_gate_is_asked_by_calls_only() -> None:
    async with TheGate(Box, BoxService()) as gate:
        with pytest.raises(LookupError):
            await gate.open()
        async with in_memory(gate) as proxy:
            (await proxy.open()).close()
