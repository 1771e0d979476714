"""The rows of a whole container: start of the command line to its end, warm."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.bundle import write_bundle
from benchmarks.figures import Figure, Goal
from benchmarks.options import Options
from benchmarks.podman import open_podman
from benchmarks.system import IMAGE, open_system
from benchmarks.worker import PeerUnavailable

WARM_UP = 3
RUNC, PODMAN = "run.none.runc", "run.none.podman"
NAMES = (RUNC, PODMAN)


def measure(names: Sequence[str], options: Options) -> list[Figure]:
    """Return milliseconds of `run --rm --network none IMAGE true`, ours and the peers'."""
    values: dict[str, list[float]] = {}
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        sides: dict[str, Callable[[int], float]] = {}
        try:
            system = stack.enter_context(open_system())
            ours = system.argv("run", "--rm", "--network", "none", IMAGE, "true")
            sides["ours"] = lambda _: _milliseconds(ours, system.environment)
            if RUNC in names:
                try:
                    bundle = write_bundle(system, ["true"])
                    sides[RUNC] = lambda n: _milliseconds(bundle.argv(f"bench-{n}"), os.environ)
                except PeerUnavailable as error:
                    missing[RUNC] = str(error)
            if PODMAN in names:
                try:
                    podman = stack.enter_context(open_podman(system.layout, IMAGE))
                    theirs = podman.argv("run", "--rm", "--network", "none", IMAGE, "true")
                    sides[PODMAN] = lambda _: _milliseconds(theirs, podman.environment)
                except PeerUnavailable as error:
                    missing[PODMAN] = str(error)
            for number in range(WARM_UP + options.rounds):
                for name, side in sides.items():
                    taken = side(number)
                    if number >= WARM_UP:
                        values.setdefault(name, []).append(taken)
        except PeerUnavailable as error:
            missing["ours"] = str(error)
    figures = (
        Figure(
            name=RUNC,
            peer="runc run, same configuration",
            unit="ms",
            ours=tuple(values.get("ours", ())),
            theirs=tuple(values.get(RUNC, ())),
            note=missing.get("ours") or missing.get(RUNC) or "",
        ),
        Figure(
            name=PODMAN,
            peer="podman run --rm --network none",
            unit="ms",
            ours=tuple(values.get("ours", ())),
            theirs=tuple(values.get(PODMAN, ())),
            goal=Goal.AT_MOST,
            limit=1.0,
            note=missing.get("ours") or missing.get(PODMAN) or "",
        ),
    )
    return [figure for figure in figures if figure.name in names]


def _milliseconds(argv: Sequence[str], environment: Mapping[str, str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(
        argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    taken = (time.perf_counter() - started) * 1e3
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"]
        raise PeerUnavailable(f"{Path(argv[0]).name} run: {said[-1]}")
    return taken


def where_time_goes(rounds: int = 10) -> list[tuple[str, ...]]:
    """Return rows of process, route, side, start and length in ms: medians over traced runs.

    Starts are measured from the start of the command line.
    """
    starts: dict[tuple[str, str, str], list[float]] = {}
    lengths: dict[tuple[str, str, str], list[float]] = {}
    total: list[float] = []
    with open_system(traced=True) as system:
        argv = system.argv("run", "--rm", "--network", "none", IMAGE, "true")
        for number in range(WARM_UP + rounds):
            system.trace.write_bytes(b"")
            began = time.time()
            taken = _milliseconds(argv, system.environment)
            if number < WARM_UP:
                continue
            total.append(taken)
            for span in _spans(system.trace):
                key = (span["process"], span["side"], span["route"])
                starts.setdefault(key, []).append((span["started"] - began) * 1e3)
                lengths.setdefault(key, []).append(span["seconds"] * 1e3)
    rows = [
        (*key, f"{median(starts[key]):.1f}", f"{median(lengths[key]):.1f}")
        for key in sorted(starts, key=lambda key: median(starts[key]))
    ]
    return [("container", "", "whole process", "0.0", f"{median(total):.1f}"), *rows]


def _spans(file: Path) -> list[dict[str, Any]]:
    """Return the spans of the command line's own trace, without an earlier run's late ones."""
    spans: list[dict[str, Any]] = [json.loads(line) for line in file.read_text().splitlines()]
    traces = {span["trace"] for span in spans if span["route"] == "container"}
    return [span for span in spans if span["trace"] in traces]
