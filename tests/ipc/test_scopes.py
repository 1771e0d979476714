"""A scope is a remote `async with`: whatever ends it, clean-up has ended before the block has."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from attrs import frozen

from container.ipc import (
    Actor,
    Contract,
    DataLoss,
    DeadlineExceeded,
    HolderFailed,
    Incompatible,
    InvalidState,
    Limits,
    PeerGone,
    ScopeEnded,
    Unsupported,
    cleanup,
    in_memory,
    open_service,
)
from tests.ipc.conftest import Link


@frozen
class Lease:
    key: str
    number: int


class Leases(Contract, name="leases"):
    @abstractmethod
    def lease(self, key: str) -> AbstractAsyncContextManager[Lease]: ...

    @abstractmethod
    async def held(self) -> tuple[str, ...]: ...


class LeasesService(Actor, Leases):
    """Leases with every way to go wrong, by the key."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.log: list[str] = []
        self.go = trio.Event()

    @asynccontextmanager
    async def lease(self, key: str) -> AsyncGenerator[Lease]:
        self.keys.append(key)
        try:
            if key == "nursery":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._fail_soon)
                    yield Lease(key, len(self.keys))
            else:
                yield Lease(key, len(self.keys))
            self.log.append("left")
        except HolderFailed:
            self.log.append("holder failed")
            await trio.sleep(0.1)
            self.log.append("awaited")
            if key == "overstays":
                await trio.sleep_forever()
            raise
        except trio.Cancelled:
            self.log.append("cancelled")
            raise
        finally:
            with cleanup():
                await trio.sleep(0.2)
            self.keys.remove(key)
            if key == "unclean":
                raise DataLoss("the lease was torn")

    async def _fail_soon(self) -> None:
        await self.go.wait()
        raise InvalidState("the lease was revoked")

    async def held(self) -> tuple[str, ...]:
        return tuple(self.keys)


@pytest.fixture
def service() -> LeasesService:
    return LeasesService()


# --- the holder leaves ------------------------------------------------------------------------


async def _hold_a_while(leases: Leases, key: str) -> None:
    async with leases.lease(key):
        await trio.sleep(1)


async def test_a_failed_block_does_not_wait_for_clean_up_beyond_the_grace(
    link: Link, service: LeasesService, autojump_clock: trio.testing.MockClock
) -> None:
    async with link(service, limits=Limits(grace_seconds=1)) as leases:
        began = trio.current_time()
        with pytest.RaisesGroup(KeyError, DeadlineExceeded):
            async with leases.lease("overstays"):
                raise KeyError("mine")
        assert trio.current_time() - began < 3
        assert service.keys == []
        assert await leases.held() == ()


async def test_an_error_in_clean_up_is_not_hidden_by_a_cancellation(
    link: Link, service: LeasesService, autojump_clock: trio.testing.MockClock
) -> None:
    async with link(service) as leases:
        with pytest.RaisesGroup(DataLoss):
            with trio.move_on_after(1):
                async with leases.lease("unclean"):
                    await trio.sleep_forever()


async def test_a_holder_cancelled_while_it_leaves_still_waits_for_the_clean_up(
    link: Link, service: LeasesService, autojump_clock: trio.testing.MockClock
) -> None:
    async with link(service) as leases:
        with trio.CancelScope() as scope:
            async with leases.lease("a"):
                scope.deadline = trio.current_time() + 0.1
        assert service.keys == []
        assert await leases.held() == ()


# --- opening ----------------------------------------------------------------------------------


# --- the callee ends it -----------------------------------------------------------------------


async def test_a_server_that_stops_ends_the_block_with_unavailable(
    tmp_path: Path, service: LeasesService, autojump_clock: trio.testing.MockClock
) -> None:
    path = tmp_path / "s"
    async with trio.open_nursery() as nursery:
        stop = trio.CancelScope()

        async def serve(task_status: trio.TaskStatus[None]) -> None:
            with stop:
                async with open_service(service, at=path):
                    task_status.started()
                    await trio.sleep_forever()

        await nursery.start(serve)
        async with Leases.connect(path) as leases:
            with pytest.raises((ScopeEnded, PeerGone, Exception), match="stopping"):
                async with leases.lease("a"):
                    stop.cancel()
                    await trio.sleep_forever()
    assert service.keys == []


# --- skew -------------------------------------------------------------------------------------


async def test_a_peer_that_speaks_no_scopes_is_told_before_anything_is_sent(
    service: LeasesService,
) -> None:
    async with in_memory(service, limits=Limits(channels=0)) as leases:
        with pytest.raises(Unsupported, match="speaks no scopes"):
            async with leases.lease("a"):
                pass


async def test_a_route_that_is_a_call_on_one_side_and_a_scope_on_the_other_is_incompatible(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Old(Contract, name="leases"):
        @abstractmethod
        async def lease(self, key: str) -> Lease: ...

        @abstractmethod
        async def held(self) -> tuple[str, ...]: ...

    class OldService(Actor, Old):
        async def lease(self, key: str) -> Lease:
            return Lease(key, 1)

        async def held(self) -> tuple[str, ...]:
            return ()

    leases: Any
    async with in_memory(OldService(), Leases) as leases:
        with pytest.raises(Incompatible, match="is a call here"):
            async with leases.lease("a"):
                pass
        assert await leases.held() == ()


# --- hops -------------------------------------------------------------------------------------


class Front(Actor, Leases):
    """Holds the leases of another service for its own holders."""

    def __init__(self, behind: Leases) -> None:
        self.behind = behind

    @asynccontextmanager
    async def lease(self, key: str) -> AsyncGenerator[Lease]:
        async with self.behind.lease(key) as lease:
            yield lease

    async def held(self) -> tuple[str, ...]:
        return await self.behind.held()


@pytest.mark.parametrize("how", ["leaves", "fails", "cancelled"])
async def test_scopes_nest_over_hops_and_unwind_in_order(
    link: Link, service: LeasesService, how: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with link(service) as behind, link(Front(behind)) as middle, link(Front(middle)) as front:
        with trio.move_on_after(5) as scope:
            try:
                async with front.lease("a"):
                    assert await front.held() == ("a",)
                    if how == "fails":
                        raise KeyError("mine")
                    if how == "cancelled":
                        await trio.sleep_forever()
            except KeyError:
                assert how == "fails"
        assert scope.cancelled_caught is (how == "cancelled")
        expected = {"leaves": "left", "fails": "holder failed", "cancelled": "cancelled"}
        assert service.log[0] == expected[how]
        assert service.keys == []


async def test_a_failure_far_away_reaches_the_first_holder_with_every_hop(
    link: Link, service: LeasesService, autojump_clock: trio.testing.MockClock
) -> None:
    async with link(service) as behind, link(Front(behind)) as front:
        with pytest.raises(InvalidState, match="revoked") as caught:
            async with front.lease("nursery"):
                service.go.set()
                await trio.sleep_forever()
        assert len(caught.value.provenance) == 2
