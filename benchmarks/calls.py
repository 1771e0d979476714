"""The rows of calls: ours beside each peer, free and pinned, alone and many at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from benchmarks.figures import Comparison, Figure, Goal
from benchmarks.options import Options
from benchmarks.rounds import PINNED, Row, Side, measure_rows

CALLS = 600
"""Calls a round, one after another: well above a scheduler's tick."""
CONCURRENT_CALLS = 2000
CALLERS = 64
CANCELS = 60
HOPS = ("third", "second", "first")

_sequential = partial(Side, how="sequential", number=CALLS)
_pinned = partial(Side, how="sequential", number=CALLS, cpu=PINNED)
_concurrent = partial(Side, how="concurrent", number=CONCURRENT_CALLS, callers=CALLERS)


def _faster(name: str, ours: Side, theirs: Side, peer: str, limit: float) -> Row:
    """Return the row that says how many times faster a call of ours is."""
    return Row(name, ours, theirs, peer, "µs", Goal.AT_LEAST, limit, Comparison.SPEED)


SEQUENTIAL = (
    Row(
        "ipc.call.sequential",
        _sequential("ours"),
        _sequential("raw"),
        "64 B ping-pong, trio.socket",
        "µs",
        Goal.AT_MOST,
        1.6,
    ),
    *(
        _faster(
            f"ipc.call.sequential.{name}", _sequential("ours"), _sequential(module), peer, limit
        )
        for name, module, peer, limit in (
            ("dbus-fast", "dbus_fast_aio", "dbus-fast", 1.8),
            ("jeepney", "jeepney_trio", "jeepney on Trio", 4),
            ("pycapnp", "capnp_rpc", "pycapnp", 1),
            ("grpc", "grpc_aio", "grpc.aio", 4),
        )
    ),
)
ON_ONE_CORE = (
    Row(
        "ipc.call.pinned",
        _pinned("ours"),
        _pinned("raw"),
        "64 B ping-pong, trio.socket, same core",
        "µs",
        Goal.AT_MOST,
        2.0,
    ),
    _faster(
        "ipc.call.pinned.dbus-fast",
        _pinned("ours"),
        _pinned("dbus_fast_aio"),
        "dbus-fast, same core",
        1.3,
    ),
)
CONCURRENT = tuple(
    Row(
        f"ipc.call.concurrent64.{name}",
        _concurrent("ours"),
        _concurrent(module),
        peer,
        "/s",
        Goal.AT_LEAST,
        limit,
    )
    for name, module, peer, limit in (
        ("dbus-fast", "dbus_fast_aio", "dbus-fast", 1),
        ("grpc", "grpc_aio", "grpc.aio", 8),
    )
)
DESCRIPTOR = (
    Row(
        "ipc.call.descriptor",
        _sequential("ours_descriptor", operation="with"),
        _sequential("ours_descriptor", operation="without"),
        "the same call without it",
        "µs",
        Goal.AT_MOST,
        1.35,
    ),
)
CANCEL = (
    Row(
        "ipc.cancel.three-hops",
        Side("ours_hops", "each", CANCELS, operation="cancel", servers=HOPS),
        Side("ours_hops", "sequential", CALLS, servers=HOPS),
        "one sequential call over one hop",
        "µs",
        Goal.AT_MOST,
        4,
    ),
)
GROUPS = (SEQUENTIAL, ON_ONE_CORE, CONCURRENT, DESCRIPTOR, CANCEL)
"""Rows of one group are measured in the same rounds."""
NAMES = tuple(row.name for group in GROUPS for row in group)


def measure(names: Sequence[str], options: Options) -> list[Figure]:
    """Measure the rows of these names."""
    figures: list[Figure] = []
    for group in GROUPS:
        if rows := [row.shortened(options.fewer) for row in group if row.name in names]:
            figures += measure_rows(rows, options.rounds)
    return figures
