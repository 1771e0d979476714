"""The rows of channels: items from a server to a client, in order, at the pace of their reader."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from benchmarks.figures import Figure, Goal
from benchmarks.options import Options
from benchmarks.rounds import Row, Side, measure_rows

ITEMS = (
    ("ipc.channel.items.grpc", "grpc_aio", "grpc.aio, server streaming", 8),
    ("ipc.channel.items.multiprocessing", "mp_connection", "multiprocessing.connection", 0.6),
)
BYTES = (
    ("ipc.channel.bytes.grpc", "grpc_aio", "grpc.aio, server streaming", 1.5),
    ("ipc.channel.bytes.raw", "raw_stream", "trio.SocketStream", 0.5),
)
NAMES = tuple(name for name, *_ in (*ITEMS, *BYTES))


def measure(names: Sequence[str], options: Options) -> list[Figure]:
    """Measure the rows of these names; each group in the same rounds."""
    items = partial(Side, how="rate", number=options.channel_items, operation="items")
    pieces = partial(Side, how="rate", number=options.channel_size, operation="bytes")
    figures: list[Figure] = []
    for group, side, unit in ((ITEMS, items, "/s"), (BYTES, pieces, "MiB/s")):
        rows = [
            Row(name, side("ours_channel"), side(module), peer, unit, Goal.AT_LEAST, limit)
            for name, module, peer, limit in group
            if name in names
        ]
        if rows:
            figures += measure_rows(rows, options.rounds)
    return figures
