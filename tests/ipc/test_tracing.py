"""Who called what: one trace over all hops, and nothing at all when nobody listens."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from container.ipc import Actor, Contract, NotFound, tracing
from container.ipc.tracing import Span


class Tree(Contract, name="tree"):
    @abstractmethod
    async def climb(self, height: int) -> int: ...

    @abstractmethod
    def sit(self, height: int) -> AbstractAsyncContextManager[int]: ...


class TreeService(Actor, Tree):
    def __init__(self, next_tree: Tree | None = None) -> None:
        self.next = next_tree
        self.seen: list[str | None] = []

    async def climb(self, height: int) -> int:
        self.seen.append(tracing.current())
        if height < 0:
            raise NotFound("no such height")
        return height if self.next is None else await self.next.climb(height + 1)

    @asynccontextmanager
    async def sit(self, height: int) -> AsyncGenerator[int]:
        yield await self.climb(height)


@pytest.fixture
def spans() -> Iterator[list[Span]]:
    found: list[Span] = []
    tracing.add_sink(found.append)
    yield found
    tracing.remove_sink(found.append)


async def test_both_sides_of_each_hop_are_spans_of_one_trace(link: Any, spans: list[Span]) -> None:
    async with link(TreeService()) as far, link(TreeService(far)) as near:
        assert await near.climb(1) == 2
    assert [span.side for span in spans] == ["server", "client", "server", "client"]
    assert len({span.trace for span in spans}) == 1
    by_id = {span.span: span for span in spans}
    depth = 0
    span = spans[0]
    while span.parent is not None:
        span = by_id[span.parent]
        depth += 1
    assert depth == 3
    assert {span.route for span in spans} == {"tree/climb"}
    assert spans[0].peer_pid == os.getpid()


async def test_a_span_says_how_its_call_ended(link: Any, spans: list[Span]) -> None:
    async with link(TreeService()) as tree:
        with pytest.raises(NotFound):
            await tree.climb(-1)
    assert [span.outcome for span in spans] == ["not-found", "not-found"]


async def test_a_scope_is_a_span_on_both_sides_from_its_opening_to_its_end(
    link: Any, spans: list[Span]
) -> None:
    async with link(TreeService()) as tree:
        async with tree.sit(1):
            assert spans == []
        with pytest.raises(ZeroDivisionError):
            async with tree.sit(1):
                raise ZeroDivisionError
        with pytest.raises(NotFound):
            async with tree.sit(-1):
                pass
    held = [span for span in spans if span.side == "client"]
    assert [span.outcome for span in held] == ["ok", "ZeroDivisionError", "not-found"]
    served = [span for span in spans if span.side == "server"]
    assert [span.parent for span in served] == [span.span for span in held]


async def test_a_trace_travels_on_though_nobody_listens_here(link: Any) -> None:
    far = TreeService()
    async with link(far) as proxy, link(TreeService(proxy)) as near:
        await near.climb(1)
        assert far.seen == [None]
        tracing.enter("00-" + "a" * 32 + "-" + "b" * 16 + "-01")
        await near.climb(1)
        assert far.seen[1] == "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


def test_a_strange_traceparent_begins_a_trace_of_its_own() -> None:
    for strange in ("", "x", "00-short-b-01", "00-" + "a" * 32):
        span = tracing.begin("client", "a/b", strange)
        assert span.parent is None
        assert len(span.trace) == 32
