"""What is issued: limited by type, for a block, to several holders, passed on and made less."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from container.ipc import (
    ContainerError,
    Endpoint,
    InvalidArgument,
    Overloaded,
    PeerGone,
    PermissionDenied,
    Unavailable,
    UnknownRoute,
    attenuate,
    connection_of,
    issue,
    issued,
    open_service,
    users,
)
from tests.ipc.test_endpoints import (
    Box,
    BoxService,
    BrokerService,
    Other,
    count,
)

# --- limited by type, handed out again, passed on -------------------------------------------------


async def test_routes_are_named_by_the_contracts_own_methods() -> None:
    async with issued(Box, BoxService(), routes=[Box.look, "caller"]) as handle:
        async with handle.endpoint.connect() as box:
            assert await box.look() == 7
            assert await box.caller() == os.getpid()
            with pytest.raises(PermissionDenied, match="does not offer box/hold"):
                await box.hold()


@pytest.mark.parametrize("route", ["burn", Other.look, BoxService.look, lambda: None])
async def test_what_is_no_route_of_the_contract_is_refused_when_it_is_issued(route: Any) -> None:
    before = count()
    with pytest.raises(InvalidArgument, match="box has no route"):
        async with issued(Box, BoxService(), routes=[route]):
            raise AssertionError("it was issued")
    async with trio.open_nursery() as nursery:
        with pytest.raises(InvalidArgument, match="box has no route"):
            issue(nursery, Box, BoxService(), routes=[route])
    assert count() == before


async def test_what_was_issued_ends_with_its_block(autojump_clock: trio.testing.MockClock) -> None:
    before = count()
    service = BoxService()
    async with trio.open_nursery() as nursery:
        ended: list[str] = []

        async def hold(endpoint: Endpoint[Box]) -> None:
            async with endpoint.connect() as box:
                with pytest.raises(ContainerError):
                    await box.hold()
                ended.append("hold")

        async with issued(Box, service) as handle:
            assert service.is_open
            nursery.start_soon(hold, handle.endpoint)
            await service.started.wait()
            unused = handle.another()
        assert not service.is_open
        assert service.running == 0
        with pytest.raises(PeerGone):
            async with unused.connect():
                raise AssertionError("it was revoked")
        with pytest.raises(Unavailable):
            handle.another()
    assert ended == ["hold"]
    assert count() == before


async def test_each_holder_has_its_own_pair_and_all_are_revoked_together() -> None:
    async with issued(Box, BoxService()) as handle:
        async with handle.endpoint.connect() as one, handle.another().connect() as two:
            assert await one.look() == await two.look() == 7
            assert handle.peer_pids() == {os.getpid()}
            async with handle.another(routes=[Box.look]).connect() as three:
                with pytest.raises(PermissionDenied):
                    await three.caller()
            handle.revoke()
            await connection_of(one).wait_lost()
            await connection_of(two).wait_lost()


async def test_a_further_holder_never_gets_more_than_the_first() -> None:
    async with issued(Box, BoxService(), routes=[Box.look]) as handle:
        with pytest.raises(PermissionDenied, match="does not offer caller"):
            handle.another(routes=[Box.look, Box.caller])
        async with handle.another().connect() as box:
            with pytest.raises(PermissionDenied):
                await box.caller()


async def test_a_holder_makes_a_lesser_endpoint_of_its_own() -> None:
    async with issued(Box, BoxService(), routes=[Box.look, Box.caller]) as handle:
        async with handle.endpoint.connect() as box:
            lesser = await attenuate(box, [Box.look])
            with pytest.raises(PermissionDenied, match="does not offer hold"):
                await attenuate(box, [Box.hold])
            with pytest.raises(InvalidArgument):
                await attenuate(box, ["burn"])
            assert await box.caller() == os.getpid()
        async with lesser.connect() as less:
            assert await less.look() == 7
            with pytest.raises(PermissionDenied, match="does not offer box/caller"):
                await less.caller()
            with pytest.raises(PermissionDenied, match="does not offer caller"):
                await attenuate(less, [Box.caller])


async def test_an_endpoint_that_is_not_connected_yet_is_made_lesser_and_used_up() -> None:
    async with trio.open_nursery() as nursery:
        endpoint, _ = issue(nursery, Box, BoxService())
        lesser = await attenuate(endpoint, [Box.look])
        assert endpoint.fd.closed
        async with lesser.connect() as box:
            assert await box.look() == 7
            with pytest.raises(PermissionDenied):
                await box.caller()
    # The nursery has ended by itself: so has what was issued, with its last holder.


async def test_a_named_socket_makes_no_endpoints(tmp_path: Path) -> None:
    async with open_service(BoxService(), at=tmp_path / "s"), Box.connect(tmp_path / "s") as box:
        with pytest.raises(UnknownRoute):
            await attenuate(box, [Box.look])


async def test_holders_of_one_endpoint_are_bounded() -> None:
    before = count()
    async with issued(Box, BoxService()) as handle:
        async with handle.endpoint.connect() as box:
            lesser = [await attenuate(box, [Box.look]) for _ in range(63)]
            with pytest.raises(Overloaded):
                await attenuate(box, [Box.look])
            with pytest.raises(Overloaded):
                handle.another()
            lesser.pop().close()
            await trio.testing.wait_all_tasks_blocked()
            handle.another().close()
            for endpoint in lesser:
                endpoint.close()
    assert count() == before


async def test_admit_widens_the_policy_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    nobody_else = users([os.geteuid() + 1])
    with caplog.at_level("INFO", logger="container.ipc"):
        async with issued(Box, BoxService(), policy=nobody_else, admit=[os.geteuid()]) as handle:
            async with handle.endpoint.connect() as box:
                assert await box.look() == 7
    assert f"an endpoint of box admits users {os.geteuid()} too" in caplog.text


async def test_an_endpoint_that_has_said_hello_can_not_be_sent(link: Any) -> None:
    async with link(BrokerService()) as broker:
        endpoint = await broker.fetch()
        async with endpoint.connect() as box:
            with pytest.raises(InvalidArgument, match="closed"):
                await broker.offer(endpoint)
            assert await box.look() == 7


PASSER = """
import os, signal, sys, trio
from abc import abstractmethod
from container.ipc import Contract, Endpoint, attenuate

class Box(Contract, name="box"):
    @abstractmethod
    async def look(self) -> int: ...
    @abstractmethod
    async def caller(self) -> int: ...
    @abstractmethod
    async def hold(self) -> None: ...

class Broker(Contract, name="broker"):
    @abstractmethod
    async def fetch(self) -> Endpoint[Box]: ...
    @abstractmethod
    async def offer(self, box: Endpoint[Box]) -> int: ...

async def main():
    async with Broker.connect(sys.argv[1]) as issuer, Broker.connect(sys.argv[2]) as holder:
        box = await attenuate(await issuer.fetch(), [Box.look])
        await holder.offer(box)
        os.kill(os.getpid(), signal.SIGKILL)

trio.run(main)
"""

HOLDER = """
import os, sys, trio
from abc import abstractmethod
from container.ipc import Actor, Contract, Endpoint, Fd, PermissionDenied, open_service

class Box(Contract, name="box"):
    @abstractmethod
    async def look(self) -> int: ...
    @abstractmethod
    async def caller(self) -> int: ...
    @abstractmethod
    async def hold(self) -> None: ...

class Broker(Contract, name="broker"):
    @abstractmethod
    async def fetch(self) -> Endpoint[Box]: ...
    @abstractmethod
    async def offer(self, box: Endpoint[Box]) -> int: ...

class Keeper(Actor, Broker):
    box = None
    async def fetch(self) -> Endpoint[Box]:
        raise NotImplementedError
    async def offer(self, box: Endpoint[Box]) -> int:
        self.box = Endpoint(Box, Fd(box.fd.take()))
        return 0

async def main():
    keeper = Keeper()
    async with open_service(keeper, at=sys.argv[1]):
        os.write(1, b"ready")
        await trio.lowlevel.wait_readable(0)  # until the one in the middle is dead
        async with keeper.box.connect() as box:
            os.write(1, str(await box.look()).encode())
            try:
                await box.caller()
            except PermissionDenied:
                os.write(1, b" denied")

trio.run(main)
"""


async def test_the_holder_goes_on_when_who_passed_a_lesser_endpoint_on_was_killed(
    tmp_path: Path,
) -> None:
    """This process issues, a second limits it and passes it to a third, and dies."""
    issuer, holder = tmp_path / "issuer", tmp_path / "holder"
    async with open_service(BrokerService(), at=issuer):
        third = await trio.lowlevel.open_process(
            [sys.executable, "-c", HOLDER, holder], stdin=-1, stdout=-1
        )
        assert third.stdin is not None
        assert third.stdout is not None
        try:
            with trio.fail_after(60):
                assert await third.stdout.receive_some() == b"ready"
                second = await trio.run_process(
                    [sys.executable, "-c", PASSER, issuer, holder], check=False
                )
                assert second.returncode == -signal.SIGKILL
                await third.stdin.aclose()
                said = b""
                while chunk := await third.stdout.receive_some():
                    said += chunk
                assert said == b"7 denied"
                assert await third.wait() == 0
        finally:
            third.kill()
            with trio.CancelScope(shield=True):
                await third.wait()
                await third.stdin.aclose()
                await third.stdout.aclose()
