"""Spans of calls as OpenTelemetry spans; needs the extra `otel`.

Each call is a span at its caller and one at its callee, of one trace over all processes, under the
very ids that travelled with the call. Handlers' own OpenTelemetry spans join it by `parent()`, and
calls join a caller's by `adopt()`.

```python
with exporting(BatchSpanProcessor(OTLPSpanExporter())):
    trio.run(main)
```

Source: OpenTelemetry specification, semantic conventions of RPC spans (`rpc.system`,
`rpc.service`, `rpc.method`).
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)

from container.ipc import tracing

_SCOPE = InstrumentationScope("container.ipc")


@contextmanager
def exporting(processor: SpanProcessor, *, resource: Resource | None = None) -> Generator[None]:
    """Hand each finished span of this process to a processor while the block runs.

    A processor that exports in the calling thread stops the event loop meanwhile: take one that
    batches. It is flushed at the end, and stays its owner's to shut down.

    Args:
        processor: OpenTelemetry's.
        resource: Names the service; by default by this process's name.
    """

    def sink(span: tracing.Span) -> None:
        processor.on_end(otel_span(span, resource))

    tracing.add_sink(sink)
    try:
        yield
    finally:
        tracing.remove_sink(sink)
        processor.force_flush()


def otel_span(span: tracing.Span, resource: Resource | None = None) -> ReadableSpan:
    """Return a finished span as OpenTelemetry has it."""
    service, _, method = span.route.rpartition("/")
    parent = None
    if span.parent is not None:
        # The caller's span is of another process, or may be: a callee can't tell and need not.
        parent = _context(span.trace, span.parent, span.flags, remote=span.side == "server")
    attributes: dict[str, str | int] = {
        "rpc.system": "container.ipc",
        "rpc.service": service,
        "rpc.method": method,
        "process.pid": span.pid,
    }
    if span.peer_pid is not None:
        attributes["container.peer.pid"] = span.peer_pid
    status = Status(StatusCode.UNSET)
    if span.outcome != "ok":
        attributes["error.type"] = span.outcome
        status = Status(StatusCode.ERROR, span.outcome)
    return ReadableSpan(
        name=span.route,
        context=_context(span.trace, span.span, span.flags, remote=False),
        parent=parent,
        resource=resource or Resource({"service.name": span.process}),
        attributes=attributes,
        kind=SpanKind.SERVER if span.side == "server" else SpanKind.CLIENT,
        instrumentation_scope=_SCOPE,
        status=status,
        start_time=int(span.started * 1e9),
        end_time=int((span.started + span.seconds) * 1e9),
    )


def parent() -> Context:
    """Return the context whose child a handler's own OpenTelemetry span is to be.

    `with tracer.start_as_current_span("work", context=parent()): ...`
    """
    parts = tracing.parse(tracing.current())
    if parts is None:
        return Context()
    context = _context(*parts, remote=False)
    return trace.set_span_in_context(NonRecordingSpan(context))


def adopt() -> None:
    """Make the calls of the running task children of the current OpenTelemetry span, if any."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        flags = f"{context.trace_flags:02x}"
        tracing.enter(f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags}")


def _context(trace_id: str, span_id: str, flags: str, *, remote: bool) -> SpanContext:
    sampled = TraceFlags(int(flags, 16))
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=remote, trace_flags=sampled)
