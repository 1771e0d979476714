"""Live traffic of a server: each step of its connections and calls, with nothing of their values.

A `Seen` says who called what, how large it was, how long it took and how it ended; of arguments it
has names and types, and their values only for who asked and is the same user. A watcher that reads
too slowly misses steps and is told how many: watching never slows a service down.
"""

from __future__ import annotations

import enum
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

import trio
from attrs import frozen

from container.ipc import tracing
from container.ipc.wirevalues import brief, type_name

WAITING = 1024
"""Steps that may wait for one watcher."""


@frozen
class Seen:
    """One step, as a watcher gets it."""

    at: datetime
    kind: str
    """connected, lost, call, refused, cancel, opened, closing or ended."""
    connection: int
    call: int
    """Its number on its connection; 0 for steps of the connection itself."""
    route: str
    pid: int
    uid: int
    """Of the sender; -1 if nobody has sent anything."""
    size: int
    """Bytes of the arguments (`call`), of the value (`opened`) or of the result (`ended`)."""
    seconds: float
    """Since the call began; 0 if it began before somebody watched."""
    outcome: str
    """`ok`, an error's code, the type of a bug; who connected; why the connection was lost."""
    arguments: tuple[str, ...] = ()
    """`name: type` of each, of a call that begins; `name: type = value` for who may see it."""
    missed: int = 0
    """Steps before this one that the watcher was too slow for."""


@contextmanager
def watching(served: object, *, values: bool) -> Generator[trio.MemoryReceiveChannel[Seen]]:
    """Receive the steps of one server while the block runs.

    Args:
        served: The server's, as `tracing.Step.served`.
        values: Show values of arguments, cut to one line each.
    """
    send, receive = trio.open_memory_channel[Seen](WAITING)
    missed = 0

    def watch(step: tracing.Step) -> None:
        nonlocal missed
        if step.served is not served:
            return
        try:
            send.send_nowait(_seen(step, values, missed))
            missed = 0
        except trio.WouldBlock:
            missed += 1

    tracing.watchers.append(watch)
    try:
        with receive:
            yield receive
    finally:
        tracing.watchers.remove(watch)
        send.close()


def _seen(step: tracing.Step, values: bool, missed: int) -> Seen:
    return Seen(
        at=datetime.now(UTC),
        kind=step.kind,
        connection=step.connection,
        call=step.call,
        route=step.route,
        pid=0 if step.peer is None else step.peer.pid,
        uid=-1 if step.peer is None else step.peer.uid,
        size=step.size,
        seconds=step.seconds,
        outcome=step.outcome,
        arguments=_shown(step.arguments or {}, values),
        missed=missed,
    )


def _shown(arguments: Mapping[str, object], values: bool) -> tuple[str, ...]:
    return tuple(
        f"{name}: {type_name(value)}{f' = {_value(value)}' if values else ''}"
        for name, value in arguments.items()
    )


def _value(value: object) -> str:
    return str(value.value) if isinstance(value, enum.Enum) else brief(value)
