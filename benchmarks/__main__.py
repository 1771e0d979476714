"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attrs import evolve

from benchmarks import (
    bridge,
    calls,
    channels,
    codec,
    containers,
    dns,
    idle,
    memory,
    network_ports,
    spawn,
    streams,
    survival,
)
from benchmarks.figures import Figure, markdown, table
from benchmarks.options import FULL_MEMORY_CALLS, SMOKE, Options
from benchmarks.worker import PeerUnavailable

Measure = Callable[[Sequence[str], Options], Sequence[Figure]]

SUITES: Mapping[tuple[str, ...], Measure] = {
    calls.NAMES: calls.measure,
    channels.NAMES: channels.measure,
    codec.NAMES: codec.measure,
    dns.NAMES: dns.measure,
    idle.NAMES: idle.measure,
    memory.NAMES: memory.measure,
    network_ports.NAMES: network_ports.measure,
    spawn.NAMES: spawn.measure,
    containers.NAMES: containers.measure,
    bridge.NAMES: bridge.measure,
    streams.NAMES: streams.measure,
    survival.NAMES: survival.measure,
}
"""Names of rows, and what measures those of them that are asked for."""
ALL = tuple(name for names in SUITES for name in names)


def main() -> int:
    """Measure what was asked for and print the table; 1 if a goal is missed, 0 otherwise."""
    arguments = _parser().parse_args()
    names = [n for n in ALL if not arguments.name or n.startswith(tuple(arguments.name))]
    if not names:
        _parser().error(f"no such row; there are {', '.join(ALL)}")
    options = SMOKE
    if not arguments.smoke:
        options = Options(size=arguments.size, log_rounds=arguments.log_rounds)
    if arguments.rounds:
        options = evolve(options, rounds=arguments.rounds)
    if arguments.full:
        options = evolve(options, memory_calls=FULL_MEMORY_CALLS)

    figures: list[Figure] = []
    for known, measure in SUITES.items():
        if wanted := [name for name in names if name in known]:
            print(f"measuring {', '.join(wanted)}", file=sys.stderr, flush=True)
            figures += measure(wanted, options)
            # After each, so that what was measured is kept if the rest is interrupted.
            if arguments.json:
                _write(arguments.json, figures)

    print(f"Python {platform.python_version()}, Linux {platform.release()}, {os.cpu_count()} CPUs")
    write = markdown if arguments.markdown else table
    print(write([figure.cells() for figure in figures]))
    if set(containers.NAMES) & set(names) and not arguments.no_trace:
        _print_spans()
    return 1 if any(figure.met is False for figure in figures) else 0


def _parser() -> argparse.ArgumentParser:
    default = Options()
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "name", nargs="*", help=f"a row, or the beginning of some: {', '.join(ALL)}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round there")
    parser.add_argument(
        "--rounds", type=int, help=f"of most rows; default: {default.rounds}, at least 30 to judge"
    )
    parser.add_argument("--log-rounds", type=int, default=default.log_rounds, help="of stdio.log.*")
    parser.add_argument(
        "--size", type=int, default=default.size, help="MiB of stdio.*; default: %(default)s"
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help=f"all {FULL_MEMORY_CALLS:,} calls of ipc.memory.*, not a tenth: some ten minutes",
    )
    parser.add_argument(
        "--smoke", action="store_true", help="two small rounds of each: shows only that it runs"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--no-trace", action="store_true", help="no table of where the time goes")
    return parser


def _write(file: Path, figures: Sequence[Figure]) -> None:
    found = [figure.as_json() for figure in figures]
    file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


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
