"""The row of idle connections: what a server's memory grows by for each, beside a raw socket's.

A server of each kind is started for each round, since memory that was used once is not given back.
Every connection has made one call before it is idle: both sides of it have done all that they will.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import Comparison, Figure, Goal
from benchmarks.options import Options
from benchmarks.worker import PeerUnavailable, open_peer

NAME = "ipc.connection.idle"
NAMES = (NAME,)


def measure(names: Sequence[str], options: Options) -> list[Figure]:
    """Return KiB of resident memory for each connection."""
    ours: list[float] = []
    theirs: list[float] = []
    note = f"{options.idle_connections:,} connections"
    try:
        for _ in range(options.idle_rounds):
            ours.append(_kibibytes("ours", options.idle_connections))
            theirs.append(_kibibytes("raw", options.idle_connections))
    except PeerUnavailable as error:
        note = str(error)
    return [
        Figure(
            name=NAME,
            peer="trio.socket, a task each",
            unit="KiB",
            ours=tuple(ours[: len(theirs)]),
            theirs=tuple(theirs),
            goal=Goal.AT_MOST,
            limit=12,
            comparison=Comparison.DIFFERENCE,
            note=note,
        )
    ]


def _kibibytes(module: str, connections: int) -> float:
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        open_peer(module, Path(folder)) as peer,
    ):
        before = _resident(peer.servers[0])
        served = peer.once("idle", connections)
        if served != connections:
            raise PeerUnavailable(f"{served} of {connections} connections were served")
        return (_resident(peer.servers[0]) - before) / connections


def _resident(process: int) -> int:
    """Return KiB. Source: proc_pid_status(5)."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise PeerUnavailable(f"process {process} has no memory")
