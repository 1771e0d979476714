"""The rows of standard input and output: bytes through a container, first to last.

Throughput is taken where nothing but the data path is in it: from the moment when the first piece
was taken or seen to that of the last, so that the start of a container is no part of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from attrs import frozen

from benchmarks.bundle import write_bundle
from benchmarks.figures import Figure, Goal
from benchmarks.options import Options
from benchmarks.podman import Podman, open_podman
from benchmarks.system import IMAGE, System, open_system
from benchmarks.worker import PeerUnavailable

PIECE = 1 << 20
DIRECT, DETACHED, ATTACHED = "stdio.direct", "stdio.log.detached", "stdio.log.attached"
NAMES = (DIRECT, DETACHED, ATTACHED)


@frozen
class Command:
    """A command line and its environment."""

    argv: Sequence[str]
    environment: Mapping[str, str]


def measure(names: Sequence[str], options: Options) -> list[Figure]:
    """Measure the rows of these names."""
    size = options.size << 20
    figures = [_measure_direct(size, options.rounds)] if DIRECT in names else []
    logs = [name for name in names if name in (DETACHED, ATTACHED)]
    return figures + [_measure_log(name, size, options.log_rounds) for name in logs]


def _measure_direct(size: int, rounds: int) -> Figure:
    """Return MiB a second through `run --rm -i IMAGE cat >/dev/null`, ours and runc's."""
    ours: list[float] = []
    theirs: list[float] = []
    note = ""
    try:
        with open_system() as system:
            bundle = write_bundle(system, ["cat"])
            cat = system.argv("run", "--rm", "-i", "--network", "none", IMAGE, "cat")
            for number in range(rounds):
                ours.append(_into(Command(cat, system.environment), size))
                theirs.append(_into(Command(bundle.argv(f"bench-{number}"), os.environ), size))
    except PeerUnavailable as error:
        note = str(error)
    return Figure(
        name=DIRECT,
        peer="runc run, same pipe",
        unit="MiB/s",
        ours=tuple(ours[: len(theirs)]),
        theirs=tuple(theirs),
        goal=Goal.AT_LEAST,
        limit=0.95,
        note=note,
    )


def _measure_log(name: str, size: int, rounds: int) -> Figure:
    ours: list[float] = []
    theirs: list[float] = []
    note = ""
    measure = _detached if name == DETACHED else _attached
    within = _memory(2 * size)
    with ExitStack() as stack:
        try:
            system = stack.enter_context(open_system(within=within))
            podman = stack.enter_context(open_podman(system.layout, IMAGE, within))
            for number in range(rounds):
                ours.append(measure(system, f"bench-{number}", size))
                theirs.append(measure(podman, f"bench-{number}", size))
        except PeerUnavailable as error:
            note = str(error)
    return Figure(
        name=name,
        peer=f"podman, its default log{'' if within is None else ', both in memory'}",
        unit="MiB/s",
        ours=tuple(ours[: len(theirs)]),
        theirs=tuple(theirs),
        goal=Goal.AT_LEAST,
        limit=1.5,
        note=note,
    )


def _memory(needed: int) -> str | None:
    """Return a file system in memory with room for `needed` bytes; None if there is none.

    On a disk both sides are as fast as the disk, and the figure says nothing of the logs.
    """
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > needed:
        return str(memory)
    return None


def _into(command: Command, size: int) -> float:
    """Return MiB/s of a writer into a command's standard input.

    The clock starts when the first piece has been taken: it is larger than the pipe, so the command
    reads by then.
    """
    piece = memoryview(bytes(PIECE))
    process = subprocess.Popen(
        command.argv,
        env=command.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stderr is not None
    pipe = process.stdin.fileno()
    try:
        _write(pipe, piece)
        started = time.perf_counter()
        for _ in range(size // PIECE - 1):
            _write(pipe, piece)
        taken = time.perf_counter() - started
    except BrokenPipeError:
        said = process.stderr.read().decode(errors="replace").strip().splitlines() or ["nothing"]
        raise PeerUnavailable(f"{Path(command.argv[0]).name}: {said[-1]}") from None
    finally:
        process.communicate()
    return (size - PIECE) / (1 << 20) / taken


def _write(descriptor: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(descriptor, piece) :]


def _detached(side: System | Podman, name: str, size: int) -> float:
    """Return MiB/s that a detached container's writer saw, by the clock of the writer itself."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        result = Path(folder) / "seconds"
        writer = f"dd if=/dev/zero bs=1M count={size // PIECE} 2>/dev/null"
        line = f"time -f %e -o /bench/part {writer}; mv /bench/part /bench/seconds"
        side.call(
            "run", "--detach", "--name", name, "--network", "none", "--volume", f"{folder}:/bench",
            IMAGE, "sh", "-c", line,
        )  # fmt: skip
        deadline = time.monotonic() + 600
        while not result.exists():
            if time.monotonic() > deadline:
                raise PeerUnavailable("the writer did not end within 600 s")
            # What ends is a process of another system: there is nothing to wait on that both have.
            time.sleep(0.05)
        side.call("rm", "--force", name)
        return size / (1 << 20) / float(result.read_text())


def _attached(side: System | Podman, name: str, size: int) -> float:
    """Return MiB/s that arrive at an attached client while the log is kept."""
    line = ("dd", "if=/dev/zero", "bs=1M", f"count={size // PIECE}")
    process = subprocess.Popen(
        side.argv("run", "--name", name, "--network", "none", IMAGE, *line),
        env=side.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    received = 0
    started = time.perf_counter()
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        while moved := _drain(descriptor, sink):
            if not received:
                started = time.perf_counter()
            received += moved
        taken = time.perf_counter() - started
    finally:
        os.close(sink)
        process.communicate()
    side.call("rm", "--force", name)
    if received != size:
        raise PeerUnavailable(f"{received} of {size} bytes arrived")
    return size / (1 << 20) / taken


def _drain(source: int, sink: int) -> int:
    """Move what is in a pipe to nowhere, without copying it; 0 at its end."""
    return os.splice(source, sink, PIECE)
