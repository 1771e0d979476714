"""Spans of calls, in W3C trace context, and each step of a connection as it happens.

A sink receives each finished span: who called what, where, how long, how it ended. A watcher
receives each step on the serving side: connections, calls, cancels, scopes, refusals. With nobody
there nothing is made, but a trace context that came with a call travels on with the calls that its
handler makes. What this is *not*: a tracing library; `otel` hands spans to one.

`tracestate` is not carried: it is a vendor's own word to itself, which the specification lets
any hop drop, and up to 512 bytes of it would ride on each call. The sampling flag is kept.

Source: W3C Trace Context, `traceparent`.
"""

from __future__ import annotations

import contextvars
import os
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from attrs import define, frozen

from container.ipc.peer import Peer
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
    flags: str = "01"
    """Two hex digits; the last bit says whether the trace is sampled."""

    @property
    def traceparent(self) -> str:
        """The header that makes a callee's span a child of this one."""
        return f"00-{self.trace}-{self.span}-{self.flags}"


Sink = Callable[[Span], None]

sinks: list[Sink] = []
"""Who receives spans; a span is begun only if somebody does."""
_context: contextvars.ContextVar[str | None] = contextvars.ContextVar("traceparent", default=None)


def add_sink(sink: Sink) -> None:
    """Receive every span of this process from now on; the sink must not block or raise."""
    sinks.append(sink)


def remove_sink(sink: Sink) -> None:
    """Receive no more spans."""
    sinks.remove(sink)


def active() -> bool:
    """True while somebody receives spans."""
    return bool(sinks)


def current() -> str | None:
    """Return the traceparent of the running task, if it has one."""
    return _context.get()


def enter(traceparent: str | None) -> None:
    """Make a traceparent the running task's own."""
    if traceparent is not None:
        _context.set(traceparent)


def begin(side: str, route: str, traceparent: str | None, peer_pid: int | None = None) -> Span:
    """Begin a span as a child of `traceparent`, or a trace of its own."""
    known = parse(traceparent)
    return Span(
        trace=known[0] if known else f"{_generator.getrandbits(128):032x}",
        span=f"{_generator.getrandbits(64):016x}",
        parent=known[1] if known else None,
        side=side,
        route=route,
        process=process_name(),
        pid=os.getpid(),
        started=time.time(),
        peer_pid=peer_pid,
        flags=known[2] if known else "01",
    )


def parse(traceparent: str | None) -> tuple[str, str, str] | None:
    """Return trace, span and flags of a traceparent; None if it is none."""
    parts = traceparent.split("-") if traceparent else []
    if len(parts) != 4 or not all(map(_is_hex, parts, (2, 32, 16, 2))):
        return None
    return parts[1], parts[2], parts[3]


def _is_hex(text: str, digits: int) -> bool:
    return len(text) == digits and not text.strip("0123456789abcdef")


def finish(span: Span, error: BaseException | None = None) -> None:
    """End a span and hand it to the sinks."""
    span.seconds = time.time() - span.started
    if error is not None:
        span.outcome = outcome_of(error)
    for sink in sinks:
        sink(span)


def outcome_of(error: BaseException | None) -> str:
    """Return how a call ended in one word: `ok`, the error's code, or its type's name."""
    if error is None:
        return "ok"
    code: Any = getattr(error, "code", None)
    return str(code.value) if code is not None else type(error).__name__


# --- steps ------------------------------------------------------------------------------------

StepKind = Literal["connected", "lost", "call", "refused", "cancel", "opened", "closing", "ended"]
"""In a connection's life: both hellos are said; it ended. In a call's: it begins; it may not run;
its caller cancels; the scope it asked for is open; the scope's holder leaves; its terminal is sent.
"""


@frozen
class Step:
    """One step on the serving side of a connection."""

    kind: StepKind
    served: object
    """What is served there: the same object for all connections of one server."""
    connection: int
    """Its number in this process."""
    peer: Peer | None = None
    call: int = 0
    route: str = ""
    size: int = 0
    """Bytes of the arguments (`call`), of the value (`opened`) or of the result (`ended`)."""
    seconds: float = 0.0
    """Since the call began."""
    outcome: str = "ok"
    """`ok`, an error's code, the type of a bug, or why the connection was lost."""
    arguments: Mapping[str, object] | None = None
    """Of a call that begins, themselves: a watcher that keeps them keeps what they hold."""


Watcher = Callable[[Step], None]

watchers: list[Watcher] = []
"""Who receives steps; a step is made only if somebody does. A watcher must not block or raise."""


def step(kind: StepKind, served: object, connection: int, **fields: Any) -> None:
    """Tell the watchers of a step; asked only `if watchers`."""
    made = Step(kind, served, connection, **fields)
    for watcher in tuple(watchers):
        watcher(made)
