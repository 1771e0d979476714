"""A scope is a remote `async with`: whatever ends it, clean-up has ended before the block has."""

from __future__ import annotations

import os
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
    AlreadyExists,
    Contract,
    DataLoss,
    DeadlineExceeded,
    Fd,
    HolderFailed,
    Incompatible,
    InvalidState,
    Limits,
    PeerGone,
    ScopeEnded,
    Unsupported,
    cleanup,
    connection_of,
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
    def file(self, path: str) -> AbstractAsyncContextManager[Fd]: ...

    @abstractmethod
    async def held(self) -> tuple[str, ...]: ...


class LeasesService(Actor, Leases):
    """Leases with every way to go wrong, by the key."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.log: list[str] = []
        self.go = trio.Event()
        self.cleaning = trio.Event()

    @asynccontextmanager
    async def lease(self, key: str) -> AsyncGenerator[Lease]:
        if key in self.keys:
            raise AlreadyExists(f"{key} is leased")
        if key == "slow to open":
            self.log.append("opening")
            try:
                await trio.sleep(10)
            finally:
                self.log.append("not opened")
        self.keys.append(key)
        try:
            if key == "nursery":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._fail_soon)
                    yield Lease(key, len(self.keys))
            elif key == "ends":
                with trio.CancelScope() as scope:
                    self.scope = scope
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
            if key != "swallows":
                raise
        except trio.Cancelled:
            self.log.append("cancelled")
            raise
        finally:
            with cleanup():
                self.cleaning.set()
                await trio.sleep(0.2)
            self.keys.remove(key)
            if key == "unclean":
                raise DataLoss("the lease was torn")

    async def _fail_soon(self) -> None:
        await self.go.wait()
        raise InvalidState("the lease was revoked")

    @asynccontextmanager
    async def file(self, path: str) -> AsyncGenerator[Fd]:
        yield Fd(os.open(path, os.O_RDONLY))

    async def held(self) -> tuple[str, ...]:
        return tuple(self.keys)


@pytest.fixture
def service() -> LeasesService:
    return LeasesService()


# --- the holder leaves ------------------------------------------------------------------------


async def test_it_is_held_for_the_block_and_cleaned_up_before_it_ends(
    link: Link, service: LeasesService, autojump_clock: trio.testing.MockClock
) -> None:
    async with link(service) as leases:
        async with leases.lease("a") as lease:
            assert lease == Lease("a", 1)
            assert await leases.held() == ("a",)
        assert service.keys == []
        assert service.log == ["left"]


async def test_several_are_held_at_once_and_left_in_any_order(
    link: Link, service: LeasesService, autojump_clock: trio.testing.MockClock
) -> None:
    async with link(service) as leases:
        first, second = leases.lease("a"), leases.lease("b")
        await first.__aenter__()
        async with second:
            assert await leases.held() == ("a", "b")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_hold_a_while, leases, "c")
        assert await leases.held() == ("a",)
        await first.__aexit__(None, None, None)
        assert await leases.held() == ()


async def _hold_a_while(leases: Leases, key: str) -> None:
    async with leases.lease(key):
        await trio.sleep(1)


async def test_an_exception_of_the_block_stays_at_home_and_the_body_is_told(
    link: Link, service: LeasesService, autojump_clock: trio.testing.MockClock
) -> None:
    async with link(service) as leases:
        with pytest.raises(KeyError, match="mine"):
            async with leases.lease("a"):
                raise KeyError("mine")
        assert service.log == ["holder failed", "awaited"]
        assert service.keys == []


async def test_a_body_that_swallows_the_failure_does_not_swallow_the_holders_exception(
    link: Link, service: LeasesService, autojump_clock: trio.testing.MockClock
) -> None:
    async with link(service) as leases:
        with pytest.raises(KeyError):
            async with leases.lease("swallows"):
                raise KeyError("mine")
        assert service.keys == []


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


async def test_an_error_in_clean_up_is_raised_at_the_end_of_the_block(
    link: Link, service: LeasesService, autojump_clock: trio.testing.MockClock
) -> None:
    async with link(service) as leases:
        with pytest.raises(DataLoss, match="torn"):
            async with leases.lease("unclean"):
                pass
        with pytest.RaisesGroup(KeyError, DataLoss):
            async with leases.lease("unclean"):
                raise KeyError("mine")
        assert await leases.held() == ()


async def test_a_cancelled_holder_waits_for_the_clean_up(
    link: Link, service: LeasesService, autojump_clock: trio.testing.MockClock
) -> None:
    async with link(service) as leases:
        with trio.move_on_after(1) as scope:
            async with leases.lease("a"):
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert service.log == ["cancelled"]
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


async def test_a_lost_holder_ends_the_scope(
    service: LeasesService, autojump_clock: trio.testing.MockClock
) -> None:
    async with in_memory(service) as leases:
        with pytest.raises(PeerGone):
            async with leases.lease("a"):
                connection_of(leases)._transport.close()  # pyright: ignore[reportPrivateUsage]
                await trio.sleep_forever()
        with trio.fail_after(5):
            await service.cleaning.wait()
    assert service.log == ["cancelled"]
    assert service.keys == []


# --- opening ----------------------------------------------------------------------------------


async def test_what_opening_raises_is_raised_and_nothing_is_held(
    link: Link, service: LeasesService, autojump_clock: trio.testing.MockClock
) -> None:
    async with link(service) as leases:
        async with leases.lease("a"):
            with pytest.raises(AlreadyExists, match="a is leased"):
                async with leases.lease("a"):
                    raise AssertionError("entered")
        assert connection_of(leases).statistics().pending == 0


async def test_the_deadline_bounds_the_opening(
    link: Link, service: LeasesService, autojump_clock: trio.testing.MockClock
) -> None:
    async with link(service) as leases:
        with trio.move_on_after(1) as scope:
            async with leases.lease("slow to open"):
                raise AssertionError("entered")
        assert scope.cancelled_caught
        assert service.log == ["opening", "not opened"]


async def test_the_deadline_of_the_opening_does_not_end_what_was_opened(
    link: Link, service: LeasesService, autojump_clock: trio.testing.MockClock
) -> None:
    async with link(service) as leases:
        with trio.CancelScope(deadline=trio.current_time() + 1) as scope:
            async with leases.lease("a"):
                scope.deadline = float("inf")
                await trio.sleep(10)
                assert await leases.held() == ("a",)
        assert service.log == ["left"]


async def test_an_opening_that_wins_against_the_cancellation_is_closed_again(
    link: Link, service: LeasesService, autojump_clock: trio.testing.MockClock
) -> None:
    async with link(service) as leases:
        with trio.CancelScope() as scope:
            scope.cancel()
            async with leases.lease("a"):
                raise AssertionError("entered")
        assert scope.cancelled_caught
        assert service.keys == []
        assert await leases.held() == ()


async def test_a_descriptor_as_value_belongs_to_the_holder(
    link: Link, service: LeasesService, tmp_path: Path
) -> None:
    (tmp_path / "x").write_text("text")
    before = len(os.listdir("/proc/self/fd"))
    async with link(service) as leases:
        async with leases.file(str(tmp_path / "x")) as fd:
            assert os.read(fd.fileno(), 10) == b"text"
        assert os.fstat(fd.fileno()).st_size == 4
        fd.close()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_scope_is_entered_once(link: Link, service: LeasesService) -> None:
    async with link(service) as leases:
        scope = leases.lease("a")
        async with scope:
            pass
        with pytest.raises(RuntimeError, match="entered once"):
            async with scope:
                pass


# --- the callee ends it -----------------------------------------------------------------------


async def test_a_failure_of_the_callee_reaches_the_block_as_a_childs_would(
    link: Link, service: LeasesService, autojump_clock: trio.testing.MockClock
) -> None:
    async with link(service) as leases:
        interrupted = False
        with pytest.raises(InvalidState, match="revoked"):
            async with leases.lease("nursery"):
                service.go.set()
                try:
                    await trio.sleep_forever()
                finally:
                    interrupted = True
        assert interrupted
        assert service.keys == []


async def test_both_failures_are_raised_as_a_group(
    link: Link, service: LeasesService, autojump_clock: trio.testing.MockClock
) -> None:
    async with link(service) as leases:
        with pytest.RaisesGroup(KeyError, InvalidState):
            async with leases.lease("nursery"):
                service.go.set()
                try:
                    await trio.sleep_forever()
                finally:
                    raise KeyError("mine")


async def test_an_end_without_an_error_is_told_too(
    link: Link, service: LeasesService, autojump_clock: trio.testing.MockClock
) -> None:
    async with link(service) as leases:
        with pytest.raises(ScopeEnded, match="leases/lease"):
            async with leases.lease("ends"):
                service.scope.cancel()
                await trio.sleep_forever()


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

    def file(self, path: str) -> AbstractAsyncContextManager[Fd]:
        return self.behind.file(path)

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
