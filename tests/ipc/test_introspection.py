"""What every server tells of itself, to whom, and what it keeps to itself."""

from __future__ import annotations

import itertools
import os
import sys
from abc import abstractmethod
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from container.ipc import (
    Actor,
    AlreadyExists,
    Contract,
    Endpoint,
    Gate,
    Message,
    Overloaded,
    Peer,
    PermissionDenied,
    UnknownRoute,
    call_message,
    connect,
    connection_of,
    connection_proxy,
    in_memory,
    issue,
    open_message,
    open_service,
    process_name,
    stream,
    tracing,
)
from container.ipc.built_in import CONTRACT, METHODS
from container.ipc.contract import routes_of
from container.ipc.introspection import WATCHERS, Introspection, introspect
from container.ipc.monitoring import Seen, watching


class Keys(Contract, name="keys"):
    @abstractmethod
    async def find(self, key: str, wait: bool = False) -> int: ...

    @abstractmethod
    def hold(self, key: str) -> AbstractAsyncContextManager[str]: ...

    @abstractmethod
    def count(self, most: int) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[int]]: ...


class KeysService(Actor, Keys):
    async def find(self, key: str, wait: bool = False) -> int:
        if wait:
            await trio.sleep_forever()
        if key == "none":
            raise AlreadyExists("no")
        return len(key)

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncGenerator[str]:
        yield key

    @stream
    async def count(self, most: int) -> AsyncGenerator[int]:
        for number in range(most):
            yield number


class KeysGate(Contract, name="keys-gate"):
    @abstractmethod
    async def open(self, routes: tuple[str, ...] | None = None) -> Endpoint[Keys]: ...


class KeysGateService(Gate[Keys], KeysGate):
    pass


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


def look_of(proxy: Contract) -> Introspection:
    return connection_proxy(connection_of(proxy), Introspection)


def test_what_is_built_in_is_the_contract_of_introspection() -> None:
    assert Introspection.contract_name == CONTRACT
    assert tuple(routes_of(Introspection)) == METHODS


async def test_a_server_that_nobody_looks_at_loads_nothing_for_it() -> None:
    program = (
        "import sys, container.ipc\nfrom container.ipc.server import Server\n"
        "Server(())\nassert 'container.ipc.introspection' not in sys.modules"
    )
    await trio.run_process([sys.executable, "-c", program])


async def test_every_server_describes_itself(path: Path) -> None:
    async with open_service(KeysService(), at=path), introspect(path) as look:
        described = await look.describe()
    assert (described.process, described.pid) == (process_name(), os.getpid())
    assert [contract.name for contract in described.contracts] == [
        "keys",
        "container.introspection",
    ]
    assert [route.path for route in described.contracts[0].routes] == [
        "keys/find",
        "keys/hold",
        "keys/count",
    ]


async def test_an_endpoint_describes_the_routes_that_it_offers_and_no_others() -> None:
    async with KeysService() as service, trio.open_nursery() as nursery:
        endpoint, scope = issue(nursery, Keys, service, routes=["find"])
        async with endpoint.connect() as keys:
            (described, _) = (await look_of(keys).describe()).contracts
            assert [route.path for route in described.routes] == ["keys/find"]
            with pytest.raises(PermissionDenied, match="tasks"):
                await look_of(keys).tasks()
        scope.cancel()


async def test_a_gates_socket_describes_the_gate_alone(path: Path) -> None:
    async with KeysService() as service:
        async with open_service(KeysGateService(Keys, service), at=path):
            async with KeysGate.connect(path) as gate:
                described = await look_of(gate).describe()
                assert [c.name for c in described.contracts][:-1] == ["keys-gate"]
                endpoint = await gate.open()
                async with endpoint.connect() as keys:
                    described = await look_of(keys).describe()
                    assert [c.name for c in described.contracts][:-1] == ["keys"]
                    with pytest.raises(PermissionDenied, match="tasks"):
                        await look_of(keys).tasks()


async def test_the_policy_judges_it_as_any_route(path: Path) -> None:
    def policy(peer: Peer, route: str | None) -> bool:
        return route != "container.introspection/describe"

    async with open_service(KeysService(), at=path, policy=policy), introspect(path) as look:
        with pytest.raises(PermissionDenied):
            await look.describe()
        assert (await look.statistics()).connections == 1


async def test_statistics_say_which_routes_have_calls_in_flight(path: Path) -> None:
    async with open_service(KeysService(), at=path), introspect(path) as look:
        async with Keys.connect(path) as keys, trio.open_nursery() as nursery:
            nursery.start_soon(keys.find, "a", True)
            nursery.start_soon(keys.find, "b", True)
            await trio.testing.wait_all_tasks_blocked(0.01)
            statistics = await look.statistics()
            nursery.cancel_scope.cancel()
    assert statistics.connections == statistics.accepted == 2
    assert {route.path: route.in_flight for route in statistics.routes} == {
        "keys/find": 2,
        "container.introspection/statistics": 1,
    }


async def test_tasks_are_a_tree_with_the_call_that_asks_at_a_leaf(path: Path) -> None:
    async with open_service(KeysService(), at=path), introspect(path) as look:
        tasks = await look.tasks()
        short = await look.tasks(innermost=True)
    assert tasks[0].depth == 0
    assert all(0 < b.depth <= a.depth + 1 for a, b in itertools.pairwise(tasks))
    waits = [task for task in tasks if any("Server.listen" in line for line in task.stack)]
    assert waits
    assert any("task_tree" in line or "tasks" in line for task in tasks for line in task.stack)
    assert {len(task.stack) for task in short} <= {0, 1}


async def test_without_stackscope_a_stack_is_followed_to_where_it_waits(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "stackscope", None)
    async with open_service(KeysService(), at=path), introspect(path) as look:
        tasks = await look.tasks(innermost=True)
    assert any("Server._accept" in line for task in tasks for line in task.stack)


async def collect(steps: trio.abc.ReceiveChannel[Seen], until: str) -> list[Seen]:
    found: list[Seen] = []
    async for seen in steps:
        if "introspection" not in seen.route:
            found.append(seen)
        if seen.kind == until:
            return found
    raise AssertionError("the steps ended")


async def test_each_step_of_calls_and_scopes_is_seen_and_no_value(path: Path) -> None:
    async with open_service(KeysService(), at=path), introspect(path) as look:
        async with look.watch() as steps:
            async with Keys.connect(path) as keys:
                await keys.find("s3cret")
                with pytest.raises(AlreadyExists):
                    await keys.find("none")
                async with keys.hold("s3cret"):
                    pass
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(keys.find, "s3cret", True)
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    nursery.cancel_scope.cancel()
            found = await collect(steps, "lost")
    assert [(seen.kind, seen.outcome) for seen in found[1:-1]] == [
        ("call", "ok"),
        ("ended", "ok"),
        ("call", "ok"),
        ("ended", "already-exists"),
        ("call", "ok"),
        ("opened", "ok"),
        ("closing", "ok"),
        ("ended", "ok"),
        ("call", "ok"),
        ("cancel", "ok"),
        ("ended", "cancelled"),
    ]
    assert (found[0].kind, found[-1].kind, found[-1].outcome) == ("connected", "lost", "closed")
    assert found[1].arguments == ("key: str", "wait: bool")
    assert found[1].size > 0
    assert (found[1].pid, found[1].uid) == (os.getpid(), os.geteuid())
    assert found[2].seconds > 0
    assert len({seen.connection for seen in found}) == 1
    assert "s3cret" not in str(found)
    assert not tracing.watchers


async def test_a_refused_call_is_seen(path: Path) -> None:
    async with open_service(KeysService(), at=path), introspect(path) as look:
        async with look.watch() as steps, connect(path) as connection:
            with pytest.raises(UnknownRoute):
                await call_message(connection, Message("keys/nothing"))
            found = await collect(steps, "refused")
    assert (found[-1].route, found[-1].outcome) == ("keys/nothing", "unknown-route")


async def test_values_are_seen_by_who_asks_for_them(path: Path) -> None:
    async with open_service(KeysService(), at=path), introspect(path) as look:
        async with look.watch(values=True) as steps, Keys.connect(path) as keys:
            await keys.find("abc")
            found = await collect(steps, "ended")
    assert found[1].arguments == ("key: str = 'abc'", "wait: bool = False")


async def test_a_watcher_sees_the_calls_of_its_own_server_only(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    async with open_service(KeysService(), at=one), open_service(KeysService(), at=two):
        async with introspect(one) as look, look.watch() as steps:
            async with Keys.connect(two) as keys:
                await keys.find("there")
            async with Keys.connect(one) as keys:
                await keys.find("x")
            found = await collect(steps, "lost")
    assert [seen.route for seen in found if seen.kind == "call"] == ["keys/find"]


def test_a_watcher_that_does_not_read_misses_steps_and_slows_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("container.ipc.monitoring.WAITING", 3)
    served = object()
    with watching(served, values=False) as steps:
        for number in range(10):
            tracing.step("call", served, 1, call=number)
        assert [steps.receive_nowait().call for _ in range(3)] == [0, 1, 2]
        tracing.step("call", served, 1, call=10)
        tracing.step("call", served, 1, call=11)
        late, later = steps.receive_nowait(), steps.receive_nowait()
    assert (late.call, late.missed) == (10, 7)
    assert later.missed == 0


async def test_only_so_many_watch_at_once(path: Path) -> None:
    async with open_service(KeysService(), at=path), introspect(path) as look:
        async with AsyncExitStack() as stack:
            for _ in range(WATCHERS):
                await stack.enter_async_context(look.watch())
            with pytest.raises(Overloaded):
                async with look.watch():
                    pass
        async with look.watch():
            pass


async def test_traffic_and_tasks_are_for_the_same_user_and_root(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def anybody(peer: Peer, route: str | None) -> bool:
        return True

    async with open_service(KeysService(), at=path, policy=anybody), introspect(path) as look:
        monkeypatch.setattr("container.ipc.introspection.os.geteuid", lambda: 12345)
        monkeypatch.setattr("container.ipc.introspection.ROOT", -1)
        assert (await look.describe()).contracts
        with pytest.raises(PermissionDenied, match="tasks"):
            await look.tasks()
        with pytest.raises(PermissionDenied, match="traffic"):
            async with look.watch():
                pass


async def test_a_message_opens_a_scope_and_a_stream() -> None:
    async with in_memory(KeysService()) as keys:
        connection = connection_of(keys)
        async with open_message(connection, Message("keys/hold", {"key": "k"})) as held:
            assert held.string("value") == "k"
        async with open_message(connection, Message("keys/count", {"most": 5})) as counted:
            assert [item async for item in counted.receiver("value")] == [0, 1, 2, 3, 4]
