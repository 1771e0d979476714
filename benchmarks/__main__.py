"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path

from benchmarks import calls, containers, streams
from benchmarks.figures import Figure, table
from benchmarks.worker import PeerUnavailable

ROUNDS = 30
LOG_ROUNDS = 5
"""Each moves the size twice, to disk once: fewer rounds, and the table says how many."""

ALL = (
    *(row.name for row in calls.SEQUENTIAL),
    *(row.name for row in calls.CONCURRENT),
    *containers.NAMES,
    *streams.NAMES,
)


def main() -> int:
    """Measure what was asked for and print the table; 1 if a goal is missed, 0 otherwise."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "name", nargs="*", help=f"a row, or the beginning of some: {', '.join(ALL)}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round there")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default: %(default)s")
    parser.add_argument("--log-rounds", type=int, default=LOG_ROUNDS, help="of stdio.log.*")
    parser.add_argument(
        "--size", type=int, default=4096, help="MiB of stdio.*; default: %(default)s"
    )
    parser.add_argument("--no-trace", action="store_true", help="no table of where the time goes")
    options = parser.parse_args()
    names = [name for name in ALL if not options.name or name.startswith(tuple(options.name))]
    if not names:
        parser.error(f"no such row; there are {', '.join(ALL)}")

    size = options.size << 20
    figures: list[Figure] = []
    if rows := [row for row in calls.SEQUENTIAL if row.name in names]:
        figures += calls.measure_sequential(rows, options.rounds)
    if rows := [row for row in calls.CONCURRENT if row.name in names]:
        figures += calls.measure_concurrent(rows, options.rounds)
    if wanted := [name for name in containers.NAMES if name in names]:
        figures += containers.measure_run(wanted, options.rounds)
    if streams.DIRECT in names:
        figures.append(streams.measure_direct(size, options.rounds))
    figures += streams.measure_log(names, size, options.log_rounds)

    print(f"Python {platform.python_version()}, Linux {platform.release()}, {os.cpu_count()} CPUs")
    print(table([figure.cells() for figure in figures]))
    if options.json:
        found = [figure.as_json() for figure in figures]
        options.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    if set(containers.NAMES) & set(names) and not options.no_trace:
        _print_spans()
    return 1 if any(figure.met is False for figure in figures) else 0


def _print_spans() -> None:
    try:
        rows = containers.where_time_goes()
    except PeerUnavailable as error:
        print(f"\nno trace: {error}")
        return
    print("\nWhere the time of `container run --rm --network none IMAGE true` goes (ms):")
    print(table(rows, ("process", "side", "route", "from", "length")))


if __name__ == "__main__":
    sys.exit(main())
