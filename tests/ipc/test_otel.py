"""Spans of calls as OpenTelemetry's: one trace, the ids that travelled, how each call ended."""

from __future__ import annotations

import contextvars
import itertools
from abc import abstractmethod
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from container.ipc import Actor, Contract, NotFound, in_memory, tracing
from container.ipc.otel import adopt, exporting, parent


class Tree(Contract, name="tree"):
    @abstractmethod
    async def climb(self, height: int) -> int: ...


class TreeService(Actor, Tree):
    def __init__(self, provider: TracerProvider) -> None:
        self.tracer = provider.get_tracer("tests")

    async def climb(self, height: int) -> int:
        with self.tracer.start_as_current_span("inside", context=parent()):
            if height < 0:
                raise NotFound("no such height")
        return height


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    memory = InMemorySpanExporter()
    with exporting(SimpleSpanProcessor(memory)):
        yield memory


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(exporter))
    return made


async def test_a_call_is_one_trace_from_the_callers_span_to_the_handlers(
    exporter: InMemorySpanExporter, provider: TracerProvider
) -> None:
    async with in_memory(TreeService(provider)) as tree:
        with provider.get_tracer("tests").start_as_current_span("outside"):
            adopt()
            assert await tree.climb(1) == 1
    spans = {(span.name, span.kind): span for span in exporter.get_finished_spans()}
    order = [
        ("outside", SpanKind.INTERNAL),
        ("tree/climb", SpanKind.CLIENT),
        ("tree/climb", SpanKind.SERVER),
        ("inside", SpanKind.INTERNAL),
    ]
    assert set(spans) == set(order)
    for above, below in itertools.pairwise(order):
        found = spans[below].parent
        assert found is not None
        assert found.span_id == spans[above].context.span_id
    assert len({span.context.trace_id for span in spans.values()}) == 1
    call = spans["tree/climb", SpanKind.SERVER]
    assert call.attributes is not None
    assert call.attributes["rpc.service"] == "tree"
    assert call.attributes["rpc.method"] == "climb"
    assert call.status.status_code is StatusCode.UNSET
    assert call.start_time is not None
    assert call.end_time is not None
    assert call.end_time >= call.start_time


async def test_a_failed_call_is_an_error_by_its_code(
    exporter: InMemorySpanExporter, provider: TracerProvider
) -> None:
    async with in_memory(TreeService(provider)) as tree:
        with pytest.raises(NotFound):
            await tree.climb(-1)
    calls = [span for span in exporter.get_finished_spans() if span.name == "tree/climb"]
    assert [span.status.description for span in calls] == ["not-found", "not-found"]


def test_nothing_is_handed_over_when_the_block_has_ended() -> None:
    memory = InMemorySpanExporter()
    with exporting(SimpleSpanProcessor(memory)):
        assert tracing.active()
    assert not tracing.active()
    tracing.finish(tracing.begin("client", "a/b", None))
    assert memory.get_finished_spans() == ()


def test_a_task_without_a_trace_has_no_parent() -> None:
    def task() -> None:
        assert not parent()
        adopt()
        assert tracing.current() is None
        tracing.enter("strange")
        assert not parent()

    contextvars.copy_context().run(task)


async def test_a_trace_that_is_not_sampled_stays_so(exporter: InMemorySpanExporter) -> None:
    tracing.enter("00-" + "a" * 32 + "-" + "b" * 16 + "-00")
    span = tracing.begin("client", "a/b", tracing.current())
    assert span.traceparent.endswith("-00")
    tracing.finish(span)
    assert exporter.get_finished_spans() == ()
