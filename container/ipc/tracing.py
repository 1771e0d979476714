"""Spans of calls, in W3C trace context: who called what, where, how long, how it ended.

A sink receives each finished span; with no sink nothing is made, but a trace context that came with
a call travels on with the calls that its handler makes. What this is *not*: a tracing library.

Source: W3C Trace Context, `traceparent`.
"""

from __future__ import annotations

import contextvars
import os
import random
import time
from collections.abc import Callable
from typing import Any

from attrs import define

from container.ipc.wire_errors import process_name

_generator = random.SystemRandom()


@define(slots=True)
class Span:
    """One call, seen from its caller (`client`) or its callee (`server`)."""

    trace: str
    """32 hex digits."""
    span: str
    """16 hex digits."""
    parent: str | None
    side: str
    route: str
    process: str
    pid: int
    started: float
    """Seconds since 1970."""
    peer_pid: int | None = None
    seconds: float = 0.0
    outcome: str = "ok"
    """`ok`, or the error's code."""

    @property
    def traceparent(self) -> str:
        """The header that makes a callee's span a child of this one."""
        return f"00-{self.trace}-{self.span}-01"


Sink = Callable[[Span], None]

_sinks: list[Sink] = []
_context: contextvars.ContextVar[str | None] = contextvars.ContextVar("traceparent", default=None)


def add_sink(sink: Sink) -> None:
    """Receive every span of this process from now on; the sink must not block or raise."""
    _sinks.append(sink)


def remove_sink(sink: Sink) -> None:
    """Receive no more spans."""
    _sinks.remove(sink)


def active() -> bool:
    """True while somebody receives spans."""
    return bool(_sinks)


def current() -> str | None:
    """Return the traceparent of the running task, if it has one."""
    return _context.get()


def enter(traceparent: str | None) -> None:
    """Make a traceparent the running task's own."""
    if traceparent is not None:
        _context.set(traceparent)


def begin(side: str, route: str, traceparent: str | None, peer_pid: int | None = None) -> Span:
    """Begin a span as a child of `traceparent`, or a trace of its own."""
    parts = traceparent.split("-") if traceparent else []
    known = len(parts) == 4 and len(parts[1]) == 32 and len(parts[2]) == 16
    return Span(
        trace=parts[1] if known else f"{_generator.getrandbits(128):032x}",
        span=f"{_generator.getrandbits(64):016x}",
        parent=parts[2] if known else None,
        side=side,
        route=route,
        process=process_name(),
        pid=os.getpid(),
        started=time.time(),
        peer_pid=peer_pid,
    )


def finish(span: Span, error: BaseException | None = None) -> None:
    """End a span and hand it to the sinks."""
    span.seconds = time.time() - span.started
    if error is not None:
        code: Any = getattr(error, "code", None)
        span.outcome = str(code.value) if code is not None else type(error).__name__
    for sink in _sinks:
        sink(span)
