"""A running container joins networks and leaves them."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from container.contracts.runtime import (
    Stdio,
)
from container.ipc import (
    AlreadyExists,
    Fd,
    InvalidState,
    Unavailable,
)
from container.runtime import sessions
from container.runtime.records import NetworksRecord, Records

from .attached import ID, Place, until_attached
from .networks import Helper, network_helper

pytestmark = pytest.mark.usefixtures("bounded")


# --- joining and leaving ---


async def test_a_running_container_joins_and_leaves_networks(
    place: Place, web: Helper, db: Helper
) -> None:
    async with place.running(web.wanted(ID)) as service:
        inode = os.stat(place.folder / "bundle" / "run" / "hosts").st_ino
        joined = await service.join_network(db.wanted(ID, "eth1", default_route=True))
        assert joined == db.network.attachments[ID]
        state = await service.state()
        assert [each.network_name for each in state.networks] == ["web", "db"]
        assert place.etc("hosts").endswith(
            "10.1.0.2\thost tested\nfd00:1::2\thost tested\n"
            "10.2.0.2\thost tested\nfd00:2::2\thost tested\n"
            "10.1.0.1\thost.container.internal\nfd00:1::1\thost.container.internal\n"
        )
        # The other network is told who is its neighbour, and still leads out.
        assert web.network.requests[-1].neighbours == (joined.network,)
        assert web.network.requests[-1].default_route
        assert not db.network.requests[-1].default_route
        assert len(place.record.networks) == 2
        with pytest.raises(AlreadyExists, match="is in network db already"):
            await service.join_network(db.wanted(ID, "eth2"))

        await service.leave_network(web.network.configuration.id)
        assert web.attached == set()
        assert db.attached == {ID}
        assert db.network.requests[-1].default_route
        assert db.network.requests[-1].neighbours == ()
        assert [each.network_name for each in (await service.state()).networks] == ["db"]
        assert "10.1." not in place.etc("hosts")
        assert "nameserver 10.2.0.1\n" in place.etc("resolv.conf")
        assert os.stat(place.folder / "bundle" / "run" / "hosts").st_ino == inode
        await service.leave_network("another")
        await service.leave_network(db.network.configuration.id)
        assert "127.0.0.1\thost tested\n" in place.etc("hosts")
        assert place.record == NetworksRecord()


async def test_a_container_without_networks_joins_one(place: Place, web: Helper) -> None:
    async with place.running() as service:
        await service.join_network(web.wanted(ID))
        assert web.attached == {ID}
        assert "nameserver 10.1.0.1\n" in place.etc("resolv.conf")
    assert web.attached == set()


async def test_a_join_that_is_refused_changes_nothing(
    place: Place, web: Helper, db: Helper
) -> None:
    async with place.running(web.wanted(ID)) as service:
        with pytest.raises(AlreadyExists, match="an interface eth0"):
            await service.join_network(db.wanted(ID, "eth0"))
        hosts, record = place.etc("hosts"), place.record
        db.network.fail = AlreadyExists("10.2.0.7 is taken by db")
        with pytest.raises(AlreadyExists, match="taken by db"):
            await service.join_network(db.wanted(ID, "eth1"))
        assert (place.etc("hosts"), place.record) == (hosts, record)
        await db.kill()
        with pytest.raises(Unavailable, match="network db can't be reached"):
            await service.join_network(db.wanted(ID, "eth1"))
        assert (place.etc("hosts"), place.record) == (hosts, record)
        assert [each.network_name for each in (await service.state()).networks] == ["web"]


async def test_a_join_that_is_cancelled_changes_nothing(
    place: Place, web: Helper, db: Helper, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.running(web.wanted(ID)) as service:
        record = place.record
        with trio.CancelScope() as scope:
            attach = db.network._attach  # pyright: ignore[reportPrivateUsage]

            def cancelled(request: Any) -> Any:
                scope.cancel()
                return attach(request)

            monkeypatch.setattr(db.network, "_attach", cancelled)
            await service.join_network(db.wanted(ID, "eth1"))
        await until_attached(db)
        assert place.record == record
        monkeypatch.undo()
        await service.join_network(db.wanted(ID, "eth1"))
        assert db.attached == {ID}


async def test_a_network_whose_helper_is_gone_is_not_left_until_it_is_back(
    place: Place, web: Helper, db: Helper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("container.runtime.networking.LEAVE_SECONDS", 0.1)
    network = db.network.configuration.id
    async with place.running(web.wanted(ID), db.wanted(ID, "eth1")) as service:
        await db.kill()
        with pytest.raises(Unavailable, match="network db can't be reached"):
            await service.leave_network(network)
        assert len((await service.state()).networks) == 2
        await db.start()
        monkeypatch.undo()
        await service.leave_network(network)
        assert db.attached == set()


async def test_what_was_joined_or_left_half_is_left_by_the_next_helper(
    place: Place, web: Helper, db: Helper
) -> None:
    async with place.helper(killed=True) as service:
        await service.bootstrap(place.spec(web.wanted(ID), db.wanted(ID, "eth1")), Stdio())
        await service.start("init")
        record = place.record
        records = Records(place.folder / "bundle" / "records")
    records.write_networks(
        NetworksRecord(record.networks[:1], record.attachments[:1], record.networks[1:])
    )
    assert db.attached == {ID}
    async with place.helper() as service:
        await until_attached(db)
        assert [each.network_name for each in (await service.state()).networks] == ["web"]
        while place.record.unfinished:  # noqa: ASYNC110
            await trio.sleep(0.002)
        assert "10.2.0.2" not in place.etc("hosts")
        await service.shutdown()


async def test_only_a_container_that_is_there_joins_leaves_and_hands_out(
    place: Place, web: Helper
) -> None:
    async with place.helper() as service:
        for ask in (
            lambda: service.join_network(web.wanted(ID)),
            lambda: service.leave_network("x"),
            service.network_namespace,
        ):
            with pytest.raises(InvalidState, match="is not there"):
                await ask()
    async with place.running(network="host") as service:
        for ask in (lambda: service.join_network(web.wanted(ID)), service.network_namespace):
            with pytest.raises(InvalidState, match="no network namespace of its own"):
                await ask()


async def test_a_container_that_ends_while_it_joins_a_network_says_so(
    place: Place, web: Helper, db: Helper
) -> None:
    db.network.stuck = True
    async with place.running(web.wanted(ID)) as service, trio.open_nursery() as nursery:

        async def join() -> None:
            with pytest.raises(InvalidState, match="has ended meanwhile"):
                await service.join_network(db.wanted(ID, "eth1"))

        nursery.start_soon(join)
        while not place.record.unfinished:  # noqa: ASYNC110
            await trio.sleep(0.002)
        await trio.testing.wait_all_tasks_blocked(0.01)
        with trio.fail_after(3):
            await service.shutdown()
    assert web.attached == db.attached == set()


async def test_a_join_that_is_cancelled_late_leaves_no_session_behind(
    place: Place, web: Helper, db: Helper, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.running(web.wanted(ID)) as service:
        attach = web.network._attach  # pyright: ignore[reportPrivateUsage]
        with trio.CancelScope() as scope:

            def cancelled(request: Any) -> Any:
                scope.cancel()  # while the other network is told of its neighbour
                return attach(request)

            monkeypatch.setattr(web.network, "_attach", cancelled)
            await service.join_network(db.wanted(ID, "eth1"))
        assert scope.cancelled_caught
        await service.leave_network(db.network.configuration.id)
        assert (web.attached, db.attached) == ({ID}, set())
        with trio.fail_after(3):
            await service.shutdown()
    assert web.attached == set()


async def test_many_changes_at_once_leave_the_latest_written_down(
    place: Place, web: Helper, db: Helper
) -> None:
    async with network_helper(web.socket.parent, "third") as third:
        async with place.running(web.wanted(ID)) as service:
            async with trio.open_nursery() as nursery:
                for number, helper in enumerate((db, third), 1):
                    nursery.start_soon(service.join_network, helper.wanted(ID, f"eth{number}"))
                nursery.start_soon(service.leave_network, web.network.configuration.id)
                for _ in range(3):
                    (await service.network_namespace()).close()
            state = await service.state()
            names = {each.network_name for each in state.networks}
            assert names == {"db", "third"}
            assert place.record.attachments == state.networks
            assert {each.id for each in place.record.networks} == {
                each.network for each in state.networks
            }
            assert place.record.unfinished == ()
            assert place.record.shared
        assert third.attached == db.attached == web.attached == set()


async def test_a_grant_that_comes_to_a_cancelled_caller_is_not_held(
    place: Place, web: Helper
) -> None:
    scope = trio.CancelScope()
    left = False

    class Granting:
        @asynccontextmanager
        async def attach(self, request: Any, namespace: Fd) -> AsyncGenerator[None]:
            nonlocal left
            scope.cancel()  # and no checkpoint until it is granted
            try:
                yield
            finally:
                left = True

    @asynccontextmanager
    async def connect(socket: str) -> AsyncGenerator[Any]:
        yield Granting()

    async def regranted() -> None:
        raise AssertionError

    with place.namespaces.make() as namespace:
        session = sessions.Session(web.wanted(ID), namespace, connect, regranted)
        async with trio.open_nursery() as nursery:
            with trio.fail_after(5), scope:
                await nursery.start(session.run_opened)
        assert scope.cancelled_caught
        assert left
