"""The rows of memory over time: what calls leave behind, in the caller and in the callee.

Of twelve calls ten are plain, one is cancelled while it is handled, one carries a descriptor. After
the first tenth, in which caches fill, memory is sampled; a slope is taken between each sample and
the one half a run later, so that a single step weighs little and steady growth weighs all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import Comparison, Figure, Goal
from benchmarks.options import Options
from benchmarks.worker import PeerUnavailable, open_peer

SIDES = ("client", "server")
SLOPES = ("traced", "resident")
DESCRIPTORS = "descriptors"
NAMES = tuple(f"ipc.memory.{side}.{what}" for side in SIDES for what in (*SLOPES, DESCRIPTORS))
SAMPLES = 100


def measure(names: Sequence[str], options: Options) -> list[Figure]:
    """Return bytes a call that memory grows by, and how far the count of descriptors moves."""
    step = max(12, options.memory_calls * 12 // 10 // SAMPLES)
    note = f"{step * SAMPLES:,} calls"
    samples: list[dict[str, dict[str, int]]] = []
    try:
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as folder,
            open_peer("ours_memory", Path(folder)) as peer,
        ):
            for number in range(SAMPLES):
                peer.once("mixed", step)
                if number >= SAMPLES // 10:
                    samples.append(peer.once("sample", 0))
    except PeerUnavailable as error:
        note = str(error)
        samples = []
    figures: list[Figure] = []
    for name in names:
        side, what = name.split(".")[-2:]
        series = [sample[side][what] for sample in samples]
        if what == DESCRIPTORS:
            values = [float(max(series) - min(series))] if series else []
        else:
            values = slopes(series, step)
        figures.append(
            Figure(
                name=name,
                peer="a limit",
                unit="" if what == DESCRIPTORS else "B/call",
                ours=tuple(values),
                goal=Goal.AT_MOST,
                limit=0 if what == DESCRIPTORS else 1,
                comparison=Comparison.ALONE,
                note=note,
            )
        )
    return figures


def slopes(series: Sequence[int], step: int) -> list[float]:
    """Return growth a call between each sample and the one half the series later."""
    half = len(series) // 2
    return [(series[i + half] - series[i]) / (half * step) for i in range(len(series) - half)]
