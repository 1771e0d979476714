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

from attrs import frozen

from benchmarks.bundle import Bundle, write_bundle
from benchmarks.figures import Figure, Goal
from benchmarks.options import Options
from benchmarks.podman import Podman, open_podman
from benchmarks.system import IMAGE, open_system
from benchmarks.worker import PeerUnavailable

WARM_UP = 3
RUNC, PODMAN, EXEC, LS = "run.none.runc", "run.none.podman", "exec.podman", "ls.podman"
NAMES = (RUNC, PODMAN, EXEC, LS)
HELD = "held"
"""The container that `exec` and `ls` find."""

Timed = Callable[[int], float]
"""Do the same once more and return its milliseconds."""


@frozen
class _Row:
    name: str
    peer: str
    limit: float
    ours: Sequence[str]
    """Our command line."""
    theirs: Sequence[str]
    """podman's; for `RUNC` there is none."""


_RUN = ("run", "--rm", "--network", "none", IMAGE, "true")
ROWS = (
    _Row(RUNC, "runc create + runc start, same configuration", 2.0, _RUN, ()),
    _Row(PODMAN, "podman run --rm --network none", 0.35, _RUN, _RUN),
    _Row(EXEC, "podman exec", 0.3, ("exec", HELD, "true"), ("exec", HELD, "true")),
    _Row(LS, "podman ps", 1.2, ("ls",), ("ps",)),
)


def measure(names: Sequence[str], options: Options) -> list[Figure]:
    """Return milliseconds of whole command lines, ours and the peers', in the same rounds."""
    rows = [row for row in ROWS if row.name in names]
    values: dict[str, tuple[list[float], list[float]]] = {row.name: ([], []) for row in rows}
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        try:
            sides = _sides(rows, stack, missing)
            for number in range(WARM_UP + options.rounds):
                for name, pair in sides.items():
                    for side, found in zip(pair, values[name], strict=True):
                        taken = side(number)
                        if number >= WARM_UP:
                            found.append(taken)
        except PeerUnavailable as error:
            missing = {row.name: str(error) for row in rows}
    return [
        Figure(
            name=row.name,
            peer=row.peer,
            unit="ms",
            ours=tuple(values[row.name][0]),
            theirs=tuple(values[row.name][1]),
            goal=Goal.AT_MOST,
            limit=row.limit,
            note=missing.get(row.name, ""),
        )
        for row in rows
    ]


def _sides(
    rows: Sequence[_Row], stack: ExitStack, missing: dict[str, str]
) -> dict[str, tuple[Timed, Timed]]:
    """Start both systems; return by row what is timed of each, and note what can't be."""
    system = stack.enter_context(open_system())
    system.call("run", "--detach", "--name", HELD, "--network", "none", IMAGE, "sleep", "10000")
    sides: dict[str, tuple[Timed, Timed]] = {}
    podman: Podman | None = None
    for row in rows:
        ours = timed(system.argv(*row.ours), system.environment)
        try:
            if not row.theirs:
                sides[row.name] = (ours, _create_and_start(write_bundle(system, ["true"])))
                continue
            if podman is None:
                podman = stack.enter_context(open_podman(system.layout, IMAGE))
                held = ("--name", HELD, "--network", "none", IMAGE, "sleep", "10000")
                podman.call("run", "--detach", *held)
            sides[row.name] = (ours, timed(podman.argv(*row.theirs), podman.environment))
        except PeerUnavailable as error:
            missing[row.name] = str(error)
    return sides


def timed(argv: Sequence[str], environment: Mapping[str, str]) -> Timed:
    """Return what runs a command line to its end."""
    return lambda _: milliseconds(argv, environment)


def _create_and_start(bundle: Bundle) -> Timed:
    def side(number: int) -> float:
        name = f"bench-{number}"
        taken = sum(
            milliseconds(bundle.runc(*arguments), os.environ)
            for arguments in (("create", "--bundle", str(bundle.path), name), ("start", name))
        )
        milliseconds(bundle.runc("delete", "--force", name), os.environ)
        return taken

    return side


def milliseconds(argv: Sequence[str], environment: Mapping[str, str]) -> float:
    """Run a command line to its end and return how long it took.

    Raises:
        PeerUnavailable: it failed.
    """
    started = time.perf_counter()
    # No pipes: what `runc create` leaves waiting would keep them open.
    done = subprocess.run(
        argv,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    taken = (time.perf_counter() - started) * 1e3
    if done.returncode != 0:
        raise PeerUnavailable(f"{' '.join(argv)} ended with {done.returncode}")
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
            taken = milliseconds(argv, system.environment)
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
